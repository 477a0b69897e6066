"""Policy-gradient objectives as rows of one table: their advantages, their loss, and the rows of other frameworks.

Pure functions of arrays and tensors, for tokens as for environments.
"""

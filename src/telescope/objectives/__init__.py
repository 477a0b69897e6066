"""Policy-gradient objectives as rows of one table: their advantages, their loss, and the rows of other frameworks.

All are pure functions of arrays and tensors, for tokens and for environments.
"""

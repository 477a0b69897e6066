"""Agents in environments: environments, networks, rollouts, and the bookkeeping of training loops.

Import the module that you need; this file imports nothing, so that `import telescope.control` is fast.
"""

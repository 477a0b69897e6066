"""Agents on environments: environments and their autoreset, rollouts, networks, the population of seeds.

This package file imports nothing, so that `import telescope.control` stays cheap; import the module you need.
"""

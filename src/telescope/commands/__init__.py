"""The commands of the command line, one file each: `train`, `eval` and `plot`.

Flags are made from dataclasses. What a run is, and how an algorithm works, stands elsewhere.
"""

"""The commands of the command line, one file each: `train`, `eval` and `plot`.

Flags are made from dataclasses. Leaves out run folders (`runs/`) and algorithms (`algorithms/`).
"""

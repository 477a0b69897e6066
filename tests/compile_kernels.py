"""Compile the Triton kernels for an H200 without one, and print the names of those that came out as they should."""

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from telescope.recurrence import triton_kernels as kernels

FIXED = {"FORWARDS": True, "SPLIT": False, "REDUCE": False, "COUNT": 1, "SEGMENTS": 32, "BLOCK": 16}
FIXED |= {"TIME_FIRST": False, "EVEN": False, "STAGES": 3, "carries": None, "mask": None}


def kind(name: str) -> str:
    if name in ("terminated", "truncated"):
        return "*i1"
    if name in ("gamma", "decay", "returns_decay"):
        return "fp64"
    whole = name in ("steps", "columns", "tiles") or name.endswith(("_step", "_stride"))
    return "i32" if whole else "*fp32"


for kernel in kernels.recurrence, kernels.gae:
    constants = {name: FIXED[name] for name in kernel.arg_names if name in FIXED}
    kinds = {name: kind(name) for name in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    binary = compile(ASTSource(kernel, kinds, places), target=GPUTarget("cuda", 90, 32))
    assert "cp.async" in binary.asm["ptx"], "tiles are loaded ahead of their use"
    print(kernel.__name__)

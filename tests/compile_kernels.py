"""Compile the Triton kernels for an H200 without one, and print the names of those that came out as they should."""

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from telescope.recurrence import triton as kernels

FIXED = {"FORWARDS": True, "DOUBLE": False, "SPLIT": False, "REDUCE": False, "COUNT": 1, "BLOCK_T": 64, "BLOCK_C": 16}
FIXED |= {"carries": None, "mask": None}


def kind(name: str) -> str:
    if name in ("terminated", "truncated"):
        return "*i1"
    if name in ("gamma", "decay", "returns_decay"):
        return "fp32"
    whole = name in ("steps", "columns", "tiles") or name.endswith(("_step", "_stride"))
    return "i32" if whole else "*fp32"


for kernel in kernels._recurrence_kernel, kernels._gae_kernel:
    constants = {name: FIXED[name] for name in kernel.arg_names if name in FIXED}
    kinds = {name: kind(name) for name in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    binary = compile(ASTSource(kernel, kinds, places), target=GPUTarget("cuda", 90, 32))
    assert "cp.async" in binary.asm["ptx"], "tiles are loaded ahead of their use"
    print(kernel.__name__)

"""Arrays of the caller to write results into: their checks, and the note for autograd.

Leaves out writing.
"""

import sys

import numpy as np

from telescope import arrays
from telescope.arrays import Array
from telescope.estimators.steps import Steps

Pair = tuple[Array, Array]


def check_out(steps: Steps, out: Pair, differentiable: bool) -> Pair:
    """The arrays to write into, as views with time first. Checks that nothing is cast and no input overwritten."""
    if differentiable:
        raise ValueError("out is given, but differentiable is True; a gradient cannot be written in place")
    if arrays.is_jax(steps.reference):
        raise ValueError("out is given, but a JAX array cannot be written in place; leave it out")
    if not isinstance(out, tuple | list) or len(out) != 2:
        raise ValueError("out must be a pair of arrays, for advantages and returns")
    read = (*steps.floats.values(), *steps.flags.values(), *steps.discounts.values(), steps.mask)
    used = [array for array in read if hasattr(array, "shape")]
    for name, array in (("out[0]", out[0]), ("out[1]", out[1])):
        arrays.check_neighbour("values", steps.reference, name, array)
        arrays.check_shape(name, array, tuple(steps.reference.shape), "the result is")
        if getattr(array, "requires_grad", False):
            raise ValueError(f"{name} requires a gradient, which writing would make wrong; pass a tensor without one")
        if array.dtype != arrays.working_dtype(steps.reference):
            expected = arrays.working_dtype(steps.reference)
            raise ValueError(f"{name} has dtype {array.dtype}; expected {expected}")
        view = steps.inside(arrays.detached(array))
        repeated = any(n > 1 and step == 0 for n, step in zip(array.shape, _strides(array), strict=True))
        if repeated and 0 not in array.shape:
            raise ValueError(
                f"{name} repeats its memory, as an expanded array does; pass one with separate memory for each number"
            )
        if steps.xp is np and not view.flags.writeable:
            raise ValueError(f"{name} is read-only")
        if any(_overlap(view, other) for other in used):
            raise ValueError(
                f"{name} shares memory with an input or the other result; pass an array with its own memory"
            )
        used.append(view)
    return used[-2], used[-1]


def count_as_written(tensors: Pair) -> None:
    """Tell autograd about the write, so that it refuses a backward pass that needs the former content."""
    torch = sys.modules["torch"]
    if not torch.compiler.is_compiling():  # the compiler sees writes itself
        torch.autograd.graph.increment_version(tensors)


def _strides(array: Array) -> tuple[int, ...]:
    """The strides along each axis, in the library's own unit."""
    strides: tuple[int, ...] = array.strides if isinstance(array, np.ndarray) else array.stride()
    return strides


def _overlap(one: Array, other: Array) -> bool:
    """Whether two arrays share memory: exact for NumPy; for tensors, whether their address ranges overlap."""
    if isinstance(one, np.ndarray):
        return np.may_share_memory(one, other) and np.shares_memory(one, other)
    if sys.modules["torch"].compiler.is_compiling():  # tensors have no addresses while compiling
        return False
    (low, high), (other_low, other_high) = _span(one), _span(other)
    return low < other_high and other_low < high


def _span(array: Array) -> tuple[int, int]:
    last = sum((n - 1) * stride for n, stride in zip(array.shape, array.stride(), strict=True))
    return array.data_ptr(), array.data_ptr() + (last + 1) * array.element_size() if array.numel() else array.data_ptr()

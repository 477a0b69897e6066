"""A shortcut into GAE for simple valid calls, because the full checks take longer than a small kernel.

It knows no rule of its own and refuses nothing: its answer is a result, or None for "ask the door" (`steps.py`),
where all rules are. So whatever is unusual, and whatever is wrong, goes through there. It serves the bars of
docs/benchmarks for small arrays and the cost of a call, which the door misses: for 2 × 2 NumPy arrays 15 µs, not 5;
with `out=` 26, not 7; for tensors 42, not 13.
"""

import sys
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from telescope import torch_func
from telescope.arrays import Array
from telescope.estimators.output import count_as_written
from telescope.recurrence import cpu

Pair = tuple[Array, Array]
Three = tuple[Any, Any, Any]

SINGLE, DOUBLE, BOOLEAN = np.dtype("f4"), np.dtype("f8"), np.dtype("?")


def gae(floats: Three, flags: Three, discounts: Three, axis: Any, out: Any) -> Pair | None:
    """Advantages and returns of rewards, values, next_values; terminated, truncated, mask; γ, λ, the returns' λ."""
    gamma, lam, returns_lam = discounts
    if not (type(gamma) is type(lam) is type(returns_lam) is float and type(axis) is int):
        return None
    if not (0 <= gamma <= 1 and 0 <= lam <= 1 and 0 <= returns_lam <= 1):
        return None
    if out is not None and not (type(out) is tuple and len(out) == 2):
        return None
    decays = gamma, gamma * lam, gamma * returns_lam
    if type(floats[1]) is np.ndarray:
        return _on_arrays(floats, flags, decays, axis, out)
    torch = sys.modules.get("torch")
    if torch is None or type(floats[1]) is not torch.Tensor or torch.compiler.is_compiling():
        return None
    return _on_tensors(torch, floats, flags, decays, axis, out)


def _on_arrays(floats: Three, flags: Three, decays: Three, axis: int, out: Pair | None) -> Pair | None:
    """Whether arrays are contiguous and of one shape, with floats of one dtype and boolean flags."""
    values = floats[1]
    shape, dtype = values.shape, values.dtype
    if not ((dtype is SINGLE or dtype is DOUBLE) and _fits(axis, len(shape))):
        return None
    for array in floats:
        if not (_plain(array, shape) and array.dtype is dtype):
            return None
    for array in flags:
        if not (array is None or (_plain(array, shape) and array.dtype is BOOLEAN)):
            return None
    if out is None:
        out = np.empty(shape, dtype), np.empty(shape, dtype)
    elif not _may_be_written(out, (*floats, *flags), shape, dtype):
        return None
    if 0 in shape:
        return out
    planes: Any = (*floats, *flags, *out)
    if axis == 1:
        planes = [None if array is None else array.T for array in planes]
    elif len(shape) != 2:
        planes = [None if array is None else array.reshape(shape[0], -1) for array in planes]
    cpu.gae_plane(
        planes[:3], planes[3:6], decays, planes[6:], "columns" if axis == 1 or planes[1].shape[1] == 1 else "rows"
    )
    return out


def _fits(axis: int, dimensions: int) -> bool:
    return dimensions == 2 if axis == 1 else axis == 0 < dimensions


def _plain(array: Any, shape: tuple[int, ...]) -> bool:
    return type(array) is np.ndarray and array.shape == shape and array.flags.carray


def _may_be_written(out: Pair, read: tuple[Any, ...], shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether outputs certainly match the values, and share no memory with inputs or each other."""
    for array in out:
        if not (_plain(array, shape) and array.dtype is dtype):
            return False
        for other in read:
            if other is not None and not _apart(array, other):
                return False
    return _apart(*out)


def _apart(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays certainly share no memory: an owner shares memory only with views, and a view has a base."""
    if other is one:
        return False
    return (other.base is None and one.flags.owndata) or not np.may_share_memory(one, other)


def _on_tensors(torch: Any, floats: Three, flags: Three, decays: Three, axis: int, out: Pair | None) -> Pair | None:
    """Dense tensors on one device. On the CPU they become NumPy views; on CUDA they stay tensors."""
    values = floats[1]
    if values.is_cuda and out is None:
        found = _recurrence().gae_again(floats, flags, decays, axis)
        if found is not None:
            return found  # type: ignore[no-any-return]
    known = values.is_cuda or (values.is_cpu and values.dtype in (torch.float32, torch.float64))
    if not known or torch_func.transforming():
        return None
    device, tensors = values.device, (*floats, *flags, *(out or ()))
    for array in tensors:
        if array is not None and not (type(array) is torch.Tensor and array.device == device):
            return None
        if array is not None and (array.requires_grad or array.layout is not torch.strided):
            return None
    if values.is_cuda:
        return _on_cuda(torch, tensors, decays, axis)
    try:
        views: Any = [None if array is None else array.numpy() for array in tensors]
    except (RuntimeError, TypeError):  # nested, quantised, lazily negated, …
        return None
    found = _on_arrays(views[:3], views[3:6], decays, axis, views[6:] if out else None)
    if found is None:
        return None
    return _told(out) if out else (torch.from_numpy(found[0]), torch.from_numpy(found[1]))


def _on_cuda(torch: Any, tensors: tuple[Any, ...], decays: Three, axis: int) -> Pair | None:
    """GAE on CUDA. The kernel reads every layout and real dtype, so nothing is read, converted or waited for here."""
    rewards, values, next_values, *flags = tensors[:6]
    if rewards is None or next_values is None:
        return None
    shape, dtype = values.shape, values.dtype
    wide = torch.float32 if dtype is torch.float16 or dtype is torch.bfloat16 else dtype
    if not (_fits(axis, len(shape)) and (wide is torch.float32 or wide is torch.float64)):
        return None
    if rewards.shape != shape or rewards.is_complex() or next_values.shape != shape or next_values.dtype is not dtype:
        return None
    for array in flags:
        if not (array is None or (array.shape == shape and array.dtype is torch.bool)):
            return None
    out = tensors[6:] or (torch.empty_like(values, dtype=wide), torch.empty_like(values, dtype=wide))
    if tensors[6:] and not _ranges_apart(out, tensors, shape, wide):
        return None
    fresh = not tensors[6:]
    if not _recurrence().gae_on_cuda(tensors[:3], tensors[3:6], decays, out, axis, fresh=fresh):
        return None
    return out if fresh else _told(out)


def _told(out: Pair) -> Pair:
    count_as_written(out)
    return out


@cache
def _recurrence() -> ModuleType:
    from telescope.recurrence import torch

    return torch


def _ranges_apart(out: Pair, tensors: tuple[Any, ...], shape: Any, dtype: Any) -> bool:
    """`_may_be_written` for tensors: True if each fills a range of addresses and no two ranges overlap."""
    if not all(array.shape == shape and array.dtype is dtype for array in out):
        return False
    if not all(array is None or array.is_contiguous() for array in tensors):
        return False
    starts = [(array.data_ptr(), array.nbytes) for array in tensors if array is not None]
    *read, first, second = ((start, start + length) for start, length in starts)
    return all(_disjoint(first, other) and _disjoint(second, other) for other in read) and _disjoint(first, second)


def _disjoint(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[1] <= other[0] or other[1] <= one[0]

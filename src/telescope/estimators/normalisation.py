"""Normalisation of advantages, an operation of its own: it happens where the caller says so.

It leaves out running statistics, which need a state; those of observations and rewards are the environments'.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from telescope import arrays
from telescope.arrays import Array


def whiten(
    x: Array,
    *,
    mask: Array | None = None,
    axis: int | Sequence[int] | None = None,
    biased: bool = True,
    eps: float = 1e-8,
    scale_only: bool = False,
    differentiable: bool = False,
) -> Array:
    """(x − mean) / (std + eps) over the live entries.

    Args:
        x: an array of any shape.
        mask: of the same shape, True counts; masked entries give 0 and, NaN or not, are not read.
        axis: the axes the statistics are taken over. None: all, one mean and one std; 0 on [T, B]: one of
            each per environment.
        biased: divide the sum of squares by n (True) or by n − 1 (Bessel).
        eps: added to the standard deviation.
        scale_only: x / (std + eps), the mean stays.
        differentiable: let gradients through (torch).

    Returns:
        An array like x; float32 where that is half precision. A single entry, or equal ones, give 0 (with
        `scale_only`, x / eps). On a tensor it consists of torch operations without a branch on data, so it
        works under torch.compile and torch.func.vmap, given a boolean mask.

    Raises:
        ValueError: names the argument, what came and the likely fix. TypeError: neither numpy nor torch.
    """
    xp = arrays.check_alike(x=x, mask=mask)
    arrays.check_float("x", x)
    axes = _axes(axis, x.ndim)
    if differentiable and xp is np:
        raise ValueError("differentiable is True, but x is a numpy array; gradients need torch tensors")
    if not eps >= 0:
        raise ValueError(f"eps is {eps}; expected a number that is not negative")
    x = arrays.to_dtype("x", x, arrays.working_dtype(x), differentiable)
    live = arrays.to_bool("mask", mask)

    def alive(array: Array) -> Array:  # a select: what is masked may be NaN
        return array if live is None else xp.where(live, array, 0.0)

    def total(array: Array) -> Array:
        return xp.sum(array, axis=axes, keepdims=True)

    n = total(alive(xp.ones_like(x)))
    some = xp.clip(n, 1, None)
    mean = total(alive(x)) / some
    # The rounding of that mean, taken out: without this, equal numbers would whiten to ±1 instead of 0.
    mean = mean + total(alive(x - mean)) / some
    variance = total(alive((x - mean) ** 2)) / xp.clip(n if biased else n - 1, 1, None)
    # The root of 0 has no finite slope; where all numbers are equal it is a constant.
    spread = xp.where(variance > 0, xp.sqrt(xp.where(variance > 0, variance, 1.0)), 0.0)
    return alive((x if scale_only else x - mean) / (spread + eps))


def _axes(axis: int | Sequence[int] | None, dimensions: int) -> tuple[int, ...]:
    """The axes to sum over, counted from the front."""
    if axis is None:
        return tuple(range(dimensions))
    chosen: Any = (axis,) if isinstance(axis, int) else tuple(axis)
    return tuple(arrays.checked_axis(a, dimensions) for a in chosen)

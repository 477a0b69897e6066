"""Normalisation of advantages, an operation of its own: it happens where the caller says so.

It leaves out running statistics, which need a state; those of observations and rewards are the environments'.
"""

import sys
from collections.abc import Sequence
from types import ModuleType
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
    eps_inside: bool = False,
    scale_only: bool = False,
    group: Any = None,
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
        eps_inside: add eps to the variance instead, (x − mean) / √(variance + eps).
        scale_only: x / (std + eps), the mean stays.
        group: a torch.distributed process group; the statistics are then those of the entries of all its ranks
            together, as if they lay side by side along one of the axes. One small message per rank; ranks may
            hold different numbers of entries, or none. `torch.distributed.group.WORLD` is all ranks.
        differentiable: let gradients through (torch).

    Returns:
        An array like x; float32 where that is half precision. A single entry, or equal ones, give 0 (with
        `scale_only`, x / eps). On a tensor it consists of torch operations without a branch on data, so it
        works under torch.compile and torch.func.vmap, given a boolean mask and no process group.

    Raises:
        ValueError: names the argument, what came and the likely fix.
    """
    xp, numbers, live = entered("x", x, mask, differentiable)
    axes = _axes(axis, x.ndim)
    arrays.check_not_negative("eps", eps)
    for option, value in (("biased", biased), ("eps_inside", eps_inside), ("scale_only", scale_only)):
        arrays.check_switch(option, value)
    n, mean, squares = moments(xp, numbers, live, axes)
    if group is not None:
        n, mean, squares = _over_ranks(xp, (n, mean, squares), group, differentiable)
    variance = squares / xp.clip(n if biased else n - 1, 1, None)
    deviation = _root(xp, variance + eps) if eps_inside else _root(xp, variance) + eps
    return alive(xp, live, (numbers if scale_only else numbers - mean) / deviation)


def entered(name: str, x: Array, mask: Array | None, differentiable: bool) -> tuple[ModuleType, Array, Array | None]:
    """The library, the numbers in working precision and the mask as booleans; all checks are made here."""
    xp = arrays.check_alike(**{name: x, "mask": mask})
    arrays.check_float(name, x)
    arrays.check_switch("differentiable", differentiable)
    if differentiable and xp is np:
        raise ValueError(
            f"differentiable is True, but {name} is a numpy array; gradients need torch tensors or JAX arrays"
        )
    numbers = arrays.to_dtype(name, x, arrays.working_dtype(x), differentiable)
    return xp, numbers, arrays.to_bool("mask", mask)


def alive(xp: ModuleType, live: Array | None, array: Array) -> Array:
    """The array where it counts, 0 elsewhere: a select, since what is masked may be NaN."""
    return array if live is None else xp.where(live, array, 0.0)


def moments(xp: ModuleType, x: Array, live: Array | None, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Number, mean and sum of squared distances from the mean, of the live entries along the axes."""

    def total(array: Array) -> Array:
        return xp.sum(alive(xp, live, array), axis=axes, keepdims=True)

    n = total(xp.ones_like(x))
    some = xp.clip(n, 1, None)
    mean = total(x) / some
    # The rounding of that mean, taken out: without this, equal numbers would whiten to ±1 instead of 0.
    mean = mean + total(x - mean) / some
    return n, mean, total((x - mean) ** 2)


def _over_ranks(
    xp: ModuleType, own: tuple[Array, Array, Array], group: Any, differentiable: bool
) -> tuple[Array, Array, Array]:
    """The moments of all ranks' entries from those of each rank (Chan et al. 1979), by one exchange."""
    torch = sys.modules.get("torch")
    if torch is None or xp is not torch:
        raise ValueError(f"group is given, but x is an array of {xp.__name__}; process groups exchange torch tensors")
    if not isinstance(group, torch.distributed.ProcessGroup):
        raise ValueError(f"group is {group!r}; expected a torch.distributed process group that this rank is in")
    if differentiable:
        raise ValueError("differentiable is True, but group is given; no gradient flows between ranks")
    message = torch.stack(own)
    every = [torch.empty_like(message) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(every, message, group=group)
    counts, means, sums = torch.stack(every).unbind(1)
    n = counts.sum(0)
    some = n.clip(1)
    mean = (counts * means).sum(0) / some
    mean = mean + (counts * (means - mean)).sum(0) / some  # as above: equal numbers on all ranks give 0
    return n, mean, (sums + counts * (means - mean) ** 2).sum(0)


def _root(xp: ModuleType, square: Array) -> Array:
    """√square. The root of 0 has no finite slope; where all numbers are equal it is a constant."""
    return xp.where(square > 0, xp.sqrt(xp.where(square > 0, square, 1.0)), 0.0)


def _axes(axis: int | Sequence[int] | None, dimensions: int) -> tuple[int, ...]:
    """The axes to sum over, counted from the front."""
    if axis is None:
        return tuple(range(dimensions))
    chosen = tuple(axis) if isinstance(axis, tuple | list) else (axis,)
    axes = tuple(arrays.checked_axis(a, dimensions) for a in chosen)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis is {axis}, which names one axis twice")
    return axes

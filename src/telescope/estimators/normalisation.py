"""Normalisation of advantages, as a separate operation that the caller decides on.

Leaves out running statistics, which need a state (`control/experience/normalisation.py`).
"""

import math
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from telescope import arrays
from telescope.arrays import Array
from telescope.quiet import quiet


@quiet
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
        mask: of the same shape, True counts. Masked entries give 0 and are not read, even if NaN.
        axis: the axes to compute the statistics over. None: the whole array. 0 on [T, B]: per environment.
        biased: divide the sum of squares by n (True) or by n − 1 (Bessel).
        eps: added to the standard deviation.
        eps_inside: add eps to the variance instead, (x − mean) / √(variance + eps).
        scale_only: x / (std + eps), without subtracting the mean.
        group: a torch.distributed process group. The statistics are then those of the entries of all its ranks, as if
            they were concatenated along one of the axes. Each rank sends one small message; ranks may hold different
            numbers of entries, or none. `torch.distributed.group.WORLD` is all ranks.
        differentiable: let gradients through (torch).

    Returns:
        An array like x; float32 if that is half precision. A single entry, or equal ones, give 0, also with eps 0
        (with `scale_only` and another eps, x / eps). On a tensor it uses torch operations without a branch on data, so
        it works under torch.compile and torch.func.vmap, with a boolean mask and without a process group.

    Raises:
        ValueError: names the argument, what came and the likely fix.
    """
    xp, numbers, live = entered("x", x, mask, differentiable)
    axes = _axes(axis, x.ndim)
    arrays.check_not_negative("eps", eps)
    for option, value in (("biased", biased), ("eps_inside", eps_inside), ("scale_only", scale_only)):
        arrays.check_switch(option, value)
    found = moments(xp, numbers, live, axes)
    if group is not None:
        found = _over_ranks(xp, found, numbers, group, differentiable)
    deviation = found.deviation(xp, found.n if biased else found.n - 1)
    if eps_inside and 0 < eps < math.inf:
        deviation = _hypotenuse(xp, deviation, math.sqrt(eps) / 2)
    else:
        deviation = deviation + eps / 2
    numerator = numbers / 2 if scale_only else found.distances
    if eps > 0:
        return alive(xp, live, numerator / deviation)
    none = deviation == 0  # equal entries
    return alive(xp, live, xp.where(none, 0.0, numerator / xp.where(none, 1.0, deviation)))


def entered(name: str, x: Array, mask: Array | None, differentiable: bool) -> tuple[ModuleType, Array, Array | None]:
    """The library, the numbers in working precision and the mask as booleans, after all checks."""
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
    """The array where it counts, 0 elsewhere: a select, because masked entries may be NaN."""
    return array if live is None else xp.where(live, array, 0.0)


class Moments(NamedTuple):
    """Moments of the live entries, halved because the distance of two numbers can overflow.

    If all entries are equal, the mean is exactly their value, and distances are exactly 0.
    """

    n: Array
    mean: Array  # half of the mean
    distances: Array  # (x − mean) / 2, of the shape of x; 0 where masked
    scale: Array  # half of largest − smallest
    squares: Array  # Σ (distance / scale)²: scaled, so that squares neither overflow nor vanish

    def deviation(self, xp: ModuleType, n: Array) -> Array:
        """Half of √(Σ (x − mean)² / n), with n at least 1."""
        variance = self.squares / xp.clip(n, 1, None)
        # the root of 0 has no finite slope; if all entries are equal, the remaining product is 0
        return self.scale * xp.sqrt(xp.clip(variance, _tiny(xp, variance), None))


def moments(xp: ModuleType, x: Array, live: Array | None, axes: tuple[int, ...]) -> Moments:
    """The moments of the live entries along the axes, which keep length 1."""

    def total(array: Array) -> Array:
        return xp.sum(array, axis=axes, keepdims=True)

    if 0 in x.shape:
        nothing = total(x)
        return Moments(nothing, nothing, x, nothing, nothing)
    n = _count(xp, x, live, axes)
    share = 1 / xp.clip(n, 1, None)
    fixed = arrays.detached(x)  # no gradient: the mean does not depend on the origin, nor the variance on the unit
    smallest = xp.amin(fixed if live is None else xp.where(live, fixed, math.inf), axis=axes, keepdims=True) / 2
    above = alive(xp, live, x / 2 - smallest)
    mean = total(above * share)
    if xp.__name__ != "torch":  # torch does not sum long columns one by one
        mean = mean + total(alive(xp, live, above - mean) * share)
    distances = alive(xp, live, above - mean)
    scale = xp.clip(xp.amax(arrays.detached(above), axis=axes, keepdims=True), _tiny(xp, x), None)
    squares = total((distances / scale) ** 2)
    return Moments(n, smallest + mean, distances, scale, squares)


def _tiny(xp: ModuleType, x: Array) -> float:
    """The smallest normal number of the dtype."""
    return float(xp.finfo(x.dtype).tiny)


def _count(xp: ModuleType, x: Array, live: Array | None, axes: tuple[int, ...]) -> Array:
    if live is None:
        return arrays.scalar(math.prod(x.shape[axis] for axis in axes), x)
    return arrays.to_dtype("mask", xp.sum(live, axis=axes, keepdims=True), x.dtype)


def _over_ranks(xp: ModuleType, own: Moments, x: Array, group: Any, differentiable: bool) -> Moments:
    """The moments of all ranks' entries from those of each rank (Chan et al. 1979), by one exchange."""
    torch = sys.modules.get("torch")
    if torch is None or xp is not torch:
        raise ValueError(f"group is given, but x is an array of {xp.__name__}; process groups exchange torch tensors")
    if not isinstance(group, torch.distributed.ProcessGroup):
        raise ValueError(f"group is {group!r}; expected a torch.distributed process group that this rank is in")
    if differentiable:
        raise ValueError("differentiable is True, but group is given; no gradient flows between ranks")
    message = torch.stack(torch.broadcast_tensors(own.n, own.mean, own.scale, own.squares))
    every = [torch.empty_like(message) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(every, message, group=group)
    counts, means, scales, squares = torch.stack(every).unbind(1)
    n = counts.sum(0)
    # relative to the smallest, as above: if all ranks have the same mean, the result is exactly that
    smallest = torch.where(counts > 0, means, torch.inf).amin(0)
    above = torch.where(counts > 0, means - smallest, 0.0)
    mean = (above * (counts / n.clip(1))).sum(0)
    scale = torch.maximum(scales, above).amax(0)
    squares = (squares * (scales / scale) ** 2 + counts * ((above - mean) / scale) ** 2).sum(0)
    return Moments(n, smallest + mean, x / 2 - smallest - mean, scale, squares)


def _hypotenuse(xp: ModuleType, one: Array, other: float) -> Array:
    """√(one² + other²) without squares that overflow, and with a finite slope at 0."""
    larger = xp.clip(arrays.detached(one), other, None)
    return larger * xp.sqrt((one / larger) ** 2 + (other / larger) ** 2)


def _axes(axis: int | Sequence[int] | None, dimensions: int) -> tuple[int, ...]:
    """The axes to sum over, counted from the front."""
    if axis is None:
        return tuple(range(dimensions))
    chosen = tuple(axis) if isinstance(axis, tuple | list) else (axis,)
    if not chosen:
        raise ValueError(f"axis is {axis}, which names no axis; pass None for all axes")
    axes = tuple(arrays.checked_axis(a, dimensions) for a in chosen)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis is {axis}, which names one axis twice; name each axis once")
    return axes

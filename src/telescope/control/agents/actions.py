"""Map drawn actions to a Box's bounds: by clipping, rescaling or squashing.

Stored actions and log-probabilities are those of the draw. Each map is fixed, so its Jacobian is the same under the old
and the new policy and cancels in their ratio.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from telescope.arrays import Array
from telescope.control.environments.spaces import PackedActions

Bound = Callable[[Array], Array]
FARTHEST = 10.0
"""The initial policy takes long to reach a bound that is more than this many standard deviations away."""
INSIDE = 1 - 2.0**-24
"""The last float32 below 1, whose atanh is finite."""
NEAR = 0.999
"""How near to its bound a squashed action of a demonstration is taken."""
LEAST_INSIDE = 0.4
"""If a smaller share of the initial policy's draws lies within the bounds, most actions are clipped."""


def bounding(space: gym.Space, how: str = "clip", device: Any = None) -> Bound:
    """Return the function from drawn actions to the environment's; the identity if the space is not a Box.

    "clip" clips to the bounds. "rescale" maps -1 … 1 onto the bounds and then clips. "squash" applies tanh first and
    never clips; a number with one bound is that bound ± log(1 + eˣ). A number without a bound stays as drawn. "stretch"
    is "squash" of draws that are squashed already. A Box of whole numbers gets the nearest one. Of a Dict or Tuple each
    Box is mapped. With a `device` the function maps tensors there.
    """
    boxes = _boxes(space)
    if not boxes:
        if how == "clip":
            return lambda actions: actions
        raise ValueError(f"action_bounds is {how!r}, but the action space is {space}; only a Box has bounds to map to")
    if not isinstance(space, PackedActions):
        return _bounding(boxes[0][1], how, device)
    maps = [(columns, box.shape, _bounding(box, how)) for columns, box in boxes]

    def each(actions: np.ndarray) -> np.ndarray:
        rows = np.array(actions, np.float64)
        for columns, shape, bound in maps:
            own = actions[..., columns]
            rows[..., columns] = bound(own.reshape((*own.shape[:-1], *shape))).reshape(own.shape)
        return rows

    return each


def _bounding(space: gym.spaces.Box, how: str, device: Any = None) -> Bound:
    xp: Any = np if device is None else importlib.import_module("torch")

    def placed(*constants: np.ndarray) -> Any:
        return constants if device is None else [xp.as_tensor(x, device=device) for x in constants]

    below, above = np.isfinite(space.low), np.isfinite(space.high)
    bounded, half_bounded = bool((below & above).all()), below ^ above
    low, high, beneath, both, one = placed(space.low, space.high, below, below & above, half_bounded)

    def clip(actions: Array) -> Array:
        return xp.minimum(xp.maximum(actions, low), high)

    def rounded(actions: Array) -> Array:
        return clip(xp.round(actions))

    within = clip if space.dtype.kind == "f" else rounded  # type: ignore[union-attr]
    if how == "clip":
        return within
    ends = ((below, space.low), (above, space.high))
    least, most = placed(*(np.where(known, x, 0.0).astype(np.float64) for known, x in ends))
    middle, half = least / 2 + most / 2, most / 2 - least / 2
    if how in ("rescale", "stretch") and bounded:
        return lambda actions: within(middle + half * actions)
    if how == "rescale":
        return lambda actions: within(xp.where(both, middle + half * actions, actions))

    def mapped(squashed: Array, drawn: Array) -> Array:
        distance = xp.logaddexp(xp.zeros_like(drawn), drawn)
        beside = xp.where(one, xp.where(beneath, least + distance, most - distance), drawn)
        return within(xp.where(both, middle + half * squashed, beside))

    if how == "squash":
        if bounded:
            return lambda actions: within(middle + half * xp.tanh(actions))  # rounding may exceed a bound by a bit
        return lambda actions: mapped(xp.tanh(actions), actions)
    return lambda actions: mapped(actions, xp.arctanh(xp.clip(actions, -INSIDE, INSIDE)))


def unbounding(space: gym.Space, how: str = "clip") -> Bound:
    """The function from an environment's actions to draws that `bounding` maps to them.

    Squashed actions are taken up to `NEAR` of the way to their bounds, because a bound itself is infinitely far.
    """
    boxes = _boxes(space)
    if how == "clip" or not boxes:
        return lambda actions: actions

    def back(actions: np.ndarray) -> np.ndarray:
        rows = np.array(actions, np.float64)
        for columns, box in boxes:
            own = rows[..., columns] if isinstance(space, PackedActions) else rows
            shape = own.shape[:-1] + box.shape if isinstance(space, PackedActions) else own.shape
            drawn = _drawn(box, own.reshape(shape), how).reshape(own.shape)
            if not isinstance(space, PackedActions):
                return drawn
            rows[..., columns] = drawn
        return rows

    return back


def _drawn(space: gym.spaces.Box, actions: np.ndarray, how: str) -> np.ndarray:
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    below, above = np.isfinite(low), np.isfinite(high)
    least, most = np.where(below, low, -1.0), np.where(above, high, 1.0)
    share = (actions - (least / 2 + most / 2)) / np.maximum(most / 2 - least / 2, 1e-300)  # −1 … 1
    if how == "rescale":
        return np.where(below & above, share, actions)
    distance = np.maximum(np.where(below, actions - least, most - actions), 1 - NEAR)
    beside = np.where(below ^ above, distance + np.log(-np.expm1(-distance)), actions)  # log(eᵈ − 1)
    return np.where(below & above, np.arctanh(np.clip(share, -NEAR, NEAR)), beside)


def _boxes(space: gym.Space) -> list[tuple[slice, gym.spaces.Box]]:
    """The Boxes in an action space, and their columns in a row of actions."""
    if isinstance(space, PackedActions):
        return [
            (slice(part.start, part.start + part.entries), part.space)
            for part in space.parts
            if isinstance(part.space, gym.spaces.Box)
        ]
    return [(slice(None), space)] if isinstance(space, gym.spaces.Box) else []


def scale_note(space: gym.Space, log_std: float) -> str:
    """A sentence if the initial policy N(0, σ²) does not match the bounds of a Box; otherwise empty."""
    std = math.exp(min(log_std, 700.0))
    boxes = [box for _, box in _boxes(space)]
    bounds = [pair for box in boxes for pair in _bounds(box)]
    inside = [_share_inside(low / std, high / std) for low, high in bounds]
    reach = [max(abs(x) / std for x in pair if math.isfinite(x)) for pair in bounds if any(map(math.isfinite, pair))]
    if min(inside, default=1.0) >= LEAST_INSIDE and max(reach, default=0.0) <= FARTHEST:
        return ""
    maps = "wrap the environment so that both match"
    if all(box.is_bounded("both") for box in boxes):
        maps = "--action-bounds rescale (or squash) maps -1 to 1 onto them"
    return (
        f"actions lie in {space}, but the policy begins with mean 0 and standard deviation {std:.3g}, and its draws "
        f"are clipped to the bounds; {maps}"
    )


def _bounds(space: gym.spaces.Box) -> list[tuple[float, float]]:
    return [(float(low), float(high)) for low, high in zip(space.low.flat, space.high.flat, strict=True)]


def _share_inside(low: float, high: float) -> float:
    return (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2


def space_note(config: Any, space: gym.Space) -> str:
    """`scale_note` if the config has a Gaussian policy and clips its actions."""
    return scale_note(space, config.log_std) if getattr(config, "action_bounds", "") == "clip" else ""

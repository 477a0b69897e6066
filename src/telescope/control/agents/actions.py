"""Map drawn actions to a Box's bounds: by clipping, rescaling or squashing.

Stored actions and log-probabilities are those of the draw. Each map is fixed, so its Jacobian is the same under the old
and the new policy and cancels in their ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

Bound = Callable[[np.ndarray], np.ndarray]
FARTHEST = 10.0
"""The initial policy takes long to reach a bound that is more than this many standard deviations away."""
LEAST_INSIDE = 0.4
"""If a smaller share of the initial policy's draws lies within the bounds, most actions are clipped."""


def bounding(space: gym.Space, how: str = "clip") -> Bound:
    """Return the function from drawn actions to the environment's; the identity if the space is not a Box.

    "clip" clips to the bounds. "rescale" maps -1 … 1 onto the bounds and then clips. "squash" applies tanh first and
    never clips. The last two raise a ValueError for a Box without bounds.
    """
    if how == "clip" and not isinstance(space, gym.spaces.Box):
        return lambda actions: actions
    if not isinstance(space, gym.spaces.Box):
        raise ValueError(f"action_bounds is {how!r}, but the action space is {space}; only a Box has bounds to map to")
    low, high = space.low, space.high

    def clip(actions: np.ndarray) -> np.ndarray:
        return np.minimum(np.maximum(actions, low), high)

    if how == "clip":
        return clip
    middle, half = _middle_and_half(space, how)
    if how == "rescale":
        return lambda actions: clip(middle + half * actions)
    return lambda actions: clip(middle + half * np.tanh(actions))  # rounding may exceed a bound by a bit


def _middle_and_half(space: gym.spaces.Box, how: str) -> tuple[np.ndarray, np.ndarray]:
    if not space.is_bounded("both"):
        raise ValueError(
            f"action_bounds is {how!r}, but the action space {space} is not bounded on all sides; "
            "use 'clip', or wrap the environment in gymnasium.wrappers.RescaleAction with bounds of your choice"
        )
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return low / 2 + high / 2, high / 2 - low / 2


def scale_note(space: gym.Space, log_std: float) -> str:
    """A sentence if the initial policy N(0, σ²) does not match the bounds of a Box; otherwise empty."""
    if not isinstance(space, gym.spaces.Box):
        return ""
    std = math.exp(min(log_std, 700.0))
    inside = [_share_inside(low / std, high / std) for low, high in _bounds(space)]
    reach = [
        max(abs(x) / std for x in pair if math.isfinite(x)) for pair in _bounds(space) if any(map(math.isfinite, pair))
    ]
    if min(inside, default=1.0) >= LEAST_INSIDE and max(reach, default=0.0) <= FARTHEST:
        return ""
    maps = "--action-bounds rescale (or squash) maps -1 to 1 onto them"
    return (
        f"actions lie in {space}, but the policy begins with mean 0 and standard deviation {std:.3g}, and its draws "
        f"are clipped to the bounds; {maps if space.is_bounded('both') else 'wrap the environment so that both match'}"
    )


def _bounds(space: gym.spaces.Box) -> list[tuple[float, float]]:
    return [(float(low), float(high)) for low, high in zip(space.low.flat, space.high.flat, strict=True)]


def _share_inside(low: float, high: float) -> float:
    return (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2


def space_note(config: Any, space: gym.Space) -> str:
    """`scale_note` if the config has a Gaussian policy and clips its actions."""
    return scale_note(space, config.log_std) if getattr(config, "action_bounds", "") == "clip" else ""

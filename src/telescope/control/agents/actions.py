"""From what a policy draws to what the environment gets: a Box's bounds are met by clipping, rescaling or squashing.

The stored actions and their log-probabilities stay those of the draw: every way is a fixed map of it, whose Jacobian
is the same under the old and the new policy and leaves their ratio alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

Bound = Callable[[np.ndarray], np.ndarray]
FARTHEST = 10.0
"""Deviations of the first policy: a bound beyond is out of its reach for a long time."""
LEAST_INSIDE = 0.4
"""Share of the first policy's draws within the bounds: below it most actions are a bound."""


def bounding(space: gym.Space, how: str = "clip") -> Bound:
    """The function from drawn actions to those of the environment; where the space is no Box, the identity.

    "clip" cuts at the bounds, "rescale" stretches -1 … 1 over them and then cuts, "squash" takes tanh first and
    so never cuts. ValueError where there is nothing to stretch over.
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
    return lambda actions: clip(middle + half * np.tanh(actions))  # rounding may pass a bound by a bit


def _middle_and_half(space: gym.spaces.Box, how: str) -> tuple[np.ndarray, np.ndarray]:
    if not space.is_bounded("both"):
        raise ValueError(
            f"action_bounds is {how!r}, but the action space is {space} and not bounded on all sides; "
            "use 'clip', or wrap the environment in gymnasium.wrappers.RescaleAction with bounds of your choice"
        )
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return low / 2 + high / 2, high / 2 - low / 2


def scale_note(space: gym.Space, log_std: float) -> str:
    """A sentence where the first policy, N(0, σ²), is far from the bounds of a Box; empty elsewhere."""
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
        f"actions lie in {space}, but the policy begins with mean 0 and deviation {std:.3g}, and what it draws is "
        f"clipped to the bounds; {maps if space.is_bounded('both') else 'wrap the environment so that both are alike'}"
    )


def _bounds(space: gym.spaces.Box) -> list[tuple[float, float]]:
    return [(float(low), float(high)) for low, high in zip(space.low.flat, space.high.flat, strict=True)]


def _share_inside(low: float, high: float) -> float:
    return (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2


def space_note(config: Any, space: gym.Space) -> str:
    """`scale_note` where the config has a Gaussian policy and leaves its actions as they are drawn."""
    return scale_note(space, config.log_std) if getattr(config, "action_bounds", "") == "clip" else ""

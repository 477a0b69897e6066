"""Running mean and variance of observations and rewards, one set of statistics per seed.

The update is Welford's, in float64, over all environments of a seed at once. Masked entries do not count. `rollout.py`
decides what to normalise, and when.
"""

# S seeds, B environments per seed, D observation size
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from telescope.checks import same_kind

EPSILON = 1e-8


class RunningMoments:
    """Mean and biased variance per seed [S, *shape] of all batches given to `update`."""

    def __init__(self, seeds: int, shape: tuple[int, ...] = ()) -> None:
        from telescope.control.experience.loops import absorb  # loads numba only where something is normalised

        self._absorb = absorb
        self.mean = np.zeros((seeds, *shape))
        self.variance = np.ones((seeds, *shape))
        # a small pseudo-count, as in OpenAI baselines, so that the first division is not by zero
        self.count = np.full((seeds, *(1 for _ in shape)), 1e-4)
        self._refresh()

    def _refresh(self) -> None:
        self.scale = 1 / np.sqrt(self.variance + EPSILON)

    def update(self, x: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Update the statistics with a batch x [S, B, *shape]. mask [S, B] is True where an entry counts."""
        live = np.ones(x.shape[:2], bool) if mask is None else mask
        rows = [array.reshape(len(x), -1) for array in (self.mean, self.variance, self.scale)]
        self._absorb(x.reshape(*x.shape[:2], -1), live, EPSILON, *rows, self.count.reshape(-1))

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean.copy(), "variance": self.variance.copy(), "count": self.count.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        same_kind("normalisation", state, self.state())
        self.mean, self.variance, self.count = (np.array(state[name]) for name in ("mean", "variance", "count"))
        self._refresh()


def joined(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The moments of two sets of samples together (Chan et al. 1979), as `RunningMoments.state` has them."""
    count = one["count"] + other["count"]
    share, distance = other["count"] / count, other["mean"] - one["mean"]
    variance = one["variance"] + share * (other["variance"] - one["variance"] + (1 - share) * distance**2)
    return {"mean": one["mean"] + share * distance, "variance": variance, "count": count}


def removed(whole: Mapping[str, np.ndarray], part: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `joined`: the moments of the samples of `whole` that are not in `part`. Without any, zeros."""
    count = whole["count"] - part["count"]
    share = np.divide(whole["count"], count, out=np.zeros_like(count), where=count > 0)
    mean = part["mean"] + share * (whole["mean"] - part["mean"])
    rest = np.divide(part["count"], whole["count"]) * (mean - part["mean"]) ** 2
    variance = part["variance"] + share * (whole["variance"] - part["variance"]) - rest
    return {"mean": mean, "variance": np.maximum(variance, 0.0), "count": count}


class ObservationNormaliser:
    """(o − mean) / √(variance + ε), clipped to ±`clip`. With `enabled` False only floats change, to float32.

    `fixed` leaves the statistics as they were restored. With `floats` observations are rows of bytes, of which only
    that many float32 at the beginning are normalised.
    """

    def __init__(
        self,
        seeds: int,
        shape: tuple[int, ...],
        *,
        enabled: bool,
        clip: float,
        fixed: bool = False,
        floats: int | None = None,
    ) -> None:
        self.enabled, self.clip, self.fixed, self.floats = enabled, clip, fixed, floats
        self.moments = RunningMoments(seeds, shape)

    def update(self, observations: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Update the statistics with observations [S, B, *shape]. mask [S, B] is True where the policy acts on them."""
        if self.enabled and not self.fixed and self.floats != 0:
            self.moments.update(observations if self.floats is None else self._floats(observations), mask)

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """Normalise observations [S, N, *shape] → float32 [S, N, *shape]."""
        if not self.enabled:
            small = observations.dtype in (np.uint8, np.bool_)
            return observations if small else observations.astype(np.float32, copy=False)
        if self.floats is not None:
            rows = observations.copy()
            self._floats(rows)[...] = self._scaled(self._floats(observations))
            return rows
        return self._scaled(observations)

    def _floats(self, rows: np.ndarray) -> np.ndarray:
        """The numbers that may be normalised, as a view of the rows."""
        return rows[..., : 4 * (self.floats or 0)].view(np.float32)

    def _scaled(self, observations: np.ndarray) -> np.ndarray:
        scaled = (observations - self.moments.mean[:, None]) * self.moments.scale[:, None]
        return _clipped(scaled, self.clip).astype(np.float32)

    def state(self) -> dict[str, Any]:
        return self.moments.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.moments.restore(state)


class RewardScaler:
    """r / √(variance of the running discounted return + ε), clipped to ±`clip`; the mean is not subtracted.

    See Engstrom et al. 2020, section 3, item 2. The running return R ← γR + r restarts at 0 whenever an episode ends.
    """

    def __init__(self, seeds: int, num_envs: int, *, gamma: float, enabled: bool, clip: float) -> None:
        self.enabled, self.clip, self.gamma = enabled, clip, gamma
        self.moments = RunningMoments(seeds)
        self.returns = np.zeros((seeds, num_envs))

    def __call__(self, rewards: np.ndarray, ended: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Scale rewards [S, B], after updating the statistics. `ended` [S, B] marks steps that end an episode."""
        if not self.enabled:
            return rewards
        self.returns = self.gamma * self.returns + rewards
        self.moments.update(self.returns, mask)
        self.returns[ended] = 0.0
        return _clipped(rewards * self.moments.scale[:, None], self.clip)

    def state(self) -> dict[str, Any]:
        return {**self.moments.state(), "returns": self.returns.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        same_kind("reward scaling", state, self.state())
        self.moments.restore({name: value for name, value in state.items() if name != "returns"})
        self.returns = np.array(state["returns"])


def _clipped(x: np.ndarray, bound: float) -> np.ndarray:
    """Clip x to ±bound, in place. Takes a third of the time of np.clip on small arrays."""
    np.minimum(x, bound, out=x)
    return np.maximum(x, -bound, out=x)

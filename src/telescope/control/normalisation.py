"""Running mean and variance of observations and rewards, one set of statistics per seed.

Welford's update in float64 over all environments of a seed at once; masked entries do not count. What is normalised,
and when, is the rollout's decision.
"""

# S seeds, B environments per seed, D observation size
from __future__ import annotations

from typing import Any

import numpy as np

EPSILON = 1e-8


class RunningMoments:
    """Mean and biased variance per seed of what `update` has seen: arrays [S, *shape]."""

    def __init__(self, seeds: int, shape: tuple[int, ...] = ()) -> None:
        self.mean = np.zeros((seeds, *shape))
        self.variance = np.ones((seeds, *shape))
        # a pseudo-count that a single batch outweighs, as in OpenAI baselines: the first division is not by zero
        self.count = np.full((seeds, *(1 for _ in shape)), 1e-4)

    def update(self, x: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Chan et al.'s parallel update with a batch x [S, B, *shape]; mask [S, B], True counts."""
        if mask is None or mask.all():
            n: Any = float(x.shape[1])
            mean = x.mean(axis=1, dtype=np.float64)
            variance = np.square(x - mean[:, None]).mean(axis=1)
        else:
            live = mask.reshape(mask.shape + (1,) * (x.ndim - 2))
            n = live.sum(axis=1, dtype=np.float64)
            divisor = np.maximum(n, 1)
            mean = np.where(live, x, 0).sum(axis=1, dtype=np.float64) / divisor
            variance = np.square(np.where(live, x - mean[:, None], 0)).sum(axis=1) / divisor
        delta = mean - self.mean
        total = self.count + n
        self.mean = self.mean + delta * (n / total)
        self.variance = (self.variance * self.count + variance * n + delta**2 * (self.count * n / total)) / total
        self.count = total

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean, "variance": self.variance, "count": self.count}

    def restore(self, state: dict[str, Any]) -> None:
        self.mean, self.variance, self.count = state["mean"], state["variance"], state["count"]


class ObservationNormaliser:
    """(o − mean) / √(variance + ε), clipped to ±`clip`; the identity in float32 when `enabled` is False."""

    def __init__(self, seeds: int, size: int, *, enabled: bool, clip: float) -> None:
        self.enabled, self.clip = enabled, clip
        self.moments = RunningMoments(seeds, (size,))
        self._refresh()

    def _refresh(self) -> None:
        self._mean = self.moments.mean[:, None]
        self._scale = 1 / np.sqrt(self.moments.variance[:, None] + EPSILON)

    def update(self, observations: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Take in observations [S, B, D]; mask [S, B] is True where the policy acts on them."""
        if self.enabled:
            self.moments.update(observations, mask)
            self._refresh()

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """[S, N, D] → float32 [S, N, D]."""
        if not self.enabled:
            return observations.astype(np.float32, copy=False)
        scaled = (observations - self._mean) * self._scale
        return np.clip(scaled, -self.clip, self.clip, out=scaled).astype(np.float32)

    def state(self) -> dict[str, Any]:
        return self.moments.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.moments.restore(state)
        self._refresh()


class RewardScaler:
    """r / √(variance of the running discounted return + ε), clipped to ±`clip`; the mean is not subtracted.

    Engstrom et al. 2020, section 3, item 2. The running return R ← γR + r starts anew when an episode ends, whichever
    way it ends.
    """

    def __init__(self, seeds: int, num_envs: int, *, gamma: float, enabled: bool, clip: float) -> None:
        self.enabled, self.clip, self.gamma = enabled, clip, gamma
        self.moments = RunningMoments(seeds)
        self.returns = np.zeros((seeds, num_envs))

    def __call__(self, rewards: np.ndarray, ended: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Take in rewards [S, B] with the flags of episodes that end here, and scale them."""
        if not self.enabled:
            return rewards
        self.returns = self.gamma * self.returns + rewards
        self.moments.update(self.returns, mask)
        self.returns = np.where(ended, 0.0, self.returns)
        scale = 1 / np.sqrt(self.moments.variance[:, None] + EPSILON)
        return np.clip(rewards * scale, -self.clip, self.clip)

    def state(self) -> dict[str, Any]:
        return {**self.moments.state(), "returns": self.returns}

    def restore(self, state: dict[str, Any]) -> None:
        self.moments.restore(state)
        self.returns = state["returns"]

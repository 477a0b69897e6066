"""What the estimators are judged by: the definitions, written as sums over each episode by itself, in float64.

No recurrence, no flag arithmetic and no masks in here: episodes are cut out first.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np


class Rollout(NamedTuple):
    """Random steps [T, *batch]: every kind of ending, some masked steps."""

    rewards: np.ndarray
    values: np.ndarray
    next_values: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    mask: np.ndarray

    def arguments(self) -> dict[str, np.ndarray]:
        """For the functions that take all but the mask."""
        return {name: array for name, array in self._asdict().items() if name != "mask"}


def rollout(shape: tuple[int, ...], dtype: Any = np.float64, seed: int = 0, ends: float = 0.2) -> Rollout:
    random = np.random.default_rng([seed, *shape])
    rewards, values, successors = (random.normal(size=shape).astype(dtype) for _ in range(3))
    terminated, truncated = (random.random(shape) < ends for _ in range(2))
    return Rollout(rewards, values, successors, terminated, truncated, random.random(shape) < 0.8)


def episodes(steps: Rollout) -> Iterator[list[tuple[int, ...]]]:
    """Indices of the live steps of each episode, of each column; the end of the buffer ends an episode too."""
    for column in np.ndindex(steps.values.shape[1:]):
        episode: list[tuple[int, ...]] = []
        for t in range(len(steps.values)):
            index = (t, *column)
            if steps.mask[index]:
                episode.append(index)
                if steps.terminated[index] or steps.truncated[index]:
                    yield episode
                    episode = []
        if episode:
            yield episode


def advantages(steps: Rollout, gamma: Any, lam: Any) -> np.ndarray:
    """A[t] = Σ_l (Π_{i<l} γλ) δ[t+l], the plain double sum; γ and λ may differ from step to step."""
    gamma, lam = (np.broadcast_to(np.float64(number), steps.values.shape) for number in (gamma, lam))
    result = np.zeros(steps.values.shape)
    for episode in episodes(steps):
        residuals = []
        for i in episode:
            bootstrap = 0.0 if steps.terminated[i] else float(gamma[i]) * float(steps.next_values[i])
            residuals.append(float(steps.rewards[i]) + bootstrap - float(steps.values[i]))
        for start, index in enumerate(episode):
            weight = 1.0
            for i, residual in zip(episode[start:], residuals[start:], strict=True):
                result[index] += weight * residual
                weight *= gamma[i] * lam[i]
    return result


def lambda_returns(steps: Rollout, gamma: float, lam: float) -> np.ndarray:
    """The forward view: (1−λ) Σ_{n<L} λ^{n−1} G⁽ⁿ⁾ + λ^{L−1} G⁽ᴸ⁾, with G⁽ⁿ⁾ the n-step return."""
    result = np.zeros(steps.values.shape)
    for episode in episodes(steps):
        for start, index in enumerate(episode):
            ahead = episode[start:]
            n_step = []
            discounted = 0.0
            for n, i in enumerate(ahead, 1):
                discounted += gamma ** (n - 1) * float(steps.rewards[i])
                tail = 0.0 if steps.terminated[i] else gamma**n * float(steps.next_values[i])
                n_step.append(discounted + tail)
            mixed = sum((1 - lam) * lam**n * value for n, value in enumerate(n_step[:-1]))
            result[index] = mixed + lam ** (len(ahead) - 1) * n_step[-1]
    return result


def successors(steps: Rollout, last_values: np.ndarray, final_values: np.ndarray) -> np.ndarray:
    """The value of the state that each step led to."""
    result = np.zeros_like(steps.values)
    for column in np.ndindex(steps.values.shape[1:]):
        live = [(t, *column) for t in range(len(steps.values)) if steps.mask[(t, *column)]]
        for i, following in zip(live, [*live[1:], None][: len(live)], strict=True):
            if steps.terminated[i]:
                continue
            if steps.truncated[i] and not np.isnan(final_values[i]):
                result[i] = final_values[i]
            else:
                result[i] = last_values[column] if following is None else steps.values[following]
    return result

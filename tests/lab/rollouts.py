"""Right rollouts of every size, layout and dtype, by a simulation of our own, and mistakes to plant in them."""

import dataclasses
from typing import Any

import numpy as np

from telescope.lab.evidence import Rollout


@dataclasses.dataclass
class World:
    """A rollout before its advantages are computed: columns of episodes with random rewards and values."""

    rewards: np.ndarray  # [T, B]
    values: np.ndarray
    final: np.ndarray  # [T, B] value of the state that each step led to, before any reset
    terminated: np.ndarray
    truncated: np.ndarray
    mask: np.ndarray
    gamma: float
    lam: float


def world(rng: np.random.Generator, *, padded: bool = False, mean_length: float | None = None) -> World:
    steps, columns = int(rng.integers(12, 120)), int(rng.integers(1, 9))
    length = mean_length or rng.uniform(3, max(4, steps / 4))
    rewards, values = rng.normal(size=(2, steps, columns)) * rng.uniform(0.1, 10)
    after = rng.normal(size=(steps, columns)) * np.abs(values).mean()
    ended = rng.random((steps, columns)) < 1 / length
    ended[rng.choice(steps - 2, 2, replace=False), rng.integers(columns)] = True  # some end before the last row
    if padded:
        lengths = rng.integers(3, steps, columns)
        mask = np.arange(steps)[:, None] < lengths
        ended = np.arange(steps)[:, None] == lengths - 1
        rewards, values = rewards * mask, values * mask
    else:
        mask = np.ones((steps, columns), bool)
    truncated = ended & (rng.random((steps, columns)) < 0.5) & (not padded)
    places = np.argwhere(ended[:-1])
    if not padded:
        for k, (t, b) in enumerate(places):  # at least one of each kind before the last row, where there are two
            if k < 2:
                truncated[t, b] = k == 0
    final = np.where(ended, after, np.vstack([values[1:], after[-1:]]))
    gamma, lam = rng.uniform(0.8, 1.0), rng.uniform(0.3, 1.0)
    return World(rewards, values, final, ended & ~truncated, truncated, mask, float(gamma), float(lam))


def advantages(
    w: World, *, at_termination: Any = None, at_truncation: Any = None, at_end: Any = None, discounts: Any = None
) -> np.ndarray:
    """GAE by a plain loop. The hooks replace what is added after an ending step: hook(t, b, later) → u."""
    gamma, lam = discounts or (w.gamma, w.lam)
    steps, columns = w.rewards.shape
    result = np.zeros((steps, columns))
    for b in range(columns):
        later, started = 0.0, False
        for t in reversed(range(steps)):
            if not w.mask[t, b]:
                continue
            if w.terminated[t, b]:
                u = at_termination(t, b, later) if at_termination else 0.0
            elif w.truncated[t, b]:
                u = at_truncation(t, b, later) if at_truncation else gamma * w.final[t, b]
            elif not started:
                u = at_end(t, b, later) if at_end else gamma * w.final[t, b]
            else:
                u = gamma * w.final[t, b] + gamma * lam * later
            later, started = w.rewards[t, b] - w.values[t, b] + u, True
            result[t, b] = later
    return result


def rollout(w: World, a: np.ndarray, rng: np.random.Generator, *, given: bool | None = None, **changes: Any) -> Rollout:
    """The rollout as a file would have it: any float dtype, flags of any kind, with or without what may be missing."""
    dtype = rng.choice([np.float32, np.float64])
    flag = rng.choice([np.bool_, np.uint8, np.float32])
    numbers = {"rewards": w.rewards, "values": w.values, "advantages": a}
    if rng.random() < 0.7:
        numbers["next_values"] = np.where(w.terminated & (rng.random() < 0.5), 0.0, w.final)
    if rng.random() < 0.5:
        numbers["returns"] = (a + w.values) * w.mask
    flags = {"terminated": w.terminated, "truncated": w.truncated}
    if not w.mask.all() or rng.random() < 0.3:
        flags["mask"] = w.mask
    arrays = {name: x.astype(dtype) for name, x in numbers.items()} | {
        name: x.astype(flag) for name, x in flags.items()
    }
    if (rng.random() < 0.7) if given is None else given:
        arrays |= {"gamma": w.gamma, "lam": w.lam}
    arrays |= changes
    if rng.random() < 0.2 and w.rewards.shape[1] % 2 == 0:  # more axes
        shape = (len(w.rewards), 2, -1)
        arrays = {name: x.reshape(shape) if isinstance(x, np.ndarray) else x for name, x in arrays.items()}
    elif w.rewards.shape[1] == 1 and rng.random() < 0.5:
        arrays = {name: x[:, 0] if isinstance(x, np.ndarray) else x for name, x in arrays.items()}
    return Rollout(**arrays)

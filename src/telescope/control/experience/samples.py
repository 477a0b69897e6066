"""Turn a rollout [T, S, B, …] into samples per seed [S, N, …], and compute values of the states after truncations."""

# T time, S seeds, B environments per seed, N = T·B samples per seed, K truncations, H memory size
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from telescope.control.experience.rollout import Rollout

Value = Callable[[Tensor, Tensor | None], Tensor]
"""value(observations [S, N, D], memory [S, N, H] or None) → [S, N, …], without gradient, on the networks' device"""


def final_values(rollout: Rollout, value: Value) -> Tensor | None:
    """Values [T, S, B, …] of the states that truncated steps led to, NaN elsewhere, by one call; None without any."""
    places, observations, memory = rollout.finals
    if not places.shape[1]:
        return None
    seeds = rollout.rewards.shape[1]
    position = np.zeros(places.shape[1], dtype=np.int64)  # [K] index of each final within its seed
    counts = np.zeros(seeds, dtype=np.int64)
    for k, s in enumerate(places[1]):
        position[k], counts[s] = counts[s], counts[s] + 1

    def padded(x: np.ndarray) -> Tensor:
        rows = torch.zeros((seeds, int(counts.max()), *x.shape[1:]), dtype=torch.from_numpy(x).dtype)  # [S, K, …]
        rows.numpy()[places[1], position] = x
        return rows

    values = value(padded(observations), None if memory is None else padded(memory)).cpu()
    result = torch.full((*rollout.rewards.shape, *values.shape[2:]), torch.nan)
    result[tuple(torch.from_numpy(i) for i in places)] = values[torch.from_numpy(places[1]), torch.from_numpy(position)]
    return result


def successors(rollout: Rollout) -> Tensor:
    """The observation [T, S, B, …] that each step led to. Not to be read where the step terminated its episode."""
    reached = torch.cat([rollout.observations[1:], rollout.last_observations[None]])
    places, observations, _ = rollout.finals
    reached[tuple(torch.from_numpy(i) for i in places)] = torch.from_numpy(observations).to(reached.dtype)
    return reached


def live_mask(rollout: Rollout) -> Tensor | None:
    """The rollout's mask, or None if every row is a real transition."""
    return None if bool(rollout.mask.all()) else rollout.mask


def episode_begins(rollout: Rollout) -> Tensor:
    """[T, S, B] bool, True where an episode begins within the rollout. The first row uses the stored memory."""
    begins = torch.zeros_like(rollout.mask)
    begins[1:] = (rollout.terminated | rollout.truncated | ~rollout.mask)[:-1]
    return begins


def per_seed(x: Tensor) -> Tensor:
    """[T, S, B, …] → [S, T·B, …], from which an update draws minibatches."""
    return x.transpose(0, 1).reshape(x.shape[1], x.shape[0] * x.shape[2], *x.shape[3:])


def time_major(x: Tensor, num_envs: int) -> Tensor:
    """[S, T·B, …] → [T, S, B, …], the inverse of `per_seed`."""
    return x.unflatten(1, (-1, num_envs)).transpose(0, 1).contiguous()

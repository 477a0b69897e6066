"""Turn a rollout [T, S, B, …] into samples per seed [S, N, …], and compute values of the states after truncations."""

# T time, S seeds, B environments per seed, N = T·B samples per seed, K truncations, H memory size
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from telescope.control.experience.rollout import Rollout

Value = Callable[..., Tensor]
"""value(observations [S, N, D], memory [S, N, H] or None) → [S, N, …], without gradient, on the networks' device. Of
stacks it takes the frames [S, F, …] too."""


def final_values(rollout: Rollout, value: Value) -> Tensor | None:
    """Values [T, S, B, …] of the states that truncated steps led to, NaN elsewhere, by one call; None without any."""
    parts: Any = [None if x is None else torch.as_tensor(x) for x in rollout.finals]
    places, observations, memory = parts
    if not places.shape[1]:
        return None
    seeds, device = rollout.rewards.shape[1], rollout.rewards.device
    own = places[1][:, None] == torch.arange(seeds, device=device)  # [K, S] whose final it is
    position = (own.cumsum(0) - 1)[own]  # [K] its index within its seed
    most = int(own.sum(0).max())

    def padded(x: Tensor) -> Tensor:
        rows = torch.zeros((seeds, most, *x.shape[1:]), dtype=x.dtype, device=device)  # [S, K, …]
        rows[places[1], position] = x
        return rows

    of_stacks = () if rollout.frames is None else (rollout.frames,)
    values = value(padded(observations), None if memory is None else padded(memory), *of_stacks).to(device)
    result = torch.full((*rollout.rewards.shape, *values.shape[2:]), torch.nan, device=device)
    result[tuple(places)] = values[places[1], position]
    return result


def successors(rollout: Rollout) -> Tensor:
    """The observation [T, S, B, …] that each step led to. Not to be read where the step terminated its episode."""
    reached = torch.cat([rollout.observations[1:], rollout.last_observations[None]])
    places, observations, _ = rollout.finals
    reached[tuple(torch.as_tensor(places))] = torch.as_tensor(observations).to(reached.dtype)
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

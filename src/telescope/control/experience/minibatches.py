"""Minibatches of a rollout: which samples, in which order, for each epoch and seed.

Samples are [S, N, …] with time first: the sample of step t and environment b is t·B + b. `config` says num_steps (T),
num_envs (B), minibatch_size (M), minibatches per epoch, and epochs. What is done with a minibatch is the algorithm's
business.
"""

# T time, S seeds, B environments per seed, N = T·B samples per seed, M minibatch
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from telescope.randomness import MINIBATCHES, generator


def minibatch_indices(config: Any, iteration: int) -> Iterator[Tensor]:
    """For each epoch the N samples per seed, shuffled and cut into minibatches [S, N/M, M]. −1 pads the last one."""
    generators = [generator(seed, MINIBATCHES, iteration) for seed in config.seed_values]
    filled = config.minibatches * config.minibatch_size - config.batch_size
    for _ in range(config.epochs):
        shuffled = [np.pad(rng.permutation(config.batch_size), (0, filled), constant_values=-1) for rng in generators]
        yield torch.tensor(np.stack(shuffled)).unflatten(1, (config.minibatches, config.minibatch_size))


def sequence_indices(config: Any, iteration: int) -> Iterator[Tensor]:
    """The same for whole sequences: a shuffle of the B environments, M / T of them to a minibatch, time first."""
    require_sequences(config)
    generators = [generator(seed, MINIBATCHES, iteration) for seed in config.seed_values]
    wide = config.minibatch_size // config.num_steps
    filled = config.minibatches * wide - config.num_envs
    steps = config.num_envs * np.arange(config.num_steps)[:, None]  # [T, 1]
    for _ in range(config.epochs):
        chosen = [np.pad(rng.permutation(config.num_envs), (0, filled), constant_values=-1) for rng in generators]
        columns = np.stack(chosen).reshape(config.seeds, config.minibatches, 1, wide)
        rows = np.where(columns < 0, -1, steps + columns)  # [S, N/M, T, M / T]
        yield torch.tensor(rows.reshape(config.seeds, config.minibatches, -1))


def require_sequences(config: Any) -> None:
    """ValueError where minibatches do not consist of whole sequences, as a policy that remembers needs them."""
    if config.minibatch_size % config.num_steps:
        raise ValueError(
            f"minibatch_size is {config.minibatch_size}, but a policy that remembers learns from whole sequences of "
            f"num_steps {config.num_steps}; expected a multiple of that, such as {config.num_steps}"
        )


def minibatches(batch: Any, indices: Tensor) -> Iterator[Any]:
    """The minibatches [S, M, …] that `indices` [S, N/M, M] choose. Samples with index −1 are not live."""
    seeds, rows = torch.arange(len(indices), device=indices.device)[:, None, None], indices.clamp(min=0)
    shuffled = tree_map(lambda x: None if x is None else x[seeds, rows], batch)
    shuffled = shuffled._replace(live=shuffled.live & (indices >= 0))
    for k in range(indices.shape[1]):
        yield tree_map(lambda x, k=k: None if x is None else x[:, k], shuffled)

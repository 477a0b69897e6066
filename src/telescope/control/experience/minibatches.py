"""Minibatches of a rollout: which samples, in which order, for each epoch and seed.

Samples are [S, N, …] with time first: step t of environment b has index t·B + b. `config` has num_steps (T), num_envs
(B), minibatch_size (M), sequence_steps (L), minibatches per epoch, and epochs. Leaves out the use of a minibatch (the
algorithm).
"""

# T time, S seeds, B environments per seed, N = T·B samples per seed, M minibatch
from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telescope import checks
from telescope.control.agents.stacking import stacked
from telescope.randomness import MINIBATCHES, generator
from telescope.trees import mapped


def shuffled_indices(config: Any, agent: Any, iteration: int) -> Iterator[Tensor]:
    """For each epoch the minibatches: of single samples, or of sequences where the agent or its critic needs them."""
    sequences = config.learns_sequences or agent.network.memory
    return (sequence_indices if sequences else minibatch_indices)(config, iteration)


def minibatch_indices(config: Any, iteration: int) -> Iterator[Tensor]:
    """For each epoch the N samples per seed, shuffled and cut into minibatches [S, N/M, M]. −1 pads the last one."""
    shape = config.minibatches, config.minibatch_size
    for shuffled in _shuffles(config, iteration, config.batch_size, shape):
        yield torch.tensor(shuffled)


def sequence_indices(config: Any, iteration: int) -> Iterator[Tensor]:
    """The same with sequences of L steps of an environment: a minibatch has M / L of them, time first."""
    require_sequences(config)
    length, envs = config.sequence_steps, config.num_envs
    steps = envs * np.arange(length)[:, None]  # [L, 1]
    shape = config.minibatches, config.minibatch_size // length
    for shuffled in _shuffles(config, iteration, config.batch_size // length, shape):
        sequences = shuffled[:, :, None]  # [S, N/M, 1, M / L] in the order of time, then of environments
        first = sequences // envs * length * envs + sequences % envs
        rows = np.where(sequences < 0, -1, steps + first)  # [S, N/M, L, M / L]
        yield torch.tensor(rows).flatten(2)


def group_indices(config: Any, iterations: Any) -> Iterator[Tensor]:
    """For each epoch the episodes of each minibatch [S, minibatches, M]: whole groups, shuffled.

    `iterations` [S] are those of each seed.
    """
    groups, members = config.num_envs // config.group, np.arange(config.group)
    shape = config.minibatches, groups // config.minibatches
    for shuffled in _shuffles(config, iterations, groups, shape):
        rows = config.group * shuffled[..., None] + members  # [S, minibatches, groups, G]
        yield torch.tensor(rows).flatten(2)


def _shuffles(config: Any, iterations: Any, count: int, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """For each epoch the numbers 0 … count − 1, shuffled per seed: [S, *shape], padded with −1."""
    own = np.broadcast_to(iterations, config.seeds).tolist()
    generators = [generator(seed, MINIBATCHES, i) for seed, i in zip(config.seed_values, own, strict=True)]
    padding = 0, shape[0] * shape[1] - count
    for _ in range(config.epochs):
        shuffled = [np.pad(rng.permutation(count), padding, constant_values=-1) for rng in generators]
        yield np.stack(shuffled).reshape(-1, *shape)


def check_sequences(config: Any) -> None:
    """Raise a ValueError where sequence_length cannot work, or would have no effect."""
    checks.positive(config, "sequence_length")
    if config.learns_sequences:
        require_sequences(config)
    else:
        more = " or critic" if hasattr(config, "correction_penalty") else ""
        checks.unread(config, "sequence_length", f"set memory{more}", "minibatches have no sequences")


def require_sequences(config: Any) -> None:
    """Raise a ValueError unless minibatches consist of whole sequences, which cut rollouts into equal parts."""
    length = config.sequence_steps
    name = "num_steps" if getattr(config, "sequence_length", None) is None else "sequence_length"
    if config.num_steps % length:
        raise ValueError(f"sequence_length is {length}; expected a divisor of num_steps {config.num_steps}")
    if config.minibatch_size % length:
        what = "a gradient critic" if getattr(config, "critic", "") == "gradient" else "a policy with a memory"
        raise ValueError(
            f"minibatch_size is {config.minibatch_size}, but {what} learns from whole sequences "
            f"of {name} {length}; expected a multiple of it, such as {length}{_shorter(config)}"
        )


def _shorter(config: Any) -> str:
    """A proposal for sequence_length by which the minibatch would hold whole sequences."""
    length = math.gcd(config.num_steps, config.minibatch_size)
    return f", or sequence_length {length}" if length > 1 else ""


def minibatches(batch: Any, indices: Tensor) -> Iterator[Any]:
    """The minibatches [S, M, …] that `indices` [S, N/M, M] choose. Samples with index −1 are not live.

    Stacks are gathered from their frames, one minibatch after the other.
    """
    frames = getattr(batch, "frames", None)
    batch = batch if frames is None else batch._replace(frames=None)
    seeds, rows = torch.arange(len(indices), device=indices.device)[:, None, None], indices.clamp(min=0)
    shuffled = mapped(lambda x: x[seeds, rows], batch)
    shuffled = shuffled._replace(live=shuffled.live & (indices >= 0))
    for k in range(indices.shape[1]):
        one = mapped(operator.itemgetter((slice(None), k)), shuffled)
        yield one if frames is None else one._replace(observations=stacked(frames, one.observations))

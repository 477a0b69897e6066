"""From the replay buffer to minibatches on the networks' device: which steps are drawn, when, and how they look.

A run draws the random numbers of a whole iteration at once, keyed by the seed's value. Gradient steps that follow each
other without an environment step between them are gathered and normalised together.
"""

# S seeds, M minibatch, U gradient steps of an iteration, K of them that follow each other, D observation size
from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from telescope.randomness import REPLAY, generator
from telescope.trees import mapped

TOGETHER = 32
"""Gradient steps whose minibatches are gathered at once, at most."""


class Batch(NamedTuple):
    """Samples drawn from the replay buffer, of one agent; those of the population have S in front."""

    observations: Tensor  # [M, D] normalised
    masks: Tensor | None  # [M, A] bool, actions allowed there
    actions: Tensor  # [M, …]
    rewards: Tensor  # [M] Σ γ^i r of the sample's k steps; k is n_step, or less if its episode or the buffer ends
    discounts: Tensor  # [M] γ^k, the discount of the value that follows them
    terminated: Tensor  # [M] bool, True where no value follows
    live: Tensor  # [M] bool, False on the row that a NEXT_STEP autoreset inserts
    next_observations: Tensor  # [M, D] of the state that the last of the k steps led to
    next_masks: Tensor | None  # [M, A] bool, actions allowed there


class Draws:
    """The minibatches of the session's present iteration."""

    def __init__(self, session: Any) -> None:
        config = session.config
        self.session, self.config, self.step = session, config, session.step
        self.first = config.updates_until(session.step)
        count = config.updates_until(session.step + config.batch_size) - self.first, config.minibatch_size
        rngs = [generator(seed, REPLAY, session.iteration) for seed in config.seed_values]
        self.uniform = np.stack([rng.random(count) for rng in rngs], axis=1)  # [U, S, M]

    def after(self, t: int) -> Iterator[tuple[int, Batch]]:
        """The gradient steps that are due after step t of the iteration: number and minibatch [S, M, …] of each."""
        step = self.step + t * self.config.num_envs
        due = range(self.config.updates_until(step), self.config.updates_until(step + self.config.num_envs))
        for start in due[::TOGETHER]:
            numbers = due[start - due.start :][:TOGETHER]
            together = self._gathered(self.uniform[start - self.first :][: len(numbers)])  # [K, S, M, …]
            for k, number in enumerate(numbers):
                yield number, mapped(operator.itemgetter(k), together)

    def _gathered(self, uniform: np.ndarray) -> Batch:
        drawn, seen = self.session.replay.draw(uniform), self.session.rollouts.normaliser
        discounts = np.full(drawn.rewards.shape, self.config.gamma, np.float32)
        parts: tuple[Any, ...] = (
            seen(drawn.observations),
            drawn.masks,
            drawn.actions,
            drawn.rewards.astype(np.float32),
            discounts,
            drawn.terminated,
            drawn.mask,
            seen(drawn.next_observations),
            drawn.next_masks,
        )
        return self.session.to_device(Batch(*map(_aligned, parts)))  # type: ignore[no-any-return]


def _aligned(x: np.ndarray | None) -> Any:
    # torch's allocator aligns to 64 bytes, NumPy's does not; so vectorised sums round the same in every process
    return None if x is None else torch.from_numpy(x).clone()

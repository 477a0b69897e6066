"""From the replay buffer to minibatches on the networks' device: which steps are drawn, when, and how they look.

A run draws the random numbers of a whole iteration at once, keyed by the seed's value. Gradient steps that follow each
other without an environment step between them are gathered and normalised together.
"""

# S seeds, M minibatch, U gradient steps of an iteration, K of them that follow each other, D observation size
from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from telescope.checks import fits_memory
from telescope.control.config import LearnerConfig
from telescope.control.environments.population import Environments
from telescope.control.experience.encoding import Encoder, encoder
from telescope.control.experience.replay import Batch, Replay
from telescope.control.off_policy import OffPolicyConfig
from telescope.randomness import REPLAY, generator
from telescope.trees import mapped

OTHER_BYTES = 16
"""Of a step in the buffer, besides its observation and action: reward, flags, and where its successor lies."""
TOGETHER = 32
"""Gradient steps whose minibatches are gathered at once, at most."""


def replay_of(config: LearnerConfig, environments: Environments, encoding: Encoder) -> Replay | None:
    """The empty replay buffer of an off-policy algorithm. A ValueError if it exceeds this machine's memory."""
    if not isinstance(config, OffPolicyConfig):
        return None
    require_memory(config, environments, encoding)
    more: dict[str, Any] = {"in_states": config.save_replay, "stack": environments.stack}
    more["flat"] = environments.stack > 1 and len(encoding.shape) == 1
    return Replay(config.replay_capacity, config.seeds, config.num_envs, **more)


def require_memory(config: OffPolicyConfig, environments: Environments, encoding: Encoder | None = None) -> None:
    """Raise a ValueError if the replay buffer exceeds this machine's memory. `encoding`: that of the network."""
    space = environments.observation_space
    encoding = encoding or encoder(
        space, shaped=space.dtype in (np.uint8, np.bool_)
    )  # the least that any network needs
    seen = encoding.encode(np.zeros((1, 1, *(space.shape or ())), space.dtype))
    head = config.head(environments.action_space)
    action = math.prod(head.action_shape) * head.action_dtype.itemsize
    width = seen.itemsize if config.normalise_observations or seen.itemsize == 1 else 4
    total = config.seeds * config.replay_capacity * (encoding.size // environments.stack * width + action + OTHER_BYTES)
    fits_memory(
        total // 4,
        f"replay_capacity is {config.replay_capacity:,}, and a replay buffer of that many steps for each of "
        f"{config.seeds} seeds needs",
    )


class Draws:
    """The minibatches of the session's present iteration."""

    def __init__(self, session: Any) -> None:
        config = session.config
        self.session, self.config, self.step = session, config, session.step
        self.first = config.updates_until(session.step)
        count = config.updates_until(session.step + config.batch_size) - self.first, config.minibatch_size
        rngs = [generator(seed, REPLAY, session.iteration) for seed in config.seed_values]
        self.uniform = np.stack([rng.random(count) for rng in rngs], axis=1)  # [U, S, M]

    @property
    def updates(self) -> np.ndarray:
        """The gradient steps of each seed until the end of the iteration [S]."""
        count = self.first + len(self.uniform) - self.session.replay.skipped
        return np.full(self.config.seeds, float(count))

    def after(self, t: int) -> Iterator[tuple[int, Batch]]:
        """The gradient steps that are due after step t of the iteration: number and minibatch [S, M, …] of each."""
        step = self.step + t * self.config.num_envs
        due = range(self.config.updates_until(step), self.config.updates_until(step + self.config.num_envs))
        replay = self.session.replay
        if replay.time * self.config.num_envs <= self.config.learning_starts:  # after a resume with an empty buffer
            replay.skipped += len(due)
            return
        for start in due[::TOGETHER]:
            numbers = due[start - due.start :][:TOGETHER]
            together = self._gathered(self.uniform[start - self.first :][: len(numbers)])  # [K, S, M, …]
            for k, number in enumerate(numbers):
                yield number, mapped(operator.itemgetter(k), together)

    def _gathered(self, uniform: np.ndarray) -> Batch:
        drawn = self.session.replay.draw(uniform, n=self.config.n_step, gamma=self.config.gamma)
        seen = self.session.rollouts.normaliser
        drawn = drawn._replace(
            observations=seen(drawn.observations),
            next_observations=seen(drawn.next_observations),
            rewards=drawn.rewards.astype(np.float32),
            discounts=drawn.discounts.astype(np.float32),
        )
        return self.session.to_device(Batch(*map(_aligned, drawn)))  # type: ignore[no-any-return]


def _aligned(x: np.ndarray | None) -> Any:
    # torch's allocator aligns to 64 bytes, NumPy's does not; so vectorised sums round the same in every process
    return None if x is None else torch.from_numpy(x).clone()

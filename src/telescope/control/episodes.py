"""The bookkeeping of algorithms whose iterations have whole episodes: a clock for each seed, and resets of its own.

Leaves out how an episode is played (`experience/episodes.py`), and what all algorithms share (`training.py`).
"""

# S seeds, B environments per seed
from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telescope.control.clocks import EpisodeClock
from telescope.control.environments.factory import find_source
from telescope.control.environments.population import Environments, choose_vectorization
from telescope.control.experience.episodes import EpisodeRollouts, FixedShare, shares
from telescope.control.experience.rollout import Rollout
from telescope.control.training import Session
from telescope.randomness import STARTS, TRAINING_ENVIRONMENTS, generator


class EpisodeSession(Session):
    """A training run in which `collect` returns whole episodes, `config.episodes` of them per seed and iteration.

    All environments are reset before each iteration, from seeds that depend on the seed, its iteration and the
    environment alone. Seeds need different numbers of steps, so each has a clock. A seed that has reached `total_steps`
    has finished: its rows end, none of its samples are live, and so its learner must stay as it is.
    """

    kind_of_rollouts, kind_of_clock = EpisodeRollouts, EpisodeClock
    rollouts: EpisodeRollouts

    def _open_environments(self) -> Environments:
        config: Any = self.config
        wraps = None
        source = config.env if config.backend == "envpool" else find_source(config.env)
        how = config.backend, config.vectorization, config.dressing, config.env_kwargs
        if choose_vectorization(source, *how) in ("sync", "async"):
            each = shares(config.episodes, config.num_envs).tolist()
            wraps = [functools.partial(FixedShare, episodes=share) for share in each] * config.seeds
        return Environments.of(config, stream=TRAINING_ENVIRONMENTS, wraps=wraps)

    def collect(self) -> Rollout:  # type: ignore[override]
        """Collect this iteration's episodes with the current policies."""
        config: Any = self.config
        with self._acting():
            rollout, self._episodes = self.rollouts.collect_episodes(
                self.agents.actor(self.parameters),
                starts=self._starts(),
                iterations=self.clock.iterations.tolist(),
                running=self.clock.running,
                each=shares(config.episodes, config.num_envs),
            )
        return rollout

    def learning_rates(self) -> Tensor:
        """The learning rate of each seed [S], annealed by its own clock."""
        part = self.remaining if self.config.anneal_learning_rate else np.ones(self.config.seeds, np.float32)
        return torch.tensor(self.config.learning_rate * part, device=self.config.device)

    def _starts(self) -> np.ndarray:
        """The seeds of all environments [S, B] in this iteration. Those of a group are the same."""
        config: Any = self.config
        rows = []
        for seed, iteration in zip(config.seed_values, self.clock.iterations.tolist(), strict=True):
            drawn = generator(seed, STARTS, iteration).integers(2**31, size=config.num_envs // config.group)
            rows.append(np.repeat(drawn, config.group))
        return np.stack(rows)

"""The clock of a run: how many environment steps and iterations each seed has made, and when it ends.

Leaves out who reads it (`training.py`).
"""

# S seeds
from __future__ import annotations

from typing import Any

import numpy as np

from telescope.control.config import LearnerConfig
from telescope.control.experience.rollout import Episodes


class Clock:
    """One clock for all seeds: every iteration has `config.batch_size` steps of each."""

    def __init__(self, config: LearnerConfig) -> None:
        self.config = config
        self.iteration = 0
        """Iterations of the run."""
        self.steps = np.zeros(config.seeds, np.int64)
        """[S] environment steps of each seed so far."""
        self.iterations = np.zeros(config.seeds, np.int64)
        """[S] iterations of each seed so far."""

    @property
    def running(self) -> np.ndarray:
        """[S] bool, which seeds go on."""
        return np.full(self.config.seeds, self.iteration < self.config.iterations)

    @property
    def remaining(self) -> Any:
        """The part of the run that is left, for schedules."""
        return 1 - self.iteration / self.config.iterations

    def tick(self, episodes: Episodes) -> None:
        """End an iteration in which these episodes ended."""
        self.iteration += 1
        self.steps, self.iterations = self.steps + self.config.batch_size, self.iterations + 1

    def state(self) -> dict[str, Any]:
        return {"iteration": self.iteration, "step": int(self.steps.min())}

    def restore(self, state: dict[str, Any]) -> None:
        # a run with another rollout size would not continue where it stopped
        if state["step"] != state["iteration"] * self.config.batch_size:
            raise ValueError(
                f"resume holds step {state['step']} after {state['iteration']} iterations, which does not match "
                f"num_steps {self.config.num_steps} × num_envs {self.config.num_envs}; pass the run's own config"
            )
        self.iteration = state["iteration"]
        self.steps[:], self.iterations[:] = state["step"], state["iteration"]


class EpisodeClock(Clock):
    """A clock for each seed: an iteration has whole episodes, and so as many steps as these took.

    A seed ends with the iteration in which its clock reaches `total_steps`; the others go on.
    """

    @property
    def running(self) -> np.ndarray:
        return self.steps < self.config.total_steps

    @property
    def remaining(self) -> np.ndarray:
        return np.maximum(1 - self.steps / self.config.total_steps, 0.0).astype(np.float32)

    def tick(self, episodes: Episodes) -> None:
        self.iterations = self.iterations + self.running
        self.iteration = int(self.iterations.max())
        self.steps = self.steps + np.array([sum(lengths) for lengths in episodes.lengths], np.int64)

    def state(self) -> dict[str, Any]:
        own = {"clocks": self.steps.copy(), "iterations": self.iterations.copy()}
        return {**super().state(), **own}

    def restore(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]
        self.steps[:], self.iterations[:] = state["clocks"], state["iterations"]

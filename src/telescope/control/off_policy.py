"""The settings that algorithms with a replay buffer share: its size, when to learn from it, and how much.

Leaves out the buffer (`experience/replay.py`) and what is drawn from it (`experience/draws.py`).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from telescope import checks
from telescope.control.config import AgentConfig


@dataclasses.dataclass(frozen=True)
class OffPolicyConfig(AgentConfig):
    """The settings that algorithms with a replay buffer share."""

    learns_from_frames: ClassVar[bool] = True
    num_steps: int = 256
    """Steps of each environment per iteration. Each iteration writes one row of metrics per seed."""
    anneal_learning_rate: bool = False
    """Decay the learning rate linearly to 0 over the run."""
    activation: Literal["tanh", "relu"] = "relu"
    """Activation function of the hidden layers."""
    adam_eps: float = 1e-8
    """Adam's ε."""
    replay_capacity: int = 100_000
    """Size of the replay buffer, in steps per seed. The oldest steps are overwritten."""
    save_replay: bool = True
    """Save the replay buffer with the run. Without it a resumed run first collects learning_starts steps again."""
    learning_starts: int = 1_000
    """Steps per seed to collect before the first gradient step."""
    random_start: bool = False
    """Act uniformly at random until learning_starts."""
    minibatch_size: int = 64
    """Samples per gradient step and seed, drawn from the replay buffer."""
    updates_per_step: float = 0.25
    """Gradient steps per environment step and seed."""
    train_every: int = 1
    """Steps of each environment between two blocks of gradient steps. Larger blocks run faster."""
    n_step: int = 1
    """Rewards per target: those of up to this many steps, then a bootstrap. A sample stops at its episode's end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self, "replay_capacity", "minibatch_size", "updates_per_step", "train_every", "n_step")
        checks.positive(self, "adam_eps")
        checks.at_least_zero(self, "learning_starts")
        if self.replay_capacity < self.num_envs:
            raise ValueError(
                f"replay_capacity is {self.replay_capacity}, but each step of a seed's environments adds num_envs "
                f"{self.num_envs} samples; raise replay_capacity"
            )

    @property
    def updates(self) -> int:
        """Gradient steps in the whole run."""
        return self.updates_until(self.iterations * self.batch_size)

    def updates_until(self, step: int) -> int:
        """Gradient steps that are due by this environment step."""
        block = self.train_every * self.num_envs
        return int(max(0, step // block * block - self.learning_starts) * self.updates_per_step)

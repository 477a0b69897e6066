"""ε-greedy exploration: its settings, the ε of each step, and the random numbers of an iteration.

Leaves out the choice of an action (`epsilon_greedy` in `agents/distributions.py`).
"""

# T time, S seeds, B environments per seed, A actions
from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from telescope.checks import in_unit_interval
from telescope.control.config import LearnerConfig
from telescope.randomness import ACTIONS, generator


@dataclasses.dataclass(frozen=True)
class ExploringConfig(LearnerConfig):
    """The settings that algorithms with ε-greedy exploration share."""

    exploration_start: float = 1.0
    """ε, the probability of a random action, at the start of the run."""
    exploration_end: float = 0.05
    """ε after its decay, and for stochastic evaluation."""
    exploration_fraction: float = 0.2
    """Share of the run over which ε decays linearly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        in_unit_interval(self, "exploration_start", "exploration_end", "exploration_fraction")

    def exploration(self, step: int) -> float:
        """ε at this environment step."""
        decayed = min(1.0, step / max(1.0, self.exploration_fraction * self.total_steps))
        return self.exploration_start + decayed * (self.exploration_end - self.exploration_start)

    def head(self, action_space: Any) -> Any:
        """ε-greedy in a Discrete space."""
        import gymnasium as gym

        from telescope.control.agents.distributions import epsilon_greedy

        if not isinstance(action_space, gym.spaces.Discrete):
            kind = type(self).__name__
            raise ValueError(f"action_space is {action_space}; {kind} expects Discrete, because it compares actions")
        return epsilon_greedy(int(action_space.n), self.exploration_end)


def exploring(config: ExploringConfig, session: Any) -> np.ndarray:
    """Noise for an iteration's actions [T, S, B, 1 + A]. The first number is below 0 with probability ε."""
    draw, shape = session.agent.distribution.noise, (config.num_steps, config.num_envs)
    noise = np.stack([draw(generator(seed, ACTIONS, session.iteration), shape) for seed in config.seed_values], axis=1)
    steps = session.step + config.num_envs * np.arange(config.num_steps)  # [T]
    more = [config.exploration(int(step)) - config.exploration_end for step in steps]  # ε beyond that of the head
    noise[..., 0] -= np.array(more, np.float32)[:, None, None]
    return noise  # type: ignore[no-any-return]

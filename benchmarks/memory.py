"""PPO with and without a memory on CartPole whose velocities are hidden: `python -m benchmarks.memory`.

Prints the mean return of each seed's episodes as training goes on. Takes about ten minutes on two cores.
"""

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np

from telescope.algorithms import ppo

SEEDS, STEPS = 4, 92_160


class BlindCartPole(gym.ObservationWrapper):
    """CartPole that shows the positions of cart and pole, and not how fast they move."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(gym.make("CartPole-v1", **settings))
        space: Any = self.env.observation_space
        self.observation_space = gym.spaces.Box(space.low[[0, 2]], space.high[[0, 2]])

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[[0, 2]]


def config(gru: int) -> ppo.PPO:
    """CartPole's preset with sequences of 64 steps, four to a minibatch."""
    sizes = {"num_envs": 16, "num_steps": 64, "minibatch_size": 256, "gru": gru}
    return dataclasses.replace(
        ppo.preset("CartPole-v1"), env=BlindCartPole, seeds=SEEDS, total_steps=STEPS, threads=1, **sizes
    )


def main() -> None:
    """Train both, and print a line for every tenth iteration."""
    for gru in (0, 64):
        for metrics in ppo.train(config(gru)):
            if metrics.rows[0]["iteration"] % 10 == 0:
                returns = [row["return_mean"] for row in metrics.rows]
                shown = " ".join("    -" if value is None else f"{value:5.0f}" for value in returns)
                print(f"gru={gru:<3} step {metrics.step:>7,}  return {shown}", flush=True)


if __name__ == "__main__":
    main()

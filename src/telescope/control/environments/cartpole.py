"""Gymnasium's vectorised CartPole for several seeds at once, each with its own random generator.

Each seed sees the same bits as alone in a `CartPoleVectorEnv`. One call moves 64 carts nearly as fast as 8, in one
compiled loop instead of forty NumPy operations.
"""

# S seeds, B environments per seed, N = S·B

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.utils import seeding

ENTRY_POINT = "gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv"


class SeedColumns:
    """Replaces the generator of N carts: it draws each seed's columns from the seed's own generator."""

    def __init__(self, generators: Sequence[np.random.Generator], counts: Sequence[int]) -> None:
        self._generators, self._counts = generators, counts

    def uniform(self, low: float, high: float, size: tuple[int, int]) -> np.ndarray:
        pairs = zip(self._generators, self._counts, strict=True)
        return np.concatenate([g.uniform(low, high, (size[0], count)) for g, count in pairs], axis=1)


class CartPolePopulation(CartPoleVectorEnv):
    """N = S·B carts, B for each of S seeds, in the order of the seeds."""

    screens: Any = None  # close() asks for it, also where a wrong keyword has ended __init__

    def __init__(self, num_envs: int, num_seeds: int, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        self.num_seeds = num_seeds
        self.generators: list[np.random.Generator] = []
        self._starting = False

    def reset(self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None) -> Any:
        """Like CartPoleVectorEnv, with one seed for all carts or one per seed."""
        if seed is not None:
            seeds = [seed] * self.num_seeds if isinstance(seed, int) else seed
            self.generators = [seeding.np_random(number)[0] for number in seeds]
        self._starting = True
        try:
            return super().reset(options=options)
        finally:
            self._starting = False

    @property  # type: ignore[misc]
    def np_random(self) -> Any:
        """Draw new states: in reset() for every cart, in step() for carts whose episode ended one step ago."""
        fresh = np.ones(self.num_envs, bool) if self._starting else self.prev_done
        if not fresh.any():
            return self.generators[0]  # no numbers are drawn
        return SeedColumns(self.generators, fresh.reshape(self.num_seeds, -1).sum(1).tolist())

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Like CartPoleVectorEnv with its Euler integrator, for actions 0 and 1. Moves the state in place."""
        from telescope.control.experience.loops import move_carts  # numba

        state: Any = self.state
        terminated = np.empty(self.num_envs, bool)
        move_carts(state, action, np.cos(state[2]), np.sin(state[2]), self._physics, terminated)
        self.steps += 1
        truncated = self.steps >= self.max_episode_steps
        reward = -terminated.astype(np.float32) if self._sutton_barto_reward else np.ones(self.num_envs, np.float32)
        if self.prev_done.any():  # these carts restart: this row is no transition
            fresh = self.prev_done
            state[:, fresh] = self.np_random.uniform(self.low, self.high, (4, int(fresh.sum())))
            self.steps[fresh], reward[fresh], terminated[fresh], truncated[fresh] = 0, 0.0, False, False
        self.prev_done = terminated | truncated
        return state.T.astype(np.float32), reward, terminated, truncated, {}

    @property
    def _physics(self) -> tuple[float, ...]:
        lengths = (self.length, self.polemass_length)
        bounds = (self.x_threshold, self.theta_threshold_radians)
        return (self.gravity, self.masspole, self.total_mass, *lengths, self.force_mag, self.tau, *bounds)

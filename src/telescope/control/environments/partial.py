"""Environments that hide a part of their state, so that a policy must remember: a T-maze, and masked velocities.

`telescope/TMaze-v0`, `telescope/MaskedCartPole-v1` and `telescope/MaskedPendulum-v1` are ids of Telescope's own, which
its commands know. Elsewhere call `register()` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

VELOCITIES: dict[str, tuple[int, ...]] = {
    "CartPole": (1, 3),
    "Pendulum": (2,),
    "Acrobot": (4, 5),
    "MountainCar": (1,),
    "MountainCarContinuous": (1,),
    "LunarLander": (2, 3, 5),
    "LunarLanderContinuous": (2, 3, 5),
}
"""The entries of an observation that are velocities, by the family of an environment."""


class TMaze(gym.Env):
    """A corridor with a signal at its beginning and a junction at its end (Bakker 2001).

    The first of three bits is on where the signal says north, the second where it says south; both are seen at the
    first step only. The third is on at the junction, `length` steps east of the start. There the way that the signal
    said earns 4 and the other one −0.1, and the episode ends. Each step that does not lead on costs 0.1; in Bakker's
    maze, only one into a wall does. An episode is truncated after 4 · length + 4 steps. The signal is random, so
    without a memory no policy earns more than 1.95 on average.
    """

    NORTH, EAST, SOUTH, WEST = range(4)

    def __init__(self, length: int = 20) -> None:
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ValueError(f"length is {length!r}; expected a whole number > 0")
        self.length, self.limit = length, 4 * length + 4
        self.observation_space = gym.spaces.Box(0.0, 1.0, (3,), np.float32)
        self.action_space = gym.spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin in the west, with a new signal."""
        super().reset(seed=seed)
        self.place, self.steps = 0, 0
        self.goal = (self.NORTH, self.SOUTH)[int(self.np_random.integers(2))]
        return self._seen(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Move, or stay where a wall is."""
        self.steps += 1
        if self.place == self.length and action in (self.NORTH, self.SOUTH):
            return self._seen(), 4.0 if action == self.goal else -0.1, True, False, {}
        before = self.place
        self.place = min(max(before + (action == self.EAST) - (action == self.WEST), 0), self.length)
        reward = 0.0 if self.place > before else -0.1
        return self._seen(), reward, False, self.steps >= self.limit, {}

    def _seen(self) -> np.ndarray:
        first = self.steps == 0
        bits = first and self.goal == self.NORTH, first and self.goal == self.SOUTH, self.place == self.length
        return np.array(bits, np.float32)


class MaskedVelocity(gym.ObservationWrapper):
    """The environment without the entries of its observations that are velocities.

    `velocities` are their places. Those of classic control, LunarLander and MuJoCo's environments are known.
    """

    def __init__(self, env: gym.Env, velocities: int | Sequence[int] | None = None) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"MaskedVelocity needs observations in a Box with one axis; got {space}")
        found = _known(env) if velocities is None else (velocities,) if isinstance(velocities, int) else velocities
        hidden, size = set(found), space.shape[0]
        if not hidden <= set(range(size)) or len(hidden) == size:
            raise ValueError(f"velocities are {sorted(hidden)}; expected some of the entries 0 to {size - 1}, not all")
        self._kept = [i for i in range(size) if i not in hidden]
        self.observation_space = gym.spaces.Box(
            space.low[self._kept],
            space.high[self._kept],
            dtype=space.dtype.type,  # type: ignore[arg-type,union-attr]
        )

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """The entries that are left."""
        return observation[self._kept]


def _known(env: gym.Env) -> Sequence[int]:
    name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
    family = name.rpartition("/")[2].rpartition("-v")[0]
    if family in VELOCITIES:
        return VELOCITIES[family]
    parts: dict[str, int] | None = getattr(env.unwrapped, "observation_structure", None)  # MuJoCo
    if parts and parts.get("qvel"):
        return range(parts["qpos"], parts["qpos"] + parts["qvel"])
    raise ValueError(f"MaskedVelocity does not know the velocities of {name}; name their places: velocities=2")


def masked(env: str, **settings: Any) -> gym.Env:
    """An environment of Gymnasium without its velocities and without its time limit, which the masked id has."""
    return MaskedVelocity(gym.make(env, max_episode_steps=-1, disable_env_checker=True, **settings))


def register() -> None:
    """Register our own ids with Gymnasium."""
    if "telescope/TMaze-v0" in gym.registry:
        return
    gym.register("telescope/TMaze-v0", f"{__name__}:TMaze")
    for env in ("CartPole-v1", "Pendulum-v1"):
        limit = gym.spec(env).max_episode_steps
        gym.register(f"telescope/Masked{env}", f"{__name__}:masked", kwargs={"env": env}, max_episode_steps=limit)

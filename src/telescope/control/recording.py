"""Play episodes and keep their steps, as demonstrations for somebody else.

Leaves out how they are kept in files (`experience/demonstrations.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from telescope.control.config import ControlConfig
from telescope.control.environments.factory import Factory, find_source, time_limit
from telescope.control.environments.population import dressed
from telescope.control.environments.spaces import Packed, in_row, native


def recorded(config: ControlConfig, act: Callable[..., Any], seeds: Sequence[int], max_steps: int) -> dict[str, Any]:
    """One episode from each seed with `act(observation, action_mask=…, begins=…)`: arrays with one row per step.

    An episode that has not ended after `max_steps` is cut there, as truncated.
    """
    source = find_source(config.env)
    dressing, kwargs = dressed(config.dressing, source, config.env_kwargs)
    world = Factory(source, time_limit(source, kwargs), dressing=dressing)()
    try:
        return _played(world, act, seeds, max_steps)
    finally:
        world.close()


def _played(world: gym.Env, act: Callable[..., Any], seeds: Sequence[int], max_steps: int) -> dict[str, Any]:
    names = ("observations", "actions", "rewards", "terminated", "truncated", "action_masks")
    rows: dict[str, list[Any]] = {name: [] for name in names}
    for seed in seeds:
        observation, info = world.reset(seed=seed)
        for step in range(max_steps):
            mask = info.get("action_mask")
            action = act(native(world.observation_space, observation), action_mask=mask, begins=step == 0)
            rows["observations"].append(np.array(observation))
            rows["actions"].append(np.array(taken := in_row(world.action_space, action)))
            observation, reward, terminated, truncated, info = world.step(taken)
            for name, value in (("rewards", reward), ("terminated", terminated), ("action_masks", mask)):
                rows[name].append(value)
            rows["truncated"].append(truncated or (step + 1 == max_steps and not terminated))
            if terminated or truncated:
                break
    arrays = {name: np.array(values) for name, values in rows.items() if values[0] is not None}
    for name, space in (("observations", world.observation_space), ("actions", world.action_space)):
        arrays |= _in_parts(space, name, arrays.pop(name))
    return arrays


def _in_parts(space: gym.Space, name: str, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Rows [N, …] as the arrays of the space's parts: `name.key` of the part under `key`."""
    if not isinstance(space, Packed):
        return {name: rows}
    return {".".join((name, *map(str, part.path))): space.part(part, rows) for part in space.parts}

"""Record one episode as a film, frame by frame, from a single rendered environment.

Returns are measured elsewhere (`evaluate.py`); this is only to look at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from telescope.control.env_factory import quiet_mujoco
from telescope.control.snapshots import Recorder


def record(
    env: str | Callable[..., gym.Env],
    act: Callable[..., np.ndarray],
    folder: str | os.PathLike[str],
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Play one episode by `act(observation, action_mask=…)` and write folder/episode.mp4; returns its path."""
    import imageio.v2 as imageio

    kwargs = dict(env_kwargs or {}) | {"render_mode": "rgb_array"}
    with quiet_mujoco():
        world = env(**kwargs) if callable(env) else gym.make(env, **kwargs)
    world = Recorder(world)  # checks steps, and finds masks
    frames: list[Any] = []
    try:
        observation, info = world.reset(seed=seed)
        ended = False
        while not ended:
            frames.append(world.render())
            action = act(observation, action_mask=info.get("action_mask"))
            observation, _, terminated, truncated, info = world.step(action)
            ended = terminated or truncated
        frames.append(world.render())
    finally:
        world.close()
    target = Path(folder) / "episode.mp4"
    target.parent.mkdir(parents=True, exist_ok=True)
    imageio.mimsave(target, frames, fps=world.metadata.get("render_fps", 30), macro_block_size=2)
    return target

"""Record a video of one episode from a single rendered environment.

Leaves out returns; `evaluate.py` measures them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from telescope.control.environments.dressing import Dressing
from telescope.control.environments.factory import Factory, find_source, name_of, refused_keywords, time_limit
from telescope.control.environments.population import dressed
from telescope.control.environments.snapshots import Recorder
from telescope.control.environments.spaces import in_row, native


def record(
    env: str | Callable[..., gym.Env],
    act: Callable[..., np.ndarray],
    folder: str | os.PathLike[str],
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    dressing: Dressing | None = None,
    seed: int = 0,
    max_steps: int = 3000,
) -> Path:
    """Play one episode with `act(observation, action_mask=…)`, write folder/episode.mp4 and return its path.

    If the episode has not ended after `max_steps`, the video stops there, with a warning.
    """
    import imageio.v2 as imageio

    world = _world(env, env_kwargs or {}, dressing or Dressing())
    target = Path(folder) / "episode.mp4"
    film: Any
    try:
        observation, info = world.reset(seed=seed)
        fps = world.metadata.get("render_fps", 30)
        target.parent.mkdir(parents=True, exist_ok=True)
        with imageio.get_writer(target, fps=fps, macro_block_size=2) as film:  # holds one frame in memory
            for _ in range(max_steps):
                film.append_data(_frame(world))
                action = act(native(world.observation_space, observation), action_mask=info.get("action_mask"))
                observation, _, terminated, truncated, info = world.step(in_row(world.action_space, action))
                if terminated or truncated:
                    break
            else:
                warnings.warn(f"the video stops after {max_steps:,} steps, before its episode ends", stacklevel=2)
            film.append_data(_frame(world))
    finally:
        world.close()
    return target


def _world(env: str | Callable[..., gym.Env], kwargs: Mapping[str, Any], dressing: Dressing) -> Recorder:
    """One environment that renders frames, with the same checks and action masks as in training."""
    source = find_source(env)
    dressing, kwargs = dressed(dressing, source, kwargs)
    drawing = {**kwargs, "render_mode": "rgb_array"}
    if callable(source) and refused_keywords(source, drawing) and not refused_keywords(source, kwargs):
        raise ValueError(
            f"{name_of(source)} takes no render_mode; a video needs a constructor with render_mode=None "
            "and a render() that returns an array [height, width, 3]"
        )
    return Factory(source, time_limit(source, drawing), dressing=dressing)()


def _frame(world: Recorder) -> np.ndarray:
    frame = world.render()
    if not isinstance(frame, np.ndarray):
        raise ValueError(
            f"render() of {type(world.unwrapped).__name__} returned a {type(frame).__name__}; "
            "a video needs an array [height, width, 3]"
        )
    return frame

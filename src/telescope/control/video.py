"""Record one episode as a film, frame by frame, from a single rendered environment.

Returns are measured elsewhere (`evaluate.py`); this is only to look at.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from telescope.control.environments.factory import Factory, find_source, name_of, refused_keywords, time_limit
from telescope.control.environments.snapshots import Recorder


def record(
    env: str | Callable[..., gym.Env],
    act: Callable[..., np.ndarray],
    folder: str | os.PathLike[str],
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    max_steps: int = 3000,
) -> Path:
    """Play one episode by `act(observation, action_mask=…)` and write folder/episode.mp4; returns its path.

    A film of an episode that has not ended after `max_steps` ends there, with a warning.
    """
    import imageio.v2 as imageio

    world = _world(env, env_kwargs or {})
    target = Path(folder) / "episode.mp4"
    film: Any
    try:
        observation, info = world.reset(seed=seed)
        fps = world.metadata.get("render_fps", 30)
        target.parent.mkdir(parents=True, exist_ok=True)
        with imageio.get_writer(target, fps=fps, macro_block_size=2) as film:  # one frame in memory at a time
            for _ in range(max_steps):
                film.append_data(_frame(world))
                action = act(observation, action_mask=info.get("action_mask"))
                observation, _, terminated, truncated, info = world.step(action)
                if terminated or truncated:
                    break
            else:
                warnings.warn(f"the film ends after {max_steps:,} steps, its episode does not", stacklevel=2)
            film.append_data(_frame(world))
    finally:
        world.close()
    return target


def _world(env: str | Callable[..., gym.Env], kwargs: Mapping[str, Any]) -> Recorder:
    """One environment that draws frames; made, checked and searched for masks as those of training are."""
    source = find_source(env)
    drawing = {**kwargs, "render_mode": "rgb_array"}
    if callable(source) and refused_keywords(source, drawing) and not refused_keywords(source, kwargs):
        raise ValueError(
            f"{name_of(source)} takes no render_mode; a film needs a constructor with render_mode=None "
            "and a render() that returns an array [height, width, 3]"
        )
    return Factory(source, time_limit(source, drawing))()


def _frame(world: Recorder) -> np.ndarray:
    frame = world.render()
    if not isinstance(frame, np.ndarray):
        raise ValueError(
            f"render() of {type(world.unwrapped).__name__} returned a {type(frame).__name__}; "
            "a film needs an array [height, width, 3]"
        )
    return frame

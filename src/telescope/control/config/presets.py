"""Which preset an environment gets: that of its family, or of its collection of games.

Leaves out the presets themselves, which stand beside their algorithms.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

MUJOCO_FAMILY = (
    "Ant",
    "HalfCheetah",
    "Hopper",
    "Humanoid",
    "HumanoidStandup",
    "InvertedDoublePendulum",
    "InvertedPendulum",
    "Pusher",
    "Reacher",
    "Swimmer",
    "Walker2d",
)
"""Gymnasium's MuJoCo environments, without their version. They share one preset."""


def for_family(presets: Mapping[str, Any], env: str, default: Any) -> Any:
    """The settings for an environment id: the preset of its family, or the defaults.

    A family is an id without its version and its namespace; a namespace of games, such as MinAtar/, has presets of its
    own, for one game (MinAtar/Breakout) or for all of them (MinAtar/).
    """
    space, slash, name = env.rpartition("/")
    family = name.rpartition("-v")[0] or name
    own = (f"{space}/{family}", f"{space}/") if slash and f"{space}/" in presets else (family,)
    found = next((presets[key] for key in own if key in presets), default)
    return dataclasses.replace(found, env=env)

"""Environments whose batch lives on a device: they step all at once, and give and take torch or JAX arrays.

`protocol.py` says what such a simulator returns. A function with a parameter `num_envs` makes one (`--env
package.module:make`); `gymnax` and `brax` below are ready-made. Leaves out the rollout (`experience/device.py`).
"""

from __future__ import annotations

from typing import Any

from telescope.control.simulators.protocol import Vector, vector

__all__ = ["Vector", "brax", "gymnax", "vector"]


def gymnax(num_envs: int, name: str, **parameters: Any) -> Any:
    """`num_envs` environments of gymnax, such as CartPole-v1, with these of its parameters replaced."""
    import gymnax as library  # type: ignore[import-untyped]

    from telescope.control.simulators.functional import of_gymnax

    env, defaults = library.make(name)
    return of_gymnax(env, defaults.replace(**parameters), num_envs)  # type: ignore[attr-defined]


def brax(num_envs: int, name: str, episode_length: int = 1000, **settings: Any) -> Any:
    """`num_envs` environments of Brax, such as ant, whose episodes are truncated after `episode_length` steps."""
    from brax import envs  # type: ignore[import-not-found]

    from telescope.control.simulators.functional import of_brax

    return of_brax(envs.get_environment(name, **settings), num_envs, episode_length)

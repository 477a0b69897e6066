"""A network of the user's own by its name, `module:build`.

Leaves out whether it fits (`trial.py`), and whether a run folder may import it (`runs/identity/trust.py`).
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from telescope.control.agents.networks import Network, from_module
from telescope.control.environments.importing import imported
from telescope.control.environments.spaces import Packed


def named_network(path: str, observation_space: Any, action_space: Any) -> Network:
    """The network of `module:build` for these spaces.

    `build` is a `Network`, or a function or class that returns a `Network` or an nn.Module. It gets the observation
    space and the action space if it takes two arguments. A module whose attribute `shaped` is True reads observations
    with their shape, and a Dict as a dict.
    """
    build = imported(path, "network")
    if isinstance(build, Network):
        return build
    if not callable(build):
        raise ValueError(f"network {path!r} is a {type(build).__name__}; expected a function, a class or a Network")
    spaces = [space.original if isinstance(space, Packed) else space for space in (observation_space, action_space)]
    arguments = spaces if _takes_spaces(build) else []
    found = build(*arguments)
    if isinstance(found, Network):
        return found
    if not isinstance(found, nn.Module):
        raise ValueError(f"network {path!r} returned a {type(found).__name__}; expected an nn.Module or a Network")
    return from_module(lambda: build(*arguments), shaped=bool(getattr(found, "shaped", False)))


def _takes_spaces(build: Any) -> bool:
    """Whether it can be called with two arguments."""
    try:
        inspect.signature(build).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True

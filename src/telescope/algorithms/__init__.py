"""One file per algorithm; each holds its config, its presets and its training loop.

`find` looks one up by the name it has on the command line; the files themselves never import each other.
"""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType
from typing import Any

CONFIGS = {"ppo": "PPO"}
"""Module name → the name of its config class."""


def find(name: str) -> ModuleType:
    """The module of an algorithm: `.train(config, resume=None)`, `.preset(env)` and its config class."""
    if name not in CONFIGS:
        close = difflib.get_close_matches(name, CONFIGS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"algorithm is {name!r}; expected one of {', '.join(CONFIGS)}{hint}")
    try:
        return importlib.import_module(f"telescope.algorithms.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "telescope":
            raise
        message = f'{name} needs {error.name}: pip install "telescope-rl[control]"'
        raise ImportError(message, name=error.name) from error


def config_class(name: str) -> Any:
    """The config dataclass of an algorithm."""
    return getattr(find(name), CONFIGS[name])


def __getattr__(name: str) -> ModuleType:
    if name in CONFIGS:
        return find(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

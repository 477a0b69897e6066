"""What a run puts around an environment: a time limit, wrappers named by their module, a stack of observations.

Leaves out who may import the named code (`runs/identity/trust.py`).
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium.wrappers import FrameStackObservation, TimeLimit

from telescope.control.environments.importing import imported


class Dressing(NamedTuple):
    """Around one environment, from the inside out: a time limit, wrappers, a stack of the last observations."""

    wrap: tuple[str, ...] = ()
    """Words: `module:Name` of a wrapper, then its arguments as `name=value`."""
    frame_stack: int = 1
    time_limit: int | None = None
    """Only for environments without an id: an id takes its limit itself, as `max_episode_steps`."""

    @property
    def changes(self) -> str:
        """The name of the first setting that only single environments can have; empty if there is none."""
        return "wrap" if self.wrap else "frame_stack" if self.frame_stack > 1 else ""

    def __call__(self, env: gym.Env) -> gym.Env:
        if self.time_limit is not None:
            inside = env.env if isinstance(env, TimeLimit) else env
            env = TimeLimit(inside, self.time_limit)
        for name, arguments in wrappers(self.wrap):
            env = _wrapped(env, name, arguments)
        return FrameStackObservation(env, self.frame_stack) if self.frame_stack > 1 else env


def wrappers(words: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """The wrappers in these words, each with its arguments. A ValueError for a word that is neither."""
    found: list[tuple[str, dict[str, Any]]] = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and ":" in word:
            found.append((word, {}))
        elif equals and name.isidentifier() and found:
            found[-1][1][name] = _value(value)
        else:
            raise ValueError(
                f"wrap has the word {word!r}; expected module:Name of a wrapper, such as "
                "gymnasium.wrappers:TimeAwareObservation, or name=value after it"
            )
    return found


def _value(text: str) -> Any:
    """A number, True, None, a tuple, … as Python writes it; anything else is a string."""
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text, text))
    return text


def _wrapped(env: gym.Env, name: str, arguments: dict[str, Any]) -> gym.Env:
    wrapper = imported(name, "wrap")
    told = f"wrap {name!r}" + (f" with {arguments}" if arguments else "")
    try:
        found = wrapper(env, **arguments)
    except TypeError as error:
        raise ValueError(f"{told} does not fit: {error}") from error
    if not isinstance(found, gym.Env):
        raise ValueError(f"{told} returned a {type(found).__name__}; expected a gymnasium.Env or Wrapper")
    return found

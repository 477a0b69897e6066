"""Environments in worker processes of Gymnasium's: an error there arrives in the parent as it was, with its traceback.

Leaves out how many there are and how they are reset (`env_lanes.py`).
"""

import warnings
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv

from telescope.failures import sendable


class Reporting(gym.Wrapper):
    """In the worker: an error of the environment is made one that can be sent."""

    def reset(self, **arguments: Any) -> Any:
        try:
            return self.env.reset(**arguments)
        except Exception as error:
            raise sendable(error) from None

    def step(self, action: Any) -> Any:
        try:
            return self.env.step(action)
        except Exception as error:
            raise sendable(error) from None


class ReportedAsyncVectorEnv(AsyncVectorEnv):
    """In the parent: the error itself is raised, and Gymnasium's logger doesn't tell it a second time."""

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        successes = list(successes)
        if all(successes):
            return
        try:
            with warnings.catch_warnings(action="ignore"):
                super()._raise_if_errors(successes)
        except Exception as error:  # Gymnasium raises its type, made from the error that came
            first = error.args[0] if error.args else None
            raise (first if isinstance(first, Exception) else error) from None

"""Environments in Gymnasium's worker processes. An error there arrives in the parent unchanged, with its traceback.

A worker whose parent is gone ends silently. A worker that is gone itself raises an error sentence in the parent. Leaves
out the number of workers and their resets (`lanes.py`).
"""

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv

from telescope.control.workers.spawning import keep_tracker
from telescope.failures import sendable

gymnasiums_worker: Any = None
with contextlib.suppress(ImportError):  # a private function, which may move; Gymnasium then uses its own
    from gymnasium.vector.async_vector_env import _async_worker as gymnasiums_worker


class Reporting(gym.Wrapper):
    """In the worker: turn an error of the environment into one that can be sent."""

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


GONE = (EOFError, BrokenPipeError, ConnectionResetError)


class ParentsPipe:
    """In the worker: the pipe to the parent. When it closes, the worker ends; Gymnasium's would raise two errors."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def recv(self) -> Any:
        try:
            return self._pipe.recv()
        except GONE:
            os._exit(0)

    def send(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except GONE:
            os._exit(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)


def work(index: int, make: Any, pipe: Any, *others: Any) -> None:
    """Gymnasium's worker, on this pipe."""
    parents: Any = ParentsPipe(pipe)
    gymnasiums_worker(index, make, parents, *others)


class ReportedAsyncVectorEnv(AsyncVectorEnv):
    """In the parent: raise the worker's error, and keep Gymnasium's logger from printing it again."""

    def __init__(self, factories: Any, **more: Any) -> None:
        keep_tracker()
        super().__init__(factories, worker=work if gymnasiums_worker else None, **more)

    def step(self, actions: Any) -> Any:
        with self._told():
            return super().step(actions)

    def reset(self, **arguments: Any) -> Any:
        with self._told():
            return super().reset(**arguments)

    def call(self, *arguments: Any, **more: Any) -> Any:
        with self._told():
            return super().call(*arguments, **more)

    def set_attr(self, *arguments: Any) -> None:
        with self._told():
            super().set_attr(*arguments)

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        gone = any(not process.is_alive() for process in self.processes)
        super().close_extras(timeout, terminate or gone)  # otherwise it waits for their answer

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except GONE as error:
            for process in self.processes:
                process.join(0.2)
            ended = [process.exitcode for process in self.processes if process.exitcode is not None]
            raise ChildProcessError(
                f"{len(ended) or 'some'} of {len(self.processes)} environment processes ended (exit status "
                f"{ended[0] if ended else 'unknown'}; -9 is a kill, for example because memory ran out)"
            ) from error

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        successes = list(successes)
        if all(successes):
            return
        try:
            with warnings.catch_warnings(action="ignore"):
                super()._raise_if_errors(successes)
        except Exception as error:  # Gymnasium raises an error of the same type
            first = error.args[0] if error.args else None
            raise (first if isinstance(first, Exception) else error) from None

"""Torch's global settings: a training loop sets its own while it works, and restores the caller's whenever it yields.

Leaves out the choice of the number of threads (`control/execution.py`, `language/execution.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

deterministic: Any = torch.utils.deterministic  # a module with one setting, made by assignment


class Settings(NamedTuple):
    """Global torch settings of a process."""

    threads: int
    dtype: torch.dtype
    """The default dtype of new tensors."""
    order: int
    """1 sums in a fixed order across threads, so that equal commands give equal bits."""
    filled: bool
    """Whether new memory is filled, which costs time and does not change our results."""

    @classmethod
    def found(cls) -> Settings:
        order, filled = torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory
        return cls(torch.get_num_threads(), torch.get_default_dtype(), order, filled)

    def hold(self) -> None:
        torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.dtype)
        torch.set_deterministic_debug_mode(self.order)
        deterministic.fill_uninitialized_memory = self.filled


def settle(threads: int, device: str) -> None:
    """Apply the settings of a run on this device. `own_settings` restores the caller's.

    Without them, on the CPU the gradient of x[rows] with repeated rows would be summed in the order in which threads
    arrive. On CUDA the same switch forbids operations and needs environment variables.
    """
    order = 1 if device == "cpu" else torch.get_deterministic_debug_mode()
    Settings(threads, torch.get_default_dtype(), order, False).hold()


def own_settings(train: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Decorate `train` to run in float32 and with its own threads, only from the caller's `next` to its result."""

    @functools.wraps(train)
    def alone(*arguments: Any, **more: Any) -> Iterator[Any]:
        return _alternating(train(*arguments, **more))

    return alone


def _alternating(loop: Any) -> Iterator[Any]:
    own = Settings.found()._replace(dtype=torch.float32)
    try:
        while True:
            callers = Settings.found()
            own.hold()
            try:
                answer = next(loop)
            except StopIteration:
                return
            finally:
                own = Settings.found()
                callers.hold()
            yield answer
    finally:
        loop.close()

"""Torch's global settings: a training loop has its own while it works, and its caller has theirs whenever they do.

How many threads a run takes is decided where its execution is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

deterministic: Any = torch.utils.deterministic  # a module whose one setting is made by assigning to it


class Settings(NamedTuple):
    """What a process sets once for all of its torch."""

    threads: int
    dtype: torch.dtype
    """Of tensors that name none."""
    order: int
    """1: sums that threads share are added up in one order, so that equal commands give equal bits."""
    filled: bool
    """Is memory that nobody has written filled, which costs time and changes no result of ours?"""

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
    """The settings of a run, once it is known where it computes; `own_settings` gives the caller's back.

    On the CPU the gradient of x[rows], rows drawn several times over, would otherwise be added up in the order in
    which threads come by. On CUDA the same switch refuses operations and asks for environment variables.
    """
    order = 1 if device == "cpu" else torch.get_deterministic_debug_mode()
    Settings(threads, torch.get_default_dtype(), order, False).hold()


def own_settings(train: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """`train` in float32, with threads of its own from the caller's `next` to its answer; both never last longer."""

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

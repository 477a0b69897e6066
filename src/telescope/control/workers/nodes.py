"""The workers of `transport.py` as Ray actors, so that shares of a run train on the machines of a cluster.

A worker that is lost with its machine begins anew from the last state that was asked of it, as soon as a machine has
a processor for it, and makes the items since then again. Leaves out seeds and training (`shares.py`).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from telescope.control.workers.cluster import connected
from telescope.control.workers.spawning import sent
from telescope.failures import sendable

MOST_LOSSES = 10
"""Times that one worker may be lost without a single report in between."""


class Known(NamedTuple):
    """A state from which a lost worker can begin anew."""

    state: Any
    items: int  # made before it


class RayWorkers:
    """What `transport.Workers` are, on the cluster at `address`.

    `restored(arguments, state)` returns the arguments of `iterate` that continue from a state; see `ask`.
    """

    def __init__(
        self,
        iterate: Callable[..., Iterator[Any]],
        jobs: Iterable[Sequence[Any]],
        report: Callable[[Any], Any],
        *,
        address: str | None,
        restored: Callable[[Sequence[Any], Any], Sequence[Any]],
    ) -> None:
        self.address, self.restored, self._ends = address, restored, contextlib.ExitStack()
        self._iterate, self._report = iterate, report
        self.jobs = [tuple(arguments) for arguments in jobs]
        self.known: list[list[Known]] = [[] for _ in self.jobs]
        """The last two states of each worker: from its newest one the item that it is at cannot be made again."""
        self.items = [0] * len(self.jobs)
        """Items that each worker has made, or is making."""
        self.losses = [0] * len(self.jobs)

    def start(self, why: str) -> None:
        """Begin the workers. A ValueError, which begins with `why`, if a job cannot be sent to another process."""
        self.why = why
        for job in self.jobs:
            sent(job, why)
        self.ray = self._ends.enter_context(connected(self.address, len(self.jobs)))
        self.workers = [self._begin(job) for job in self.jobs]
        self.current = [self._make(i, 1) for i in range(len(self.jobs))]

    def _begin(self, job: Sequence[Any]) -> Any:
        kind = self.ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")(Worker)
        whole = sent((self._iterate, tuple(job), self._report), self.why)
        return kind.remote(whole, [path for path in sys.path if os.path.isdir(path)])

    def _make(self, i: int, count: int) -> Any:
        """A reference to the report of worker i about the last of its next `count` items."""
        self.items[i] += count
        return self.workers[i].make.remote(count)

    def go(self, which: Sequence[int]) -> None:
        for i in which:
            self.current[i] = self._make(i, 1)

    def reports(self, which: Sequence[int] | None = None) -> list[Any]:
        return [self._result(i, lambda i: self.current[i]) for i in self._all(which)]

    def ask(self, attribute: str) -> list[Any]:
        """An attribute of each worker's current item. If it is a whole state, a lost worker begins anew from it."""
        places = self._all(None)
        references = [self.workers[i].give.remote(attribute) for i in places]
        found = []
        for i, reference in zip(places, references, strict=True):
            found.append(self._result(i, self._again(attribute, first=reference)))
            if attribute in ("state", "light_state") and "replay" not in found[-1]:
                self.known[i] = [*self.known[i][-1:], Known(found[-1], self.items[i])]
        return found

    def call(self, which: int, method: str, *arguments: Any) -> Any:
        return self._result(which, self._again(method, *arguments))

    def _again(self, attribute: str, *arguments: Any, first: Any = None) -> Callable[[int], Any]:
        """What asks a worker for an attribute: by the reference that is there, and if that is lost by another."""
        waiting = [] if first is None else [first]
        return lambda i: waiting.pop() if waiting else self.workers[i].give.remote(attribute, *arguments)

    def _result(self, i: int, reference: Callable[[int], Any]) -> Any:
        """What a reference to worker i's answer leads to. If the worker is lost, it begins anew and is asked again."""
        while True:
            try:
                found = self.ray.get(reference(i))
            except self.ray.exceptions.RayTaskError:
                raise
            except self.ray.exceptions.RayError as error:
                self._recover(i, error)
                continue
            if isinstance(found, Exception):
                raise found
            self.losses[i] = 0
            return found

    def _recover(self, i: int, error: Exception) -> None:
        self.losses[i] += 1
        if self.losses[i] > MOST_LOSSES:
            raise ChildProcessError(
                f"a training process was lost {self.losses[i]} times without an iteration ({type(error).__name__}); "
                "its output, if any, is above; if memory ran out, use fewer processes"
            ) from None
        with contextlib.suppress(Exception):  # one that is only out of reach must not go on
            self.ray.kill(self.workers[i])
        made = self.items[i]
        before = [one for one in self.known[i] if one.items < made]
        job: Sequence[Any] = self.jobs[i]
        self.items[i] = 0
        if before:
            job, self.items[i] = self.restored(job, before[-1].state), before[-1].items
        self.workers[i] = self._begin(job)
        self.current[i] = self._make(i, made - self.items[i])

    def close(self) -> None:
        for worker in getattr(self, "workers", ()):
            with contextlib.suppress(Exception):
                self.ray.kill(worker)
        self._ends.close()

    def _all(self, which: Sequence[int] | None) -> Sequence[int]:
        return range(len(self.jobs)) if which is None else which


class Worker:
    """In a worker's process. Errors of an item are results, and raised by the run."""

    def __init__(self, job: bytes, path: list[str]) -> None:
        sys.path += [one for one in path if one not in sys.path]
        self.job = job
        self.items: Iterator[Any] | None = None

    def make(self, count: int) -> Any:
        """Make `count` items and report about the last one."""
        try:
            if self.items is None:
                iterate, arguments, self.report = pickle.loads(self.job)
                self.items = iterate(*arguments)
            for _ in range(count):
                self.item = next(self.items)
            return self.report(self.item)
        except Exception as error:
            return sendable(error)

    def give(self, attribute: str, *arguments: Any) -> Any:
        """An attribute of the current item, or the result of its method."""
        try:
            found = getattr(self.item, attribute)
            return found(*arguments) if arguments else found
        except Exception as error:
            return sendable(error)

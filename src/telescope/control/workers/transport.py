"""Worker processes that run generators in step with each other: start, go, report, ask, close.

Functions say what a worker iterates over, and what it reports about each item. Leaves out seeds and training
(`shares.py`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from telescope.control.workers.spawning import deaf, keep_tracker, sent, shielded, startable
from telescope.failures import sendable

GO = "go"


class Workers:
    """Processes that each iterate over `iterate(*arguments)` and pause after every item until `go`.

    They send `report(item)` at once, and any attribute of the item on request. An error of an iteration is raised here.
    """

    def __init__(
        self, iterate: Callable[..., Iterator[Any]], jobs: Iterable[Sequence[Any]], report: Callable[[Any], Any]
    ) -> None:
        self.processes: list[Any] = []
        self.connections: list[Connection] = []
        self._jobs = [(iterate, tuple(arguments), report) for arguments in jobs]

    def start(self, why: str) -> None:
        """Start the processes. A ValueError, which begins with `why`, if a job cannot be sent to another process."""
        keep_tracker()
        context = multiprocessing.get_context("spawn")  # torch has threads here, so a fork is not safe
        for job in self._jobs:
            ours, theirs = context.Pipe()
            # not daemons: those may have no children, but their environments can be processes too
            process = context.Process(target=_work, args=(sent(job, why), theirs), daemon=False)
            with startable(), shielded():
                process.start()
            theirs.close()
            self.processes.append(process)
            self.connections.append(ours)

    def go(self, which: Sequence[int]) -> None:
        """Let these processes make their next item."""
        self._tell(GO, which)

    def reports(self, which: Sequence[int] | None = None) -> list[Any]:
        """Wait for the report of each process, or of these, about its current item."""
        return [self._from(self.processes[i], self.connections[i]) for i in self._all(which)]

    def ask(self, attribute: str) -> list[Any]:
        """An attribute of each worker's current item, which may be its last."""
        self._tell((attribute,))
        return self.reports()

    def call(self, which: int, method: str, *arguments: Any) -> Any:
        """The result of a method of one worker's current item."""
        self._tell((method, *arguments), [which])
        return self.reports([which])[0]

    def close(self) -> None:
        """End the processes, even while they make an item."""
        for connection in self.connections:
            connection.close()  # the worker then ends
        for process in self.processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
                process.join()

    def _all(self, which: Sequence[int] | None) -> Sequence[int]:
        return range(len(self.processes)) if which is None else which

    def _tell(self, word: Any, which: Sequence[int] | None = None) -> None:
        for i in self._all(which):
            with contextlib.suppress(BrokenPipeError):  # `reports` will say why it is gone
                self.connections[i].send(word)

    def _from(self, process: Any, connection: Connection) -> Any:
        try:
            told = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            process.join()
            raise ChildProcessError(
                f"a training process ended with exit status {process.exitcode}; its output, if any, is above. If the "
                "script has an `if __name__ == '__main__':`, train under it; if memory ran out, use fewer processes"
            ) from None
        if isinstance(told, Exception):
            raise told
        return told


def _work(job: bytes, connection: Connection) -> None:
    """In a worker: iterate, report each item, and send attributes and results on request until the next `go`."""
    deaf()
    try:
        iterate, arguments, report = pickle.loads(job)
        for item in iterate(*arguments):
            connection.send_bytes(pickle.dumps(report(item)))
            while (wanted := connection.recv()) != GO:
                name, *arguments = wanted
                found = getattr(item, name)
                connection.send_bytes(pickle.dumps(found(*arguments) if arguments else found))
    except Exception as error:
        with contextlib.suppress(OSError):  # the parent may be gone
            connection.send_bytes(pickle.dumps(sendable(error)))

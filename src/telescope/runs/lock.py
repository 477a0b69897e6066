"""A lock on a folder: one writer at a time, across processes, released by the system when its holder dies.

Leaves out network file systems without locks (it says so there) and Windows.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from telescope.runs.files import RunError, explained

LOCK = ".lock"

_held: set[int] = set()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock for the block; RunError naming the process that does already, be it this one."""
    import fcntl  # not on Windows

    path = folder / LOCK
    with explained("lock", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(descriptor)
    try:
        try:
            with explained("lock", path):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except RunError as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            raise RunError(
                f"{folder} is being written by {_holder(descriptor)}; wait for it, or stop it first"
            ) from None
        with explained("write", path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        if descriptor in _held:  # else this is a forked child, which has let go already
            _held.remove(descriptor)
            os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Who holds the lock, by the number it wrote into the file."""
    pid = os.pread(descriptor, 20, 0).decode(errors="replace")
    if pid == str(os.getpid()):
        return f"this process ({pid}) already"
    return f"process {pid}" if pid else "another process"


def _let_go() -> None:
    """A forked child shares its parent's locks; it must not keep them alive after the parent's death."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)

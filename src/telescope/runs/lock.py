"""A lock on a folder: one writer at a time, across processes. The system releases it when its holder dies.

The folder itself is locked, so that removing or replacing a file cannot let a second writer in. The file `.lock` names
the holder; it is locked too, for network file systems that cannot lock folders. Leaves out Windows, and file systems
without locks (there it prints a note).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl  # not on Windows
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from telescope.runs.files import RunError, explained

LOCK = ".lock"
_CANNOT = {
    errno.EBADF,
    errno.EINVAL,
    errno.ENOLCK,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
}  # errors of systems that cannot lock a folder

_held: set[int] = set()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the folder's lock during the block. A RunError that names the holder if there is one, even this process.

    Yields the descriptor of the folder, which stays valid when the folder is moved.
    """
    opened: list[int] = []
    try:
        with explained("lock", folder):
            directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.append(directory)
            _held.add(directory)
            _take(directory, folder, directory)
            file = _open_file(directory)
            opened.append(file)
            _held.add(file)
            _take(file, folder, directory)
        with explained("write", folder / LOCK):
            os.ftruncate(file, 0)
            os.pwrite(file, str(os.getpid()).encode(), 0)
        yield directory
    finally:
        for descriptor in opened:
            if descriptor in _held:  # otherwise this is a forked child, which has already released it
                _held.remove(descriptor)
                os.close(descriptor)


def _take(descriptor: int, folder: Path, directory: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(f"{folder} is being written by {_holder(directory)}; wait for it, or stop it first") from None
    except OSError as error:
        if descriptor != directory or error.errno not in _CANNOT:
            raise


def _open_file(directory: int) -> int:
    """The file `.lock` of the folder. A link in its place is removed; its target is not touched."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(LOCK, dir_fd=directory, follow_symlinks=False).st_mode):
            os.unlink(LOCK, dir_fd=directory)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(LOCK, flags, 0o666, dir_fd=directory)


def _holder(directory: int) -> str:
    """The holder of the lock, from the process id in the file."""
    pid = ""
    with contextlib.suppress(OSError):
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(LOCK, flags, dir_fd=directory), "rb") as file:
            pid = file.read(20).decode(errors="replace")
    if pid == str(os.getpid()):
        return f"this process ({pid}) already"
    return f"process {pid}" if pid.isdecimal() else "another process"


def _let_go() -> None:
    """Release the parent's locks in a forked child, so that it does not keep them after the parent's death."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)

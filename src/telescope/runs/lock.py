"""A lock on a folder: one writer at a time, across processes, released by the system when its holder dies.

What is locked is the folder itself, so that no file in it, removed or replaced, lets a second writer in; the file
`.lock` says who the first one is, and is locked too, for network file systems that lock no folders. Leaves out
Windows, and file systems without locks (it says so there).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from telescope.runs.files import RunError, explained

LOCK = ".lock"
_CANNOT = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}  # lock a folder, that is

_held: set[int] = set()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the folder's lock for the block; RunError naming the process that does already, be it this one.

    Gives the descriptor of the folder, which stays that folder when it is moved.
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
            if descriptor in _held:  # else this is a forked child, which has let go already
                _held.remove(descriptor)
                os.close(descriptor)


def _take(descriptor: int, folder: Path, directory: int) -> None:
    import fcntl  # not on Windows

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(f"{folder} is being written by {_holder(directory)}; wait for it, or stop it first") from None
    except OSError as error:
        if descriptor != directory or error.errno not in _CANNOT:
            raise


def _open_file(directory: int) -> int:
    """The file `.lock` of the folder; a link in its place is removed, what it leads to is not touched."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(LOCK, dir_fd=directory, follow_symlinks=False).st_mode):
            os.unlink(LOCK, dir_fd=directory)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(LOCK, flags, 0o666, dir_fd=directory)


def _holder(directory: int) -> str:
    """Who holds the lock, by the number it wrote into the file."""
    pid = ""
    with contextlib.suppress(OSError):
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(LOCK, flags, dir_fd=directory), "rb") as file:
            pid = file.read(20).decode(errors="replace")
    if pid == str(os.getpid()):
        return f"this process ({pid}) already"
    return f"process {pid}" if pid.isdecimal() else "another process"


def _let_go() -> None:
    """A forked child shares its parent's locks; it must not keep them alive after the parent's death."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)

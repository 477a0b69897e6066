"""Files that are whole or not there: atomic writing, plain appending, and the error of everything on disk.

Leaves out what the files mean (`checkpoint.py`, `config.py`, `folder.py`, `log.py`).
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Buffer = bytes | bytearray | memoryview

TEMPORARY = ".tmp"

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.EACCES: "permission denied; choose a folder you may write to",
    errno.EEXIST: "a file of that name is in the way; choose another path",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another path",
}


class RunError(OSError):
    """A run folder, or a file in it, cannot be read or written as asked; one sentence says why."""


@contextlib.contextmanager
def explained(action: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError of the block into a RunError: what could not be done, to which path, why."""
    try:
        yield
    except RunError:
        raise
    except OSError as error:
        reason = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise RunError(f"cannot {action} {os.fspath(path)}: {reason}") from error


def write_atomic(path: str | os.PathLike[str], *chunks: Buffer) -> None:
    """Write the chunks to `path` so that a reader, or a crash at any moment, finds the old file or the new.

    A temporary file in the same folder, fsync, rename, fsync of the folder. RunError if that fails: the old
    file is untouched then, and the temporary one is removed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    with explained("write", path):
        try:
            with Appender(temporary) as file:
                file.write(*chunks)
                file.sync()
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                temporary.unlink(missing_ok=True)


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a new folder, then put it where the old one was.

    A crash between the two renames leaves none, so it is to be replaced before the checkpoint that it belongs to.
    """
    new, old = (path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}") for _ in range(2))
    with explained("write", path):
        new.mkdir()
        write(new)
        for file in new.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
        _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that a killed writer left in the folder; only for whoever holds its lock."""
    for leftover in folder.glob(f".*{TEMPORARY}"):
        with explained("remove", leftover):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


class Appender:
    """An unbuffered file open for appending: a failed write leaves nothing in memory to fail once more."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        with explained("open", path):
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()

    def write(self, *chunks: Buffer) -> None:
        """Write all bytes of all chunks; RunError if the disk takes only a part."""
        with explained("write", self.path):
            for chunk in chunks:
                rest = memoryview(chunk).cast("B")
                while rest:  # the system call may take a part at a time
                    rest = rest[self._file.write(rest) :]

    def sync(self) -> None:
        """Return once the bytes are on the disk."""
        with explained("write", self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; what was written stays."""
        self._file.close()

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def require(module: str) -> Any:
    """Import an optional dependency, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module.split('.')[0]} is not installed; `pip install 'telescope-rl[control]'` brings it"
        ) from error


def join(parts: Iterable[str]) -> str:
    """Parts of a sentence: `a, b and c`."""
    *most, last = list(parts)
    return f"{', '.join(most)} and {last}" if most else last


def _sync(path: Path) -> None:
    """Return once a file is on the disk, or a folder: a rename is there only once its folder is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

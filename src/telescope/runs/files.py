"""Files: atomic writing, appending, and one error type for everything on disk.

Leaves out what the files mean (`checkpoint.py`, `config.py`, `folder.py`, `log.py`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Buffer = bytes | bytearray | memoryview

TEMPORARY = ".tmp"

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.EACCES: "permission denied; choose a folder you may write to",
    errno.EEXIST: "a file of that name exists; choose another path",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another path",
    errno.ELOOP: "it is a link, and a run writes only inside its folder; remove the link",
}
_HANDLE = "/proc/self/fd/"


class RunError(OSError):
    """A run folder, or a file in it, cannot be read or written. One sentence says why."""


@contextlib.contextmanager
def explained(action: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError of the block into a RunError that says what failed, for which path, and why."""
    try:
        yield
    except RunError:
        raise
    except OSError as error:
        reason = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise RunError(f"cannot {action} {shown(path)}: {reason}") from error


def shown(path: str | os.PathLike[str]) -> str:
    """A path as its user knows it, also if a folder is accessed through an open descriptor."""
    text = os.fspath(path)
    if not text.startswith(_HANDLE):
        return text
    number, _, rest = text.removeprefix(_HANDLE).partition("/")
    with contextlib.suppress(OSError):
        text = os.path.join(os.readlink(_HANDLE + number), rest).rstrip("/")
    return text


def held(descriptor: int, path: Path) -> Path:
    """The current path of the folder that is open as `descriptor`, even if it was moved; `path` if unknown."""
    handle = Path(f"{_HANDLE}{descriptor}")
    return handle if handle.exists() else path


def read(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a file. A RunError if it is missing, or not an ordinary file (a pipe, a device)."""
    with explained("read", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise RunError(f"{shown(path)} is not an ordinary file")
            return file.read()


def write_atomic(path: str | os.PathLike[str], *chunks: Buffer) -> None:
    """Write the chunks to `path` atomically: a reader, or a crash at any moment, finds the old file or the new one.

    It writes a temporary file in the same folder, syncs it, renames it and syncs the folder. A RunError if that fails;
    the old file is then unchanged and the temporary one removed.
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
            with contextlib.suppress(OSError):  # report the first error
                temporary.unlink(missing_ok=True)


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, then replace the old one with it. If the old one is a link, its target stays.

    A crash between the two renames leaves no folder, so replace it before the checkpoint that it belongs to. A RunError
    if that fails; the old folder is then unchanged and the new one removed.
    """
    new, old = (path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}") for _ in range(2))
    with explained("write", path):
        try:
            new.mkdir()
            _fill(new, write, path)
            for file in new.rglob("*"):
                if file.is_file():
                    _sync(file)
            if os.path.lexists(path):
                os.replace(path, old)
            os.replace(new, path)
        except BaseException:
            with contextlib.suppress(OSError):  # report the first error
                if not os.path.lexists(path):
                    os.replace(old, path)
            remove(new)
            raise
        _sync(path.parent)
        remove(old)


def _fill(new: Path, write: Callable[[Path], None], path: Path) -> None:
    try:
        write(new)
    except Exception as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):  # Rust libraries raise their own types
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        if type(error).__name__ == "SafetensorError":
            raise RunError(f"cannot write {shown(path)}: {error}") from error
        raise


def remove(path: Path) -> None:
    """Delete a file, a link (not its target) or a folder, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that a killed writer left in the folder. Only the holder of the lock may call it."""
    for leftover in folder.glob(f".*{TEMPORARY}"):
        remove(leftover)


class Appender:
    """An unbuffered file open for appending. A failed write leaves no data in memory that could fail again."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        with explained("open", path):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = open(os.open(path, flags, 0o666), "ab", buffering=0)  # noqa: SIM115 - closed by close()

    def write(self, *chunks: Buffer) -> None:
        """Write all bytes of all chunks. A RunError if the disk accepts only a part."""
        with explained("write", self.path):
            for chunk in chunks:
                rest = memoryview(chunk).cast("B")
                while rest:  # the system call may write only a part
                    rest = rest[self._file.write(rest) :]

    def sync(self) -> None:
        """Return once the bytes are on the disk."""
        with explained("write", self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Table(Appender):
    """A growing file. Its `mark`, the size and SHA-256 so far, is stored in checkpoints."""

    def __init__(self, path: str | os.PathLike[str], start: Buffer) -> None:
        """Replace the content by `start`, atomically, and append from then on."""
        write_atomic(path, start)
        super().__init__(path)
        self._size, self._digest = len(start), hashlib.sha256(start)

    def write(self, *chunks: Buffer) -> None:
        super().write(*chunks)
        for chunk in chunks:
            self._size += memoryview(chunk).nbytes
            self._digest.update(chunk)

    @property
    def mark(self) -> dict[str, Any]:
        return {"size": self._size, "sha256": self._digest.hexdigest()}


def until(path: str | os.PathLike[str], mark: Mapping[str, Any]) -> bytes | None:
    """The content of a file when it had this mark; None if it is shorter, or was changed."""
    if not mark["size"]:
        return b""
    data = read(path)[: mark["size"]] if os.path.lexists(path) else b""
    whole = len(data) == mark["size"] and hashlib.sha256(data).hexdigest() == mark["sha256"]
    return data if whole else None


def require(module: str) -> Any:
    """Import an optional dependency, or raise an error that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module.split('.')[0]} is not installed; run `pip install 'telescope-rl[control]'`"
        ) from error


def join(parts: Iterable[str]) -> str:
    """Parts of a sentence: `a, b and c`."""
    *most, last = list(parts)
    return f"{', '.join(most)} and {last}" if most else last


def _sync(path: Path) -> None:
    """Sync a file or a folder to disk. A rename is durable only after a sync of its folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

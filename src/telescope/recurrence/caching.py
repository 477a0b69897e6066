"""Compile loops with numba and its disk cache. Cache files are checked, and written again if they are broken.

Numba writes them without syncing, so a power cut leaves empty or cut files. Without a check, these would raise errors
at every start, or run as machine code. The classes of numba's cache are private; where they have changed, each process
compiles anew. Leaves out the loops.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

try:
    from numba.core.caching import FunctionCache, IndexDataCacheFile
except ImportError:
    FunctionCache = IndexDataCacheFile = object  # type: ignore[assignment, misc]

CHANGED = (AttributeError, TypeError)
"""Errors of a private class that has changed."""


def compiled(function: Callable[..., Any], *signatures: Any) -> Any:
    """`function` compiled, only for these signatures if any are given. It releases the GIL."""
    dispatcher: Any = njit(nogil=True)(function)
    with contextlib.suppress(OSError, RuntimeError, *CHANGED):  # no place for the cache: compile in each process
        dispatcher._cache = _Checked(dispatcher.py_func)
    try:
        return _of_signatures(dispatcher, signatures)
    except (OSError, *CHANGED):
        return _of_signatures(njit(nogil=True)(function), signatures)


def _of_signatures(dispatcher: Any, signatures: Any) -> Any:
    for signature in signatures:
        dispatcher.compile(signature)
    if signatures:
        dispatcher.disable_compile()
    return dispatcher


class _Checked(FunctionCache):  # type: ignore[misc]
    """The cache of one function. Unreadable files count as missing."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file.__class__ = _File
        self._cache_file._source_stamp = _stamp(Path(function.__code__.co_filename).parent)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # broken bytes make pickle or LLVM raise anything
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except (EOFError, pickle.UnpicklingError, ValueError):  # the index was broken meanwhile
            with contextlib.suppress(OSError):
                self.flush()


def _stamp(folder: Path) -> tuple[Any, ...]:
    """Times and sizes of all sources in a folder. numba looks at one file, but a loop may call those of another."""
    found = [(file.name, file.stat()) for file in sorted(folder.glob("*.py"))]
    return tuple((name, about.st_mtime, about.st_size) for name, about in found)


class _File(IndexDataCacheFile):  # type: ignore[misc]
    """Data files that begin with the SHA-256 of their content."""

    def _save_data(self, name: str, data: Any) -> None:
        content = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(hashlib.sha256(content).digest() + content)

    def _load_data(self, name: str) -> Any:
        raw = Path(self._data_path(name)).read_bytes()
        if hashlib.sha256(raw[32:]).digest() != raw[:32]:
            raise ValueError(f"{name} is damaged")
        return pickle.loads(raw[32:])

"""torch's compiler as a part of a run: signals do not reach its children, and broken files of its cache are made anew.

It leaves out what is compiled (`lifting.py`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Processes that the block starts do not hear Ctrl-C, nor what else is sent to the whole process group.

    They inherit what this thread blocks. A thread that does not block it takes the signals meanwhile, so that this
    process hears them at once; what it does about them, stop at the next iteration, it does when the block is over.
    """
    over = threading.Event()
    threading.Thread(target=over.wait, daemon=True).start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        over.set()


def from_cache_or_anew(make: Callable[[], Any]) -> Any:
    """What `make` compiles, by torch's cache where that is whole.

    The compiler writes into it without a temporary file or a sync: one that was killed, and a power cut, leave empty
    or cut files, with which every later run of the same code would fail.
    """
    from torch._inductor.utils import fresh_cache

    _sweep()
    try:
        return make()
    except Exception as error:
        if not _removed(error):
            with fresh_cache():
                return make()
    return make()


@functools.cache
def _sweep() -> None:
    """Once per process: delete what is empty or cut in the cache, unless another process writes it just now."""
    for file in _cache().rglob("*"):
        with contextlib.suppress(OSError):
            if file.is_file() and file.suffix != ".lock" and _is_cut(file) and not _is_being_written(file):
                file.unlink()


def _cache() -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())


def _is_cut(file: Path) -> bool:
    """Is it empty, or a library that ends before its table of sections, the last part of the format (ELF, 64 bits)?"""
    size = file.stat().st_size
    if size == 0 or file.suffix != ".so":
        return size == 0
    with open(file, "rb") as library:
        head = library.read(64)
    if len(head) < 64:
        return True
    if head[:5] != b"\x7fELF\x02":
        return head[:4] not in (b"\xcf\xfa\xed\xfe", b"\x7fELF")  # Mach-O; 32 bits
    (start,), (width, count) = struct.unpack_from("<Q", head, 40), struct.unpack_from("<HH", head, 58)
    return size < int(start) + int(width) * int(count)


def _is_being_written(file: Path) -> bool:
    """Does a process hold the lock that torch takes while it makes this file?"""
    import fcntl

    lock = _cache() / "locks" / f"{file.name.partition('.')[0]}.lock"
    if not lock.exists():
        return False
    with open(lock, "rb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _removed(error: BaseException) -> bool:
    """Delete the libraries of the cache that could not be loaded, as an error says; was there any?"""
    found = False
    for path in re.findall(r"[^\s:'\"]+\.so\b", f"{error} {error.__cause__} {error.__context__}"):
        if Path(path).is_file() and os.path.realpath(path).startswith(os.path.realpath(_cache()) + os.sep):
            Path(path).unlink()
            found = True
    return found

"""Run torch's compiler within a run: its child processes do not receive signals, and broken cache files are replaced.

Leaves out what is compiled (`lifting.py`).
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
    """Processes that start in this block do not receive Ctrl-C or other signals to the whole process group.

    They inherit the signals that this thread blocks. Another thread receives the signals meanwhile, so that this
    process notes them at once. It acts on them (it stops at the next iteration) after the block.
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
    """Compile with `make`, using torch's cache if it is intact.

    The compiler writes its cache without a temporary file or a sync. After a kill or a power cut, files may be empty or
    cut, and every later run of the same code would fail.
    """
    _sweep()
    try:
        return make()
    except Exception as error:
        if not _removed(error):
            from torch._inductor.utils import fresh_cache

            with fresh_cache():
                return make()
    return make()


@functools.cache
def _sweep() -> None:
    """Once per process: delete empty and cut files of the cache, unless another process is writing them."""
    for file in _cache().rglob("*"):
        with contextlib.suppress(OSError):
            if file.is_file() and file.suffix != ".lock" and _is_cut(file) and not _is_being_written(file):
                file.unlink()


def _cache() -> Path:
    try:
        from torch._inductor.runtime.cache_dir_utils import cache_dir
    except ImportError:  # a private function, which may move; without the folder, files are not checked
        return Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", os.devnull))
    return Path(cache_dir())


def _is_cut(file: Path) -> bool:
    """Whether a file is empty, or a library without its table of sections, the last part of the format (64-bit ELF)."""
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
    """Whether a process holds the lock that torch takes while it writes this file."""
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
    """Delete the cached libraries that the error says could not be loaded. Return whether there were any."""
    found = False
    for path in re.findall(r"[^\s:'\"]+\.so\b", f"{error} {error.__cause__} {error.__context__}"):
        if Path(path).is_file() and os.path.realpath(path).startswith(os.path.realpath(_cache()) + os.sep):
            Path(path).unlink()
            found = True
    return found

"""Make standard output and error safe for long runs: open, able to write every character, and never a reason to stop.

Leaves out what is written.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def mended() -> Iterator[None]:
    """Connect closed streams to the null device, and replace characters that the encoding lacks by a question mark.

    Otherwise the next opened file would take the place of a closed standard error, and libraries would print into it.
    Output that cannot be written (a terminal that is gone, a full disk) is lost, and the run continues.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # open returns the lowest free descriptor
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        out, err = (nowhere if one is None or one.closed else one for one in before)
        for stream in (out, err):
            if hasattr(stream, "reconfigure"):
                with contextlib.suppress(ValueError, OSError):
                    stream.reconfigure(errors="replace")
        sys.stdout, sys.stderr = out, Unfailing(err)  # type: ignore[assignment]
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def delivered() -> str:
    """Why the text printed on standard output did not arrive; empty if it did."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):  # otherwise Python tries again at exit and prints an error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return f"cannot write to standard output: {getattr(error, 'strerror', None) or error}"
    return ""


class Unfailing:
    """A text stream that ignores write errors."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

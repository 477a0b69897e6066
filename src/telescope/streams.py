"""Standard output and error as a long run needs them: there, able to write every character, and never what ends it.

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
    """Open what is closed, on nothing; let an encoding that lacks a character write a question mark for it.

    A closed standard error is otherwise the next file that is opened, and what a library prints goes into that. What
    cannot be written to it (a terminal that is gone, a full disk) is lost, and the work goes on.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # the lowest that is free is the one that comes
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
    """Why what was printed on standard output did not arrive, if so; empty otherwise."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):  # or Python tries again when it ends, and complains
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return f"cannot write to standard output: {getattr(error, 'strerror', None) or error}"
    return ""


class Unfailing:
    """A text stream whose failures are nobody's."""

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

"""Start worker processes from any program: a script, a notebook, or standard input.

A new interpreter imports the main script again, without the part under `if __name__ == "__main__":`. A script without
such a guard, or one that is not a file, is not imported again; its functions and classes are sent by value.
"""

from __future__ import annotations

import ast
import contextlib
import multiprocessing
import signal
import sys
import types
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

GROUP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that a terminal or a scheduler sends to the whole process group. Only the first process reacts to them."""


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Processes that start in this block do not receive signals to the group until they unblock `GROUP`.

    A signal to the thread that starts them is delivered after the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def keep_tracker() -> None:
    """Start multiprocessing's resource tracker so that a signal to the group does not end it before its clients."""
    with shielded():
        resource_tracker.ensure_running()


def deaf() -> None:
    """In a worker: ignore signals to the group, including earlier ones that are pending."""
    for number in GROUP:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP)


def is_guarded() -> bool:
    """Whether a worker may import the main script: it is a module, or a file with `if __name__ == "__main__":`."""
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:  # python -m
        return True
    try:
        tree = ast.parse(Path(main.__file__ or "").read_bytes())
    except (AttributeError, OSError, SyntaxError, ValueError):  # -c, standard input, a notebook
        return False
    return any(
        isinstance(node, ast.If) and "__name__" in (test := ast.unparse(node.test)) and "__main__" in test
        for node in tree.body
    )


@contextlib.contextmanager
def startable() -> Iterator[None]:
    """Processes that start in this block import the main script only if it is guarded."""
    if getattr(multiprocessing.process.current_process(), "_inheriting", False):
        # a worker imported the main script and reached the line that starts workers; its parent reports that
        raise SystemExit(1)
    if is_guarded():
        yield
        return
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def sent(job: Any, why: str) -> bytes:
    """`job` as bytes, with functions and classes of the main script by value. Errors begin with `why`."""
    import cloudpickle  # type: ignore[import-untyped]  # Gymnasium's, for the same purpose

    try:
        return cloudpickle.dumps(job)  # type: ignore[no-any-return]
    except Exception as error:  # an object's own pickling may raise anything
        raise ValueError(
            f"{why}, but the environment or network cannot be sent to another process ({type(error).__name__}: "
            f"{error}); create such objects inside the environment's constructor, or use one process"
        ) from error

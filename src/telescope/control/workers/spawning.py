"""What worker processes need of the program that starts them, whatever it is: a script, a notebook, standard input.

A new interpreter runs the main script again, unless what follows `if __name__ == "__main__":`. A script without it, or
one that is no file, is not run again: what comes from it is sent by value.
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
"""What a terminal or a scheduler sends to the whole process group: the first process decides what comes of it."""


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Processes that are started in this block do not see signals to the group until they unblock `GROUP`.

    A signal sent to the thread that starts them waits until after the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def keep_tracker() -> None:
    """Start multiprocessing's resource tracker so that no signal to the group ends it before those whom it serves."""
    with shielded():
        resource_tracker.ensure_running()


def deaf() -> None:
    """In a worker: ignore what is sent to the group, also what came before this line."""
    for number in GROUP:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP)


def is_guarded() -> bool:
    """May the main script be run again by a worker: is it a file with `if __name__ == "__main__":`, or a module?"""
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
    """Processes that are started in this block run the main script again only if it is guarded."""
    if getattr(multiprocessing.process.current_process(), "_inheriting", False):
        # a worker runs the main script again and has come to the line that starts workers: its parent says so
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
    """`job` in bytes, functions and classes of the main script by value. ValueError, which begins with `why`."""
    import cloudpickle  # type: ignore[import-untyped]  # Gymnasium's, for the same purpose

    try:
        return cloudpickle.dumps(job)  # type: ignore[no-any-return]
    except Exception as error:  # whatever an object's own way of being pickled raises
        raise ValueError(
            f"{why}, but what is to run there cannot be sent to another process ({type(error).__name__}: {error}); "
            "make it inside the environment's constructor, or use one process"
        ) from error

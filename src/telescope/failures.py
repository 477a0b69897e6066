"""Decide whose an exception is: telescope's own errors become one sentence, errors of the user's code keep a traceback.

Leaves out printing (`cli.py`).
"""

from __future__ import annotations

import functools
import importlib.metadata
import pickle
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

IN_WORKER = "Raised in a worker process:"


def is_users(error: BaseException) -> bool:
    """Whether code outside telescope and its libraries took part in raising this exception or its cause.

    It may be an environment, a reward function, a network, or a module that they import. Then only the line that raised
    the exception helps, whatever its type. An exception from a worker process carries the answer with it.
    """
    for one in _chain(error):
        if any(note.startswith(IN_WORKER) for note in getattr(one, "__notes__", ())):
            return True
        if any(_is_users(frame) for frame, _ in traceback.walk_tb(one.__traceback__)):
            return True
    return False


def sendable(error: Exception) -> Exception:
    """The exception in a form that can be sent to another process. A user's error keeps its traceback as a note."""
    text = f"{IN_WORKER}\n{''.join(traceback.format_exception(error))}".rstrip() if is_users(error) else ""
    if text:
        error.add_note(text)
    try:
        again = pickle.loads(pickle.dumps(type(error)(error)))  # Gymnasium's workers wrap an exception this way
        whole = getattr(pickle.loads(pickle.dumps(error)), "__notes__", []) == getattr(error, "__notes__", [])
        if whole and isinstance(again, type(error)):
            return error
    except Exception:  # another constructor, or it cannot be pickled
        pass
    plain = RuntimeError(f"{type(error).__name__}: {error}")
    if text:
        plain.add_note(text)
    return plain


def missing_extra(error: BaseException) -> str:
    """A sentence that names the extra for a missing module; empty for any other error."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return ""
    package = _canonical(error.name.partition(".")[0])
    for requirement in importlib.metadata.requires("telescope-rl") or ():
        name, *extra = re.findall(r"^[\w.-]+|(?<=extra == ['\"])\w+", requirement)
        if extra not in ([], ["all"]) and _canonical(name) == package:
            return f'{package} is not installed, and this needs it: pip install "telescope-rl[{extra[0]}]"'
    return ""


def installed(file: str) -> bool:
    """Whether this is a file of an installed package (not of an editable install)."""
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, its causes, and exceptions in its arguments (as Gymnasium's workers have them)."""
    seen: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, BaseException) or any(one is other for other in seen):
            continue
        seen.append(one)
        yield one
        waiting += [one.__cause__, None if one.__suppress_context__ else one.__context__, *one.args[:1]]


def _is_users(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__", "")).partition(".")[
        0
    ]  # generated code has no name, or that of its generator
    if package in ("", "telescope") or package in sys.stdlib_module_names:
        return False
    file = frame.f_code.co_filename
    return not (installed(file) or file.startswith("<")) or package not in _libraries()


@functools.cache
def _libraries() -> frozenset[str]:
    """The import names of the packages that telescope needs, and of their own requirements."""
    needed, waiting = set[str](), ["telescope-rl"]
    while waiting:
        name = _canonical(waiting.pop())
        if name in needed:
            continue
        needed.add(name)
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # an extra that is not installed
            continue
        waiting += [re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0] for requirement in requirements]
    found = importlib.metadata.packages_distributions()
    return frozenset(top for top, names in found.items() if needed & {_canonical(name) for name in names})


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

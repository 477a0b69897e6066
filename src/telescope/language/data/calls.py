"""Calls of users' reward functions: with a time limit, or several asynchronous ones at the same time.

Errors name the function and the line in its file. Leaves out what the functions receive and return (`rewards.py`).
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

OURS = (__file__, threading.__file__)


def is_asynchronous(function: Any) -> bool:
    """Whether it is an `async def`, or an object that is called like one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def asynchronous(calls: Sequence[tuple[str, Callable[[], Any]]], seconds: float | None) -> list[Any]:
    """The results of asynchronous functions, given with their names, which run at the same time."""

    async def one(name: str, call: Callable[[], Any]) -> Any:
        try:
            return await asyncio.wait_for(call(), seconds)
        except TimeoutError as error:
            if seconds is None:  # the function's own
                raise failed(name, error) from error
            raise late(name, seconds) from error
        except (Exception, SystemExit) as error:
            raise failed(name, error) from error

    async def together() -> list[Any]:
        return await asyncio.gather(*(one(name, call) for name, call in calls))

    # in a thread of its own, because a notebook's already has a running loop
    return _in_thread(lambda: asyncio.run(together()), None)[0]  # type: ignore[no-any-return]


def within(name: str, call: Callable[[], Any], seconds: float | None) -> Any:
    """The result of a function. A ValueError if it fails or takes longer; its thread is then left alone."""
    try:
        if seconds is None:
            return call()
        found = _in_thread(call, seconds)
    except (Exception, SystemExit) as error:
        raise failed(name, error) from error
    if not found:
        raise late(name, seconds)
    return found[0]


def _in_thread(call: Callable[[], Any], seconds: float | None) -> list[Any]:
    """The result in a list; an empty list if the time was not enough. Errors are raised here."""
    found, errors = list[Any](), list[BaseException]()

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    return list(found)


def late(name: str, seconds: float) -> ValueError:
    return ValueError(
        f"the reward function {name} took longer than reward_seconds, {seconds:g} s; make it faster, give it a time "
        "limit of its own, or raise reward_seconds"
    )


def failed(name: str, error: BaseException) -> ValueError:
    return ValueError(f"the reward function {name} raised {told(error)}{_where(error)}")


def told(error: BaseException) -> str:
    """An error's type and message, on one line."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _where(error: BaseException) -> str:
    """The line in the function's own file where the error occurred; empty if the call itself failed."""
    inside = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    inside = [(file, line) for file, line in inside if file not in OURS and Path(file).parent.name != "asyncio"]
    lines = [line for file, line in inside if file == inside[0][0]]
    return f" (line {lines[-1]} of {inside[0][0]})" if lines else ""

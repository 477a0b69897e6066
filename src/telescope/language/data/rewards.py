"""Scores of completions: any Python function, checked, or a reward model.

It leaves out what is done with them (`advantages.py`).
"""

# B completions
from __future__ import annotations

import contextlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from telescope.language.data.tasks import Reward, Row


def load_function(source: str | Reward) -> Reward:
    """The function that `my_rewards.py:score` names; a function, from Python, is itself.

    As for a script, modules beside the file can be imported.
    """
    if callable(source):
        return source
    path, _, name = source.rpartition(":")
    if not path.endswith(".py") or not name:
        raise ValueError(f"reward is {source!r}; expected FILE.py:FUNCTION, or the folder of a trained reward model")
    if not Path(path).is_file():
        raise ValueError(f"reward is {source!r}, but there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"reward_file_{Path(path).stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their own module up
    try:
        with _importable(str(Path(path).resolve().parent)):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} cannot be run: {_told(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"reward is {source!r}, but {path} has no function {name}")
    return function  # type: ignore[no-any-return]


def is_folder(source: object) -> TypeGuard[str]:
    """Does a configuration's `reward` name the run folder of a reward model?"""
    return isinstance(source, str) and Path(source).is_dir()


def name_of(source: str | Reward) -> str:
    """What a reward is called in sentences."""
    return source if isinstance(source, str) else getattr(source, "__qualname__", type(source).__name__)


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    """Modules of the folder come first while its file is run, and last for what its functions import later."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


class Given(NamedTuple):
    """How a reward function is called: each parameter with the name of what it gets."""

    positions: list[str]
    keywords: dict[str, str]


TEXTS = ("prompts", "completions")


def given_to(function: Reward, columns: Iterable[str], *, name: str) -> Given:
    """What the function gets, by the names in its signature and in any order; it may leave out what it does not need.

    Parameters without a telling name (positional-only ones, `_`, a single letter) get prompts and completions in this
    order. ValueError where one asks for something else, as functions for other libraries do.
    """
    columns = [column for column in columns if column != "prompt"]
    if clash := [column for column in columns if column in TEXTS]:
        raise ValueError(f"the rows have a field {clash[0]!r}, which is what reward functions get; rename the field")
    known = (*TEXTS, *columns)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of some functions written in C nothing is known
        return Given(list(TEXTS), {column: column for column in columns})
    named = [parameter.name for parameter in parameters]
    free = [text for text in TEXTS if text not in named]
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    given = Given([], {})
    for parameter in parameters:
        wanted = parameter.name
        if parameter.kind is parameter.VAR_POSITIONAL and not open_ended:
            given.positions.extend(free)
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        elif wanted in known or (parameter.default is parameter.empty and _is_nameless(parameter) and free):
            what = wanted if wanted in known else free.pop(0)
            if parameter.kind is parameter.POSITIONAL_ONLY:
                given.positions.append(what)
            else:
                given.keywords[wanted] = what
        elif parameter.default is parameter.empty:
            raise ValueError(_unknown(name, wanted, columns))
    if open_ended:
        taken = {*given.positions, *given.keywords.values()}
        given.keywords.update({what: what for what in known if what not in taken})
    if "completions" not in {*given.positions, *given.keywords.values()}:
        raise ValueError(_unknown(name, None, columns))
    return given


def _is_nameless(parameter: inspect.Parameter) -> bool:
    return parameter.kind is parameter.POSITIONAL_ONLY or parameter.name.startswith("_") or len(parameter.name) == 1


def _unknown(name: str, parameter: str | None, columns: Sequence[str]) -> str:
    fields = ", ".join(columns) or "none besides prompt"
    what = "does not ask for completions" if parameter is None else f"asks for {parameter!r}"
    return (
        f"the reward function {name} cannot be called: it {what}; expected parameters named prompts, completions (the "
        f"answers, without their prompts) or as a field of the rows ({fields}), in any order, or **columns"
    )


def score(function: Reward, rows: Sequence[Row], completions: Sequence[str], *, name: str) -> Tensor:
    """One score per completion, [B] float32; NaN where the function gave None (not scored).

    The function gets lists of the prompts, the completions, and every other column of the rows, as `given_to` says.
    What it does wrong is a ValueError that names it, and the completion where there is one.
    """
    columns = {key: [row.get(key) for row in rows] for key in rows[0] if key != "prompt"}
    given = given_to(function, columns, name=name)
    prompts = [row["prompt"] for row in rows]
    lists = columns | {"prompts": list(prompts), "completions": list(completions)}
    keywords = {parameter: lists[what] for parameter, what in given.keywords.items()}
    try:
        scores = function(*(lists[what] for what in given.positions), **keywords)
    except (Exception, SystemExit) as error:
        raise ValueError(f"the reward function {name} raised {_told(error)}{_where(error)}") from error
    scores = scores.tolist() if hasattr(scores, "tolist") else scores
    if not isinstance(scores, list | tuple):
        raise ValueError(f"the reward function {name} returned a {type(scores).__name__}; expected a list of numbers")
    if len(scores) != len(completions):
        raise ValueError(
            f"the reward function {name} returned {len(scores)} scores for {len(completions)} completions; expected "
            "one for each"
        )
    return torch.tensor([_number(value, name, i, prompts[i], completions[i]) for i, value in enumerate(scores)])


def overlong(lengths: Tensor, max_tokens: int, cache: int) -> Tensor:
    """(L_max − L_cache − |y|) / L_cache, within [−1, 0]: what a completion loses near the length limit.

    The soft overlong punishment of DAPO (Yu et al. 2025, arXiv 2503.14476, equation 13). lengths: |y| in tokens, of
    any shape; max_tokens: L_max; cache: L_cache, the tokens before it over which the loss grows to 1.
    """
    return ((max_tokens - cache - lengths) / cache).clamp(-1.0, 0.0)


def _told(error: BaseException) -> str:
    """An error's kind and what it says, on one line."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _where(error: BaseException) -> str:
    """The line of the function's own file that was reached; nothing where the call itself failed."""
    _, *inside = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    lines = [line for file, line in inside if file == inside[0][0]]
    return f" (line {lines[-1]} of {inside[0][0]})" if lines else ""


def _number(value: Any, name: str, index: int, prompt: str, completion: str) -> float:
    if value is None:
        return math.nan
    what = f"the reward function {name} gave {value!r} for completion {index} ({completion!r} to {prompt!r})"
    if isinstance(value, str | bytes):
        raise ValueError(f"{what}; expected a number, or None where it cannot be scored")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise ValueError(f"{what}; expected a number, or None where it cannot be scored") from None
    if not abs(number) <= torch.finfo(torch.float32).max:
        raise ValueError(f"{what}; expected a finite number (in float32), or None where it cannot be scored")
    return number

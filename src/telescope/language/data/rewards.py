"""Scores of completions from a user's Python function, with checks, or from a reward model.

Leaves out the use of scores (`objectives/advantages.py`).
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

from telescope.language.data.chat import as_completion, source
from telescope.language.data.tasks import Reward, Row


def load_function(source: str | Reward) -> Reward:
    """The function that `my_rewards.py:score` names. A function is returned unchanged.

    The file can import modules beside it, as a script can.
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
    sys.modules[module.__name__] = module  # dataclasses look up their own module
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
    """Whether a configuration's `reward` names the run folder of a reward model."""
    return isinstance(source, str) and Path(source).is_dir()


def name_of(source: str | Reward) -> str:
    """The reward's name in messages."""
    return source if isinstance(source, str) else getattr(source, "__qualname__", type(source).__name__)


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    """Put the folder first on the import path while its file runs, and last for later imports by its functions."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


class Given(NamedTuple):
    """Maps each parameter of a reward function to the name of the value that it receives."""

    positions: list[str]
    keywords: dict[str, str]


TEXTS = ("prompts", "completions")


def given_to(function: Reward, columns: Iterable[str], *, name: str) -> Given:
    """The values that the function receives, by the names in its signature, in any order. It may omit some.

    Parameters without a meaningful name (positional-only, `_`, a single letter) receive prompts and completions, in
    this order. Any other name raises a ValueError.
    """
    columns = [column for column in columns if column != "prompt"]
    if clash := [column for column in columns if column in TEXTS]:
        raise ValueError(f"the rows have a field {clash[0]!r}, a name that reward functions need; rename the field")
    known = (*TEXTS, *columns)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions written in C have no signature
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

    The function receives lists of the prompts, the completions, and all other columns of the rows; see `given_to`. Of
    conversations it receives lists of messages, as the data has them.
    Errors of the function become a ValueError that names it, and the completion if there is one.
    """
    given_rows = [source(row) for row in rows]
    columns = {key: [row.get(key) for row in given_rows] for key in given_rows[0] if key != "prompt"}
    given = given_to(function, columns, name=name)
    prompts = [row["prompt"] for row in rows]
    lists: dict[str, list[Any]] = {**columns, "prompts": [row["prompt"] for row in given_rows]}
    lists["completions"] = [as_completion(row, text) for row, text in zip(rows, completions, strict=True)]
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
    """The length penalty (L_max − L_cache − |y|) / L_cache of completions near the length limit, within [−1, 0].

    It is the soft overlong punishment of DAPO (Yu et al. 2025, arXiv 2503.14476, equation 13). lengths: |y| in tokens,
    of any shape. max_tokens: L_max. cache: L_cache, the number of tokens before the limit over which it falls to −1.
    """
    return ((max_tokens - cache - lengths) / cache).clamp(-1.0, 0.0)


def _told(error: BaseException) -> str:
    """An error's type and message, on one line."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _where(error: BaseException) -> str:
    """The line in the function's own file where the error occurred; empty if the call itself failed."""
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

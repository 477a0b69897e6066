"""Scores of completions: any Python function, checked, or a reward model.

It leaves out what is done with them (`advantages.py`).
"""

# B completions
from __future__ import annotations

import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telescope.language.tasks import Reward, Row


def load_function(source: str) -> Reward:
    """The function that `my_rewards.py:score` names: (prompts, completions, **columns) → list of float or None."""
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
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} cannot be run: {_told(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"reward is {source!r}, but {path} has no function {name}")
    return function  # type: ignore[no-any-return]


def require_columns(function: Reward, columns: Iterable[str], *, name: str) -> None:
    """ValueError where the function cannot be called with these columns, as its parameters tell beforehand."""
    names = [column for column in columns if column != "prompt"]
    try:
        parameters = inspect.signature(function)
    except (TypeError, ValueError):  # of some functions written in C nothing is known
        return
    try:
        parameters.bind([], [], **dict.fromkeys(names))
    except TypeError as error:
        given = f"prompts, completions{''.join(f', {column}=' for column in names)}"
        raise ValueError(f"the reward function {name} cannot be called with ({given}): {error}") from error


def score(function: Reward, rows: Sequence[Row], completions: Sequence[str], *, name: str) -> Tensor:
    """One score per completion, [B] float32; NaN where the function gave None (not scored).

    The function gets the prompts, the completions, and every other column of the rows as a keyword with a list. What
    it does wrong is a ValueError that names it, and the completion where there is one.
    """
    columns = {key: [row.get(key) for row in rows] for key in rows[0] if key != "prompt"}
    prompts = [row["prompt"] for row in rows]
    try:
        scores = function(list(prompts), list(completions), **columns)
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

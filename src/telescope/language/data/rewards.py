"""Scores of completions from a user's Python function, with checks, or from a reward model.

Leaves out the use of scores (`objectives/advantages.py`).
"""

# B completions
from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from telescope.language.data.calls import asynchronous, is_asynchronous, told, within
from telescope.language.data.chat import as_completion, source
from telescope.language.data.tasks import Reward, Row
from telescope.rewards import FUNCTIONS, MADE, named

WEIGHT = re.compile(r"(.+)@([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", re.DOTALL)
"""A reward and its weight: `my_rewards.py:score@0.3`."""


class Scorer(NamedTuple):
    """One reward of a run."""

    reward: Reward
    name: str
    """Its name in error messages."""
    column: str = ""
    """Its name in metrics.csv, if there are several."""
    weight: float = 1.0
    model: Any = None
    """The reward model behind it, if it is one."""


def weighted(function: Reward, weight: float) -> Reward:
    """The function with a weight, for a run with several rewards from Python: `reward=(f, weighted(g, 0.3))`."""

    @functools.wraps(function)
    def same(*values: Any, **settings: Any) -> Any:
        return function(*values, **settings)

    same.weight = weight  # type: ignore[attr-defined]
    return same


def every(source: Any) -> tuple[str | Reward, ...]:
    """The rewards of a configuration."""
    return () if source is None else source if isinstance(source, tuple) else (source,)


def parsed(source: str | Reward) -> tuple[str | Reward, float]:
    """A reward without its weight, and the weight."""
    if not isinstance(source, str):
        return source, getattr(source, "weight", 1.0)
    found = None if os.path.isdir(source) else WEIGHT.fullmatch(source)
    return (source, 1.0) if found is None else (found[1], float(found[2]))


def columns_of(sources: Sequence[str | Reward]) -> list[str]:
    """A column of metrics.csv for each reward: `reward_NAME`, from its function or folder."""
    names = list[str]()
    for one in sources:
        bare = name_of(parsed(one)[0])
        if named(bare) is not None:
            bare = bare.partition(":")[0]
        elif not is_folder(bare):
            bare = bare.rpartition(":")[2].rpartition(".")[2]
        column = "reward_" + (re.sub(r"\W+", "_", os.path.basename(bare.rstrip("/"))).strip("_") or "function")
        repeated = sum(re.sub(r"_\d+$", "", name) == column for name in names)
        names.append(f"{column}_{repeated + 1}" if repeated else column)
    return names


def load_function(source: str | Reward) -> Reward:
    """The function that `my_rewards.py:score` names, or a ready-made one. A function is returned unchanged.

    The file can import modules beside it, as a script can.
    """
    if callable(source):
        return source
    if (made := named(source)) is not None:
        return made
    path, _, name = source.rpartition(":")
    if not path.endswith(".py") or not name:
        raise ValueError(
            f"reward is {source!r}; expected FILE.py:FUNCTION, the folder of a reward model, or one of "
            f"{', '.join((*FUNCTIONS, *MADE))}"
        )
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
        raise ValueError(f"{path} cannot be run: {told(error)}") from error
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


def score(
    function: Reward, rows: Sequence[Row], completions: Sequence[str], *, name: str, seconds: float | None = None
) -> Tensor:
    """One score per completion, [B] float32; NaN where the function gave None (not scored).

    The function receives lists of the prompts, the completions, and all other columns of the rows; see `given_to`. Of
    conversations it receives lists of messages, as the data has them. Errors of the function become a ValueError that
    names it, and the completion if there is one.
    """
    return scores_by([Scorer(function, name)], rows, completions, seconds=seconds)[0]


def scores_by(
    scorers: Sequence[Scorer], rows: Sequence[Row], completions: Sequence[str], *, seconds: float | None = None
) -> Tensor:
    """The scores by each of R rewards, [R, B]. Asynchronous functions run at the same time.

    seconds: the time limit of each call.
    """
    calls = [_prepared(scorer, rows, completions) for scorer in scorers]
    awaited = [i for i, scorer in enumerate(scorers) if is_asynchronous(scorer.reward)]
    found: dict[int, Any] = {}
    if awaited:
        together = asynchronous([(scorers[i].name, calls[i]) for i in awaited], seconds)
        found = dict(zip(awaited, together, strict=True))
    for i, scorer in enumerate(scorers):
        if i not in awaited:
            found[i] = within(scorer.name, calls[i], seconds)
    prompts = [row["prompt"] for row in rows]
    return torch.stack([_checked(found[i], scorer.name, prompts, completions) for i, scorer in enumerate(scorers)])


def _prepared(scorer: Scorer, rows: Sequence[Row], completions: Sequence[str]) -> Callable[[], Any]:
    """The call of a reward with what it asks for."""
    known = [source(row) for row in rows]
    columns = {key: [row.get(key) for row in known] for key in known[0] if key != "prompt"}
    given = given_to(scorer.reward, columns, name=scorer.name)
    lists: dict[str, list[Any]] = {**columns, "prompts": [row["prompt"] for row in known]}
    lists["completions"] = [as_completion(row, text) for row, text in zip(rows, completions, strict=True)]
    keywords = {parameter: list(lists[what]) for parameter, what in given.keywords.items()}
    return functools.partial(scorer.reward, *(list(lists[what]) for what in given.positions), **keywords)


def _checked(scores: Any, name: str, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
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

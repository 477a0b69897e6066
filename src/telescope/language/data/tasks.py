"""Tasks for a model: prompts to train on, held-out prompts, and correct answers where they can be verified.

A hash of its text holds out one prompt in ten, so no run, seed or stage ever trains on it. Leaves out completions, and
learned reward models.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from telescope.language.data.chat import Message, Template, key_of, rendered
from telescope.language.data.files import READERS, Row, is_data, read_rows
from telescope.language.data.games import Environment, Guess, guess_row, random_player
from telescope.language.data.text import open_text
from telescope.language.data.verifiers import PREFIX, Conversation, stage
from telescope.rewards import final_answer

Reward = Callable[..., Sequence[float | None]]
"""(prompts, completions, **columns) by name → one score per completion; None where it cannot be scored."""

HELD_OUT = 1000  # maximum number of rows in an evaluation
VOWELS, CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"


class Task(NamedTuple):
    """Prompts and their verifiable reward."""

    name: str
    draw: Callable[[np.random.Generator, int], list[Row]]
    """Draws training rows with a random generator."""
    held_out: list[Row]
    reward: Reward | None
    """The task's own reward; None if the user must give a reward function or model."""
    metric: str
    """The name of the reward on held-out prompts: `exact_match` or `reward`."""
    max_tokens: int
    """Tokens of the longest correct answer, including its end token."""
    answers: bool = True
    """Whether every row has an `answer` to learn from before RL."""
    pairs: Callable[..., list[Row]] | None = None
    """Draws preference pairs (rng, count, held_out=False): rows with `prompt`, `chosen`, `rejected`. Held-out pairs
    come once each."""
    rows: Sequence[Row] = ()
    """All rows of a file; empty for a built-in task, which draws endlessly."""
    game: Callable[[], Environment] | None = None
    """Makes the environment of a conversation; None where a completion is one turn."""
    turns: int = 1
    """The maximum number of turns of a conversation."""


def is_held_out(prompt: str | list[Message]) -> bool:
    """Whether this prompt belongs to the held-out tenth."""
    return int.from_bytes(hashlib.sha256(key_of(prompt).encode()).digest()[:8], "big") % 10 == 0


def exact_match(prompts: Sequence[Any], completions: Sequence[Any], *, answer: Sequence[str], **_: Any) -> list[float]:
    """1 if the completion equals the answer, otherwise 0. A message is compared without its thoughts."""
    return [float(final(completion) == right) for completion, right in zip(completions, answer, strict=True)]


def final(completion: str | list[Message]) -> str:
    """A text itself; of an assistant's message, what follows its thoughts."""
    return completion if isinstance(completion, str) else final_answer(completion)


def without_ends(task: Task, ends: tuple[str, ...]) -> Task:
    """The task, with end tokens removed from answers before comparison, because completions come without them."""
    if task.reward is not exact_match or not task.rows:
        return task

    def match(prompts: Sequence[Any], completions: Sequence[Any], *, answer: Sequence[str], **_: Any) -> list[float]:
        return exact_match(prompts, completions, answer=[open_text(one, ends) for one in answer])

    return task._replace(reward=match)


def open_task(name: str, digits: int | None = None) -> Task:
    """A built-in task by its name, or the task of a data file."""
    if name in BUILT_IN:
        return BUILT_IN[name](name, digits)
    if is_data(name):
        _without_digits(name, digits)
        return from_file(name)
    if name.startswith(PREFIX):
        _without_digits(name, digits)
        return from_verifiers(name)
    if os.path.exists(name) or os.path.splitext(name)[1]:
        raise ValueError(
            f"task is {name!r}; expected a file of rows ({', '.join(READERS)}) or a folder that datasets saved; pandas "
            "writes such a file with to_json('data.jsonl', orient='records', lines=True)"
        )
    known = ", ".join(BUILT_IN)
    raise ValueError(
        f"task is {name!r}; expected one of {known}, {PREFIX}TASKSET, or a .jsonl file with a prompt in each row"
    )


# Built-in tasks


def _addition(name: str, digits: int | None) -> Task:
    """The sum of two numbers of up to `digits` digits: `37+58=` → `95`.

    One number in four is drawn below a random power of ten. Uniform numbers are rarely short, and a policy that never
    saw `8+3=` would give no correct answer to learn from.
    """
    digits = _checked(digits, 2, 9)

    def number(rng: np.random.Generator) -> int:
        return int(rng.integers(10 ** int(rng.integers(1, digits + 1)) if rng.random() < 0.25 else 10**digits))

    def row(rng: np.random.Generator) -> Row:
        a, b = number(rng), number(rng)
        return {"prompt": f"{a}+{b}=", "answer": str(a + b)}

    return _verifiable(name, row, digits + 2)


def _sort(name: str, digits: int | None) -> Task:
    """Digits in ascending order: `5281>` → `1258`."""
    digits = _checked(digits, 4, 50)

    def row(rng: np.random.Generator) -> Row:
        text = "".join(map(str, rng.integers(10, size=digits)))
        return {"prompt": f"{text}>", "answer": "".join(sorted(text))}

    return _verifiable(name, row, digits + 1)


def _reverse(name: str, digits: int | None) -> Task:
    """A string backwards: `bdca|` → `acdb`."""
    length = _checked(digits, 4, 50)

    def row(rng: np.random.Generator) -> Row:
        text = "".join(chr(97 + letter) for letter in rng.integers(10, size=length))
        return {"prompt": f"{text}|", "answer": text[::-1]}

    return _verifiable(name, row, length + 1)


def _taste(name: str, digits: int | None) -> Task:
    """Words after a letter. A hidden taste decides which are good, and shows only in preference pairs."""
    _without_digits(name, digits)

    def word(rng: np.random.Generator) -> str:
        return "".join(chr(97 + letter) for letter in rng.integers(26, size=rng.integers(2, 9)))

    def judged(rng: np.random.Generator) -> str:
        """Texts like those that a policy may write: any share of vowels, and texts without neighbours."""
        share = rng.random()
        kinds = [VOWELS if rng.random() < share else CONSONANTS for _ in range(rng.integers(9))]
        return "".join(kind[rng.integers(len(kind))] for kind in kinds)

    def prompts(rng: np.random.Generator, count: int, held_out: bool) -> list[str]:
        found = list[str]()
        while len(found) < count:
            text = "".join(chr(97 + letter) for letter in rng.integers(26, size=2)) + ":"
            found += [text] * (is_held_out(text) == held_out)
        return found

    def rows(rng: np.random.Generator, count: int) -> list[Row]:
        return [{"prompt": prompt, "answer": word(rng)} for prompt in prompts(rng, count, False)]

    def pairs(rng: np.random.Generator, count: int, held_out: bool = False) -> list[Row]:
        found = []
        for prompt in prompts(rng, count, held_out):
            one = two = judged(rng)
            while two == one:  # equal words have no preference
                two = judged(rng)
            first = rng.random() < 1 / (1 + np.exp(4 * (taste(two) - taste(one))))
            chosen, rejected = (one, two) if first else (two, one)
            found.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        return found

    def hidden(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        return [taste(completion) for completion in completions]

    every = [chr(97 + a) + chr(97 + b) + ":" for a in range(26) for b in range(26)]
    return Task(name, rows, [{"prompt": p} for p in every if is_held_out(p)], hidden, "reward", 12, pairs=pairs)


def _guess(name: str, digits: int | None) -> Task:
    """Find a number of so many digits, with a tool that says whether it is higher or lower."""
    digits = _checked(digits, 1, 3)
    most = 10**digits - 1
    turns = math.ceil(math.log2(most + 2))  # halving finds every number within them

    def draw(rng: np.random.Generator, count: int) -> list[Row]:
        rows = [guess_row(int(secret), most) for secret in rng.integers(most + 1, size=count)]
        return [row | {"completion": random_player(row, rng, turns)} for row in rows]

    held_out = [guess_row(i % (most + 1), most) for i in range(HELD_OUT)]  # a game has no prompts to hold out
    return Task(name, draw, held_out, None, "reward", turns * (digits + 1), game=Guess, turns=turns)


def taste(word: str) -> float:
    """The hidden reward of `lm/taste`: the share of neighbouring letters of which exactly one is a vowel, 0 to 1."""
    changes = [(a in VOWELS) != (b in VOWELS) for a, b in itertools.pairwise(word)]
    return sum(changes) / len(changes) if changes and word.isalpha() else 0.0


BUILT_IN: dict[str, Callable[[str, int | None], Task]] = {
    "lm/addition": _addition,
    "lm/sort": _sort,
    "lm/reverse": _reverse,
    "lm/taste": _taste,
    "lm/guess": _guess,
}


def _checked(digits: int | None, default: int, most: int) -> int:
    digits = default if digits is None else digits
    if not 1 <= digits <= most:
        raise ValueError(f"digits is {digits}; expected 1 to {most}")
    return digits


def _without_digits(name: str, digits: int | None) -> None:
    if digits is not None:
        raise ValueError(f"digits is {digits}, but {name} has none; leave it out")


def _verifiable(name: str, row: Callable[[np.random.Generator], Row], max_tokens: int) -> Task:
    """Draw rows one by one. Held-out ones are drawn again."""

    def draw(rng: np.random.Generator, count: int) -> list[Row]:
        rows: list[Row] = []
        while len(rows) < count:
            if not is_held_out((new := row(rng))["prompt"]):
                rows.append(new)
        return rows

    found: dict[str, Row] = {}
    rng = np.random.default_rng(0)  # the same rows for all runs and seeds
    for _ in range(50 * HELD_OUT):
        if is_held_out((new := row(rng))["prompt"]):
            found.setdefault(new["prompt"], new)
        if len(found) == HELD_OUT:
            break
    if not found:
        raise ValueError(f"digits is 1, but {name} then has no held-out prompt; expected 2 or more")
    return Task(name, draw, list(found.values()), exact_match, "exact_match", max_tokens)


# Files


def from_file(path: str) -> Task:
    """A data file as a task. If each row has an `answer`, the default reward is 1 for an exact match."""
    rows = read_rows(path, ("prompt",), alike=True)
    training = [row for row in rows if not is_held_out(row["prompt"])]
    held_out = [row for row in rows if is_held_out(row["prompt"])]
    if not training:
        raise ValueError(f"{path} has {len(rows)} rows, all of them in the held-out tenth; add more prompts")
    answers = all(isinstance(row.get("answer"), str) for row in rows)

    def draw(rng: np.random.Generator, count: int) -> list[Row]:
        return [training[int(i)] for i in rng.integers(len(training), size=count)]

    reward, metric = (exact_match, "exact_match") if answers else (None, "reward")
    return Task(path, draw, held_out[:HELD_OUT] or training[:HELD_OUT], reward, metric, 64, answers, rows=rows)


def from_verifiers(name: str) -> Task:
    """An environment of the package verifiers as a task, whose rewards are the environment's."""
    found = stage(name)
    rows = [{"prompt": task.data.prompt_text or task.key, "index": i} for i, task in enumerate(found.tasks)]
    held_out = [row for row in rows if is_held_out(row["prompt"])][:HELD_OUT]
    training = [row for row in rows if not is_held_out(row["prompt"])]
    if not training:
        raise ValueError(f"{name} has {len(rows)} tasks, none of them outside the held-out tenth")

    def draw(rng: np.random.Generator, count: int) -> list[Row]:
        return [training[int(i)] for i in rng.integers(len(training), size=count)]

    make = functools.partial(Conversation, found)
    return Task(name, draw, held_out or training, None, "reward", 64, False, rows=rows, game=make, turns=8)


def pairs_of(name: str, digits: int | None = None) -> Task:
    """A task with preference pairs: a built-in one, or a file with `prompt`, `chosen`, `rejected`."""
    if not is_data(name):
        if (task := open_task(name, digits)).pairs is None:
            raise ValueError(f"task is {name!r}, which has no preference pairs; use lm/taste, or a file with pairs")
        return task
    _without_digits(name, digits)
    rows = read_rows(name, ("prompt", "chosen", "rejected"))
    kept = {held: [row for row in rows if is_held_out(row["prompt"]) == held] for held in (False, True)}
    if not kept[False]:
        raise ValueError(f"{name} has {len(rows)} rows, all of them in the held-out tenth; add more pairs")

    def pairs(rng: np.random.Generator, count: int, held_out: bool = False) -> list[Row]:
        source = kept[held_out] or kept[False]
        if held_out:
            return source[:count]  # a random draw would repeat some and omit others
        return [source[int(i)] for i in rng.integers(len(source), size=count)]

    return Task(name, lambda rng, count: pairs(rng, count), kept[True], None, "accuracy", 64, False, pairs, rows)


def in_words(
    task: Task, tokenizer: Any, model: str, learned: Sequence[str] = (), ends: tuple[str, ...] | None = None
) -> Task:
    """The task with conversations rendered by the tokenizer's chat template, for a model of this name.

    learned: the columns of answers. ends: the texts that end a turn, if every turn of the assistant is learned.
    """
    if not any(isinstance(row["prompt"], list) for row in task.rows[:1]):
        return task
    render, pairs = rendered(task.rows, Template(tokenizer, model), learned, ends), task.pairs

    def draw(rng: np.random.Generator, count: int) -> list[Row]:
        return list(map(render, task.draw(rng, count)))

    def drawn_pairs(rng: np.random.Generator, count: int, held_out: bool = False) -> list[Row]:
        assert pairs is not None
        return list(map(render, pairs(rng, count, held_out)))

    rows, held_out = ([render(row) for row in rows] for rows in (task.rows, task.held_out))
    return task._replace(draw=draw, held_out=held_out, rows=rows, pairs=drawn_pairs if pairs else None)


def require_reward(task: Task, reward: Any) -> None:
    """Raise a ValueError if there is no reward."""
    if reward is None and task.reward is None and task.pairs is None and task.game is None:
        raise ValueError(
            f"{task.name} has no answers to check (a string `answer` in every row), so it needs a reward: "
            "--reward FILE.py:FUNCTION, or the run folder of a reward model"
        )

"""Ready-made reward functions for completions of language models, to import or to name after `--reward`.

    telescope train grpo data.jsonl --model PATH --reward number_in_text "matches:<think>.*</think>.*@0.2"

Each takes lists of completions and returns one number for each. Leaves out how a run calls them
(`language/data/rewards.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

Rewarding = Callable[..., list[float | None]]
NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def text_of(completion: str | list[dict[str, Any]]) -> str:
    """A completion's text: the content of its last message, or a plain text itself."""
    return completion if isinstance(completion, str) else str(completion[-1].get("content") or "")


def final_answer(completion: str | list[dict[str, Any]]) -> str:
    """A completion's text after its thoughts (`</think>`), without spaces around it."""
    return text_of(completion).rpartition("</think>")[2].strip()


def exact_answer(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float | None]:
    """1 if the completion, without thoughts and spaces around it, is the column `answer`; otherwise 0."""
    return [float(final_answer(one) == str(right).strip()) for one, right in zip(completions, answer, strict=True)]


def number_in_text(completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float | None]:
    """1 if the last number in the completion is that of the column `answer`; otherwise 0. `1,200.0` is 1200.

    None where the answer has no number.
    """
    found = zip(map(_last_number, map(final_answer, completions)), map(_last_number, map(str, answer)), strict=True)
    return [None if right is None else float(said == right) for said, right in found]


def _last_number(text: str) -> Decimal | None:
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def matches(pattern: str) -> Rewarding:
    """A reward function: 1 if the whole completion matches the regular expression, in which `.` is any character."""
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"pattern is {pattern!r}, which is not a regular expression: {error}") from error

    def matches(completions: Sequence[Any], **_: Any) -> list[float | None]:
        return [float(compiled.fullmatch(text_of(one)) is not None) for one in completions]

    return matches


def length_window(low: int, high: int) -> Rewarding:
    """A reward function: 1 if the completion has `low` to `high` characters.

    Outside it falls linearly to 0, over as many characters as the window has.
    """
    low, high = int(low), int(high)
    if not 0 <= low < high:
        raise ValueError(f"low is {low} and high is {high}; expected 0 <= low < high")

    def length_window(completions: Sequence[Any], **_: Any) -> list[float | None]:
        sizes = [len(text_of(one)) for one in completions]
        return [max(0.0, 1.0 - max(low - size, size - high, 0) / (high - low)) for size in sizes]

    return length_window


def repetition(size: int = 3) -> Rewarding:
    """A reward function: minus the share of word sequences of this size that repeat earlier ones, −1 to 0."""
    size = int(size)
    if size < 1:
        raise ValueError(f"size is {size}; expected at least 1 word")

    def repetition(completions: Sequence[Any], **_: Any) -> list[float | None]:
        return [-_repeated(text_of(one).split(), size) for one in completions]

    return repetition


def _repeated(words: list[str], size: int) -> float:
    runs = list(zip(*(words[i:] for i in range(size)), strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


FUNCTIONS: dict[str, Rewarding] = {"exact_answer": exact_answer, "number_in_text": number_in_text}
"""Reward functions by name."""
MADE: dict[str, Callable[..., Rewarding]] = {
    "matches": matches,
    "length_window": length_window,
    "repetition": repetition,
}
"""Functions that make one from the text after their name: `matches:PATTERN`, `length_window:LOW,HIGH`, …"""


def named(source: str) -> Rewarding | None:
    """The ready-made reward function of this name; None if there is none."""
    name, given, text = source.partition(":")
    if name in FUNCTIONS and not given:
        return FUNCTIONS[name]
    if name not in MADE:
        return None
    arguments = [text] if name == "matches" else [part for part in text.split(",") if part]
    try:
        return MADE[name](*arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward is {source!r}, which {name} cannot be made from: {error}") from error

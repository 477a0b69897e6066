"""Environments of text: a conversation of several turns, of which the policy writes every other one.

An environment has two methods. `reset(row)` returns the first prompt, a text or messages. `step(text)` takes a turn of
the policy and returns (what is said next, reward, terminated). Leaves out how turns are sampled
(`experience/conversations.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from telescope.language.data.calls import told
from telescope.language.data.chat import MARK, Message, Rendered, Template
from telescope.language.data.files import Row
from telescope.language.data.text import following_texts, plain_ids

Said = str | list[Message]


class Environment(Protocol):
    """What a conversation is held with."""

    def reset(self, row: Row) -> Said:
        """Begin a conversation of this row; the first prompt."""

    def step(self, text: str) -> tuple[Said, float, bool]:
        """What is said after a turn of the policy, its reward, and whether the conversation has ended."""


class Guess:
    """`lm/guess`: find a number. After a wrong guess the tool says whether the number is higher or lower.

    A hit gives 1, every guess before it costs `COST`. So few guesses are better than many.
    """

    COST = 0.1

    def reset(self, row: Row) -> str:
        self.secret, self.width = int(row["secret"]), len(str(row["most"]))
        return str(row["prompt"])

    def step(self, text: str) -> tuple[str, float, bool]:
        if not (text.isascii() and text.isdigit() and len(text) == self.width):
            return "?", -self.COST, False
        if int(text) == self.secret:
            return "", 1.0, True
        return (">" if self.secret > int(text) else "<"), -self.COST, False


def guess_row(secret: int, most: int) -> Row:
    """A row of `lm/guess`. Its prompt does not say the number."""
    return {"prompt": f"0-{most}:", "secret": secret, "most": most}


def random_player(row: Row, rng: np.random.Generator, turns: int) -> Rendered:
    """A conversation of somebody who guesses at random, to learn the rules from."""
    game, pieces = Guess(), list[tuple[str, bool]]()
    game.reset(row)
    for _ in range(turns):
        text = f"{int(rng.integers(row['most'] + 1)):0{game.width}}"
        said, _, ended = game.step(text)
        pieces.append((text, True))
        if ended:
            break
        pieces.append((said, False))
    if not pieces[-1][1]:
        pieces.pop()
    rest = Rendered("".join(text for text, _ in pieces))
    rest.pieces = tuple(pieces)
    return rest


class Answer(NamedTuple):
    """What an environment says to a turn."""

    tokens: list[int]
    """To read before the next turn."""
    reward: float
    terminated: bool


class Hall:
    """The environments of a batch of conversations, and their tokens."""

    def __init__(self, make: Callable[[], Environment], tokenizer: Any, name: str, ends: Sequence[int]) -> None:
        self.make, self.tokenizer, self.name, self.ends = make, tokenizer, name, tuple(ends)
        self.template = Template(tokenizer, name) if getattr(tokenizer, "chat_template", None) else None
        self.games = list[Environment]()
        self._text = functools.cache(lambda turn: following_texts(tokenizer, [turn])[0])  # turns are often equal
        self._ids = functools.cache(lambda text: plain_ids(tokenizer, [text])[0])

    def open(self, rows: Sequence[Row], group: int) -> list[str]:
        """Begin `group` conversations for each row; the prompts of the rows as text."""
        self.rows = [row for row in rows for _ in range(group)]
        self.games = [self.make() for _ in self.rows]
        texts = [self._asked(row, game.reset(row)) for row, game in zip(self.rows, self.games, strict=True)]
        if odd := [i for i, text in enumerate(texts) if text != texts[i - i % group]]:
            raise ValueError(
                f"reset of the environment gave two prompts for one row, {texts[odd[0] - odd[0] % group]!r} and "
                f"{texts[odd[0]]!r}; conversations of a group begin with the same one, so let the row decide"
            )
        return texts[::group]

    def close(self) -> None:
        """Tell environments that have a method `close` that nobody goes on with their conversation."""
        for game in self.games:
            if (close := getattr(game, "close", None)) is not None:
                close()

    def answer(self, i: int, turn: Sequence[int]) -> Answer:
        """What the environment of conversation i says to the tokens of a turn."""
        ended = turn[-1] in self.ends
        text = self._text(tuple(turn[:-1] if ended else turn))
        try:
            said, reward, terminated = self.games[i].step(text)
            reward = float(reward)
        except Exception as error:
            raise ValueError(f"step of the environment raised {told(error)}, after {text!r}") from error
        if not math.isfinite(reward):
            raise ValueError(
                f"step of the environment gave the reward {reward} after {text!r}; expected a finite number"
            )
        return Answer([] if terminated else self.following(self.rows[i], said, ended), reward, bool(terminated))

    def _asked(self, row: Row, said: Said) -> str:
        if isinstance(said, str):
            return said
        if self.template is None:
            raise ValueError("the environment speaks in messages, but the tokenizer has no chat template")
        return self.template.asked({**row, "prompt": said})

    def following(self, row: Row, said: Said, ended: bool) -> list[int]:
        """The tokens between a turn of the policy and its next one. ended: the turn has its end token already."""
        if isinstance(said, str):
            return self._ids(said)
        assert self.template is not None
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}, *said]
        text = self.template.text(talk, row, add_generation_prompt=True).partition(MARK)[2]
        ids = plain_ids(self.tokenizer, [text])[0]
        return ids[1:] if ended and ids and ids[0] in self.ends else ids

"""What a model reads of a row: its tokens, which of them are prompt, and where the loss counts.

It uses the functions that training uses. Leaves out how it is printed (`commands/show.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from telescope.language.checks import readable
from telescope.language.config import LanguageConfig
from telescope.language.data.tasks import Row
from telescope.language.data.text import decoded, end_texts
from telescope.language.experience.sampling import encode
from telescope.language.experience.supervised import answer_of, texts
from telescope.language.models import causal as models


class Token(NamedTuple):
    """One token of a text."""

    id: int
    text: str
    part: str
    """`prompt`, or the column that it belongs to."""
    loss: bool
    """Whether the loss counts here."""


class Reading(NamedTuple):
    """A text as the model reads it, and each of its tokens."""

    row: int
    """The number of the row, from 1."""
    column: str
    """The column that follows the prompt; empty if the prompt is all."""
    text: str
    tokens: list[Token]


def readings(config: LanguageConfig, count: int) -> list[Reading]:
    """The first rows of the config's task, or as many of its draws if the task is endless."""
    model, tokenizer = models.load(config.model)
    ends = models.ends_of(model, tokenizer)
    task = config.open_task()
    task = task._replace(rows=task.rows[:count]) if task.rows else task
    task = readable(config, task, tokenizer, end_texts(tokenizer, ends))
    rows = task.rows or task.held_out[:count]
    return [one for number, row in enumerate(rows, 1) for one in _of_row(config, tokenizer, ends, number, row)]


def _of_row(config: LanguageConfig, tokenizer: Any, ends: Sequence[int], number: int, row: Row) -> list[Reading]:
    answers: dict[str, Any] = {name: row[name] for name in config.learned if isinstance(row.get(name), str)}
    if "completion" in config.learned:
        answers = {"completion": answer_of(row)}
    asked = encode(tokenizer, [row["prompt"]]).tokens[0].tolist()
    found = []
    for name, answer in (answers or {"": None}).items():
        ids, loss = list(asked), [False] * len(asked)
        if answer is not None:
            batch = texts(tokenizer, [row["prompt"]], [answer], ends, "cpu")
            ids += batch.tokens[0][batch.mask[0]].tolist()
            loss += batch.learned[0][batch.mask[0]].tolist()
        parts = ["prompt"] * len(asked) + [name] * (len(ids) - len(asked))
        words = decoded(tokenizer, [[one] for one in ids])
        tokens = [Token(*one) for one in zip(ids, words, parts, loss, strict=True)]
        found.append(Reading(number, name, decoded(tokenizer, [ids])[0], tokens))
    return found

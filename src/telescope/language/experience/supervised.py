"""Learning from correct answers: batches of demonstrations, and their cross-entropy.

Leaves out the loop of a whole supervised run (`algorithms/sft.py`) and the warm start (`warm_start.py`).
"""

# B demonstrations, P prompt width, T answer width
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from telescope.language.data.chat import is_conversation
from telescope.language.data.tasks import Row
from telescope.language.data.text import answer_ids, turn_ids
from telescope.language.experience.sampling import Prompts, encode, padded
from telescope.language.log_probs import token_log_probs
from telescope.language.micro_batches import Size, sizes_of
from telescope.language.models.states import completion_states, head_of, trunk_of


class Texts(NamedTuple):
    """Prompts with their answers."""

    prompts: Prompts
    tokens: Tensor  # [B, T], padded on the right
    mask: Tensor  # [B, T], True on tokens of the answer and its end token
    learned: Tensor  # [B, T], True where the loss counts: everywhere in `mask`, or on the assistant's turns

    @property
    def sizes(self) -> list[Size]:
        """Tokens of each prompt and its answer."""
        return sizes_of(self.prompts.mask, self.mask)

    def part(self, rows: slice) -> Texts:
        """The demonstrations of this piece."""
        return Texts(self.prompts.rows(rows), self.tokens[rows], self.mask[rows], self.learned[rows])


def texts(
    tokenizer: Any, prompts: Sequence[str], answers: Sequence[str], ends: int | Sequence[int], device: str
) -> Texts:
    """Prompts and answers as tokens. An answer without an end token gets the first of `ends`."""
    ends = [ends] if isinstance(ends, int) else list(ends)
    ids = answer_ids(tokenizer, answers, ends)
    owned = [[True] * len(one) for one in ids]
    for i, answer in enumerate(answers):
        if (turns := getattr(answer, "pieces", None)) is not None:
            ids[i], owned[i] = turn_ids(tokenizer, turns, ends)
    tokens, mask = padded(ids, device)
    return Texts(encode(tokenizer, prompts, device), tokens, mask, padded(owned, device)[0].bool())


def demonstrations(tokenizer: Any, rows: Sequence[Row], ends: int | Sequence[int], device: str) -> Texts:
    """Rows with a `prompt` and its `completion` or correct `answer`, as tokens."""
    require_answers(rows)
    return texts(tokenizer, [row["prompt"] for row in rows], [answer_of(row) for row in rows], ends, device)


def answer_of(row: Row) -> Any:
    """What SFT learns from a row: its `completion`, or otherwise its `answer`."""
    return row.get("answer") if row.get("completion") is None else row["completion"]


def require_answers(rows: Sequence[Row]) -> None:
    """Raise a ValueError that names the first row without an answer."""
    for row in rows:
        if not isinstance(answer := answer_of(row), str) and not is_conversation(answer):
            what = "no answer" if answer is None else f"the answer {answer!r}, which is not a string"
            raise ValueError(
                f"the row with prompt {row['prompt']!r} has {what}; SFT needs a completion or a correct answer in each "
                "row"
            )


def cross_entropy(policy: nn.Module, batch: Texts, *, packed: bool | None = False) -> Tensor:
    """−log π of each learned token of the answers [B, T], 0 elsewhere."""
    states = completion_states(trunk_of(policy), batch.prompts, (batch.tokens, batch.mask), packed=packed)
    return -token_log_probs(states, tokens=batch.tokens, mask=batch.learned, **head_of(policy)).log_probs

"""`telescope show DATA --model M`: the tokens that a model reads of some rows, and where the loss counts."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

from telescope.checks import positive
from telescope.commands.arguments import HELP, parse, positionals


@dataclasses.dataclass(frozen=True)
class ShowOptions:
    """Show what a model reads of the rows of a data file: every token, and where the loss counts."""

    model: str = "tiny"
    """Model whose tokenizer and chat template read the rows: tiny, a run folder, a transformers folder, or a name."""
    rows: int = 1
    """Number of rows to show."""
    loss_on: Literal["completion", "assistant"] = "completion"
    """As in `telescope train sft`: learn the completion alone, or every turn of the assistant."""
    json: bool = False
    """Print one JSON object per text instead of a table."""

    def __post_init__(self) -> None:
        positive(self, "rows")


def show(arguments: list[str]) -> int:
    """Print the tokens of the first rows."""
    subjects, flags = positionals(arguments, ShowOptions)
    options: ShowOptions = parse(ShowOptions, flags, "telescope show DATA", {})
    if len(subjects) != 1 and not HELP & set(flags):
        raise ValueError(f"telescope show takes one data file, folder or task, got {len(subjects)}")
    from telescope.language.reading import readings

    for reading in readings(_config(subjects[0], options), options.rows):
        if options.json:
            print(json.dumps(reading._asdict() | {"tokens": [token._asdict() for token in reading.tokens]}))
            continue
        counted = sum(token.loss for token in reading.tokens)
        column = f", {reading.column}" if reading.column else ""
        print(f"row {reading.row}{column}: {len(reading.tokens)} tokens, {counted} in the loss")
        for place, token in enumerate(reading.tokens):
            print(f"{place:5} {token.id:8}  {token.part:10}  {'loss' if token.loss else '':4}  {token.text!r}")
    return 0


def _config(data: str, options: ShowOptions) -> Any:
    """The settings of the algorithm that would learn from such rows: SFT, a reward model, or one that samples."""
    from telescope.algorithms.grpo import GRPO
    from telescope.algorithms.reward_model import RewardModelling
    from telescope.algorithms.sft import SFT
    from telescope.language.data.files import is_data, read_rows
    from telescope.language.experience.supervised import answer_of

    settings: dict[str, Any] = {"task": data, "model": options.model}
    first = read_rows(data, ("prompt",))[0] if is_data(data) else {"answer": ""}
    if {"chosen", "rejected"} <= first.keys():
        return RewardModelling(**settings)
    if answer_of(first) is not None:
        return SFT(**settings, loss_on=options.loss_on)
    return GRPO(**settings, reward="shown.py:nothing")

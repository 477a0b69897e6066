"""`telescope show`: the tokens that a model reads of some rows of data, or completions of a run with their scores."""

from __future__ import annotations

import dataclasses
import json
import os
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


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Show completions that a run on a language model wrote, with their scores, from its samples.csv."""

    rows: int = 5
    """Number of completions to show."""
    step: int | None = None
    """Step to show completions of. Default: the last one with samples; samples are taken at each evaluation."""
    json: bool = False
    """Print one JSON object per completion."""

    def __post_init__(self) -> None:
        positive(self, "rows")


def show(arguments: list[str]) -> int:
    """Print the tokens of the first rows, or samples of a run."""
    subjects, flags = positionals(arguments, ShowOptions, SampleOptions)
    if len(subjects) == 1 and os.path.isfile(os.path.join(subjects[0], "run.json")):
        return _samples(subjects[0], parse(SampleOptions, flags, "telescope show RUN", {}))
    options: ShowOptions = parse(ShowOptions, flags, "telescope show DATA", {})
    if len(subjects) != 1 and not HELP & set(flags):
        raise ValueError(f"telescope show takes one data file, folder, task or run, got {len(subjects)}")
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


def _samples(run: str, options: SampleOptions) -> int:
    """Print the completions of one step of a run."""
    from telescope.runs.folder import RunFolder
    from telescope.runs.formats.tables import read_table

    rows = read_table(RunFolder.open(run).samples_path)
    if not rows:
        raise ValueError(f"{run} has no samples: a run on a language model that samples writes some at each evaluation")
    steps = list(dict.fromkeys(int(row["step"]) for row in rows))
    step = steps[-1] if options.step is None else options.step
    if step not in steps:
        raise ValueError(f"step is {step}; {run} has samples of the steps {', '.join(map(str, steps))}")
    for row in [row for row in rows if int(row["step"]) == step][: options.rows]:
        if options.json:
            print(json.dumps(row))
            continue
        about = {name: value for name, value in row.items() if name not in ("step", "prompt", "completion")}
        print(f"step {step}, " + ", ".join(f"{name} {_short(value)}" for name, value in about.items()))
        print(f"  {row['prompt']}\n  → {row['completion']}")
    return 0


def _short(value: str) -> str:
    """A number with four digits; any other text as it is."""
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value


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

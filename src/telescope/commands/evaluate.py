"""`telescope eval`: the agents of a run on whole episodes, or its language model on held-out prompts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from telescope.commands.arguments import parse, positionals


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """Evaluate the agents of a run on whole episodes."""

    episodes: int = 100
    """Episodes per seed."""
    json: bool = False
    """Print one JSON object on standard output instead of a table."""
    stochastic: bool = False
    """Sample actions instead of taking the policy's mode."""
    best: bool = False
    """Each seed as it was at its best evaluation during training (--eval-every), instead of at the end."""
    video: str | None = None
    """Also record one episode of the first seed into this folder."""
    device: str | None = None
    """Where the networks live; by default where they were trained, or the CPU if there is no such device here."""
    trust: bool = False
    """Run the code that the run names (an environment's module), though somebody else began it."""


@dataclasses.dataclass(frozen=True)
class AnswerOptions:
    """Evaluate the language model of a run on held-out prompts, greedily."""

    prompts: int = 1000
    """Held-out prompts, at most."""
    json: bool = False
    """Print one JSON object on standard output instead of a table."""
    device: str | None = None
    """Where the model lives; by default where it was trained, or the CPU if there is no such device here."""
    trust: bool = False
    """Run the code that the run names (a reward file), though somebody else began it."""


def evaluate(arguments: list[str]) -> int:
    """`telescope eval RUN`."""
    if (status := _evaluate_language(arguments)) is not None:
        return status
    run_path, flags = positionals(arguments, EvalOptions)
    options: EvalOptions = parse(EvalOptions, flags, "telescope eval RUN", {})
    if len(run_path) != 1:
        raise ValueError(f"telescope eval takes one run folder, got {len(run_path)}")
    if options.episodes < 1:
        raise ValueError(f"episodes is {options.episodes}; expected at least 1")
    from telescope.metrics import summarise
    from telescope.policy import load

    with notes():
        policy = load(run_path[0], best=options.best, trust=options.trust, device=options.device)
    result = policy.evaluate(options.episodes, stochastic=options.stochastic)
    summary = summarise(result.returns)
    if options.video is not None:
        from telescope.control.video import record

        config = policy.config
        film = record(config.env, policy.act, options.video, env_kwargs=config.env_kwargs, seed=config.seed)
        print(f"video: {film}", file=sys.stderr)
    if options.json:
        print(json.dumps(summary))
    else:
        _print_table(policy.seeds, result, summary)
    return 0


def _evaluate_language(arguments: list[str]) -> int | None:
    """`telescope eval RUN` of a language model; None where the run is not one."""
    run_path, flags = positionals(arguments, AnswerOptions)
    if len(run_path) != 1 or not _is_language(run_path[0]):
        return None
    options: AnswerOptions = parse(AnswerOptions, flags, "telescope eval RUN", {})
    if options.prompts < 1:
        raise ValueError(f"prompts is {options.prompts}; expected at least 1")
    from telescope.answers import load

    with notes():
        answers = load(run_path[0], trust=options.trust, device=options.device)
    found = answers.evaluate(options.prompts)
    lines = [f"{name:12} {value:,.4g}" for name, value in found.items()]
    print(json.dumps(found) if options.json else "\n".join(lines))
    return 0


@contextlib.contextmanager
def notes() -> Iterator[None]:
    """Warnings of the block as plain lines on standard error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            print(f"note: {warning.message}", file=sys.stderr)


def _is_language(run: str) -> bool:
    from telescope.algorithms import LANGUAGE
    from telescope.runs.folder import RunError, RunFolder

    with contextlib.suppress(RunError):  # said where the options are understood
        return RunFolder.open(run).algorithm in LANGUAGE
    return False


def _print_table(seeds: list[int], result: Any, summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("seed", "return", "std", "lowest", "length", box=None)
    for seed, returns, lengths in zip(seeds, result.returns, result.lengths, strict=True):
        numbers = (returns.mean(), returns.std(), returns.min(), lengths.mean())
        table.add_row(str(seed), *(f"{x:,.1f}" for x in numbers))
    console = Console()
    console.print(table)
    low, high = summary["ci95"]
    console.print(
        f"IQM over seeds {summary['iqm']:,.1f} (95 % bootstrap interval {low:,.1f} to {high:,.1f})", highlight=False
    )
    console.print(f"mean {summary['mean']:,.1f}, worst seed {summary['worst']:,.1f}", highlight=False)
    console.print(f"{summary['episodes']} episodes per seed", highlight=False)

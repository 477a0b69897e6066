"""Show the progress of a run: a live bar on a terminal, plain lines elsewhere.

It reads the rows of metrics.csv. Leaves out algorithms.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from telescope.metrics import iqm

SCORES = {
    "return": "return_mean",
    "eval": "eval_return_mean",
    "score": "score",
    "exact match": "exact_match",
    "reward": "reward",
    "accuracy": "accuracy",
}
PARTS = ("env", "policy", "sample", "reward", "update", "other")
SECONDS_BETWEEN_LINES = 10.0


class Display:
    """Shows the latest iteration. A context manager that prints one summary line at the end."""

    def __init__(
        self, total_steps: int, *, first_step: int | Mapping[int, int] = 0, stream: TextIO | None = None
    ) -> None:
        """first_step: the clock of a resumed run, or those of its seeds if they differ."""
        self.stream = sys.stderr if stream is None else stream
        self.total_steps = total_steps
        self._steps: dict[int, int] = {} if isinstance(first_step, int) else dict(first_step)  # of each seed
        self._first = first_step if isinstance(first_step, int) else 0
        self._made = 0  # steps of all seeds since the display began
        self._started = self._printed = time.perf_counter()
        self._shares: dict[str, float] = {}
        self._scores: dict[str, dict[int, float]] = {}  # the latest score of each seed that has one
        self._line = ""  # the latest plain line, until it is printed
        live = self.stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self._live = self._bar(total_steps, self._progress() or self._first) if live else None

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        elif self._line:
            self._print_line()

    def note(self, sentence: str) -> None:
        """Print a sentence that should stay."""
        if self._live is not None:
            self._live.console.print(sentence, highlight=False, markup=False, soft_wrap=True)
        else:
            if self._line:  # print the progress so far above the sentence
                self._print_line()
            print(sentence, file=self.stream, flush=True)

    def show(self, rows: Sequence[dict[str, Any]]) -> None:
        """Show the rows of an iteration."""
        now = time.perf_counter()
        for row in rows:
            self._made += int(row["step"]) - self._steps.get(row["seed"], self._first)
            self._steps[row["seed"]] = int(row["step"])
        step = self._progress()
        self._shares = _shares(rows[0])
        for label, name in SCORES.items():
            if name not in rows[0]:
                continue
            found = {row["seed"]: row[name] for row in rows if row.get(name) is not None}
            self._scores[label] = self._scores.get(label, {}) | found  # without a new score, a seed keeps its last one
        speed = self._made / max(now - self._started, 1e-9)
        if self._live is not None:
            self._live.update(self._live.task_ids[0], completed=step, text=self._text(speed, "\n"))
            return
        left = f"{clock((self.total_steps - step) * len(self._steps) / speed)} left" if speed else ""
        self._line = f"step {step:,} of {self.total_steps:,}  {self._text(speed)}  {left}".rstrip()
        if now - self._printed >= SECONDS_BETWEEN_LINES:
            self._print_line()

    def _progress(self) -> int:
        """The clock, as a mean over seeds. Those of whole episodes end a little above `total_steps`."""
        clocks = [min(step, self.total_steps) for step in self._steps.values()]
        return sum(clocks) // len(clocks) if clocks else 0

    def _print_line(self) -> None:
        print(self._line, file=self.stream, flush=True)
        self._line, self._printed = "", time.perf_counter()

    def _text(self, speed: float, gap: str = "  ") -> str:
        shares = " ".join(f"{part} {share:.0%}" for part, share in self._shares.items())
        known = {label: list(scores.values()) for label, scores in self._scores.items() if scores}
        text = "  ".join(f"{label} {number(iqm(scores))}" for label, scores in known.items())
        return f"{text or 'return –'}  {rate(speed)} steps/s{gap}({shares})"

    def _bar(self, total: int, completed: int) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        # narrow enough for 80 columns: the shares of time are on a second line
        steps, text = TextColumn("{task.completed:,}/{task.total:,}"), TextColumn("{task.fields[text]}")
        left = TextColumn("left ")
        columns = (BarColumn(bar_width=8), steps, TimeRemainingColumn(compact=True), left, text)
        progress = Progress(*columns, console=Console(file=self.stream), refresh_per_second=4)
        progress.add_task("", total=total, completed=completed, text="starting")
        return progress


def _shares(row: dict[str, Any]) -> dict[str, float]:
    """The shares of the iteration's time."""
    seconds = {part: row[f"time_{part}"] for part in PARTS if f"time_{part}" in row}
    total = sum(seconds.values()) or 1.0
    return {part: value / total for part, value in seconds.items()}


def number(score: float) -> str:
    """One decimal for returns; three for numbers below 2, such as shares."""
    return f"{score:,.1f}" if abs(score) >= 2 else f"{score:.3f}"


def rate(rate: float) -> str:
    """Steps per second, with decimals below 10 because a language model's step may take seconds."""
    return f"{rate:,.0f}" if rate >= 10 or rate == 0 else f"{rate:.2g}"


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"

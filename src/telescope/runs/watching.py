"""What a run folder shows of a run, while it is written or afterwards: progress, curves, seeds, speed, time left.

Leaves out the terminal (`commands/watch.py`), and following a run (it reads the files once).
"""

# S seeds, T steps with a row
from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from telescope.metrics import iqm
from telescope.renamed import COLUMNS, columns_today
from telescope.runs.folder import RunFolder
from telescope.runs.formats.curves import AUTO, LABELS, curve
from telescope.runs.formats.log import read_metrics

BARS = "▁▂▃▄▅▆▇█"
PLAIN = "._-=+*%#"
"""The same where the terminal has no such characters."""
RECENT = 20
"""Iterations of which the speed is a mean."""


class Line(NamedTuple):
    """A column of metrics.csv over the run: the interquartile mean over seeds."""

    label: str
    values: npt.NDArray[np.float64]  # [T]
    lowest: float
    highest: float
    """The range of the last values of the seeds."""

    @property
    def latest(self) -> float:
        return float(self.values[-1])


class View(NamedTuple):
    """A run, as its files show it."""

    title: str
    status: str
    step: int
    """The clock, as a mean over seeds."""
    total_steps: int
    lines: list[Line]
    columns: list[str]
    """The columns that seeds have numbers of."""
    seeds: dict[int, dict[str, float]]
    """For each seed its clock and its latest number of each column, under their names."""
    speed: float | None
    """Ticks of the clock per second of all seeds, lately; None before the second row."""
    elapsed: float
    left: float | None
    """Seconds to the end at this speed; None if the run does not train."""


def view(path: str | os.PathLike[str], columns: Sequence[str] = (), *, written: bool = True) -> View:
    """Read a run folder. `written` says whether a process is writing it; columns: further columns to show.

    A RunError if it is no run folder, or a file is damaged; a ValueError for an unknown column.
    """
    folder = RunFolder.open(path)
    settings = folder.config_mapping()
    subject = settings.get("env") or settings.get("task", "")
    known = read_metrics(folder.metrics_path) if folder.metrics_path.exists() else {}
    today = columns_today(COLUMNS.get(folder.algorithm, {}), list(known))
    table = {today[name]: values for name, values in known.items()}
    unknown = [name for name in columns if table and name not in table]
    if unknown:
        raise ValueError(f"columns has {unknown[0]!r}; the columns of this run are {', '.join(table)}")
    shown = [name for name in dict.fromkeys((*AUTO, *columns)) if np.isfinite(table.get(name, np.nan)).any()]
    total = int(settings.get("total_steps", 0))
    seeds = {seed: _latest(table, seed, shown) for seed in folder.seeds}
    clocks = [min(row["step"], total) for row in seeds.values()]
    speed, elapsed = _speed(table)
    step = int(sum(clocks) / len(clocks)) if clocks else 0
    status = folder.status if folder.status != "running" or written else "not running (killed?)"
    training = status == "running" and bool(speed)
    return View(
        title=f"{folder.method} on {subject}",
        status=status,
        step=step,
        total_steps=total,
        lines=[_line(table, name) for name in shown],
        columns=shown,
        seeds=seeds,
        speed=speed,
        elapsed=elapsed,
        left=(total * len(clocks) - sum(clocks)) / speed if training and speed else None,
    )


def sparkline(values: npt.ArrayLike, width: int, bars: str = BARS) -> str:
    """Values [T] as a row of bars, each the mean of an equal share of them; a gap where there is no number."""
    numbers = np.asarray(values, np.float64)
    parts = [part[np.isfinite(part)] for part in np.array_split(numbers, max(1, min(width, len(numbers))))]
    means = np.array([part.mean() if len(part) else np.nan for part in parts])
    low, high = np.nanmin(means, initial=np.inf), np.nanmax(means, initial=-np.inf)
    if not low <= high:
        return " " * len(means)
    heights = (means - low) / (high - low) if high > low else np.full(len(means), 0.5)
    return "".join(" " if np.isnan(h) else bars[min(len(bars) - 1, int(h * len(bars)))] for h in heights)


def _line(table: dict[str, Any], name: str) -> Line:
    found = curve(table, name, source="metrics.csv").scores  # [S, T]
    everybody = found[:, np.isfinite(found).all(axis=0)]
    values = iqm(everybody, axis=0) if everybody.shape[1] else np.array([iqm(_last(found))])
    return Line(LABELS.get(name, name.replace("_", " ")), values, float(_last(found).min()), float(_last(found).max()))


def _last(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The last number of each seed [S]."""
    return scores[:, -1]


def _latest(table: dict[str, Any], seed: int, columns: Sequence[str]) -> dict[str, float]:
    """A seed's clock and its latest number in each column."""
    if not table:
        return {"step": 0}
    own = table["seed"] == seed
    row: dict[str, float] = {"step": int(table["step"][own].max(initial=0))}
    for name in columns:
        numbers = table[name][own]
        if len(numbers := numbers[np.isfinite(numbers)]):
            row[name] = float(numbers[-1])
    return row


def _speed(table: dict[str, Any]) -> tuple[float | None, float]:
    """Ticks of all seeds per second over the last iterations, and the seconds of the whole run."""
    if not table or "time_total" not in table or not len(table["step"]):
        return None, 0.0
    iterations = np.unique(table["iteration"])
    elapsed = float(np.nanmax(table["time_total"], initial=0.0))
    if len(iterations) < 2:
        return None, elapsed
    recent = iterations[-min(RECENT, len(iterations) - 1) - 1]
    before = table["iteration"] <= recent
    spent = elapsed - float(np.nanmax(table["time_total"][before], initial=0.0))
    made = sum(
        int(table["step"][own].max()) - int(table["step"][own & before].max(initial=0))
        for own in (table["seed"] == seed for seed in np.unique(table["seed"]))
    )
    return (made / spent if spent > 0 else None), elapsed

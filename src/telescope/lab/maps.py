"""A map over λ and γ: one learning curve per seed in each cell, cell after cell, in any number of processes.

A cell is written when it is done, so a map that was stopped goes on where it was. Leaves out the picture
(`map_figures.py`) and how the paper's cart-pole is learned (`gae_paper.py`).
"""

# K points of a curve, S seeds
from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from telescope.algorithms import ppo
from telescope.control.workers.spawning import startable
from telescope.lab.gae_paper import SETTINGS, Experiment
from telescope.runs.files import read, write_atomic
from telescope.runs.formats.tables import as_csv

PAPER = "cart-pole"
"""The experiment of the GAE paper; any other name is a Gymnasium id, which PPO learns with its preset."""


class Task(NamedTuple):
    """What all cells of a map share."""

    env: str
    seeds: int
    iterations: int
    """Updates of the paper's experiment, or iterations of PPO."""
    whiten: bool = False
    """Whether the paper's experiment whitens advantages over each batch. PPO's preset says so itself."""


class Cell(NamedTuple):
    """A place of the map."""

    lam: float | None
    """None: without a value function."""
    gamma: float

    @property
    def name(self) -> str:
        return f"lam_{'none' if self.lam is None else format(self.lam, 'g')}_gamma_{self.gamma:g}"


class Curve(NamedTuple):
    """What was learned in a cell."""

    steps: np.ndarray  # [K] iterations of the paper's experiment, or environment steps of a seed
    scores: np.ndarray  # [K, S] steps that the pole stays up, or returns


Map = dict[Cell, Curve]


def cells(lams: Sequence[float | None], gammas: Sequence[float]) -> list[Cell]:
    return [Cell(lam, gamma) for lam in lams for gamma in gammas]


def measure(folder: Path, task: Task, wanted: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, Curve]]:
    """Yield the curve of each cell: first those that the folder has, then the others as they get done.

    Raises:
        ValueError: the folder has a map of another task.
    """
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    _require_same(folder, task)
    missing = []
    for cell in dict.fromkeys(wanted):
        if (path := _path(folder, cell)).exists():
            yield cell, _read(path)
        else:
            missing.append(cell)
    for cell, curve in _learned(task, missing, jobs):
        _write(_path(folder, cell), curve)
        yield cell, curve


def _learned(task: Task, missing: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, Curve]]:
    if min(jobs, len(missing)) <= 1:
        for cell in missing:
            yield cell, learn(task, cell)
        return
    with startable(), ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        places = {pool.submit(learn, task, cell): cell for cell in missing}
        try:
            for done in as_completed(places):
                yield places[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def learn(task: Task, cell: Cell) -> Curve:
    """Learn one cell, with one thread. It depends on the task and the cell alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _by_trpo(task, cell) if task.env == PAPER else _by_ppo(task, cell)
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _experiment(whiten: bool) -> Experiment:
    """One for all cells of a process: its functions are recorded once for each size of a batch."""
    return Experiment(settings=dataclasses.replace(SETTINGS, normalise_advantages=whiten))


def _by_trpo(task: Task, cell: Cell) -> Curve:
    experiment = _experiment(task.whiten)
    scores = experiment.run(range(task.seeds), gamma=cell.gamma, lam=cell.lam, iterations=task.iterations)
    return Curve(np.arange(task.iterations + 1), np.stack(list(scores)))


def _by_ppo(task: Task, cell: Cell) -> Curve:
    """Returns of the episodes that end while PPO trains. An iteration without one repeats the last return."""
    if cell.lam is None:
        raise ValueError(f"lams has none, but PPO on {task.env} always has a value function; leave none out")
    config = ppo.preset(task.env)
    changes: dict[str, Any] = {
        "seeds": task.seeds,
        "lam": cell.lam,
        "gamma": cell.gamma,
        "threads": 1,
        "compile": "off",
    }
    config = dataclasses.replace(config, total_steps=task.iterations * config.batch_size, **changes)
    steps, scores = [], [np.full(task.seeds, np.nan)]
    for iteration in ppo.train(config):
        found = np.array([row["return_mean"] for row in iteration.rows], float)
        scores.append(np.where(np.isnan(found), scores[-1], found))
        steps.append(iteration.rows[0]["step"])
    return Curve(np.array(steps), np.stack(scores[1:]))


def _require_same(folder: Path, task: Task) -> None:
    path, here = folder / "task.json", task._asdict()
    if not path.exists():
        write_atomic(path, json.dumps(here).encode())
        return
    for name, there in json.loads(read(path)).items():
        if there != here[name]:
            raise ValueError(
                f"{folder} has a map with {name} {there}, but {name} is {here[name]}; use the same, or another --out"
            )


def _path(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.name}.csv"


def _write(path: Path, curve: Curve) -> None:
    names = ["step", *(f"seed_{s}" for s in range(curve.scores.shape[1]))]
    rows = ([int(step), *map(repr, row)] for step, row in zip(curve.steps, curve.scores.tolist(), strict=True))
    write_atomic(path, as_csv([names, *rows]))


def _read(path: Path) -> Curve:
    rows = np.array([[float(x) for x in row] for row in list(csv.reader(io.StringIO(read(path).decode())))[1:]])
    return Curve(rows[:, 0].astype(int), rows[:, 1:])


class Summary(NamedTuple):
    """A cell in numbers: means over seeds, and their standard errors."""

    final: float
    final_error: float
    whole: float
    """The mean over the curve, which says how fast it rose."""
    whole_error: float


LAST = 0.1
"""The share of a curve of PPO that is its end. Of the paper's experiment it is the last batch alone."""


def summary(task: Task, curve: Curve) -> Summary:
    last = 1 if task.env == PAPER else max(1, round(LAST * len(curve.scores)))
    ends, whole = np.nanmean(curve.scores[-last:], axis=0), np.nanmean(curve.scores, axis=0)  # [S]
    errors = [float(x.std(ddof=1) / len(x) ** 0.5) if len(x) > 1 else float("nan") for x in (ends, whole)]
    return Summary(float(ends.mean()), errors[0], float(whole.mean()), errors[1])

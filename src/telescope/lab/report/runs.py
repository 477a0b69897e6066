"""Runs of any library, read from their folders: `found(["runs/ppo", "cleanrl=logs/*"])`.

Leaves out how files are read (`files.py`) and which runs share a line (`lines.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from telescope.lab.report.files import (
    Found,
    Tracks,
    csv_files,
    evaluations,
    events,
    merge,
    monitors,
    numbers,
    tracks_of,
)
from telescope.lab.report.names import ENV, METHOD, TOTAL
from telescope.renamed import COLUMNS, columns_today
from telescope.runs.files import RunError, shown
from telescope.runs.folder import RunFolder

DEPTH = 4
"""How deep a folder is searched for runs."""
EXPECTED = "a run folder of telescope, or a folder with CSV files or TensorBoard event files"


class Run(NamedTuple):
    """One folder."""

    path: Path
    name: str
    """The name that the user gave, or empty."""
    library: str
    method: str
    env: str
    settings: dict[str, Any]
    tracks: Tracks
    status: str
    """finished, stopped, running, killed, or empty where nobody says."""
    total: float | None
    """Steps of the whole run, if they are known."""
    clock: str
    """What a step is."""
    notes: list[str]

    @property
    def seeds(self) -> list[str]:
        """The seeds that have any values."""
        return list(dict.fromkeys(seed for tracks in self.tracks.values() for seed in tracks))

    @property
    def reached(self) -> float:
        """The step that every seed has reached."""
        last = dict.fromkeys(self.seeds, 0.0)
        for tracks in self.tracks.values():
            for seed, one in tracks.items():
                last[seed] = max(last[seed], float(one.steps[-1]))
        return min(last.values(), default=0.0)

    @property
    def unfinished(self) -> bool:
        """Whether it has not reached its end, as far as that is known."""
        if self.status:
            return self.status != "finished"
        return self.total is not None and self.reached < 0.98 * self.total


def found(arguments: Sequence[str | os.PathLike[str]], columns: Mapping[str, str] | None = None) -> list[Run]:
    """The runs in these folders. An argument may be NAME=FOLDER, with wildcards.

    columns: our name of a column → theirs, for programs that are not known.

    Raises:
        RunError: nothing is found in a folder, or a file cannot be read.
    """
    runs = [run for name, path in _paths(arguments) for run in _below(path, name, columns or {}, 0)]
    empty = [run for run in runs if not run.tracks]
    if len(empty) == len(runs):
        raise RunError(f"{shown(empty[0].path)} has no values yet; let it run until there are some")
    return [run if run.tracks else run._replace(notes=[*run.notes, "it has no values yet"]) for run in runs]


def _paths(arguments: Sequence[str | os.PathLike[str]]) -> Iterator[tuple[str, Path]]:
    for argument in [os.fspath(one) for one in arguments]:
        name, equal, rest = argument.partition("=")
        if not equal or os.path.lexists(argument):
            name, rest = "", argument
        places = [rest] if os.path.lexists(rest) else sorted(glob.glob(os.path.expanduser(rest)))
        if not places:
            raise RunError(f"{shown(rest)} does not exist; expected {EXPECTED}")
        yield from ((name, Path(place)) for place in places)


def _below(path: Path, name: str, columns: Mapping[str, str], depth: int) -> Iterator[Run]:
    """The run in a folder or file, or the runs in the folders below it."""
    if (one := _run(path, name, columns)) is not None:
        yield one
        return
    runs: list[Run] = []
    folders = sorted(one for one in path.iterdir() if one.is_dir()) if path.is_dir() and depth < DEPTH else []
    for folder in folders:
        runs += _below(folder, name, columns, depth + 1)
    if not runs and depth == 0:
        inside = sorted(one.name for one in path.iterdir())[:6] if path.is_dir() else []
        what = f"holds {', '.join(inside)}" if inside else "is empty" if path.is_dir() else "is no such file"
        raise RunError(f"{shown(path)} {what}; expected {EXPECTED}")
    yield from runs


def _run(path: Path, name: str, columns: Mapping[str, str]) -> Run | None:
    notes: list[str] = []
    if path.is_dir() and os.path.lexists(path / "run.json"):
        try:
            return _ours(RunFolder.open(path), name)
        except RunError as error:
            if not (path / "metrics.csv").is_file():
                raise
            notes.append(f"{error}; so its settings and status are not known")
    files = (
        [path] if path.is_file() else sorted(one for one in path.glob("*") if one.is_file()) if path.is_dir() else []
    )
    return _theirs(path, files, name, columns, notes)


def _ours(folder: RunFolder, name: str) -> Run:
    table, seeds, damaged, _ = numbers(folder.metrics_path) if folder.metrics_path.is_file() else ({}, [], 0, {})
    mine = np.isin(seeds, [str(seed) for seed in folder.seeds])  # a seed that is none of the run's is damage
    table, seeds = {name: x[mine] for name, x in table.items()}, list(np.array(seeds)[mine])
    damaged += len(mine) - int(mine.sum())
    names = columns_today(COLUMNS.get(folder.algorithm, {}), list(table))
    tracks = (
        tracks_of({names[column]: x for column, x in table.items()}, seeds, {}, shown(folder.path)) if table else {}
    )
    settings, notes = folder.config_mapping(), _damage(damaged)
    with contextlib.suppress(RunError):
        folder.require_metrics()
        return _made(folder, name, settings, tracks, notes)
    return _made(folder, name, settings, tracks, [*notes, "metrics.csv was changed since its last checkpoint"])


def _made(folder: RunFolder, name: str, settings: dict[str, Any], tracks: Tracks, notes: list[str]) -> Run:
    clock = "iterations" if "prompts" in settings else "optimiser steps" if "batch_size" in settings else "steps"
    status = folder.status
    if status == "running" and not being_written(folder.path):
        status = "killed"  # type: ignore[assignment]
    env = str(settings.get("env") or settings.get("task") or "")
    total = float(settings["total_steps"]) if settings.get("total_steps") else None
    return Run(folder.path, name, "telescope", folder.method, env, settings, tracks, status, total, clock, notes)


def being_written(folder: Path) -> bool:
    """Whether a process holds the lock of a run folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _damage(rows: int) -> list[str]:
    return [f"{rows} damaged row{'s were' if rows > 1 else ' was'} left out"] if rows else []


Reader = Callable[[Sequence[Path], Mapping[str, str]], Found]
KINDS: tuple[tuple[str, Callable[[str], bool], Reader], ...] = (
    ("Stable-Baselines3", lambda name: name.endswith("monitor.csv"), monitors),
    ("Stable-Baselines3", lambda name: name == "evaluations.npz", lambda paths, _: evaluations(paths[0])),
    ("Stable-Baselines3", lambda name: name == "progress.csv", csv_files),
    ("TensorBoard", lambda name: name.startswith("events.out.tfevents."), events),
    ("CSV", lambda name: name.endswith(".csv"), csv_files),
)
"""Library, its files by name, and how they are read. A file is read by the first row that fits."""


def _theirs(path: Path, files: Sequence[Path], name: str, columns: Mapping[str, str], notes: list[str]) -> Run | None:
    """A folder of another program; None if it has no file that can be read."""
    tracks, settings, damaged, libraries, left = Tracks(), dict[str, Any](), 0, list[str](), list(files)
    for library, fits, reader in KINDS:
        mine = [file for file in left if fits(file.name)]
        left = [file for file in left if file not in mine]
        if not mine or (library == "CSV" and tracks):
            continue
        read = reader(mine, columns)
        merge(tracks, _one_seed(read.tracks, tracks))
        settings |= {key: value for key, value in read.settings.items() if key not in settings}
        damaged += read.damaged
        notes = [*notes, *read.notes]
        libraries.append(_library(library, read))
    if not libraries:
        return None
    own = {key: value for key, value in settings.items() if key != "seed"} if settings.keys() > {"env_id"} else {}
    env = str(_first(settings, ENV) or "")
    method = str(_first(settings, METHOD) or _method(path, env))
    total = _first(settings, TOTAL)
    seed = settings.get("seed")
    if seed is not None and all(len(seeds) == 1 for seeds in tracks.values()):
        tracks = {column: {str(seed): one for one in seeds.values()} for column, seeds in tracks.items()}
    notes = [*notes, *_damage(damaged)]
    known = float(total) if isinstance(total, int | float) else None
    return Run(path, name, libraries[0], method, env, own, tracks, "", known, "steps", notes)


def _one_seed(more: Tracks, known: Tracks) -> Tracks:
    """Tracks of a second file of the same seed, under that seed's name."""
    seeds = {seed for tracks in known.values() for seed in tracks}
    if len(seeds) != 1:
        return more
    only = seeds.pop()
    return {column: {only: next(iter(tracks.values()))} for column, tracks in more.items() if len(tracks) == 1}


def _library(kind: str, read: Found) -> str:
    if kind != "TensorBoard":
        return kind
    return "CleanRL" if "exp_name" in read.settings else kind


def _first(settings: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((settings[name] for name in names if settings.get(name) not in (None, "")), None)


def _method(path: Path, env: str) -> str:
    """A name from the folder's: without the seed, the environment and a date."""
    stem = path.name if path.is_dir() else path.parent.name
    return without_seed(stem.replace(env, "") if env else stem) or stem


_SEED = re.compile(r"(?i)[-_. ]*(?:seed|(?<![a-z])s)[-_=. ]?\d+|(?<=[-_.])\d+$|__\d+__\d{9,}$")


def without_seed(name: str) -> str:
    """`ppo-seed3` → `ppo`: the name of a folder without what tells seeds apart."""
    return _SEED.sub("", name).strip("-_. ") or name

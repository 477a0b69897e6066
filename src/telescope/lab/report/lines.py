"""Lines of a report: which runs share one, its curves on a common axis, and the final scores of its seeds.

Leaves out reading (`runs.py`) and drawing (`plots.py`).
"""

# S seeds, K points of the common axis
from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from telescope.lab.report.files import Floats, Track
from telescope.lab.report.names import MAIN, SCALES, SHARES, SHORT, THEIRS, Scale
from telescope.lab.report.runs import Run, without_seed
from telescope.metrics import intervals, iqm

POINTS = 150
"""Points of a curve at most."""
OWN = ("seed", "seeds", "device", "threads", "processes", "compile")
"""Settings that do not make another experiment."""


class Line(NamedTuple):
    """Runs that are shown as one line."""

    label: str
    env: str
    runs: list[Run]
    colour: int
    """Counts from 0; lines of one label have one colour."""

    def tracks(self, column: str) -> list[Track]:
        """The column of every seed that has it."""
        return [track for run in self.runs for track in run.tracks.get(column, {}).values()]

    @property
    def seeds(self) -> int:
        return sum(len(run.seeds) for run in self.runs)

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for run in self.runs for column in run.tracks))


def lines(runs: Sequence[Run], join: str = "seeds") -> list[Line]:
    """The runs as lines: `join` seeds, methods or none. Runs that the user gave one name share a line.

    Runs that differ only by their seed do not share a line if a seed is in both: they are the same run twice.
    """
    groups: dict[Hashable, list[Run]] = {}
    for run in runs:
        if run.tracks:
            groups.setdefault(_key(run, join), []).append(run)
    parts = [part for group in groups.values() for part in (_apart(group) if join == "seeds" else [group])]
    labels = _labels(parts)
    colours = _colours([(label, _env(part)) for label, part in zip(labels, parts, strict=True)])
    return [
        Line(label, _env(part), part, colours[label])
        for label, part in sorted(zip(labels, parts, strict=True), key=_order)
    ]


def _colours(named: Sequence[tuple[str, str]]) -> dict[str, int]:
    """A colour per label: the first one that no other label has in an environment that they share."""
    found: dict[str, int] = {}
    for label, _ in named:
        if label not in found:
            mine = {env for other, env in named if other == label}
            taken = {found[other] for other, env in named if env in mine and other in found}
            found[label] = next(i for i in range(len(named)) if i not in taken)
    return found


def _order(item: tuple[str, list[Run]]) -> str:
    return _env(item[1])


def _key(run: Run, join: str) -> Hashable:
    if run.name:
        return run.name, run.env
    if join == "methods":
        return run.method, run.env
    if join == "none":
        return str(run.path)
    if not run.settings:
        return run.library, str(run.path.parent), without_seed(run.path.name), run.env
    same = {name: value for name, value in run.settings.items() if name not in OWN}
    return run.library, run.method, run.env, json.dumps(same, sort_keys=True, default=str)


def _apart(group: list[Run]) -> list[list[Run]]:
    """Runs that seem to differ only by their seed. If a seed is there twice, the folders' names tell them apart."""
    if group[0].name or not _twice(group):
        return [group]
    parts: list[list[Run]] = []
    for run in group:
        stem = without_seed(run.path.name)
        fits = (part for part in parts if without_seed(part[0].path.name) == stem and not _twice([*part, run]))
        if (part := next(fits, None)) is not None:
            part.append(run)
        else:
            parts.append([run])
    return parts


def _twice(runs: Sequence[Run]) -> bool:
    """Whether a seed is in two of these runs."""
    seeds = [seed for run in runs for seed in run.seeds if seed]
    return len(seeds) > len(set(seeds))


def _env(part: Sequence[Run]) -> str:
    return part[0].env


def _labels(parts: Sequence[Sequence[Run]]) -> list[str]:
    """The shortest names that tell the lines of an environment apart."""
    schemes: tuple[Callable[[Run], str], ...] = (
        lambda run: run.method,
        lambda run: without_seed(run.path.name.replace(run.env, "") if run.env else run.path.name),
        lambda run: run.path.name,
        lambda run: str(run.path),
    )
    for scheme in schemes:
        labels = [part[0].name or scheme(part[0]) for part in parts]
        if len({(label, _env(part)) for label, part in zip(labels, parts, strict=True)}) == len(parts):
            return labels
    return [f"{i + 1}: {label}" for i, label in enumerate(labels)]


def environments(some: Sequence[Line]) -> dict[str, list[Line]]:
    """Environment → its lines."""
    found: dict[str, list[Line]] = {}
    for line in some:
        found.setdefault(line.env, []).append(line)
    return found


def main_column(some: Sequence[Line], metric: str) -> str:
    """The column that runs are compared by. `metric` is its name here, in the other program, or auto.

    Raises:
        ValueError: a run lacks it, or they have none of the usual ones in common.
    """
    known = list(dict.fromkeys(column for line in some for column in line.columns))
    if metric not in ("auto", *known):
        metric = SHORT.get(metric) or next((ours for ours, theirs in THEIRS.items() if metric in theirs), metric)
    if metric != "auto":
        for line in some:
            if not line.tracks(metric):
                own = ", ".join(line.columns)
                raise ValueError(f"{line.runs[0].path} has no values of {metric!r}; it has {own}")
        return metric
    for column in MAIN:
        if all(line.tracks(column) for line in some):
            return column
    raise ValueError(
        f"the runs have none of {', '.join(MAIN)} in common; name a column of all of them with --metric. "
        f"Found: {', '.join(known)}. --columns return=NAME says which column is the return"
    )


class Curves(NamedTuple):
    """One column of the lines of a figure, on one axis."""

    steps: Floats  # [K]
    scores: list[Floats]  # of each line, [S, K]; NaN before a seed's first and after its last value


class Band(NamedTuple):
    """The middle of a line and what surrounds it, where every seed has a value."""

    middle: Floats  # [K]
    low: Floats
    high: Floats


def curves(tracks: Sequence[Sequence[Track]], points: int = POINTS) -> Curves:
    """The tracks of several lines on one axis.

    It has the logged steps if they are few, else `points` even ones, at which a track is its mean over the stretch
    before.
    """
    every = [track for line in tracks for track in line]
    steps = np.unique(np.concatenate([track.steps for track in every])) if every else np.zeros(0)
    if len(steps) > points:
        steps = np.linspace(0.0, steps[-1], points + 1)[1:]
        every_line = [[_means(track, steps) for track in line] for line in tracks]
    else:
        every_line = [[_distinct(track) for track in line] for line in tracks]
    return Curves(steps, [_table([_at(track, steps) for track in line], len(steps)) for line in every_line])


def _table(rows: Sequence[Floats], width: int) -> Floats:
    return np.array(rows, np.float64).reshape(len(rows), width)


def _distinct(track: Track) -> Track:
    """The mean of what was logged at the same step."""
    steps, where = np.unique(track.steps, return_inverse=True)
    return Track(steps, np.bincount(where, track.values) / np.bincount(where))


def _means(track: Track, ends: Floats) -> Track:
    """The mean of what was logged in each stretch that has any, at the end of the stretch."""
    where = np.minimum(np.searchsorted(ends, track.steps), len(ends) - 1)
    counts = np.bincount(where, minlength=len(ends))
    some = counts > 0
    values = np.bincount(where, track.values, len(ends))[some] / counts[some]
    return Track(ends[some], values)


def _at(track: Track, steps: Floats) -> Floats:
    """A track at these steps, on straight lines between its own; NaN outside of them."""
    inside = (steps >= track.steps[0]) & (steps <= track.steps[-1])
    return np.where(inside, np.interp(steps, track.steps, track.values), np.nan)


def band(scores: Floats, *, spread: bool = False) -> Band:
    """Interquartile mean [K] of [S, K] scores with `metrics.intervals`, or with the lowest and highest seed.

    NaN where a seed has no value: the mean of the others would jump where one begins or ends.
    """
    low, high = (scores.min(axis=0), scores.max(axis=0)) if spread else intervals(scores)
    return Band(iqm(scores, axis=0), low, high)


def final_scores(line: Line, column: str, final: float) -> Floats:
    """The mean of each seed over the last share of the steps that it reached."""
    return np.array([_final(run, seed, column, final) for run, seed in _seeds(line, column)])


def _seeds(line: Line, column: str) -> Iterator[tuple[Run, str]]:
    for run in line.runs:
        for seed in run.tracks.get(column, {}):
            yield run, seed


def _final(run: Run, seed: str, column: str, final: float) -> float:
    track = run.tracks[column][seed]
    reached = max(float(tracks[seed].steps[-1]) for tracks in run.tracks.values() if seed in tracks)
    late = track.steps > (1.0 - final) * reached
    return float(track.values[late].mean()) if late.any() else float(track.values[-1])


def scale_of(env: str, column: str, given: tuple[float, float] | None) -> Scale | None:
    """The scores that give the optimality gap its unit, if they are known."""
    if given is not None:
        return Scale(*given)
    if column in SHARES:
        return Scale(0.0, 1.0)
    return SCALES.get(env) if column in ("return_mean", "eval_return_mean") else None

"""Read the tables of a folder: CSV files, TensorBoard's event files, Stable-Baselines3's monitor files and evaluations.

Everything becomes tracks: one column of one seed, as steps and values. Rows that cannot be read are counted and left
out. Leaves out what a run is (`runs.py`).
"""

# N logged values
from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from telescope.lab.report.names import renamed
from telescope.runs.files import RunError, read, require, shown

Floats = npt.NDArray[np.float64]


class Track(NamedTuple):
    """One column of one seed, in the order of its steps. All numbers are finite."""

    steps: Floats  # [N]
    values: Floats  # [N]


Tracks = dict[str, dict[str, Track]]
"""Column → seed → its track."""


class Found(NamedTuple):
    """What some files hold."""

    tracks: Tracks
    settings: Mapping[str, Any] = MappingProxyType({})
    damaged: int = 0
    """Rows that could not be read."""
    notes: Sequence[str] = ()


def track(steps: Sequence[float] | Floats, values: Sequence[float] | Floats) -> Track | None:
    """A track of what is finite; None if nothing is. Of equal steps, the order stays."""
    x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    kept = np.isfinite(x) & np.isfinite(y)
    if not kept.any():
        return None
    order = np.argsort(x[kept], kind="stable")
    return Track(x[kept][order], y[kept][order])


def tracks_of(table: Mapping[str, Floats], seeds: Sequence[str], given: Mapping[str, str], where: str) -> Tracks:
    """The tracks of a table of numbers. `seeds`: the seed of each row."""
    names = renamed(list(table), given)
    ours = {new: (theirs, factor) for theirs, (new, factor) in names.items()}
    if "step" in ours:
        step = table[ours["step"][0]]
    elif "length_mean" in ours:  # a row is an episode
        step = np.nancumsum(table[ours["length_mean"][0]])
    else:
        raise RunError(
            f"{where} has the columns {_named(list(table))}; expected one with steps. Name it: "
            "--columns step=COLUMN return=COLUMN"
        )
    labels, found = np.array(seeds), Tracks()
    for column, (theirs, factor) in ours.items():
        if column in ("step", "seed", "iteration"):
            continue
        for label in dict.fromkeys(seeds):
            mine = labels == label
            if (made := track(step[mine], factor * table[theirs][mine])) is not None:
                found.setdefault(column, {})[label] = made
    return found


def _named(columns: Sequence[str], most: int = 12) -> str:
    """The names of columns for a sentence, whatever bytes they are."""
    plain = ["".join(letter if letter.isprintable() else "?" for letter in name[:30]) for name in columns[:most]]
    return ", ".join(plain) + (f" and {len(columns) - most} more" if len(columns) > most else "") or "none"


class Numbers(NamedTuple):
    """A CSV file."""

    columns: dict[str, Floats]
    seeds: list[str]
    """The text of the column `seed` in each row, or empty texts."""
    damaged: int
    """Rows with another number of fields than the header, or with text where the column has numbers."""
    about: dict[str, Any]
    """The JSON of a first line that begins with #."""


def numbers(path: Path) -> Numbers:
    """The columns of numbers of a CSV file. An empty field is NaN; columns of text are left out.

    A last line without its end is damaged only if it has fields enough: somebody may be writing it.
    """
    text = read(path).decode(errors="replace").replace("\0", "�")
    about: dict[str, Any] = {}
    if text.startswith("#"):
        first, _, text = text.partition("\n")
        with contextlib.suppress(ValueError):
            about = dict(json.loads(first[1:]))
    lines = text.split("\n")
    rows = [row for row in _fields(lines) if row]
    if not rows:
        return Numbers({}, [], 0, about)
    header, body = [name.strip() for name in rows[0]], rows[1:]
    if body and lines[-1] and len(body[-1]) != len(header):
        body.pop()
    whole = [row for row in body if len(row) == len(header)]
    table = np.array([_column(fields) for fields in zip(*whole, strict=True)], np.float64).reshape(len(header), -1)
    wrong = np.isinf(table)
    is_text = wrong.sum(axis=1) > 0.5 * max(len(whole), 1)  # names, not damage
    good = ~wrong[~is_text].any(axis=0)
    columns = {name: table[i, good] for i, name in enumerate(header) if not is_text[i] and name}
    at = header.index("seed") if "seed" in header else None
    seeds = ["" if at is None else row[at].strip() for row, ok in zip(whole, good, strict=True) if ok]
    return Numbers(columns, seeds, len(body) - int(good.sum()), about)


def _column(fields: Sequence[str]) -> list[float]:
    try:
        plain = np.array([float(field) if field else math.nan for field in fields])
    except ValueError:
        return [_number(field) for field in fields]
    return np.where(np.isfinite(plain), plain, math.nan).tolist()


def _fields(lines: list[str]) -> Iterator[list[str]]:
    """The fields of each line. A quote that never ends would swallow the rest, so lines are read one by one."""
    for line in lines:
        plain = line.strip()
        try:
            yield next(csv.reader([plain]), []) if '"' in plain else plain.split(",") if plain else []
        except csv.Error:
            yield [plain]


def _number(field: str) -> float:
    """A number; NaN for an empty field or one that is not finite; infinity marks what is no number."""
    field = field.strip()
    if not field or field.lower() in ("none", "null"):
        return math.nan
    try:
        value = float(field)
    except ValueError:
        return 1.0 if field == "True" else 0.0 if field == "False" else math.inf
    return value if math.isfinite(value) else math.nan


def csv_files(paths: Sequence[Path], given: Mapping[str, str]) -> Found:
    """Tables: a file is a seed, unless it has a column of seeds."""
    tracks, damaged, several = Tracks(), 0, len(paths) > 1
    for path in paths:
        table, seeds, bad, _ = numbers(path)
        damaged += bad
        if given.get("seed") in table:
            seeds = [f"{seed:g}" for seed in table[given["seed"]]]
        if several and not any(seeds):
            seeds = [path.stem] * len(seeds)
        if table:
            merge(tracks, tracks_of(table, seeds, given, shown(path)))
    return Found(tracks, {}, damaged)


def monitors(paths: Sequence[Path], given: Mapping[str, str]) -> Found:
    """Stable-Baselines3's monitor files: the environments of one seed, whose episodes are put in the order of time."""
    parts, settings, damaged = list[dict[str, Floats]](), dict[str, Any](), 0
    for path in paths:
        table, _, bad, about = numbers(path)
        damaged += bad
        if about.get("env_id") not in (None, "None"):
            settings["env_id"] = about["env_id"]
        if {"r", "l", "t"} <= table.keys() and len(table["r"]):
            start = about.get("t_start", 0.0)
            parts.append({**table, "t": table["t"] + (start if isinstance(start, int | float) else 0.0)})
    if not parts:
        return Found({}, settings, damaged)
    names = [name for name in parts[0] if all(name in part for part in parts)]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in names}
    order = np.argsort(whole["t"], kind="stable")
    whole = {name: column[order] for name, column in whole.items()}
    whole["t"] -= whole["t"][0]
    return Found(tracks_of(whole, [""] * len(order), given, shown(paths[0].parent)), settings, damaged)


def evaluations(path: Path) -> Found:
    """The evaluations that Stable-Baselines3's EvalCallback keeps: their mean returns."""
    try:
        with np.load(io.BytesIO(read(path)), allow_pickle=False) as file:
            steps, results = file["timesteps"], file["results"]
        made = track(steps, results.reshape(len(steps), -1).mean(axis=1))
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError):
        return Found({}, {}, 1)
    return Found({} if made is None else {"eval_return_mean": {"": made}})


_OF_SEED = re.compile(r"(.+)/seed_(\d+)")


def events(paths: Sequence[Path], given: Mapping[str, str]) -> Found:
    """TensorBoard's event files: every scalar, and CleanRL's table of hyperparameters.

    A file that is cut or altered counts up to there.
    """
    loader = require("tensorboard.backend.event_processing.event_file_loader").RawEventFileLoader
    event = require("tensorboard.compat.proto.event_pb2").Event
    scalars, settings, notes = dict[str, list[tuple[float, float, float]]](), dict[str, Any](), list[str]()
    for path in sorted(paths):
        whole, size = 0, path.stat().st_size  # the loader stops at a damaged record without a word
        with contextlib.suppress(event_error()):
            for raw in loader(str(path)).Load():
                _take(event.FromString(raw), scalars, settings)
                whole += FRAME + len(raw)
        if whole < size:
            notes.append(f"{path.name} can be read up to byte {whole:,} of {size:,}")
    return Found(_of_tags(scalars, given), settings, notes=notes)


FRAME = 16
"""Bytes around a record of an event file: its length and two checksums."""


def event_error() -> type[Exception]:
    """What protobuf raises where a record is no event."""
    error: type[Exception] = require("google.protobuf.message").DecodeError
    return error


def _take(event: Any, scalars: dict[str, list[tuple[float, float, float]]], settings: dict[str, Any]) -> None:
    if event.HasField("session_log") and event.session_log.status == event.session_log.START:
        for tag, points in scalars.items():  # a program that began again from here
            scalars[tag] = [point for point in points if point[0] < event.step]
    for value in event.summary.value:
        kind = value.WhichOneof("value")
        if kind == "simple_value":
            scalars.setdefault(value.tag, []).append((event.step, value.simple_value, event.wall_time))
        elif kind == "tensor" and value.tensor.string_val:
            settings.update(_table(value.tensor.string_val[0].decode(errors="replace")))
        elif kind == "tensor":
            numbers = require("tensorboard.util.tensor_util").make_ndarray(value.tensor)
            if numbers.size == 1:
                scalars.setdefault(value.tag, []).append((event.step, float(numbers.ravel()[0]), event.wall_time))


def _table(text: str) -> dict[str, Any]:
    """A Markdown table of two columns, |name|value|, which is how CleanRL writes its settings."""
    rows = [line.strip().strip("|").split("|", 1) for line in text.splitlines() if line.strip().startswith("|")]
    found = {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}
    return {name: _value(text) for name, text in found.items() if name != "param" and not set(name) <= set("-: ")}


def _value(text: str) -> Any:
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    number = _number(text)
    if not math.isfinite(number):
        return text
    return int(number) if number.is_integer() and re.fullmatch(r"-?\d+", text) else number


def _of_tags(scalars: Mapping[str, list[tuple[float, float, float]]], given: Mapping[str, str]) -> Tracks:
    """Tracks by column and seed. Our own events have the seed in the tag."""
    of_seed = {tag: (match[1], match[2]) for tag in scalars if (match := _OF_SEED.fullmatch(tag))}
    names = renamed(list(dict.fromkeys(of_seed.get(tag, (tag, ""))[0] for tag in scalars)), given)
    other_step = next((theirs for theirs, (ours, _) in names.items() if ours == "step"), None)
    clock = dict[int, float]()  # a tag that says which step an event's own step is
    if other_step is not None and other_step in scalars and given.get("step") == other_step:
        clock = {int(step): value for step, value, _ in scalars[other_step]}
    tracks, begun = Tracks(), min((points[0][2] for points in scalars.values() if points), default=0.0)
    for tag, points in scalars.items():
        theirs, seed = of_seed.get(tag, (tag, ""))
        column, factor = names[theirs]
        if column == "step":
            continue
        steps = np.array([clock.get(int(step), math.nan if clock else step) for step, _, _ in points])
        if (made := track(steps, factor * np.array([value for _, value, _ in points]))) is not None:
            tracks.setdefault(column, {})[seed] = made
            walls = track(steps, np.array([wall for _, _, wall in points]) - begun)
            if walls is not None and column in ("return_mean", "eval_return_mean", "learning_rate"):
                tracks.setdefault("_wall", {}).setdefault(seed, walls)
    walls_of = tracks.pop("_wall", {})
    if walls_of:
        tracks.setdefault("time_total", walls_of)
    return tracks


def merge(whole: Tracks, more: Tracks) -> None:
    """Add tracks that are not there yet."""
    for column, seeds in more.items():
        for seed, made in seeds.items():
            whole.setdefault(column, {}).setdefault(seed, made)

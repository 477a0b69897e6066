"""Metrics of a run: one CSV row per iteration and seed, and the same numbers as TensorBoard scalars.

Leaves out the meaning of metrics (each algorithm's page in the docs) and their curves (`curves.py`).
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from telescope.renamed import columns_today
from telescope.runs.files import Appender, RunError, Table, explained, read, require, shown, until

METRICS = "metrics.csv"
TENSORBOARD = "tensorboard"
_EVENT_FILE = re.compile(r"events\.out\.tfevents\.\d+\.")
LEADING = ("step", "iteration", "seed")


class MetricsLog:
    """Appends to metrics.csv and the TensorBoard events of a run folder."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        columns: Sequence[str],
        resume_step: int | Mapping[int, int] | None = None,
        mark: Mapping[str, Any] | None = None,
        former: Mapping[str, str] | None = None,
        tensorboard: bool = True,
    ) -> None:
        """Start a new log, or continue one after `resume_step`.

        columns: all metrics that any row will have, in the order of the file. step, iteration and seed always come
        first. resume_step: the step of the checkpoint that the run continues from, or seed → step where they differ.
        Later rows, an incomplete last line, and later TensorBoard events are dropped. None drops everything when the
        first rows are written. mark: the `mark` at that step; the table then continues with exactly these bytes, if it
        still has them. former: former names of columns → their names; a table that has former names keeps them.

        A RunError if the disk cannot be written, or the existing file has other columns.
        """
        self._metrics = (*LEADING, *(name for name in columns if name not in LEADING))
        if len(set(self._metrics)) != len(self._metrics):
            raise ValueError(f"columns has a name twice: {', '.join(columns)}")
        path = Path(folder) / METRICS
        begun = {} if resume_step is None else _former_columns(path, self._metrics, former or {})
        self._names = begun or {name: name for name in self._metrics}
        self.columns = tuple(self._names)
        header = ",".join(self.columns) + "\n"
        kept = None if resume_step is None or mark is None else until(path, mark)
        if kept is None or not kept.startswith(header.encode()):
            rows = [] if resume_step is None else _rows_until(path, self.columns, resume_step)
            kept = "".join([header, *rows]).encode()
        self._folder, self._kept, self._tensorboard = Path(folder), kept, tensorboard
        latest = resume_step if resume_step is None or isinstance(resume_step, int) else max(resume_step.values())
        self._first_step = 0 if latest is None else latest + 1
        self._files: tuple[Table, _Events | None] | None = None
        if resume_step is not None or not path.exists():
            self._open()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows of numbers by column name. None, or a missing name, is an empty field.

        A float is written so that reading returns its exact value. A ValueError for an unknown column or a value that
        is not a number; a RunError if the disk cannot be written. Earlier rows are never lost.
        """
        checked = [self._checked(row) for row in rows]
        numbers = [{column: row.get(name) for column, name in self._names.items()} for row in checked]
        lines = [",".join(_text(row.get(name)) for name in self.columns) + "\n" for row in numbers]
        table, events = self._open()
        table.write("".join(lines).encode())
        if events is not None:
            events.write(numbers)

    @property
    def mark(self) -> dict[str, Any]:
        """The current mark of metrics.csv, for a checkpoint."""
        return self._open()[0].mark

    def sync(self) -> None:
        """Sync everything written to disk. Call this before every checkpoint."""
        for file in self._opened():
            file.sync()

    def close(self) -> None:
        """Close the files. The log cannot be written after that."""
        for file in self._opened():
            file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> list[Appender]:
        """The files that are open; none before the first rows."""
        if self._files is None:
            return []
        table, events = self._files
        return [table] if events is None else [table, events.file]

    def _open(self) -> tuple[Table, _Events | None]:
        """Open the files with the first rows. A log without rows leaves existing files unchanged."""
        if self._files is None:
            events = _Events(self._folder / TENSORBOARD, self._first_step) if self._tensorboard else None
            try:
                self._files = Table(self._folder / METRICS, self._kept), events
            except BaseException:
                if events is not None:
                    events.file.close()
                raise
        return self._files

    def _checked(self, row: Mapping[str, Any]) -> dict[str, int | float | None]:
        unknown = [name for name in row if name not in self._metrics]
        if unknown:
            raise ValueError(f"unknown metric {unknown[0]!r}; the columns of this log are {', '.join(self._metrics)}")
        if any(row.get(name) is None for name in LEADING):
            raise ValueError(f"a row lacks one of {', '.join(LEADING)}: {dict(row)}")
        return {name: _number(value, name) for name, value in row.items()}


def read_metrics(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """Read metrics.csv (or that of a run folder): `[rows]` arrays by column, NaN for empty fields.

    step, iteration and seed are int64, all others float64. An incomplete last line, as in a running run, is left out. A
    RunError if the file is missing or not a metrics file.
    """
    path = Path(path) / METRICS if Path(path).is_dir() else Path(path)
    name = shown(path)
    header, lines = _lines(path)
    names = tuple(header.split(","))
    if names[: len(LEADING)] != LEADING:
        raise RunError(f"{name} is not a metrics file: its columns are {header!r}")
    table = [line.rstrip("\n").split(",") for line in lines]
    if any(len(fields) != len(names) for fields in table):
        raise RunError(f"{name} is damaged: a row does not have the {len(names)} fields of the header")
    columns = zip(*table, strict=True) if table else [()] * len(names)
    try:
        return {name: _column(name, fields) for name, fields in zip(names, columns, strict=True)}
    except ValueError as error:
        raise RunError(f"{name} is damaged: {error}") from error


def _column(name: str, fields: Sequence[str]) -> npt.NDArray[Any]:
    if name in LEADING:
        return np.array([int(field) for field in fields], dtype=np.int64)
    return np.array([float(field) if field else np.nan for field in fields], dtype=np.float64)


def _former_columns(path: Path, metrics: Sequence[str], former: Mapping[str, str]) -> dict[str, str]:
    """The columns of a table that was begun under former names → the metrics that belong in them; else empty."""
    names = columns_today(former, _lines(path)[0].split(",")) if former and path.exists() else {}
    return names if set(names) - set(metrics) and set(names.values()) <= set(metrics) else {}


def _lines(path: Path) -> tuple[str, list[str]]:
    """The header and the complete lines of the file."""
    lines = read(path).decode(errors="replace").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    return (lines[0].rstrip("\n"), lines[1:]) if lines else ("", [])


def _rows_until(path: Path, columns: tuple[str, ...], step: int | Mapping[int, int]) -> list[str]:
    """The complete rows up to the step, or each seed's up to its own, unchanged."""
    header, lines = _lines(path)
    if header != ",".join(columns):
        raise RunError(
            f"{shown(path)} has the columns {header!r}, but the run would write {','.join(columns)!r}; "
            "was it written by another version?"
        )
    return [line for line in lines if _is_row_until(line, len(columns), step)]


def _is_row_until(line: str, fields: int, step: int | Mapping[int, int]) -> bool:
    """Whether a line is a row up to the step. After a crash, lines after the last sync may be broken."""
    leading = line.rstrip("\n").split(",")[: len(LEADING)]
    if line.count(",") != fields - 1 or not all(number.isdecimal() for number in leading):
        return False
    mine, _, seed = map(int, leading)
    return mine <= (step if isinstance(step, int) else step.get(seed, -1))


def _number(value: Any, name: str) -> int | float | None:
    """A metric as a Python number. NumPy and torch scalars are converted."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None or isinstance(value, int | float):
        return int(value) if isinstance(value, bool) else value
    raise ValueError(f"metric {name} is {value!r} ({type(value).__name__}); expected a number or None")


def _text(value: int | float | None) -> str:
    return "" if value is None else repr(value)


class _Events:
    """A TensorBoard event file, written in this thread, so that a full disk is an error here.

    torch's SummaryWriter and TensorBoard's EventFileWriter write in a thread of their own.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        """Open a new file in the folder. It makes readers drop all events from `first_step` on."""
        self._proto = require("tensorboard.compat.proto.event_pb2")
        self._value = require("tensorboard.compat.proto.summary_pb2").Summary.Value
        record_writer = require("tensorboard.summary.writer.record_writer").RecordWriter
        with explained("create", folder):
            if folder.is_symlink():
                raise OSError(errno.ELOOP, "a link")
            folder.mkdir(exist_ok=True)
            before = [int(name.split(".")[3]) for name in os.listdir(folder) if _EVENT_FILE.match(name)]
        # readers sort files by name: ours must come last, whatever the clock says
        stamp = max([int(time.time()), *(one + 1 for one in before)])
        self.file = Appender(folder / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.0")
        self._records = record_writer(self.file)
        self._add(file_version="brain.Event:2")
        start = self._proto.SessionLog(status=self._proto.SessionLog.START)
        self._add(step=first_step, session_log=start)

    def write(self, rows: Sequence[Mapping[str, int | float | None]]) -> None:
        """Write one event per step, with a scalar `<metric>/seed_<seed>` for every number of its rows."""
        by_step: dict[int | float | None, list[Any]] = {}
        for row in rows:
            by_step.setdefault(row["step"], []).extend(
                self._value(tag=f"{name}/seed_{row['seed']}", simple_value=value)
                for name, value in row.items()
                if name not in LEADING and value is not None
            )
        for step, values in by_step.items():
            if values:
                self._add(step=step, summary={"value": values})

    def _add(self, **fields: Any) -> None:
        self._records.write(self._proto.Event(wall_time=time.time(), **fields).SerializeToString())

"""Trackers: what `--log` names besides metrics.csv. Each gets the rows of an iteration, as the table does.

TensorBoard is written with the table (`formats/log.py`), since its files are resumed with it. A program of somebody
else's that stands still or loses its connection must not stop a run: it is closed with a note, and the table has all.
"""

# A tracker is made from a run folder and its settings; it has write(rows) and close().
from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from telescope.runs.files import RunError, require
from telescope.runs.formats.log import LEADING, TENSORBOARD

Rows = Sequence[Mapping[str, Any]]
CSV = "csv"
PROJECT = "telescope"
"""The project or experiment of all runs, unless the tracker's own environment variable names another."""
BATCH = 1000
"""Metrics that MLflow takes at once."""


class Tracker(Protocol):
    """Where rows go besides metrics.csv."""

    def write(self, rows: Rows) -> None: ...
    def close(self) -> None: ...


def by_step(rows: Rows) -> Iterator[tuple[int, dict[str, float]]]:
    """The numbers of rows as `<metric>/seed_<seed>`, by step: the names that TensorBoard has."""
    steps: dict[int, dict[str, float]] = {}
    for row in rows:
        numbers = {name: value for name, value in row.items() if name not in LEADING and value is not None}
        steps.setdefault(int(row["step"]), {}).update(
            {f"{name}/seed_{row['seed']}": float(value) for name, value in numbers.items()}
        )
    yield from steps.items()


class WandB:
    """A run of Weights & Biases, with our run's id. WANDB_PROJECT and WANDB_MODE are its own settings."""

    def __init__(self, folder: Any, settings: Mapping[str, Any]) -> None:
        self._run = require("wandb").init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=folder.id,
            name=folder.path.name,
            config=dict(settings),
            dir=os.fspath(folder.path),
            resume="allow",
            reinit="create_new",
        )
        self._run.define_metric("*", step_metric="step")  # a resumed run repeats steps, which its own counter may not

    def write(self, rows: Rows) -> None:
        for step, numbers in by_step(rows):
            self._run.log({"step": step, **numbers})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow, found again by a tag. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME are its own settings."""

    def __init__(self, folder: Any, settings: Mapping[str, Any]) -> None:
        self._client = require("mlflow.tracking").MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        mine = self._client.search_runs([experiment], f"tags.telescope_id = '{folder.id}'", max_results=1)
        if mine:
            self._run = mine[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        tags = {"telescope_id": folder.id}
        self._run = self._client.create_run(experiment, run_name=folder.path.name, tags=tags).info.run_id
        for field, value in settings.items():
            self._client.log_param(self._run, field, value)

    def write(self, rows: Rows) -> None:
        metric, now = require("mlflow.entities").Metric, int(time.time() * 1000)
        metrics = [metric(name, value, now, step) for step, numbers in by_step(rows) for name, value in numbers.items()]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(self._run, metrics[start : start + BATCH])

    def close(self) -> None:
        self._client.set_terminated(self._run)


class Trackio:
    """A run of Trackio, which keeps it on this machine. TRACKIO_PROJECT names its project."""

    def __init__(self, folder: Any, settings: Mapping[str, Any]) -> None:
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._run = require("trackio").init(
            project, name=folder.path.name, config=dict(settings), resume="allow", embed=False
        )

    def write(self, rows: Rows) -> None:
        for step, numbers in by_step(rows):
            self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()


class Function:
    """A function of rows, given in Python."""

    def __init__(self, function: Callable[[list[dict[str, Any]]], Any]) -> None:
        self._function = function

    def write(self, rows: Rows) -> None:
        self._function([dict(row) for row in rows])

    def close(self) -> None:
        """Nothing to close."""


TRACKERS: dict[str, type[Any]] = {"wandb": WandB, "mlflow": MLflow, "trackio": Trackio}


def chosen(log: Sequence[Any]) -> tuple[Any, ...]:
    """The trackers that `log` names, each once. Words may name several, with commas between them.

    A ValueError for an unknown name, an ImportError for a package that is not installed: before a run begins.
    """
    if isinstance(log, str) or callable(log):
        log = (log,)
    words = [part for one in log for part in ([one] if callable(one) else str(one).split(",")) if part]
    known = (CSV, TENSORBOARD, *TRACKERS)
    for word in words:
        if not callable(word) and word not in known:
            raise ValueError(
                f"log names {word!r}; expected some of {', '.join(known)}, or in Python a function of rows"
            )
        if word in TRACKERS and importlib.util.find_spec(word) is None:
            raise ImportError(
                f'log names {word}, which is not installed: pip install "telescope-rl[{word}]"', name=word
            )
    return tuple(dict.fromkeys(words))


class Trackers:
    """The trackers of a run."""

    def __init__(
        self, log: Sequence[Any], folder: Any, settings: Mapping[str, Any], note: Callable[[str], None]
    ) -> None:
        self._note = note
        self._open: dict[str, Tracker] = {}
        for one in log:
            if callable(one):
                self._open[getattr(one, "__name__", repr(one))] = Function(one)
            elif one in TRACKERS:
                self._open[one] = _begun(one, folder, settings)

    def write(self, rows: Rows) -> None:
        """Pass the rows of an iteration on."""
        for name, tracker in list(self._open.items()):
            if isinstance(tracker, Function):  # the user's own code: its errors are told as such
                tracker.write(rows)
            else:
                self._try(name, partial(tracker.write, rows))

    def close(self) -> None:
        """Close all."""
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.close)
        self._open = {}

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            del self._open[name]
            self._note(f"{name} gets no more rows ({_why(error)}); metrics.csv has them all")


def _begun(name: str, folder: Any, settings: Mapping[str, Any]) -> Tracker:
    try:
        tracker: Tracker = TRACKERS[name](folder, settings)
    except Exception as error:
        raise RunError(f"{name} cannot begin ({_why(error)}); --log csv trains without it") from error
    return tracker


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]

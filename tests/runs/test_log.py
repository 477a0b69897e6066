"""Metrics are exact on disk, in a fixed order, and a resumed log equals one that was never stopped."""

import errno
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from telescope.runs import MetricsLog, RunError, read_metrics
from telescope.runs.formats import log

COLUMNS = ("return_mean", "loss", "time_env")


def rows(iteration: int) -> list[dict[str, Any]]:
    """Two seeds' rows, with numbers that need all their digits."""
    return [
        {
            "loss": 1 / (3 + iteration + seed),
            "seed": seed,
            "step": 100 * iteration,
            "iteration": iteration,
            "return_mean": None if iteration < 2 else np.float32(iteration / 7),
        }
        for seed in (40, 41)
    ]


def fill(folder: Path, first: int, last: int, resume_step: int | None = None) -> None:
    with MetricsLog(folder, columns=COLUMNS, resume_step=resume_step) as metrics_log:
        for iteration in range(first, last):
            metrics_log.write(rows(iteration))
        metrics_log.sync()


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard itself would show."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_a_table_is_read_back_exactly(tmp_path: Path) -> None:
    fill(tmp_path, 0, 4)
    assert (tmp_path / "metrics.csv").read_text().splitlines()[:2] == [
        "step,iteration,seed,return_mean,loss,time_env",
        f"0,0,40,,{1 / 43!r},",
    ]
    table = read_metrics(tmp_path)
    written = [row for iteration in range(4) for row in rows(iteration)]
    for name in ("step", "iteration", "seed"):
        assert table[name].dtype == np.int64
        assert table[name].tolist() == [row[name] for row in written]
    assert table["loss"].tolist() == [row["loss"] for row in written]
    assert table["return_mean"][4:].tolist() == [float(row["return_mean"]) for row in written[4:]]
    assert np.isnan(table["return_mean"][:4]).all()
    assert np.isnan(table["time_env"]).all()


def test_special_values_come_back(tmp_path: Path) -> None:
    values = [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1e308, 3, True, np.int32(7), np.float64(0.1)]
    with MetricsLog(tmp_path, columns=["x"]) as metrics_log:
        metrics_log.write([{"step": i, "iteration": i, "seed": 0, "x": value} for i, value in enumerate(values)])
    read = read_metrics(tmp_path / "metrics.csv")["x"]
    assert [value.hex() for value in read.tolist()] == [float(value).hex() for value in values]


def test_tensorboard_shows_every_number_once(tmp_path: Path) -> None:
    fill(tmp_path, 0, 4)
    expected = [(100 * i, pytest.approx(1 / (44 + i))) for i in range(4)]
    assert scalars(tmp_path, "loss/seed_41") == expected
    assert [step for step, _ in scalars(tmp_path, "return_mean/seed_40")] == [200, 300]


@pytest.mark.parametrize("tail", [b"", b"400,4,4", b"500,5,40,1.0,2.0,", b"\0\0\0\0", b"5,,\n\xff\xfe\n"])
def test_a_resumed_log_equals_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: bytes
) -> None:
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    fill(tmp_path / "whole", 0, 6)
    fill(tmp_path / "resumed", 0, 5)  # killed after iteration 4; the last checkpoint is of iteration 2
    with (tmp_path / "resumed" / "metrics.csv").open("ab") as file:
        file.write(tail)
    monkeypatch.setattr(log, "time", SimpleNamespace(time=lambda: 1e9))  # the clock went back, to 2001
    fill(tmp_path / "resumed", 3, 6, resume_step=200)
    whole, resumed = ((tmp_path / name / "metrics.csv").read_bytes() for name in ("whole", "resumed"))
    assert resumed == whole
    for tag in ("loss/seed_40", "return_mean/seed_41"):
        assert scalars(tmp_path / "resumed", tag) == scalars(tmp_path / "whole", tag)


def test_starting_anew_drops_everything(tmp_path: Path) -> None:
    fill(tmp_path, 0, 3)
    fill(tmp_path, 0, 1)
    assert read_metrics(tmp_path)["iteration"].tolist() == [0, 0]
    assert [step for step, _ in scalars(tmp_path, "loss/seed_40")] == [0]


@pytest.mark.parametrize("use", ["nothing", "sync", "a bad row"])
def test_a_log_that_gets_no_rows_leaves_the_file_that_was_there(tmp_path: Path, use: str) -> None:
    fill(tmp_path, 0, 3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with MetricsLog(tmp_path, columns=["other"]) as metrics_log:
        if use == "sync":
            metrics_log.sync()
        if use == "a bad row":
            with pytest.raises(ValueError, match="unknown metric"):
                metrics_log.write(rows(0))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_resuming_with_other_columns_or_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot read .*metrics\.csv"):
        MetricsLog(tmp_path, columns=COLUMNS, resume_step=0)
    fill(tmp_path, 0, 3)
    before = (tmp_path / "metrics.csv").read_bytes()
    with pytest.raises(RunError, match=r"has the columns 'step,.* was it written by another version"):
        MetricsLog(tmp_path, columns=["other"], resume_step=100)
    assert (tmp_path / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"step": 0, "iteration": 0, "seed": 0, "los": 1.0},
            "unknown metric 'los'; the columns of this log are step",
        ),
        ({"step": 0, "seed": 0}, "a row lacks one of step, iteration, seed"),
        (
            {"step": 0, "iteration": 0, "seed": 0, "loss": "1"},
            r"metric loss is '1' \(str\); expected a number",
        ),
        ({"step": 0, "iteration": 0, "seed": 0, "loss": np.ones(2)}, "metric loss is .* expected a number"),
    ],
)
def test_bad_rows_are_refused_whole(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with MetricsLog(tmp_path, columns=COLUMNS, tensorboard=False) as metrics_log:
        with pytest.raises(ValueError, match=words):
            metrics_log.write([*rows(0), row])
        assert len(read_metrics(tmp_path)["step"]) == 0
    assert not (tmp_path / "tensorboard").exists()


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name twice"):
        MetricsLog(tmp_path, columns=["a", "a"])


def test_a_run_that_is_being_written_can_be_read(tmp_path: Path) -> None:
    fill(tmp_path, 0, 2)
    with (tmp_path / "metrics.csv").open("ab") as file:
        file.write(b"200,2,40,0.1")
    assert read_metrics(tmp_path)["iteration"].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "content", ["", "a,b\n1,2\n", "step,iteration,seed,x\n1,2\n", "step,iteration,seed,x\n1,2,3,y\n"]
)
def test_what_is_no_metrics_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(RunError, match=r"not a metrics file|damaged"):
        read_metrics(tmp_path)


def test_a_full_disk_stops_the_log_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 0, 2)
    metrics_log = MetricsLog(tmp_path, columns=COLUMNS, resume_step=100)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, metrics_log._open()[0]._file.fileno())  # the disk fills up under the open file
    os.close(full)
    with pytest.raises(RunError, match=r"cannot write .*metrics\.csv: the disk is full") as caught:
        metrics_log.write(rows(2))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    metrics_log.close()
    assert read_metrics(tmp_path)["iteration"].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("marked", [False, True])
def test_rows_are_kept_until_the_clock_of_their_own_seed(tmp_path, marked):
    """Seeds whose iterations have whole episodes are not equally far."""
    rows = [{"step": step, "iteration": 1, "seed": seed, "value": 1.0} for seed, step in ((0, 10), (1, 30))]
    later = [{"step": step, "iteration": 2, "seed": seed, "value": 2.0} for seed, step in ((0, 25), (1, 60))]
    with MetricsLog(tmp_path, columns=["value"]) as one:
        one.write(rows)
        mark = one.mark
        one.write(later)
    with MetricsLog(tmp_path, columns=["value"], resume_step={0: 10, 1: 30}, mark=mark if marked else None) as two:
        two.write(later[:1])
    table = read_metrics(tmp_path)
    assert table["step"].tolist() == [10, 30, 25]
    assert table["seed"].tolist() == [0, 1, 0]

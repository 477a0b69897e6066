"""The run folder is a contract: made once, written by one, open to all, and honest about differences."""

import dataclasses
import datetime
import errno
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from telescope.runs import MetricsLog, RunError, RunFolder
from telescope.runs.identity import record


@dataclasses.dataclass(frozen=True)
class Config:
    env: str = "CartPole-v1"
    seeds: int = 3
    seed: int = 40
    total_steps: int = 1000


EXECUTION = {"compile": "off", "threads": 2, "device": "cpu", "shape": (1, 2)}


def create(path: Path) -> RunFolder:
    return RunFolder.create(path, Config(), algorithm="ppo", execution=EXECUTION, command=["telescope", "train"])


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create(tmp_path / "run")


def test_a_new_run_is_read_back_as_it_was_made(tmp_path: Path) -> None:
    create(tmp_path / "a" / "b" / "run")
    run = RunFolder.open(tmp_path / "a" / "b" / "run")
    assert (run.algorithm, run.status, run.seeds) == ("ppo", "running", [40, 41, 42])
    assert run.execution == EXECUTION | {"shape": [1, 2]}
    assert run.config_mapping() == dataclasses.asdict(Config())
    assert run.load_config(Config) == Config()
    assert run.versions["numpy"] == np.__version__ == version("numpy")
    assert run.versions["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    record = json.loads((run.path / "run.json").read_text())
    assert record["command"] == ["telescope", "train"]
    assert record["platform"]["cores"] == os.cpu_count()
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(record["created"])
    assert abs(age.total_seconds()) < 60
    assert os.fspath(run) == str(tmp_path / "a" / "b" / "run")


def test_status_and_config_can_change(run: RunFolder) -> None:
    run.set_status("finished")
    run.save_config(Config(total_steps=2000))
    again = RunFolder.open(run)
    assert again.status == "finished"
    assert again.load_config(Config).total_steps == 2000
    assert again.versions == run.versions


def test_an_existing_run_or_full_folder_is_never_overwritten(run: RunFolder, tmp_path: Path) -> None:
    before = (run.path / "run.json").read_bytes()
    with pytest.raises(RunError, match=r"telescope train --resume .*run.* or choose another --out"):
        create(run.path)
    assert (run.path / "run.json").read_bytes() == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").touch()
    with pytest.raises(RunError, match="exists and is not empty; choose another --out"):
        create(tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]
    (tmp_path / "empty").mkdir()
    assert create(tmp_path / "empty").status == "running"


def test_a_path_through_a_file_and_a_read_only_disk_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match="is a file, not a folder"):
            create(path)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(RunError, match=r"cannot create the run folder .*run: the disk is read-only"):
        create(tmp_path / "run")


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}"])
def test_what_is_no_run_folder_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunError, match=r"not a run folder|damaged, or was not written by telescope"):
        RunFolder.open(tmp_path)
    with pytest.raises(RunError, match="absent is not a folder"):
        RunFolder.open(tmp_path / "absent")


def test_a_folder_of_another_format_is_refused(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "FORMAT", 3)
    with pytest.raises(RunError, match="run folder of format 2, but this version of telescope reads 3"):
        RunFolder.open(run)


def test_checkpoints_are_absent_then_present_and_not_taken_for_each_other(run: RunFolder) -> None:
    assert run.load_checkpoint() is None
    assert run.load_best() is None
    run.save_checkpoint({"step": 5})
    run.save_best({"step": 4})
    assert run.load_checkpoint() == {"step": 5}
    assert run.load_best() == {"step": 4}
    os.replace(run.best_path, run.checkpoint_path)
    with pytest.raises(RunError, match="kind 'ppo best', but 'ppo checkpoint' was expected"):
        run.load_checkpoint()


def test_all_paths_lie_in_the_folder(run: RunFolder) -> None:
    names = [
        "checkpoint.safetensors",
        "best.safetensors",
        "metrics.csv",
        "curves.png",
        "tensorboard",
        "config.toml",
    ]
    paths = [
        run.checkpoint_path,
        run.best_path,
        run.metrics_path,
        run.curves_path,
        run.tensorboard_path,
        run.config_path,
    ]
    assert paths == [run.path / name for name in names]


def test_the_same_execution_continues(run: RunFolder) -> None:
    assert RunFolder.open(run).check_execution(EXECUTION, allow_inexact=False) == []


def test_every_difference_is_listed_in_one_sentence(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    now = record.installed_versions() | {"numpy": "9.9"}
    monkeypatch.setattr(record, "installed_versions", lambda: now)
    monkeypatch.setattr(record, "_processor", lambda: "Z80")
    known = json.loads((run.path / "run.json").read_text())
    current = {"compile": "on", "threads": 2, "device": "cpu", "shape": (1, 2), "backend": "envpool"}
    with pytest.raises(RunError) as caught:
        run.check_execution(current, allow_inexact=False)
    differences = [
        "backend was absent and is envpool",
        "compile was off and is on",
        f"numpy was {np.__version__} and is 9.9",
        f"processor was {known['platform']['processor']} and is Z80",
    ]
    assert all(difference in str(caught.value) for difference in differences)
    assert "threads" not in str(caught.value)
    assert "`--allow-inexact` continues anyway" in str(caught.value)
    assert run.check_execution(current, allow_inexact=True) == differences


def test_one_writer_at_a_time_in_this_process(run: RunFolder) -> None:
    with run.lock():
        with pytest.raises(RunError, match=rf"written by this process \({os.getpid()}\) already"), run.lock():
            pass
        with pytest.raises(RunError, match="already holds a run"):
            create(run.path)
    with run.lock():  # free again
        pass


HOLD = """
import sys, time
from telescope.runs import RunFolder
with RunFolder.open(sys.argv[1]).lock():
    print("held", flush=True)
    {body}
"""


def hold(run: RunFolder, body: str) -> subprocess.Popen[bytes]:
    """Another process that holds the lock when this returns."""
    process = subprocess.Popen([sys.executable, "-c", HOLD.format(body=body), run.path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_one_writer_at_a_time_across_processes_until_it_is_killed(run: RunFolder) -> None:
    with hold(run, "time.sleep(60)") as process:
        message = f"is being written by process {process.pid}; wait for it, or stop it first"
        with pytest.raises(RunError, match=message), run.lock():
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with run.lock():
            pass


def test_a_forked_child_does_not_keep_the_lock_of_its_dead_parent(run: RunFolder) -> None:
    body = "import os; child = os.fork(); print(child, flush=True) if child else None; time.sleep(60)"
    with hold(run, body) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            time.sleep(0.05)
            with pytest.raises(RunError, match=str(process.pid)), run.lock():
                pass  # the child's letting go did not free it
            process.send_signal(signal.SIGKILL)
            process.wait()
            with run.lock():
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_next_writer_removes_what_a_killed_one_left_half_written(run: RunFolder) -> None:
    leftover = run.path / ".checkpoint.safetensors.0badf00d.tmp"
    leftover.write_bytes(b"half")
    with run.lock():
        assert not leftover.exists()
        assert run.load_config(Config) == Config()


def test_a_run_whose_first_row_finds_no_space_leaves_nothing_in_the_way(tmp_path: Path, monkeypatch) -> None:
    """TensorBoard's file is opened before metrics.csv; a folder that keeps it would be refused as the next --out."""

    def full(*arguments: Any) -> None:
        raise RunError("the disk is full")

    folder = create(tmp_path / "run")
    monkeypatch.setattr("telescope.runs.formats.log.Table", full)
    with folder.lock(), pytest.raises(RunError, match="full"), MetricsLog(folder, columns=["step", "seed"]) as log:
        log.write([{"step": 1, "seed": 0}])
    assert folder.tensorboard_path.exists()
    folder.discard()
    assert not (tmp_path / "run").exists()


def test_importing_runs_is_light() -> None:
    heavy = {"torch", "matplotlib", "tensorboard", "safetensors", "tomli_w", "gymnasium"}
    code = f"import telescope.runs, sys; print(sorted({heavy!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_missing_dependency_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tomli_w", None)
    with pytest.raises(ImportError, match=r"tomli_w is not installed; run `pip install 'telescope-rl\[control\]'`"):
        create(tmp_path / "run")

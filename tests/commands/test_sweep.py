"""`telescope sweep`: files that cannot work are refused, and a grid has its table, its plot and its best settings.

Leaves out Ray Tune's own scheduling.
"""

import csv
import signal
import subprocess
import sys
import time
import tomllib

import psutil
import pytest

from telescope.algorithms.ppo import PPO
from telescope.algorithms.spaces import Choice, Range
from telescope.cli import main
from telescope.commands.sweep import read
from telescope.sweep import scored, sweep
from telescope.tuning import same_search, with_evaluations

FILE = """
algorithm = "ppo"

[config]
env = "CartPole-v1"
seeds = 2
total_steps = 512
num_envs = 2
num_steps = 64
minibatch_size = 64
eval_episodes = 1

[space]
learning_rate = [1e-4, 3e-3]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(FILE)
    return path


def test_a_file_is_a_preset_with_changes_and_a_space(file):
    config, space, more = read(str(file))
    assert (config.seeds, config.minibatch_size, config.normalise_rewards) == (2, 64, True)
    assert space == {"learning_rate": Choice((1e-4, 3e-3))}
    assert more == {}
    drawn = FILE.replace("[1e-4, 3e-3]", "{low = 1e-4, high = 1e-2, log = true}")
    file.write_text("samples = 5\ngrace = 0.5\n" + drawn)
    _, space, more = read(str(file))
    assert space == {"learning_rate": Range(1e-4, 1e-2, log=True)}
    assert more == {"samples": 5, "grace": 0.5}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (("algorithm", "algorithms"), "'algorithms'; expected algorithm"),
        (("[space]", "[spaces]"), "'spaces'"),
        (("env =", "device ="), "names no env"),
        (("learning_rate = [1e-4, 3e-3]", ""), "the space is empty"),
        (("learning_rate = [1e-4, 3e-3]", "speed = [1]"), "'speed', which is no setting of ppo"),
        (("[1e-4, 3e-3]", "{low = 1e-4, high = 1e-3}"), "learning_rate is a range"),
        (("algorithm", "grace = 2.0\nalgorithm"), "grace is 2.0"),
        (("total_steps = 512", "total_steps = 1"), "total_steps is 1"),
    ],
)
def test_files_that_cannot_work_are_refused(changed, told, file, tmp_path, capsys):
    file.write_text(FILE.replace(*changed, 1))
    assert main(["sweep", str(file), "--out", str(tmp_path / "out")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_score_is_over_seeds():
    found = scored([1.0, 2.0, 3.0, 100.0])
    assert found["score"] == pytest.approx(2.5)
    assert found["worst"] == 1.0
    assert found["low"] <= found["score"] <= found["high"]


def test_a_folder_holds_one_sweep(tmp_path):
    (tmp_path / "sweep.csv").touch()
    with pytest.raises(ValueError, match="holds a sweep already"):
        sweep(PPO(total_steps=64, num_envs=2, num_steps=32), {"clip": Choice((0.1, 0.2))}, tmp_path)


def test_a_folder_goes_on_with_its_own_sweep_alone(tmp_path):
    space, small = {"clip": Choice((0.1, 0.2))}, PPO(total_steps=64, num_envs=2, num_steps=32, eval_episodes=1)
    config = with_evaluations(small)
    same_search(tmp_path, config, space, {"samples": 0, "grace": 0.2})
    same_search(tmp_path, config, space, {"samples": 0, "grace": 0.2})
    with pytest.raises(ValueError, match=r"holds a search with other settings \(samples\)"):
        sweep(small, space, tmp_path, samples=3)
    with pytest.raises(ValueError, match="holds a search of another space"):
        sweep(small, {"clip": Choice((0.1, 0.3))}, tmp_path)


def table(out):
    return list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on(file, tmp_path):
    """Trials that had ended stay, the others begin anew, and the table is that of a sweep that was never stopped."""
    file.write_text("grace = 1.0\n" + FILE.replace("total_steps = 512", "total_steps = 8192"))
    command = [sys.executable, "-m", "telescope", "sweep", str(file), "--at-once", "1", "--out"]
    assert subprocess.run([*command, str(tmp_path / "whole")]).returncode == 0
    out, deadline = tmp_path / "killed", time.monotonic() + 120
    killed = subprocess.Popen([*command, str(out)])
    while not list(out.glob("ray/trial_*/progress.csv")) and time.monotonic() < deadline:
        time.sleep(0.05)
    family = psutil.Process(killed.pid).children(recursive=True)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (out / "sweep.csv").exists(), "it was killed on its way"
    assert psutil.wait_procs(family, timeout=90)[1] == []
    assert subprocess.run([*command, str(out)]).returncode == 0
    assert table(out) == table(tmp_path / "whole")


@pytest.mark.slow
def test_a_grid_has_a_row_for_each_combination(file, tmp_path, capsys):
    assert main(["sweep", str(file), "--out", str(tmp_path / "out"), "--at-once", "2"]) == 0
    assert "best of 2 trials" in capsys.readouterr().out
    rows = table(tmp_path / "out")
    assert sorted(float(row["learning_rate"]) for row in rows) == [1e-4, 3e-3]
    order = [(int(row["step"]), float(row["score"])) for row in rows]
    assert order == sorted(order, reverse=True)
    best = tomllib.loads((tmp_path / "out" / "best.toml").read_text())
    assert best["learning_rate"] == float(rows[0]["learning_rate"])
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 1000

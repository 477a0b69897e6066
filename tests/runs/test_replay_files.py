"""A replay buffer in a run folder: each step is written once, exact after a resume, refused if damaged or too large.

Leaves out kills at random moments (`test_kills.py`) and the buffer itself (`tests/control/test_replay.py`).
"""

import dataclasses
import re

import numpy as np
import pytest

import telescope
from telescope import checks
from telescope.algorithms import dqn
from telescope.cli import main
from telescope.control.experience.replay import Replay
from telescope.runs.files import RunError
from telescope.runs.folder import RunFolder

CONFIG = dqn.DQN(
    env="CartPole-v1",
    seeds=2,
    num_envs=2,
    num_steps=16,
    total_steps=192,
    learning_starts=8,
    minibatch_size=8,
    replay_capacity=100,
    n_step=3,
    threads=1,
    compile="off",
)


@pytest.mark.parametrize("processes", [1, 2])
def test_each_step_is_written_once_and_dropped_when_it_is_overwritten(processes, tmp_path, monkeypatch):
    written = []
    save = telescope.runs.chunks.Store.add
    monkeypatch.setattr(
        telescope.runs.chunks.Store,
        "add",
        lambda self, share, chunk: (
            written.append((share, chunk["start"], chunk["mask"].shape)),
            save(self, share, chunk),
        ),
    )
    config = dataclasses.replace(CONFIG, processes=processes)
    run = telescope.train(config, tmp_path / "run", checkpoint_seconds=0)
    wanted = [(share, start, (2 // processes, 16, 2)) for start in range(0, 96, 16) for share in range(processes)]
    assert written == wanted
    here = {path.name for path in run.replay_path.iterdir()}
    latest = (32, 48, 64, 80)  # those of the last 50 rows
    assert here == {f"{s}-{a}-{a + 16}.safetensors" for s in range(processes) for a in latest}
    assert run.checkpoint_path.stat().st_size < 10**6


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_run_has_the_buffer_of_one_that_was_never_stopped(processes, tmp_path):
    config = dataclasses.replace(CONFIG, processes=processes)
    half = dataclasses.replace(config, total_steps=96)
    run = telescope.train(half, tmp_path / "run")
    assert main(["train", "--resume", str(run.path), "--total-steps", "192", "--checkpoint-seconds", "0"]) == 0
    *_, first = dqn.train(half)
    *_, last = dqn.train(config, first.state)
    ours, theirs = RunFolder.open(run.path).load_checkpoint(), last.state
    for one, other in zip(ours.get("shares", [ours]), theirs.get("shares", [theirs]), strict=True):
        replays = Replay(100, 2 // processes, 2), Replay(100, 2 // processes, 2)
        for replay, saved in zip(replays, (one, other), strict=True):
            replay.restore(saved["replay"])
        [a], [b] = (replay.state()["chunks"] for replay in replays)
        for name, array in a.items():
            np.testing.assert_array_equal(array, b[name], err_msg=name)


@pytest.mark.parametrize("damage", ["flipped", "missing", "another"])
def test_a_damaged_buffer_is_refused_and_changes_nothing(damage, tmp_path, capsys):
    run = telescope.train(dataclasses.replace(CONFIG, total_steps=64), tmp_path / "run", checkpoint_seconds=0)
    first, second = sorted(run.replay_path.iterdir())
    whole = first.read_bytes()
    if damage == "missing":
        first.unlink()
    elif damage == "another":
        first.write_bytes(second.read_bytes())
    else:
        first.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    before = run.metrics_path.read_bytes()
    assert main(["train", "--resume", str(run.path), "--total-steps", "192"]) == 1
    assert first.name in capsys.readouterr().err
    assert run.metrics_path.read_bytes() == before
    policy = telescope.load(run.path)  # agents need no buffer
    assert policy.evaluate(1).returns.shape == (2, 1)
    first.write_bytes(whole)
    assert main(["train", "--resume", str(run.path), "--total-steps", "192"]) == 0


def test_without_the_buffer_a_resumed_run_collects_again_and_says_so(tmp_path, capsys):
    config = dataclasses.replace(CONFIG, save_replay=False, total_steps=96, learning_starts=40)
    run = telescope.train(config, tmp_path / "run")
    assert not run.replay_path.exists()
    capsys.readouterr()
    assert main(["train", "--resume", str(run.path), "--total-steps", "192"]) == 0
    assert "save_replay" in capsys.readouterr().err
    table = np.genfromtxt(run.metrics_path, delimiter=",", names=True)
    updates = table["updates"][table["seed"] == 0]
    assert [int(x) for x in updates] == [0, 6, 14, 14, 20, 28]  # 40 steps without one after each start
    assert RunFolder.open(run.path).load_checkpoint()["replay"]["chunks"].names == []


def test_a_buffer_beyond_memory_is_refused_before_the_run(tmp_path, monkeypatch, capsys):
    assert main(["train", "dqn", "CartPole-v1", "--replay-capacity", "1e12", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert re.search(r"replay_capacity is 1,000,000,000,000.* needs [\d,]+ GB of memory, but .* has [\d,]+ GB", said)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(checks, "MEMORY_LIMITS", [tmp_path / "limit"])
    (tmp_path / "limit").write_text("3000000\n")  # a container's: CartPole's 40 bytes × 100,000 steps are more
    with pytest.raises(ValueError, match="replay_capacity is 100,000"):
        next(dqn.train(dataclasses.replace(CONFIG, seeds=1, replay_capacity=100_000)))
    (tmp_path / "limit").write_text("max\n")
    next(dqn.train(dataclasses.replace(CONFIG, seeds=1, replay_capacity=100_000)))


def test_a_buffer_of_an_earlier_version_is_refused():
    state = next(dqn.train(CONFIG)).state
    with pytest.raises(ValueError, match=r"earlier version .* --start RUN"):
        next(dqn.train(CONFIG, {**state, "replay": {"added": 32, "kept": {}}}))


def test_only_a_run_that_lost_a_file_says_which(tmp_path):
    run = telescope.train(dataclasses.replace(CONFIG, total_steps=32), tmp_path / "run")
    [path] = run.replay_path.iterdir()
    path.unlink()
    with pytest.raises(RunError, match=path.name):
        list(run.load_checkpoint()["replay"]["chunks"])

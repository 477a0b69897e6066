"""One call trains into a run folder from Python, by the very loop of the command line; signals are answered at once."""

import dataclasses
import io
import os
import signal
import threading
from types import SimpleNamespace

import pytest
import torch

import telescope
from telescope.algorithms.ppo import PPO, train
from telescope.cli import main
from telescope.control.agents.networks import Network
from telescope.control.training import execution
from telescope.runner import _signals
from telescope.runs import MetricsLog, RunFolder, read_metrics
from telescope.runs.display import Display

CONFIG = PPO(num_envs=2, num_steps=16, minibatch_size=32, epochs=1, total_steps=96, seeds=2)


def test_one_call_leaves_the_folder_that_the_command_leaves(tmp_path, capsys):
    config = dataclasses.replace(CONFIG, eval_every=32, eval_episodes=1)
    run = telescope.train(config, tmp_path / "python")
    flags = "--num-envs 2 --num-steps 16 --minibatch-size 32 --epochs 1 --total-steps 96 --seeds 2"
    defaults = [f"--config={run.config_path}", "--eval-every", "32", "--eval-episodes", "1"]
    assert main(["train", "ppo", "--out", str(tmp_path / "command"), *flags.split(), *defaults]) == 0
    capsys.readouterr()
    assert run.status == "finished"
    other = RunFolder.open(tmp_path / "command")
    assert {path.name for path in run.path.iterdir()} == {path.name for path in other.path.iterdir()}
    states = run.load_checkpoint(), other.load_checkpoint()
    assert (states[0]["policy"]["parameters"] == states[1]["policy"]["parameters"]).all()
    assert run.load_best()["step"].tolist() == other.load_best()["step"].tolist()
    assert telescope.load(run).evaluate(1).returns.shape == (2, 1)
    assert main(["train", "--resume", str(run.path), "--total-steps", "128"]) == 0
    assert read_metrics(run)["step"].max() == 128


def test_a_folder_that_another_loop_wrote_can_be_extended(tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG, algorithm="ppo", execution=execution(CONFIG), command=["-"])
    with run.lock():
        log = None
        for metrics in train(CONFIG):
            log = log or MetricsLog(run, columns=list(metrics.rows[0]))
            log.write(metrics.rows)
        log.sync()
        run.save_checkpoint(metrics.state)
        log.close()
    assert main(["train", "--resume", str(run.path), "--total-steps", "160"]) == 0
    assert read_metrics(run)["step"].tolist() == [step for step in range(32, 161, 32) for _ in range(2)]


def test_a_network_of_ones_own_comes_along(tmp_path):
    def init(rng):
        return {"weight": torch.tensor(rng.standard_normal((4, 3)), dtype=torch.float32)}

    network = Network(init, lambda p, x: ((x @ p["weight"])[..., :2], (x @ p["weight"])[..., 2]))
    run = telescope.train(CONFIG, tmp_path / "run", network=network)
    assert telescope.load(run, network=network).parameters.shape == (2, 12)


def test_a_folder_by_default_and_what_is_no_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = telescope.train(dataclasses.replace(CONFIG, total_steps=32))
    assert run.path.parent.name == "runs"
    assert run.path.name.startswith("ppo-CartPole-v1-")
    with pytest.raises(ValueError, match=r"config is a dict; expected one of .*ppo\.PPO"):
        telescope.train({"env": "CartPole-v1"}, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_ctrl_c_from_python_leaves_a_checkpoint_and_is_an_interrupt(tmp_path, capsys):
    config = dataclasses.replace(CONFIG, total_steps=1_000_000, compile="off")
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        telescope.train(config, tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    assert run.status == "stopped"
    assert 0 < run.load_checkpoint()["step"] < 1_000_000
    told = capsys.readouterr().err
    assert told.index("stopping after this iteration") < told.index("stopped at step")
    assert f"telescope train --resume {run.path}" in told
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_first_signal_is_answered_at_once_and_the_second_interrupts(tmp_path):
    stream = io.StringIO()
    display, folder = Display(100, stream=stream), SimpleNamespace(path=tmp_path / "my run")
    with _signals(display, folder) as received:
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT]
        assert "stopping after this iteration" in stream.getvalue()
        assert "again stops now" in stream.getvalue()
        assert f"telescope train --resume '{tmp_path}/my run'" in stream.getvalue()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_thread_trains_without_signals(tmp_path):
    found = []
    config = dataclasses.replace(CONFIG, total_steps=32)
    thread = threading.Thread(target=lambda: found.append(telescope.train(config, tmp_path / "run")))
    thread.start()
    thread.join()
    assert found[0].status == "finished"


ROW = {"step": 10, "seed": 0, "return_mean": 1.0, "time_env": 1.0}


def test_pipes_and_notebooks_get_plain_lines():
    """No escape sequence, no carriage return: one line, which says what is left."""
    stream = io.StringIO()
    with Display(100, stream=stream) as display:
        display.note("a sentence")
        display.show([ROW])
    assert stream.getvalue().splitlines()[0] == "a sentence"
    last = stream.getvalue().splitlines()[-1]
    assert last.startswith("step 10 of 100")
    assert last.endswith(" left")
    assert not set("\x1b\r") & set(stream.getvalue())


def test_a_sentence_stands_below_the_step_that_it_is_about():
    stream = io.StringIO()
    with Display(100, stream=stream) as display:
        display.show([ROW])
        display.note("learning curve: here")
    said = stream.getvalue().splitlines()
    assert [line.split()[0] for line in said] == ["step", "learning"]


@pytest.mark.parametrize(("term", "live"), [("xterm-256color", True), ("dumb", False)])
def test_a_terminal_gets_a_bar_with_the_time_left_unless_it_is_dumb(monkeypatch, term, live):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "80")
    stream = io.StringIO()
    stream.isatty = lambda: True
    sentence = "continue with: telescope train --resume " + "a-long-folder-name/" * 6
    with Display(100, stream=stream) as display:
        display.note(sentence)
        display.show([ROW])
    assert ("\x1b" in stream.getvalue()) == live
    assert ("step 10 of 100" in stream.getvalue()) == (not live)
    assert " left" in stream.getvalue()
    assert sentence in stream.getvalue()  # in one piece, to be copied


@pytest.mark.parametrize(("seconds", "told"), [(0.01, "1,000 steps/s"), (200.0, "0.05 steps/s")])
def test_a_slow_step_is_not_called_none(monkeypatch, seconds, told):
    clock = iter([0.0, seconds, seconds])
    monkeypatch.setattr("telescope.runs.display.time.perf_counter", lambda: next(clock))
    stream = io.StringIO()
    with Display(100, stream=stream) as display:
        display.show([ROW])
    assert told in stream.getvalue()

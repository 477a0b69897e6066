"""The command line as its users meet it: train, stop, resume, evaluate, plot, and what it says when it cannot."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest

import telescope
from telescope.cli import main
from telescope.runner import WAITING
from telescope.runs import RunFolder

FAST = ["--num-envs", "2", "--num-steps", "16", "--minibatch-size", "32", "--epochs", "1"]


def telescope_command(*arguments, **kwargs):
    command = [sys.executable, "-m", "telescope.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **kwargs)


def train(out, *flags, env="CartPole-v1"):
    return main(["train", "ppo", env, "--out", str(out), *FAST, *map(str, flags)])


def metrics(folder, *, without_times=True):
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not (without_times and k.startswith("time_"))} for row in rows]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "cartpole"
    assert train(folder, "--seeds", 2, "--total-steps", 320, "--eval-every", 160, "--eval-episodes", 2) == 0
    return folder


def test_a_run_leaves_everything_behind(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "config.toml",
        "run.json",
        "metrics.csv",
        "checkpoint.safetensors",
        "best.safetensors",
        "curves.png",
    }
    assert any((trained / "tensorboard").iterdir())
    rows = metrics(trained, without_times=False)
    assert len(rows) == 2 * 10
    assert rows[0].keys() >= {"step", "seed", "return_mean", "time_env", "time_policy", "time_update", "time_other"}
    assert [row["seed"] for row in rows[:2]] == ["0", "1"]
    assert rows[-1]["step"] == "320"
    assert sum(row["eval_return_mean"] != "" for row in rows) == 2 * 2
    assert RunFolder.open(trained).status == "finished"


def test_eval_prints_a_table_or_one_json_object(trained, capsys):
    assert main(["eval", str(trained), "--episodes", "4", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary.keys() >= {"iqm", "mean", "worst", "ci95", "episodes", "per_seed"}
    assert len(summary["per_seed"]) == 2
    assert summary["episodes"] == 4
    assert summary["worst"] == min(summary["per_seed"])
    assert main(["eval", str(trained), "--episodes", "4", "--best"]) == 0
    assert "worst seed" in capsys.readouterr().out
    assert main(["eval", "--json", "--episodes", "4", "--stochastic", str(trained)]) == 0
    assert json.loads(capsys.readouterr().out)["per_seed"] != summary["per_seed"]


def test_eval_records_a_video(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    assert main(["eval", str(trained), "--episodes", "1", "--video", str(tmp_path)]) == 0
    film = tmp_path / "episode.mp4"
    assert film.stat().st_size > 1000
    assert film.read_bytes()[4:8] == b"ftyp"
    assert os.environ["SDL_VIDEODRIVER"] == "dummy"  # where there is no display, SDL does not look for one


def test_a_film_that_fails_comes_after_the_table_in_one_sentence(trained, tmp_path, capsys, monkeypatch):
    def no_display(*arguments, **options):
        raise AttributeError("'NoneType' object has no attribute 'glGetError'\nat all")

    monkeypatch.setattr("telescope.control.video.record", no_display)
    monkeypatch.setattr("telescope.commands.evaluate.is_users", lambda error: False)  # this file is the user's
    monkeypatch.setattr("telescope.cli.is_users", lambda error: False)
    assert main(["eval", str(trained), "--episodes", "2", "--no-json", "--video", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert "worst seed" in told.out
    assert len(told.err.strip().splitlines()) == 1
    assert "MUJOCO_GL" in told.err
    assert "glGetError" in told.err


def test_an_environment_that_draws_nothing_is_told_without_a_word_on_displays(trained, tmp_path, capsys, monkeypatch):
    def no_frames(*arguments, **options):
        raise ValueError("World takes no render_mode")

    monkeypatch.setattr("telescope.control.video.record", no_frames)
    monkeypatch.setattr("telescope.commands.evaluate.is_users", lambda error: False)  # this file is the user's
    monkeypatch.setattr("telescope.cli.is_users", lambda error: False)
    assert main(["eval", str(trained), "--episodes", "1", "--video", str(tmp_path)]) == 1
    assert capsys.readouterr().err.strip().endswith("could not be made: World takes no render_mode")


def test_a_run_without_a_finished_episode_succeeds_without_a_curve(tmp_path, capsys):
    assert train(tmp_path / "run", "--total-steps", 32, env="Pendulum-v1") == 0
    assert "no learning curve" in capsys.readouterr().err
    assert not (tmp_path / "run" / "curves.png").exists()


def test_plot_draws_several_runs(trained, tmp_path):
    assert main(["plot", str(trained), str(trained), "--out", str(tmp_path / "both.png")]) == 0
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_load_acts_in_the_environment(trained):
    policy = telescope.load(trained)
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=0)
    for _ in range(5):
        action = policy.act(observation)
        assert env.action_space.contains(action)
        observation, *_ = env.step(action)
    env.close()
    assert policy.act(np.zeros((7, 4), np.float32)).shape == (7,)
    with pytest.raises(ValueError, match="observation has shape"):
        policy.act(np.zeros(3))
    with pytest.raises(ValueError, match="seed is 9"):
        policy.act(observation, seed=9)


def test_resuming_a_finished_run_does_nothing_and_succeeds(trained, capsys):
    before = (trained / "checkpoint.safetensors").read_bytes()
    assert main(["train", "--resume", str(trained)]) == 0
    assert "is finished" in capsys.readouterr().out
    assert (trained / "checkpoint.safetensors").read_bytes() == before


def test_more_steps_plan_the_schedules_anew_and_say_so(tmp_path, capsys):
    assert train(tmp_path / "run", "--total-steps", 96) == 0
    assert float(metrics(tmp_path / "run")[-1]["learning_rate"]) == pytest.approx(1e-3 / 3)
    assert main(["train", "--resume", str(tmp_path / "run"), "--total-steps", "192"]) == 0
    assert "schedules are recomputed" in capsys.readouterr().err
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [str(s) for s in range(32, 193, 32)]
    assert float(rows[3]["learning_rate"]) == pytest.approx(1e-3 / 2)


def stop_at_once(folder, *flags):
    """A run whose disk fails at its first checkpoint."""
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(RunFolder, "save_checkpoint", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        return train(folder, *flags)


def test_without_a_checkpoint_resume_starts_from_the_config(tmp_path, capsys):
    assert train(tmp_path / "whole", "--total-steps", 96) == 0
    assert stop_at_once(tmp_path / "run", "--total-steps", 96) == 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["versions"]["torch"] = "1.0"  # nothing was trained with it that is continued
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert RunFolder.open(tmp_path / "run").versions["torch"] != "1.0"
    assert "no checkpoint yet" in capsys.readouterr().err
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_a_config_file_and_flags_over_it(tmp_path):
    assert train(tmp_path / "one", "--total-steps", 64, "--lam", 0.5) == 0
    config = str(tmp_path / "one" / "config.toml")
    flags = ["--config", config, "--out", str(tmp_path / "two"), "--gamma", "0.7"]
    assert main(["train", "ppo", *flags]) == 0
    settings = RunFolder.open(tmp_path / "two").config_mapping()
    assert (settings["lam"], settings["gamma"], settings["env"]) == (0.5, 0.7, "CartPole-v1")


def command(out, *flags):
    return ["train", "ppo", "Pendulum-v1", "--out", str(out), *FAST, *map(str, flags)]


def start(out, *flags, **kwargs):
    arguments = [sys.executable, "-m", "telescope.cli", *command(out, *flags)]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **kwargs)


def wait_for_rows(folder, rows, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "metrics.csv").exists() and (folder / "metrics.csv").read_text().count("\n") > rows:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {rows} rows came: {process.communicate()}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_stopped_by_a_signal_ends_as_if_it_had_never_been(tmp_path, number):
    flags = ["--total-steps", 3200, "--seeds", 2, "--checkpoint-seconds", 0.2]
    process = start(tmp_path / "stopped", *flags)
    wait_for_rows(tmp_path / "stopped", 40, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number
        assert "telescope train --resume" in errors
        assert RunFolder.open(tmp_path / "stopped").status == "stopped"
    assert RunFolder.open(tmp_path / "stopped").load_checkpoint()["step"] < 3200
    assert main(["train", "--resume", str(tmp_path / "stopped")]) == 0
    assert main(command(tmp_path / "whole", *flags)) == 0
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    states = [RunFolder.open(tmp_path / name).load_checkpoint() for name in ("stopped", "whole")]
    assert (states[0]["policy"]["parameters"] == states[1]["policy"]["parameters"]).all()
    for name, array in states[0]["learner"]["adam"].items():
        assert (array == states[1]["learner"]["adam"][name]).all()


@pytest.mark.parametrize(
    ("more", "number"),
    [
        ("", signal.SIGINT),
        ("--vectorization async", signal.SIGINT),
        ("--vectorization async", signal.SIGTERM),
        ("--seeds 2 --processes 2", signal.SIGINT),
        ("--seeds 2 --processes 2", signal.SIGTERM),
    ],
)
def test_a_signal_to_the_whole_process_group_leaves_a_checkpoint(tmp_path, more, number):
    """Ctrl-C reaches all processes of a terminal's job at once, workers too."""
    flags = [*more.split(), "--total-steps", 20_000]
    process = start(tmp_path / "run", *flags, start_new_session=True)
    wait_for_rows(tmp_path / "run", 3, process)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    assert (step := RunFolder.open(tmp_path / "run").load_checkpoint()["step"]) > 0
    if "async" in more:
        return
    assert main(["train", "--resume", str(tmp_path / "run"), "--total-steps", str(step + 100)]) == 0
    assert RunFolder.open(tmp_path / "run").load_checkpoint()["step"] > step


def test_the_best_agents_are_those_of_this_history(tmp_path):
    """What evaluated better after the checkpoint, in a future that another --total-steps replaced, does not stay."""
    assert train(tmp_path / "run", "--total-steps", 64, "--eval-every", 32, "--eval-episodes", 1) == 0
    folder = RunFolder.open(tmp_path / "run")
    best = folder.load_best()
    folder.save_best({**best, "eval_return_mean": best["eval_return_mean"] + 1e6, "step": best["step"] + 1000})
    assert main(["train", "--resume", str(tmp_path / "run"), "--total-steps", "96"]) == 0
    rows = metrics(tmp_path / "run")
    assert folder.load_best()["eval_return_mean"][0] == max(float(row["eval_return_mean"]) for row in rows)


def test_a_folder_that_could_not_be_made_does_not_stand_in_the_way(tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(RunFolder, "_write_record", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        assert train(tmp_path / "run", "--total-steps", 32) == 1
    assert train(tmp_path / "run", "--total-steps", 32) == 0


def test_two_writers_are_refused(tmp_path):
    process = start(tmp_path / "run", "--total-steps", 200_000)
    wait_for_rows(tmp_path / "run", 2, process)
    second = telescope_command("train", "--resume", tmp_path / "run")
    process.kill()
    process.communicate()
    assert second.returncode == 1
    assert str(process.pid) in second.stderr


# What it says when something is wrong: one sentence, no traceback.


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fly"], "there is no command 'fly'"),
        (["train", "pop", "CartPole-v1"], "algorithm is 'pop'.*did you mean 'ppo'"),
        (["train", "ppo"], "the environment is missing"),
        (["train", "ppo", "CartPool-v1", "--out", "OUT"], "CartPool-v1.*CartPole"),
        (["train", "ppo", "CartPole-v1", "--gamma", "1.5", "--out", "OUT"], "gamma is 1.5; expected a number in"),
        (["train", "ppo", "CartPole-v1", "--env-kwargs", "wind", "3", "--out", "OUT"], "wind"),
        (["train", "ppo", "CartPole-v1", "--out", "/dev/null/run"], "/dev/null"),
        (["train", "ppo", "CartPole-v1", "--device", "abacus", "--out", "OUT"], "device 'abacus' is not available"),
        (["train", "ppo", "CartPole-v1", "--env", "Acrobot-v1", "--out", "OUT"], "two environments are given"),
        (["train", "ppo", "CartPole-v1", "--config", "nowhere.toml"], "nowhere.toml"),
        (["train", "--resume", "nowhere"], "nowhere is not a folder"),
        (["train", "ppo", "--resume", "nowhere"], "'ppo' comes before --resume.*leave it out"),
        (["eval", "nowhere"], "nowhere is not a folder"),
        (["plot", "nowhere"], "nowhere"),
        (["plot"], "at least one run"),
    ],
)
def test_errors_are_sentences(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [str(tmp_path / "run") if a == "OUT" else a for a in arguments]
    result = telescope_command(*arguments)
    assert result.returncode in (1, 2)
    assert "Traceback" not in result.stderr
    assert re.search(sentence, result.stderr, re.DOTALL), result.stderr
    assert not os.path.exists(tmp_path / "run")


@pytest.mark.parametrize("what", [("ppo", "CartPool-v1"), ("sft", "lm/nothing")])
def test_threads_that_wait_for_each_other_fall_asleep(what, monkeypatch):
    for name in WAITING:
        monkeypatch.setenv(name, "what is put back after the test")
        monkeypatch.delenv(name)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")  # what the user has set stays
    assert main(["train", *what]) != 0
    assert {name: os.environ[name] for name in WAITING} == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "7"}


def test_an_existing_run_is_not_overwritten(trained, capsys):
    assert train(trained, "--total-steps", 64) == 1
    assert f"telescope train --resume {trained}" in capsys.readouterr().err


def test_a_broken_checkpoint_is_refused(tmp_path, capsys):
    assert train(tmp_path / "run", "--total-steps", 64) == 0
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert main(["train", "--resume", str(tmp_path / "run"), "--total-steps", "128"]) == 1
    assert "cut short" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "run")]) == 1


def test_other_versions_need_a_word(tmp_path, capsys):
    assert train(tmp_path / "run", "--total-steps", 64) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["versions"]["torch"] = "1.0"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    again = ["train", "--resume", str(tmp_path / "run"), "--total-steps", "128"]
    assert main(again) == 1
    assert "torch was 1.0" in capsys.readouterr().err
    assert main([*again, "--allow-inexact"]) == 0


@pytest.mark.parametrize(
    "command",
    ["", "train", "train ppo CartPole-v1", "train --resume x", "eval", "plot"],
    ids=lambda c: c or "telescope",
)
def test_every_command_has_help(command):
    result = telescope_command(*command.split(), "--help")
    assert result.returncode == 0
    assert "usage" in result.stdout.lower()
    assert "Traceback" not in result.stderr

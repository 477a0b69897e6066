"""A new run from another's agents, and a resume that is refused: the one takes what it says, the other nothing.

The oracle for a start is the state it came from; for a refusal, every byte of the folder.
"""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

from telescope.algorithms.ppo import PPO, train
from telescope.cli import main
from telescope.control.starting import new_episodes, rows_of, start_from
from telescope.runs.folder import RunFolder

EASY = PPO(
    env="Pendulum-v1",
    env_kwargs={"g": 5.0},
    seeds=2,
    num_envs=2,
    num_steps=8,
    minibatch_size=16,
    epochs=1,
    hidden=(8,),
    total_steps=32,
    learning_rate=1e-12,
    anneal_learning_rate=False,
    normalise_observations=True,
    normalise_rewards=True,
    compile="off",
)
CHANGES = {
    "env_kwargs": {"env_kwargs": {"g": 10.0}},
    "num_envs": {"num_envs": 4},
    "fewer seeds": {"seeds": 1},
    "more seeds, over processes": {"seeds": 3, "processes": 2},
    "another seed": {"seed": 7},
    "another clock": {"vectorization": "async", "autoreset": "disabled", "num_steps": 16, "total_steps": 64},
}


@pytest.fixture(scope="module")
def old():
    *_, last = train(EASY)
    return last.state


@pytest.mark.parametrize(
    "change", [pytest.param(name, marks=[pytest.mark.slow] * ("processes" in name)) for name in CHANGES]
)
def test_a_start_takes_parameters_and_statistics_into_a_changed_run(old, change):
    """At a learning rate of nothing, so that the parameters of the first iteration are still those of the start."""
    config = dataclasses.replace(EASY, **CHANGES[change])
    iterations = train(config, start=old)
    first = next(iterations)
    state, rows = first.state, np.arange(config.seeds) % 2
    torch.testing.assert_close(state["policy"]["parameters"], old["policy"]["parameters"][rows], rtol=0, atol=1e-9)
    seen = config.num_envs * config.num_steps
    for had, has in ((old["policy"]["normaliser"], state["policy"]["normaliser"]),):
        np.testing.assert_allclose(has["count"][:, 0], had["count"][rows, 0] + seen + config.num_envs)
    assert (first.step, first.rows[0]["iteration"]) == (seen, 1)
    assert any("trained for 32 steps" in note for note in first.notes)
    for part in state.get("shares", [state]):
        assert torch.all(part["learner"]["adam"]["first_decay"] > 0.8)  # one or two steps of a new optimiser
        np.testing.assert_allclose(part["rollouts"]["scaler"]["count"], 1e-4 + 32 + seen)
    iterations.close()


def test_a_start_repeats_agents_in_order_and_is_cut_by_rows(old):
    start = start_from(old, 5)
    for part, rows in ((start, [0, 1, 0, 1, 0]), (rows_of(start, 3, 2), [1, 0])):
        torch.testing.assert_close(part.parameters, old["policy"]["parameters"][rows], rtol=0, atol=0)
        for name, array in part.observations.items():
            np.testing.assert_array_equal(array, old["policy"]["normaliser"][name][rows])
        for name, array in part.rewards.items():
            np.testing.assert_array_equal(array, old["rollouts"]["scaler"][name][rows])
    assert start_from(start, 5) is start


def test_a_start_that_does_not_fit_is_refused(old):
    for change in ({"hidden": (9,)}, {"env": "MountainCarContinuous-v0", "env_kwargs": {}}):
        with pytest.raises(ValueError, match="spaces and the network"):
            next(train(dataclasses.replace(EASY, **change), start=old))
    for wrong in (old["policy"], {"policy": 1}, 5):
        with pytest.raises(ValueError, match=r"metrics\.state"):
            next(train(EASY, start=wrong))
    with pytest.raises(ValueError, match="pass one of them"):
        next(train(EASY, old, start=old))


# From the command line


class Walk(gym.Env):
    """Repeats itself (or not, after 20 steps of an episode of 30) and can be told to give wrong observations."""

    observation_space, action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64), gym.spaces.Discrete(2)
    foreign, late, broken = False, False, False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1), {}

    def step(self, action):
        self.time += 1
        noise = np.random.normal() if self.foreign or (self.late and self.time > 20) else self.np_random.normal()
        return np.array(["broken"] if self.broken else [noise]), 1.0, False, self.time >= 30, {}


@pytest.fixture
def walk(monkeypatch):
    gym.register("Walk-v0", entry_point=Walk)
    yield lambda **how: [monkeypatch.setattr(Walk, name, value) for name, value in how.items()]
    del gym.registry["Walk-v0"]


SMALL = ["--num-steps", "28", "--minibatch-size", "28", "--epochs", "1", "--total-steps", "28", "--hidden", "4"]
SMALL += ["--compile", "off"]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_refused_resume_changes_nothing_on_disk(walk, tmp_path, capsys):
    """Whatever refuses it: the environment at its replay, at the first step, or before anything is tried."""
    run = tmp_path / "run"
    walk(late=True)
    assert main(["train", "ppo", "Walk-v0", *SMALL, "--out", str(run)]) == 0
    before = contents(run)
    more = ["train", "--resume", str(run), "--total-steps", "84"]
    assert main(more) == 2
    assert "--allow-inexact" in capsys.readouterr().err
    assert contents(run) == before
    walk(late=False, broken=True)
    assert main([*more, "--allow-inexact"]) == 2
    assert "real numbers" in capsys.readouterr().err
    assert contents(run) == before
    walk(broken=False)
    assert main([*more, "--allow-inexact"]) == 0
    assert RunFolder.open(run).status == "finished"
    assert contents(run).keys() >= before.keys()


def test_a_run_whose_environments_repeat_nothing_resumes_when_allowed(walk, tmp_path, capsys):
    run = tmp_path / "run"
    walk(foreign=True)
    assert main(["train", "ppo", "Walk-v0", *SMALL, "--out", str(run)]) == 0
    assert "ignore their seed" in capsys.readouterr().err
    for steps in ("56", "84"):
        before = contents(run)
        assert main(["train", "--resume", str(run), "--total-steps", steps]) == 1
        assert "would not continue bit for bit, because new episodes begin" in capsys.readouterr().err
        assert contents(run) == before
        assert main(["train", "--resume", str(run), "--total-steps", steps, "--allow-inexact"]) == 0
    state = RunFolder.open(run).load_checkpoint()
    assert state["step"] == 84
    assert "ignore their seed" in new_episodes(state)


def test_start_begins_with_the_settings_of_a_run_and_flags_override_them(walk, tmp_path, capsys):
    run, new = tmp_path / "run", tmp_path / "new"
    settings = [*SMALL, "--normalise-observations", "--learning-rate", "1e-12"]
    assert main(["train", "ppo", "Walk-v0", *settings, "--out", str(run)]) == 0
    before = contents(run)
    assert main(["train", "--start", str(run), "--num-envs", "2", "--total-steps", "56", "--out", str(new)]) == 0
    assert contents(run) == before
    config, state = RunFolder.open(new).load_config(PPO), RunFolder.open(new).load_checkpoint()
    assert (config.hidden, config.num_envs, config.learning_rate, state["step"]) == ((4,), 2, 1e-12, 56)
    old = RunFolder.open(run).load_checkpoint()["policy"]
    torch.testing.assert_close(state["policy"]["parameters"], old["parameters"], rtol=0, atol=1e-9)
    (new / "checkpoint.safetensors").unlink()
    assert main(["train", "--resume", str(new)]) == 1  # never from random parameters
    capsys.readouterr()
    for words, sentence in (
        (["ppo", "Walk-v0", "--hidden", "5"], "spaces and the network"),
        (["grpo", "lm/addition"], "is a run of ppo; grpo cannot start from its agents"),
    ):
        assert main(["train", *words, "--start", str(run), "--out", str(tmp_path / "none")]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert main(["train", "--start", str(tmp_path), "--out", str(tmp_path / "none")]) == 1


def test_a_start_from_a_strangers_run_asks_for_trust_before_it_imports_anything(tmp_path, monkeypatch, capsys):
    """As --resume does; without a checkpoint the trusted one is refused for that alone."""
    (tmp_path / "strange.py").write_text("raise SystemExit('the code of a stranger ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    run = str(tmp_path / "run")
    config = dataclasses.replace(EASY, env="strange:Id-v0", env_kwargs={})
    RunFolder.create(run, config, algorithm="ppo", execution={}, command=[])
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    for words in (["--start", run, "--out", str(tmp_path / "new")], ["--resume", run]):
        assert main(["train", *words]) == 1
        assert "names code that would run here" in capsys.readouterr().err
    assert main(["train", "--start", run, "--trust", "--out", str(tmp_path / "new")]) == 1
    assert "has no checkpoint yet" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_run_whose_device_was_edited_goes_on_where_the_user_says(tmp_path, capsys):
    run = tmp_path / "run"
    sizes = ["--num-envs", "2", "--num-steps", "8", "--minibatch-size", "16", "--epochs", "1", "--compile", "off"]
    assert main(["train", "ppo", "CartPole-v1", *sizes, "--total-steps", "16", "--out", str(run)]) == 0
    edited = (run / "config.toml").read_text().replace('device = "cpu"', 'device = "cuda"')
    assert "cuda" in edited
    (run / "config.toml").write_text(edited)
    assert main(["train", "--resume", str(run), "--total-steps", "32"]) == 1
    assert "device is 'cuda' and was 'cpu'" in capsys.readouterr().err
    assert main(["train", "--resume", str(run), "--total-steps", "32", "--device", "cpu"]) == 0
    assert 'device = "cpu"' in (run / "config.toml").read_text()

"""Behaviour cloning, and the demonstrations that it reads and `telescope record` writes."""

import dataclasses
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import telescope
from telescope.algorithms import bc, ppo
from telescope.cli import main
from telescope.control.agents.actions import bounding, unbounding
from telescope.control.environments.spaces import packed_actions, packed_observations
from telescope.control.experience.demonstrations import read
from telescope.policy import Policy

sys.path.append(str(Path(__file__).parents[1] / "control"))

from test_spaces import Both

SMALL = {"total_steps": 4000, "num_steps": 1000, "threads": 1, "compile": "off"}


def expert(count=200, seed=0):
    """Episodes of `Both` by an expert, as arrays."""
    env, rows = Both(length=5), {name: [] for name in ("number", "needle", "camera", "first", "second", "end")}
    for episode in range(count // 5):
        observation, _ = env.reset(seed=seed + episode)
        ended = False
        while not ended:
            wanted = -env.needle if env.dark else env.needle
            action = (env.number, wanted.astype(np.float32))
            for name in observation:
                rows[name].append(observation[name])
            observation, _, _, ended, _ = env.step(action)
            for name, value in zip(("first", "second", "end"), (*action, ended), strict=True):
                rows[name].append(value)
    names = {name: f"observations.{name}" for name in ("number", "needle", "camera")}
    names |= {"first": "actions.0", "second": "actions.1", "end": "truncated"}
    return {names[name]: np.array(x) for name, x in rows.items()}


@pytest.fixture
def data(tmp_path):
    np.savez(tmp_path / "expert.npz", **expert(2000))
    return str(tmp_path / "expert.npz")


def test_the_clone_of_an_expert_acts_as_it_does(data):
    config = bc.BC(
        env=Both, data=data, seeds=2, **SMALL | {"total_steps": 100_000, "num_steps": 10_000}, learning_rate=3e-3
    )
    losses = [step.rows[0]["held_out_loss"] for step in bc.train(config)]
    *_, last = bc.train(config)
    assert losses[-1] < losses[0]
    assert Policy(config, last.policy).evaluate(10).returns.mean() > 17


def test_one_step_is_that_of_plain_torch(data):
    """The mean of −log π over the drawn samples, by torch's own distributions, and Adam's first step: its sign."""
    config = bc.BC(
        env=Both, data=data, total_steps=64, num_steps=64, hidden=(4,), learning_rate=1e-3, max_grad_norm=None
    )
    session = bc.Session(config, None, bc.Learner)
    steps = bc.Steps(config, session)
    batch = steps.batch(next(iter(steps.drawn(0))))
    agent, vector = session.agent, session.parameters[0].clone().requires_grad_()
    outputs = agent.policy(agent.layout.unflatten(vector), batch.observations[0])
    actions = batch.actions[0]
    first = torch.distributions.Categorical(logits=outputs[:, :3]).log_prob(actions[:, 0])
    second = torch.distributions.Normal(outputs[:, 3], outputs[:, 4].exp()).log_prob(actions[:, 1])
    loss = -(first + second).mean()
    (gradient,) = torch.autograd.grad(loss, vector)
    new, row = bc.update_agent(config, agent)(
        bc.Learner.begin(session.parameters)._replace(parameters=vector.detach(), adam=bc_adam(vector)),
        bc.Batch(batch.observations[0], actions, None),
        torch.tensor(1e-3),
    )
    session.close()
    assert row[0].item() == pytest.approx(loss.item(), rel=1e-4)
    assert row[2].item() == pytest.approx(gradient.norm().item(), rel=1e-3)
    moved = (new.parameters - vector).detach()
    clear = gradient.abs() > 1e-3
    assert torch.allclose(moved[clear], -1e-3 * gradient[clear].sign(), atol=1e-4)


def bc_adam(vector):
    from telescope.optimisers import adam_init

    return adam_init(vector.detach())


def test_episodes_are_held_out_whole_and_the_last_ones(data):
    config = bc.BC(env=Both, data=data, **SMALL, held_out=0.25)
    session = bc.Session(config, None, bc.Learner)
    steps = bc.Steps(config, session)
    session.close()
    assert steps.learned == 1500
    assert steps.drawn(0).max() < 1500
    none = bc.BC(env=Both, data=data, **SMALL, held_out=0.0, num_envs=1)
    assert next(bc.train(none)).rows[0]["held_out_loss"] is None


@pytest.mark.parametrize("how", ["clip", "rescale", "squash"])
def test_actions_are_learned_as_the_draws_that_become_them(how):
    box = spaces.Box(np.array([-2, 5, -np.inf, -np.inf]), np.array([3, np.inf, 5, np.inf]), dtype=np.float64)
    hybrid = packed_actions(spaces.Tuple((spaces.Discrete(3), box)))
    drawn = np.random.default_rng(0).uniform(-0.9, 0.9, (50, 4)) + (5 if how == "clip" else 0) * np.array([0, 1, -1, 0])
    actions = bounding(box, how)(drawn)
    assert bounding(box, how)(unbounding(box, how)(actions)) == pytest.approx(actions, abs=1e-6)
    rows = np.concatenate([np.full((50, 1), 2.0), actions], 1)
    assert bounding(hybrid, how)(unbounding(hybrid, how)(rows)) == pytest.approx(rows, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"actions.0": None}, r"has no array 'actions.0', but .*observations.camera"),
        ({"actions.0": np.full(2000, 3.5)}, "actions hold a choice that is not in Discrete"),
        ({"actions.1": np.full((2000, 1), np.nan)}, "actions that are not finite"),
        ({"truncated": np.zeros(7)}, r"arrays of \[7, 2000\] rows"),
        ({"observations.camera": np.zeros((2000, 2))}, r"\['camera'\] has shape \(2000, 2\)"),
        ({"observations.number": np.zeros(2000, int)}, r"\['number'\] holds 0, which is not in"),
    ],
)
def test_demonstrations_that_do_not_fit_are_told(tmp_path, change, told):
    arrays = {name: x for name, x in (expert(2000) | change).items() if x is not None}
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(ValueError, match=told):
        next(bc.train(bc.BC(env=Both, data=str(tmp_path / "odd.npz"), **SMALL)))


@pytest.mark.parametrize(
    ("name", "told"),
    [("nothing.npz", "does not exist"), ("text.npz", "is not an npz file"), (".", "a folder without data/main")],
)
def test_files_that_are_none_are_told(tmp_path, name, told):
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match=told):
        next(bc.train(bc.BC(env="CartPole-v1", data=str(tmp_path / name), **SMALL)))


def test_a_minari_data_set_on_disk_is_read(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "set" / "data").mkdir(parents=True)
    observations = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    with h5py.File(tmp_path / "set" / "data" / "main_data.hdf5", "w") as file:
        for e in (1, 0):
            group = file.create_group(f"episode_{e}")
            group["observations"], group["actions"] = observations[e], np.array([0, 1, 1, 0])
            group["rewards"], group["terminations"] = np.ones(4), np.arange(4) == 3
            group["truncations"] = np.zeros(4, bool)
            group.create_group("infos")["anything"] = np.zeros(5)
    env = gym.make("CartPole-v1")
    found = read(tmp_path / "set", env.observation_space, env.action_space)
    assert np.array_equal(found.observations, observations[:, :4].reshape(8, 4))
    assert found.actions.tolist() == [0, 1, 1, 0] * 2
    assert found.ends.tolist() == ([False] * 3 + [True]) * 2


def test_other_libraries_names_are_understood(tmp_path):
    np.savez(tmp_path / "d.npz", obs=np.zeros((4, 4)), acts=np.array([0, 1, 0, 1]), dones=np.array([0, 1, 0, 0]))
    env = gym.make("CartPole-v1")
    found = read(tmp_path / "d.npz", env.observation_space, env.action_space)
    assert found.ends.tolist() == [False, True, False, True]


def test_a_run_is_recorded_cloned_and_trained_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = ppo.PPO(
        env=Both, env_kwargs={"length": 5}, num_envs=4, num_steps=16, total_steps=256, seeds=2, threads=1, compile="off"
    )
    run = telescope.train(config, "run")
    policy = telescope.load(run)
    arrays = policy.record(6)
    assert len(arrays["rewards"]) == 30
    assert arrays["truncated"].sum() == 6
    space = packed_observations(Both.observation_space)
    assert {name for name in arrays if name.startswith("obs")} == {f"observations.{part.name}" for part in space.parts}
    again = policy.record(6)
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    assert not np.array_equal(arrays["actions.1"], policy.record(6, stochastic=True)["actions.1"])
    assert main(["record", "run", "--episodes", "10", "--out", "demos/d.npz"]) == 0
    told = capsys.readouterr().err
    assert "10 episodes, 50 steps" in told
    assert "2 agents played in turn; one alone (--agent 0)" in told
    assert main(["record", "run", "--episodes", "3", "--agent", "1", "--out", "one.npz"]) == 0
    assert "in turn" not in capsys.readouterr().err
    one = np.load("one.npz")
    second = policy.record(2)  # the second episode is the second agent's
    assert all(np.array_equal(one[name][5:10], second[name][5:10]) for name in one)
    with pytest.raises(ValueError, match="agent is 7; this run has the seeds 0 to 1"):
        policy.record(1, agent=7)
    flags = [
        "--total-steps",
        "512",
        "--num-steps",
        "256",
        "--compile",
        "off",
        "--seeds",
        "2",
        "--env-kwargs",
        "length",
        "5",
    ]
    assert main(["train", "bc", "demos/d.npz", "--env", "test_spaces:Both", "--out", "clone", *flags]) == 0
    more = [
        "--total-steps",
        "128",
        "--num-envs",
        "4",
        "--num-steps",
        "16",
        "--compile",
        "off",
        "--minibatch-size",
        "64",
    ]
    assert main(["train", "ppo", "--start", "clone", "--out", "further", *more]) == 0
    assert "trained for 512 steps" in capsys.readouterr().err
    further = telescope.load("further").config
    assert further.env_kwargs == {"length": 5}
    assert further.seeds == 2
    assert further.gamma == ppo.PPO().gamma


def test_masks_are_recorded_and_learned_with(tmp_path):
    from worlds import Masked

    config = ppo.PPO(env=Masked, num_envs=4, num_steps=16, total_steps=64, threads=1, compile="off")
    *_, last = ppo.train(config)
    arrays = Policy(config, last.policy).record(5)
    assert arrays["action_masks"].shape == (30, 3)
    assert arrays["action_masks"][np.arange(30), arrays["actions"]].all()
    np.savez(tmp_path / "m.npz", **arrays)
    *_, last = bc.train(dataclasses.replace(bc.BC(env=Masked, data=str(tmp_path / "m.npz"), **SMALL)))
    assert last.rows[0]["entropy"] < np.log(2) + 1e-6


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"num_envs": 2}, "num_envs is 2"), ({"held_out": 1.0}, "held_out is 1"), ({"held_out": 1.5}, "held_out is 1.5")],
)
def test_settings_that_cannot_work_are_told(changed, told):
    with pytest.raises(ValueError, match=told):
        bc.BC(**changed)

"""Environments that hide a part of their state: the T-maze's rules, and which velocities are masked."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest

from telescope.algorithms import ppo
from telescope.cli import main
from telescope.control.environments.factory import find_source
from telescope.control.environments.partial import MaskedVelocity, TMaze
from telescope.control.environments.population import Environments


def walk(maze, actions):
    """The rewards of these actions, and whether the last one ended the episode."""
    steps = [maze.step(action) for action in actions]
    return [reward for _, reward, *_ in steps], steps[-1][2], steps[-1][0]


@pytest.mark.parametrize("length", [1, 20])
def test_who_remembers_the_signal_earns_4(length):
    maze, goals = TMaze(length), set()
    for seed in range(20):
        seen, _ = maze.reset(seed=seed)
        goal = maze.NORTH if seen[0] else maze.SOUTH
        goals.add(goal)
        assert seen.tolist() == [goal == maze.NORTH, goal == maze.SOUTH, 0]
        rewards, ended, seen = walk(maze, [maze.EAST] * length)
        assert (rewards, ended, seen.tolist()) == ([0.0] * length, False, [0, 0, 1])
        way = goal if seed % 2 else maze.NORTH + maze.SOUTH - goal
        rewards, ended, _ = walk(maze, [way])
        assert (rewards, ended) == ([4.0 if seed % 2 else -0.1], True)
    assert goals == {maze.NORTH, maze.SOUTH}


def test_a_step_that_does_not_lead_on_costs():
    maze = TMaze(2)
    maze.reset(seed=0)
    rewards, ended, seen = walk(maze, [maze.NORTH, maze.SOUTH, maze.WEST, maze.EAST, maze.WEST])
    assert (rewards, ended, seen.tolist()) == ([-0.1, -0.1, -0.1, 0.0, -0.1], False, [0, 0, 0])
    rewards, ended, _ = walk(maze, [maze.EAST, maze.EAST, maze.EAST])
    assert (rewards, ended) == ([0.0, 0.0, -0.1], False)
    assert [maze.step(maze.WEST)[3] for _ in range(4)] == [False, False, False, True]  # after 4 · 2 + 4 steps
    with pytest.raises(ValueError, match="length is 0"):
        TMaze(0)


@pytest.mark.parametrize(
    ("env", "arguments", "kept"),
    [
        ("CartPole-v1", {}, [0, 2]),
        ("Pendulum-v1", {}, [0, 1]),
        ("Acrobot-v1", {}, [0, 1, 2, 3]),
        ("CartPole-v1", {"velocities": 3}, [0, 1, 2]),
        ("CartPole-v1", {"velocities": (0, 2)}, [1, 3]),
    ],
)
def test_velocities_are_left_out(env, arguments, kept):
    whole, hidden = gym.make(env), MaskedVelocity(gym.make(env), **arguments)
    seen, masked = whole.reset(seed=0)[0], hidden.reset(seed=0)[0]
    assert masked.tolist() == seen[kept].tolist()
    assert hidden.observation_space.contains(masked)
    assert hidden.observation_space.low.tolist() == whole.observation_space.low[kept].tolist()


def test_mujocos_velocities_are_found_by_its_own_description():
    pytest.importorskip("mujoco")
    hidden = MaskedVelocity(gym.make("Hopper-v5"))
    assert hidden.observation_space.shape == (5,)


@pytest.mark.parametrize(
    ("env", "arguments", "told"),
    [
        ("FrozenLake-v1", {}, "needs observations in a Box"),
        ("CartPole-v1", {"velocities": (0, 1, 2, 3)}, "not all"),
        ("CartPole-v1", {"velocities": 4}, r"velocities are \[4\]; expected some of the entries 0 to 3"),
        (TMaze, {}, "does not know the velocities of TMaze"),
    ],
)
def test_what_cannot_be_masked_is_told(env, arguments, told):
    with pytest.raises(ValueError, match=told):
        MaskedVelocity(gym.make(env) if isinstance(env, str) else env(), **arguments)


@pytest.mark.parametrize(("env", "size", "limit"), [("CartPole-v1", 2, 500), ("Pendulum-v1", 2, 200)])
def test_our_own_ids_are_known(env, size, limit):
    spec = find_source(f"telescope/Masked{env}")
    made = gym.make(spec)
    assert made.observation_space.shape == (size,)
    assert spec.max_episode_steps == limit
    limits = [one for one in str(made).split("<") if one == "TimeLimit"]
    assert len(limits) == 1
    environments = Environments("telescope/TMaze-v0", seeds=[0], num_envs=2, env_kwargs={"length": 3})
    assert environments.reset()[0].shape == (1, 2, 3)
    environments.close()


def test_a_t_maze_is_trained_from_the_command_line(tmp_path, capsys):
    flags = "--memory gru --memory-size 16 --env-kwargs length 2 --total-steps 2048 --compile off --epochs 1"
    main(["train", "ppo", "telescope/TMaze-v0", *flags.split(), "--out", str(tmp_path / "run")])
    main(["eval", str(tmp_path / "run"), "--episodes", "2"])
    assert "telescope/TMaze-v0" in (tmp_path / "run" / "config.toml").read_text()
    assert main(["train", "dqn", "CartPole-v1", "--memory", "gru", "--out", str(tmp_path / "other")]) != 0
    told = capsys.readouterr().err
    assert "there is no flag --memory here; it needs an algorithm with memory: ppo, a2c" in told


def test_presets_leave_the_memory_to_the_flag():
    for family in ("TMaze-v0", "MaskedCartPole-v1", "MaskedPendulum-v1"):
        config = ppo.preset(f"telescope/{family}")
        assert config.memory == "none"
        assert config.minibatch_size % config.num_steps == 0
        assert config != ppo.PPO(env=f"telescope/{family}")


@pytest.mark.slow
def test_a_t_maze_of_length_20_needs_a_memory():
    """What a policy without one earns at most is 1.95 on average."""
    for memory, low, high in (("gru", 3.9, 4.0), ("none", 1.0, 2.6)):
        config = dataclasses.replace(ppo.preset("telescope/TMaze-v0"), memory=memory, seeds=2)
        *_, last = ppo.train(config)
        returns = [row["return_mean"] for row in last.rows]
        assert low <= np.mean(returns) <= high

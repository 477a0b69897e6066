"""Stacks gathered from single frames are those of Gymnasium's wrapper, bit for bit, in rollouts and in replay."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import FrameStackObservation

from telescope.algorithms import dqn, ppo
from telescope.control.agents.stacking import stacked
from telescope.control.environments.population import Environments
from telescope.control.experience.replay import Replay
from telescope.control.experience.rollout import Rollouts, Transition
from telescope.control.experience.stacks import Stack

PPO = ppo.PPO(
    seeds=2,
    total_steps=96,
    num_envs=2,
    num_steps=24,
    minibatch_size=16,
    epochs=2,
    hidden=(8,),
    shared_network=True,
    frame_stack=3,
    threads=1,
    compile="off",
)
DQN = dqn.DQN(
    seeds=2,
    total_steps=96,
    num_envs=2,
    num_steps=24,
    minibatch_size=16,
    learning_starts=20,
    updates_per_step=0.5,
    n_step=3,
    hidden=(8,),
    frame_stack=3,
    threads=1,
    compile="off",
)


class Numbered(gym.Env):
    """Pictures that are full of the number of their episode and step; episodes of one step to seven, of either end."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, dtype: str = "uint8") -> None:
        self.observation_space = gym.spaces.Box(0, 255 if dtype == "uint8" else 1, (5, 6), np.dtype(dtype).type)

    def _view(self):
        if self.observation_space.dtype == np.uint8:
            return np.full((5, 6), self.drawn + self.steps, np.uint8)
        return np.full((5, 6), (self.drawn + self.steps) / 255, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.drawn, self.last = 0, int(self.np_random.integers(200)), int(self.np_random.integers(1, 8))
        return self._view(), {}

    def step(self, action):
        self.steps += 1
        ends = self.steps == self.last
        earned, odd = float(action == self.steps % 2), self.drawn % 2 == 1
        return self._view(), earned, ends and not odd, ends and odd, {}


def rows_of(module, config, resume=None):
    rows, states = [], []
    for step in module.train(config, resume):
        rows += [{k: v for k, v in row.items() if not k.startswith("time_")} for row in step.rows]
        states.append(step.state)
    return rows, states


def wrapped(config):
    """The same run, whose environments copy frames."""
    return dataclasses.replace(
        config, frame_stack=1, wrap=("gymnasium.wrappers:FrameStackObservation", f"stack_size={config.frame_stack}")
    )


MODES = ["same_step", "next_step", "disabled"]


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("autoreset", MODES)
@pytest.mark.parametrize(("module", "config"), [(ppo, PPO), (dqn, DQN)])
def test_a_run_on_stacks_is_that_of_gymnasiums_wrapper(module, config, autoreset, dtype):
    config = dataclasses.replace(config, env=Numbered, env_kwargs={"dtype": dtype}, autoreset=autoreset)
    assert rows_of(module, config)[0] == rows_of(module, wrapped(config))[0]


@pytest.mark.parametrize(
    "more",
    [
        {"encoder": "mlp"},
        {"memory": "gru", "memory_size": 4, "minibatch_size": 24, "recompute_advantages": True},
        {"critic": "quantile"},
        {"recompute_advantages": True},
    ],
    ids=str,
)
def test_so_is_every_kind_of_ppo(more):
    config = dataclasses.replace(PPO, env=Numbered, **more)
    assert rows_of(ppo, config)[0] == rows_of(ppo, wrapped(config))[0]


@pytest.mark.parametrize(
    "more", [{"normalise_observations": True}, {"critic": "gradient", "minibatch_size": 24}], ids=str
)
def test_where_whole_stacks_are_needed_the_wrapper_makes_them(more):
    config = dataclasses.replace(PPO, env=Numbered, **more)
    assert not config.single_frames
    assert rows_of(ppo, config)[0] == rows_of(ppo, wrapped(config))[0]


@pytest.mark.parametrize(("module", "config"), [(ppo, PPO), (dqn, dataclasses.replace(DQN, replay_capacity=40))])
def test_a_resumed_run_has_the_stacks_of_the_run_that_was_never_stopped(module, config):
    config = dataclasses.replace(config, env=Numbered)
    rows, states = rows_of(module, config)
    for state in states[:-1]:
        again, _ = rows_of(module, config, state)
        assert again == rows[-len(again) :]


def test_frames_lie_in_a_rollout_once(monkeypatch):
    seen, collect = [], Rollouts.collect
    monkeypatch.setattr(Rollouts, "collect", lambda *given: seen.append(collect(*given)) or seen[-1])
    next(ppo.train(dataclasses.replace(PPO, env=Numbered)))
    rollout, _ = seen[0]
    finals = np.bincount(rollout.finals.places[1], minlength=2).max()
    assert rollout.frames.shape == (2, (2 + 24 + 1) * 2 + finals, 5, 6)
    assert rollout.frames.dtype == torch.uint8
    assert rollout.observations.shape == (24, 2, 2, 3)
    assert rollout.observations.dtype == torch.int32


def test_vectors_and_dicts_keep_the_wrapper():
    for space in (gym.spaces.Box(-1, 1, (3,)), gym.spaces.Dict({"a": gym.spaces.Box(0, 255, (5, 5), np.uint8)})):

        class World(Numbered):
            def __init__(self, space=space):
                self.observation_space = space

        config = dataclasses.replace(PPO, env=World)
        environments = Environments.of(config, single_frames=True)
        assert environments.stack == 1
        whole = FrameStackObservation(World(), 3).observation_space
        assert getattr(environments.observation_space, "original", environments.observation_space) == whole
        environments.close()


def test_a_stack_is_the_wrappers():
    env, inner = FrameStackObservation(Numbered(), 4), Numbered()
    stack = Stack(4)
    wanted, _ = env.reset(seed=3)
    stack.begin(inner.reset(seed=3)[0][None, None])
    for _ in range(40):
        np.testing.assert_array_equal(stack.seen[0, 0], wanted)
        wanted, _, terminated, truncated, _ = env.step(0)
        frame, *_ = inner.step(0)
        np.testing.assert_array_equal(stack.after(frame[None, None])[0, 0], wanted)
        ended = terminated or truncated
        if ended:
            wanted, frame = env.reset()[0], inner.reset()[0]
        stack.push(frame[None, None], np.array([[ended]]))


def test_places_become_stacks():
    frames = torch.arange(2 * 7 * 6).reshape(2, 7, 2, 3)
    places = torch.tensor([[[0, 0, 1], [4, 5, 6]], [[3, 3, 3], [2, 1, 0]]], dtype=torch.int32)
    found = stacked(frames, places)
    assert found.shape == (2, 2, 3, 2, 3)
    for s, n, k in np.ndindex(2, 2, 3):
        assert (found[s, n, k] == frames[s, places[s, n, k]]).all()
    flat = stacked(frames.flatten(2), places)
    assert (flat == found.flatten(2)).all()
    assert stacked(None, places) is places


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("capacity", [8, 14, 100])
def test_a_replay_draws_stacks_that_were_seen(capacity, n):
    """Every drawn pair is one that a list of all steps has, also when the ring has come round; all of them come."""
    random = np.random.default_rng(0)
    replay, stack = Replay(capacity, 1, 1, stack=3), Stack(3)
    number, seen = 0, {}
    frame = np.array([[[number]]], np.uint8)
    stack.begin(frame)
    for t in range(60):
        before, ended = stack.seen.copy(), bool(random.random() < 0.3)
        number += 1
        reached = np.array([[[number]]], np.uint8)
        seen[t] = before[0, 0].ravel(), stack.after(reached)[0, 0].ravel(), ended
        number += ended
        latest = np.array([[[number]]], np.uint8)
        flags = np.array([[False]]), np.array([[ended]]), np.array([[True]])
        actions, rewards = np.array([[t]]), np.array([[1.0]])
        replay.add(Transition(frame, actions, rewards, *flags, reached, None, None, stack.age == 0))
        stack.push(latest, np.array([[ended]]))
        frame = latest
    drawn = replay.draw(random.random((1, 1, 400)), n=n)
    found = set()
    for m in range(400):
        t = int(drawn.actions[0, 0, m])
        last = t
        while last < t + n - 1 and not seen[last][2] and last < 59:
            last += 1
        np.testing.assert_array_equal(drawn.observations[0, 0, m].ravel(), seen[t][0])
        np.testing.assert_array_equal(drawn.next_observations[0, 0, m].ravel(), seen[last][1])
        found.add(t)
    assert found == set(range(0 if capacity == 100 else 62 - capacity, 60))


def test_a_replay_smaller_than_a_stack_is_refused():
    with pytest.raises(ValueError, match=r"replay_capacity is 4.*3 frames of each of 2"):
        Replay(4, 1, 2, stack=3)

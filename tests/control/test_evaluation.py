"""An evaluation ends, says what it cut, and its episodes are the same however many environments run them."""

import dataclasses
import functools
import importlib.util
import os
import warnings

import gymnasium as gym
import numpy as np
import pytest

from telescope.algorithms.ppo import PPO, train
from telescope.control import evaluate as evaluation
from telescope.control.agents.actor import Agents
from telescope.control.video import record
from telescope.policy import Policy
from worlds import Forever


class Drawn(gym.Env):
    """Episodes whose length is drawn at reset, or that never end; the reward is that draw. It counts its instances."""

    observation_space, action_space = gym.spaces.Box(0.0, 99.0, (1,), np.float32), gym.spaces.Discrete(3)
    made = 0
    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, most=9, endless=False, limit=None, render_mode=None):
        Drawn.made += 1
        self.most, self.endless, self.limit, self.render_mode = most, endless, limit, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length, self.steps = int(self.np_random.integers(1, self.most + 1)), 0
        return np.full(1, self.length, np.float32), {}

    def step(self, action):
        self.steps += 1
        seen = np.full(1, self.length, np.float32)
        ended = self.steps >= self.length and not self.endless
        return seen, self.length + int(action) / 8, ended, self.steps == self.limit, {}

    def render(self):
        return np.full((16, 16, 3), self.steps % 255, np.uint8)


SMALL = PPO(env=Drawn, seeds=2, num_steps=16, minibatch_size=16, epochs=1, total_steps=32, compile="off")


@functools.cache
def state():
    return [metrics.policy for metrics in train(SMALL)][-1]


def policy(**settings):
    return Policy(dataclasses.replace(SMALL, **settings), state())


def on_cores(monkeypatch, count):
    monkeypatch.setattr(os, "cpu_count", lambda: count)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("vectorization", ["sync", pytest.param("async", marks=pytest.mark.slow)])
def test_the_number_of_environments_changes_no_bit(monkeypatch, stochastic, vectorization):
    found = []
    for cores in (1, 3, 6, 64):
        on_cores(monkeypatch, cores)
        found.append(policy(vectorization=vectorization).evaluate(11, stochastic=stochastic))
    for one in found[1:]:
        for a, b in zip(one, found[0], strict=True):
            np.testing.assert_array_equal(a, b)
    assert len(np.unique(found[0].lengths)) > 3
    assert not found[0].cut.any()


def test_episodes_are_keyed_by_seed_and_number():
    few, many = policy().evaluate(3), policy().evaluate(10)
    np.testing.assert_array_equal(few.returns, many.returns[:, :3])
    alone = Policy(
        dataclasses.replace(SMALL, seeds=1, seed=1),
        {"parameters": state()["parameters"][1:], "normaliser": {k: x[1:] for k, x in state()["normaliser"].items()}},
    )
    np.testing.assert_array_equal(alone.evaluate(10).lengths[0], many.lengths[1])


def test_policy_calls_have_one_size_whatever_the_number_of_environments(monkeypatch):
    """Products of another size may round otherwise, and an episode would depend on the machine's cores."""
    sizes, actor = set(), Agents.actor

    def spied(self, parameters):
        act = actor(self, parameters)
        return lambda observations, *more: sizes.add(observations.shape) or act(observations, *more)

    monkeypatch.setattr(Agents, "actor", spied)
    for cores in (1, 6, 64):
        on_cores(monkeypatch, cores)
        policy().evaluate(9)
    assert sizes == {(2, 8, 1)}


@pytest.mark.parametrize(("cores", "seeds", "most"), [(1, 2, 2), (4, 2, 4), (64, 2, 16), (4, 1, 4)])
def test_no_more_environments_than_cores_or_seeds(monkeypatch, cores, seeds, most):
    on_cores(monkeypatch, cores)
    environments = evaluation.evaluation_environments(PPO(env=Drawn, seeds=seeds), episodes=100, max_steps=9)
    assert environments.num_envs * seeds == most
    environments.close()
    before = Drawn.made
    policy(seeds=2).evaluate(50)
    assert Drawn.made - before <= max(2, cores, 1) * 8


def test_what_never_ends_is_cut_and_told():
    with pytest.warns(UserWarning, match=r"6 of 6 evaluation .* after 7 steps.*seed 0: 0, 1, 2; seed 1: 0"):
        result = policy(env_kwargs={"endless": True}).evaluate(3, max_steps=7)
    assert result.cut.all()
    assert (result.lengths == 7).all()
    lengths = policy().evaluate(3).lengths  # of the same draws, which are the reward
    assert (np.abs(result.returns - 7 * lengths) <= 7 * 0.25).all(), "seven rewards, none more"


def test_only_what_goes_on_is_cut_and_the_others_stay_as_they_were():
    whole = policy().evaluate(12)
    with pytest.warns(UserWarning, match="were cut after 5 steps"):
        cut = policy().evaluate(12, max_steps=5)
    np.testing.assert_array_equal(cut.cut, whole.lengths > 5)
    np.testing.assert_array_equal(cut.lengths, np.minimum(whole.lengths, 5))
    np.testing.assert_array_equal(cut.returns[~cut.cut], whole.returns[~cut.cut])


def test_a_time_limit_at_the_very_bound_is_an_end():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = policy(env_kwargs={"endless": True, "limit": 7}).evaluate(4, max_steps=7)
    assert (result.lengths == 7).all()
    assert not result.cut.any()


WAYS = [{"vectorization": "vector_entry_point"}]
if importlib.util.find_spec("envpool"):
    WAYS.append({"backend": "envpool"})


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_vector_environments_are_bounded_too_and_begin_every_round_anew(way):
    config = PPO(env="CartPole-v1", seeds=2, num_steps=8, minibatch_size=8, epochs=1, total_steps=8, compile="off")
    (parameters,) = [metrics.policy for metrics in train(config)]
    agents = Policy(dataclasses.replace(config, **way), parameters)
    whole = agents.evaluate(40)
    assert len({tuple(row) for row in whole.lengths.T[:32]} & {tuple(row) for row in whole.lengths.T[32:]}) < 8
    np.testing.assert_array_equal(whole.returns, whole.lengths)
    bound = int(np.median(whole.lengths))
    with pytest.warns(UserWarning, match="were cut"):
        cut = agents.evaluate(40, max_steps=bound)
    np.testing.assert_array_equal(cut.lengths, np.minimum(whole.lengths, bound))
    np.testing.assert_array_equal(cut.returns, cut.lengths)
    np.testing.assert_array_equal(cut.cut, whole.lengths > bound)


def test_training_says_it_beside_the_iteration_and_goes_on():
    config = dataclasses.replace(SMALL, env=Forever, env_kwargs={"limit": 10**9}, eval_every=16, eval_max_steps=20)
    found = [(metrics.warnings, metrics.rows[0]["eval_return_mean"]) for metrics in train(config)]
    assert [score for _, score in found] == [20.0, 20.0]
    for sentences, _ in found:
        assert len(sentences) == 1
        assert "20 of 20 evaluation episodes were cut after 20 steps" in sentences[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"episodes": -1}, "episodes is -1; expected at least 1"),
        ({"episodes": 0}, "episodes is 0"),
        ({"episodes": 2.5}, "episodes is 2.5"),
        ({"episodes": 1, "max_steps": 0}, "max_steps is 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        policy().evaluate(**arguments)
    assert policy().evaluate(np.int64(1)).returns.shape == (2, 1)


def test_a_film_of_an_endless_episode_ends(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    with pytest.warns(UserWarning, match="the video stops after 40 steps, before its episode ends"):
        film = record(Drawn, policy().act, tmp_path, env_kwargs={"endless": True}, max_steps=40)
    assert film.stat().st_size > 0


def test_a_class_that_is_named_by_its_module_is_filmed(tmp_path):
    assert record("test_evaluation:Drawn", policy().act, tmp_path, env_kwargs={"most": 3}).stat().st_size > 0


class Undrawn(Drawn):
    def __init__(self):
        super().__init__()


class Blank(Drawn):
    def render(self):
        return None


@pytest.mark.parametrize(
    ("env", "sentence"), [(Undrawn, "Undrawn takes no render_mode"), (Blank, "a NoneType; a video")]
)
def test_an_environment_that_draws_nothing_is_no_film(tmp_path, env, sentence):
    with pytest.raises(ValueError, match=sentence):
        record(env, policy().act, tmp_path)

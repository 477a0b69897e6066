"""How drawn actions meet a Box's bounds, and the note where they hardly could."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telescope.algorithms.ppo import PPO, train
from telescope.control.agents.actions import bounding, scale_note
from telescope.control.execution import try_out
from telescope.policy import Policy

Box = gym.spaces.Box
RANGES = [(-1, 1), (0, 1), (-5, 5), (0, 1000), (1e-3, 2e-3), (100, 120), (-3e38, 3e38)]
HOWS = ("clip", "rescale", "squash")


def task(low, high, best):
    class Task(gym.Env):
        """One step, whose reward is highest where the action is `best`."""

        observation_space, action_space = Box(0.0, 1.0, (1,), np.float32), Box(low, high, (1,), np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(1, np.float32), {}

        def step(self, action):
            assert self.action_space.contains(action)
            return np.zeros(1, np.float32), 1 - 4 * (float(action[0] - best) / (high - low)) ** 2, True, False, {}

    return Task


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("how", HOWS)
def test_every_draw_becomes_an_action_of_the_space(low, high, how):
    space = Box(low, high, (2,), np.float32)
    draws = np.concatenate([np.linspace(-4, 4, 101), [-1e30, 1e30]]).astype(np.float32)
    with np.errstate(over="ignore"):
        found = bounding(space, how)(np.stack([draws, -draws], -1)).astype(np.float32)
    assert all(map(space.contains, found))
    assert (np.diff(found[:, 0][np.argsort(draws)]) >= 0).all(), "a larger draw is no smaller action"


@given(st.floats(-1, 1), st.floats(-100, 100), st.floats(0.1, 100))
def test_rescaling_is_the_line_through_both_bounds_and_squashing_takes_tanh_first(draw, low, width):
    space = Box(low, low + width, (), np.float64)
    line = low + (draw + 1) / 2 * width
    assert float(bounding(space, "rescale")(np.asarray(draw))) == pytest.approx(line, abs=1e-9 * (abs(low) + width))
    curve = low + (np.tanh(draw) + 1) / 2 * width
    assert float(bounding(space, "squash")(np.asarray(draw))) == pytest.approx(curve, abs=1e-9 * (abs(low) + width))
    assert float(bounding(space, "clip")(np.asarray(draw))) == min(max(draw, low), low + width)


@pytest.mark.parametrize("how", ["rescale", "squash"])
def test_only_a_box_has_bounds_to_map_to(how):
    with pytest.raises(ValueError, match=f"action_bounds is '{how}', .* only a Box has bounds"):
        try_out(PPO(action_bounds=how))


@pytest.mark.parametrize("how", ["clip", "rescale", "squash", "stretch"])
def test_numbers_without_a_bound_stay_as_drawn_and_one_bound_is_kept(how):
    space = Box(np.array([-2, 5, -np.inf, -np.inf]), np.array([2, np.inf, 5, np.inf]), dtype=np.float64)
    drawn = np.random.default_rng(0).normal(size=(100, 4)) * 2
    given = np.tanh(drawn) if how == "stretch" else drawn
    found = bounding(space, how)(given)
    assert all(map(space.contains, found))
    assert found[:, 3] == pytest.approx(drawn[:, 3], abs=1e-5)
    if how in ("squash", "stretch"):
        assert found[:, 0] == pytest.approx(2 * np.tanh(drawn[:, 0]))
        assert found[:, 1] == pytest.approx(5 + np.log1p(np.exp(drawn[:, 1])), abs=1e-5)
        assert found[:, 2] == pytest.approx(5 - np.log1p(np.exp(drawn[:, 2])), abs=1e-5)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, bool])
def test_a_box_of_whole_numbers_gets_the_nearest_one(dtype):
    space = Box(0, 1, (1,), dtype)
    found = bounding(space)(np.array([[-3.0], [0.4], [0.6], [7.0]]))
    assert found.ravel().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("low", "high", "log_std", "told"),
    [
        (-1, 1, 0.0, False),
        (-5, 5, 0.0, False),
        (0, 1, 0.0, True),
        (0, 3, 0.0, False),
        (-0.4, 0.4, -0.5, False),
        (-np.inf, np.inf, 0.0, False),
        (0, 1000, 0.0, True),
        (1e-3, 2e-3, 0.0, True),
        (100, 120, 0.0, True),
        (-1, 1, -4.0, True),
        (100, np.inf, 0.0, True),
    ],
)
def test_a_range_out_of_the_first_policys_reach_is_told(low, high, log_std, told):
    note = scale_note(Box(low, high, (1,), np.float32), log_std)
    assert bool(note) == told
    assert ("--action-bounds rescale" in note) == (told and bool(np.isfinite(high)))


SMALL = PPO(num_envs=8, num_steps=32, minibatch_size=128, learning_rate=3e-3, total_steps=4096, compile="off")


@pytest.mark.parametrize("how", ["rescale", "squash"])
def test_far_ranges_are_learned_by_request(how):
    config = dataclasses.replace(SMALL, env=task(100, 120, 113), action_bounds=how)
    metrics = list(train(config))[-1]
    assert metrics.rows[0]["return_mean"] > 0.7
    assert not any("actions lie in" in note for note in metrics.notes)
    policy = Policy(config, metrics.policy)
    assert float(policy.act(np.zeros(1, np.float32))[0]) == pytest.approx(113, abs=3)
    assert policy.evaluate(2).returns.min() > 0.9, "an evaluation maps actions as training did"


def test_they_are_told_otherwise():
    notes = next(train(dataclasses.replace(SMALL, env=task(0, 1000, 500)))).notes
    assert any("actions lie in Box(0.0, 1000.0" in note for note in notes)

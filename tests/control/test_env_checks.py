"""Laws of the check at the door: what an environment hands out fits its spaces, or is refused and never bent.

The oracle is the space itself: what `contains` takes passes unchanged, what it does not is refused. The two exceptions
are written out: kinds of dtype that hold the same numbers, and floats beyond the bounds of a Box.
"""

import contextlib
import re
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from telescope.algorithms.ppo import PPO, train
from telescope.control.environments.checks import flags_fit, mask_fit, observation_fit, rewards_fit
from telescope.control.environments.population import Environments
from telescope.policy import Policy

Box, Discrete = spaces.Box, spaces.Discrete
BYTES, FLOATS, WHOLE = Box(0, 255, (3,), np.uint8), Box(-9, 9, (3,)), Box(-9, 9, (3,), np.int64)

WRONG = [  # space, what fits, what does not, the sentence's words
    (FLOATS, np.zeros(3, np.float32), 1.5, "shape ()"),
    (FLOATS, np.zeros(3, np.float32), np.ones(1), "shape (1,)"),
    (FLOATS, np.zeros(3, np.float32), np.ones((1, 3)), "shape (1, 3)"),
    (FLOATS, np.zeros(3, np.float32), np.ones(4), "shape (4,)"),
    (Box(-9, 9, (3, 3)), np.zeros((3, 3)), np.ones((3, 1)), "shape (3, 1)"),
    (FLOATS, np.zeros(3, np.float32), None, "is None"),
    (FLOATS, np.zeros(3, np.float32), ["1", "2", "3"], "real numbers"),
    (FLOATS, np.zeros(3, np.float32), np.ones(3, complex), "real numbers"),
    (FLOATS, np.zeros(3, np.float32), [[1.0], [1.0, 2.0], []], "not an array of numbers"),
    (BYTES, np.zeros(3, np.uint8), np.array([0.2, 0.7, 1.0]), "dtype float64"),
    (BYTES, np.zeros(3, np.uint8), np.zeros(3), "dtype float64"),  # also where nothing would be cut this time
    (BYTES, np.zeros(3, np.uint8), np.array([300, 0, 0]), "holds 300"),
    (BYTES, np.zeros(3, np.uint8), [0, -1, 0], "holds -1"),
    (Box(0, 3, (3,), np.uint8), np.zeros(3, np.uint8), np.full(3, 4, np.uint8), "holds 4"),
    (Box(0, 1, (3,), bool), np.zeros(3, bool), np.full(3, 2), "holds 2"),
    (WHOLE, np.zeros(3, np.int64), np.array([0.0, np.nan, 0.0]), "dtype float64"),
    (Discrete(5), 0, -1, "holds -1"),
    (Discrete(5), 0, 5, "holds 5"),
    (Discrete(5, start=1), 1, 0, "holds 0"),
    (Discrete(5), 0, 2.7, "dtype float64"),
    (Discrete(5), 0, np.array([2]), "shape (1,)"),
    (Discrete(5), 0, "2", "real numbers"),
]
RIGHT = [  # other kinds of the same numbers
    (FLOATS, [1, 2.5, -3]),
    (FLOATS, np.array([1, 2, 3], np.int8)),
    (FLOATS, np.array([1, 2, 3], ">f8")),
    (FLOATS, np.full(3, 50.0, np.float32)),  # beyond the bounds, which physics and wrappers do
    (BYTES, [0, 255, 7]),
    (BYTES, np.array([0, 255, 7], np.int64)),
    (WHOLE, np.array([True, False, True])),
    (Discrete(5, start=1), 5),
    (Discrete(5, start=1), np.array(1, np.int16)),
]


class World(gym.Env):
    """Returns `first` at reset and `then` at steps, whose episode it cuts with `ends`; masks likewise."""

    def __init__(self, space, first, then, ends=False, reward=1.0, info=({}, {}), actions=None, flag=False):
        self.observation_space, self.action_space = space, actions or Discrete(4)
        self.first, self.then, self.ends, self.reward, self.info, self.flag = first, then, ends, reward, info, flag

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.first, dict(self.info[0])

    def step(self, action):
        return self.then, self.reward, self.flag, self.ends, dict(self.info[1])


def opened(*args, **kwargs):
    return contextlib.closing(Environments(*args, **kwargs))


def stepped(**settings):
    """The step after the reset of one such world; the error where there is one."""
    with opened(
        World, seeds=[0], num_envs=1, vectorization=settings.pop("vectorization", "sync"), env_kwargs=settings
    ) as e:
        e.reset()
        return e.step(np.zeros((1, 1, *e.action_space.shape), int))


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize(("space", "first", "then", "words"), WRONG)
def test_what_does_not_fit_the_space_is_refused_at_reset_and_step(space, first, then, words, ends):
    """Also in the state that a time limit cuts at, whose value is bootstrapped."""
    with pytest.raises(ValueError, match=re.escape(words)):
        stepped(space=space, first=then, then=first)
    with pytest.raises(ValueError, match=re.escape(words)):
        stepped(space=space, first=first, then=then, ends=ends)


@pytest.mark.parametrize(("space", "x"), RIGHT)
def test_other_kinds_of_the_same_numbers_pass(space, x):
    step = stepped(space=space, first=x, then=x)
    np.testing.assert_array_equal(step.observations[0, 0], np.asarray(x) - getattr(space, "start", 0))


def test_worker_processes_check_too():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium shows the worker's traceback
        with pytest.raises(ValueError, match=r"shape \(\); expected \(3,\)"):
            stepped(space=FLOATS, first=np.zeros(3), then=1.5, vectorization="async")


@pytest.mark.parametrize("reward", [None, "1.0", np.ones(1), [1.0], 1j])
def test_a_reward_is_one_real_number(reward):
    with pytest.raises(ValueError, match="the reward that World returned"):
        stepped(space=FLOATS, first=np.zeros(3), then=np.zeros(3), reward=reward)
    assert stepped(space=FLOATS, first=np.zeros(3), then=np.zeros(3), reward=np.array(2)).rewards.item() == 2.0


@pytest.mark.parametrize("flag", [None, "False", np.array([False]), 2, 0.5, float("nan")])
def test_a_flag_is_true_or_false(flag):
    with pytest.raises(ValueError, match="the flag terminated that World returned"):
        stepped(space=FLOATS, first=np.zeros(3), then=np.zeros(3), flag=flag)
    for taken in (1, np.True_, np.array(True)):
        assert stepped(space=FLOATS, first=np.zeros(3), then=np.zeros(3), flag=taken).terminated.all()


class OldGym(World):
    def step(self, action):
        return self.then, 1.0, False, {}


class OldReset(World):
    def reset(self, *, seed=None, options=None):
        return np.zeros(2)


@pytest.mark.parametrize(("kind", "words"), [(OldGym, "4 values"), (OldReset, r"reset\(\) returned ndarray")])
def test_the_interface_of_before_gymnasium_is_told(kind, words):
    config = PPO(env=kind, env_kwargs={"space": FLOATS, "first": np.zeros(3), "then": np.zeros(3)}, total_steps=2048)
    with pytest.raises(ValueError, match=words):
        next(iter(train(config)))


class Vector(gym.vector.VectorEnv):
    """A vector environment whose steps are what the test says."""

    single_observation_space, single_action_space = BYTES, Discrete(2)

    def __init__(self, num_envs, outcome=None, infos=None):
        self.num_envs, self.infos, self.metadata = num_envs, infos or {}, {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.outcome = {"observations": np.zeros((num_envs, 3), np.uint8), "rewards": np.zeros(num_envs)}
        self.outcome |= {"terminated": np.zeros(num_envs, bool), "truncated": np.zeros(num_envs, bool)} | (
            outcome or {}
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((self.num_envs, 3), np.uint8), {}

    def step(self, actions):
        return *self.outcome.values(), self.infos


@pytest.mark.parametrize(
    ("outcome", "infos", "words"),
    [
        ({"observations": np.zeros((2, 1), np.uint8)}, None, "shape (2, 1)"),
        ({"observations": np.full((2, 3), 0.5)}, None, "dtype float64"),
        ({"observations": np.full((2, 3), 256)}, None, "holds 256"),
        ({"rewards": np.zeros((2, 1))}, None, "shape (2, 1)"),
        ({"rewards": ["0", "1"]}, None, "real numbers"),
        ({"terminated": [None, None]}, None, "real numbers"),
        ({"truncated": np.array([True, False])}, None, "infos['final_obs']"),
        ({"truncated": np.array([True, False])}, {"final_obs": [np.full(3, 0.5), None]}, "dtype float64"),
        ({}, {"action_mask": np.ones((2, 2))}, "not at reset"),
    ],
)
def test_a_vector_entry_point_is_checked_alike(outcome, infos, words):
    gym.register("Vector-v0", vector_entry_point=Vector)
    try:
        with opened(
            "Vector-v0", seeds=[0], num_envs=2, env_kwargs={"outcome": outcome, "infos": infos}
        ) as environments:
            environments.reset()
            with pytest.raises(ValueError, match=re.escape(words)):
                environments.step(np.zeros((1, 2), int))
    finally:
        del gym.registry["Vector-v0"]


# Masks

MULTI = spaces.MultiDiscrete([2, 3])
MASKS = [  # what fits Discrete(4) or MULTI, and what it allows
    (Discrete(4), [1, 0, 1, 0], [True, False, True, False]),
    (Discrete(4), np.array([1.0, 0.0, 1.0, 0.0]), [True, False, True, False]),
    (Discrete(4), np.array([[0, 0, 0, 1]], np.int8), [False, False, False, True]),
    (MULTI, ([True, False], [0, 0, 1]), [True, False, False, False, True]),
    (MULTI, [np.array([1, 0]), np.array([0, 0, 1])], [True, False, False, False, True]),
    (MULTI, [1, 0, 0, 0, 1], [True, False, False, False, True]),
]
WRONG_MASKS = [
    (Discrete(4), [0.0, -np.inf, 0.0, -np.inf], "mask == 0"),
    (Discrete(4), [0.0, -1e8, 0.0, 0.0], "mask == 0"),
    (Discrete(4), [1, np.nan, 0, 0], "holds nan"),
    (Discrete(4), [0, 2], "4 in shape (4,)"),
    (Discrete(4), [0, 1, 2, 3], "holds 2"),
    (Discrete(4), [0, 0, 0, 0], "allows no action"),
    (Discrete(4), ["a", "b", "c", "d"], "real numbers"),
    (MULTI, [1, 0, 0, 0, 0], "no action of some component"),
    (MULTI, ([1, 0], [0, 0]), "5 in shape (5,)"),
    (spaces.MultiBinary(2), [1, 1], "only Discrete and MultiDiscrete"),
]


@pytest.mark.parametrize(("space", "mask", "allowed"), MASKS)
def test_a_mask_in_any_usual_form(space, mask, allowed):
    np.testing.assert_array_equal(mask_fit(space, mask), allowed)
    given = ({"action_mask": mask},) * 2
    step = stepped(space=FLOATS, first=np.zeros(3), then=np.zeros(3), actions=space, info=given)
    np.testing.assert_array_equal(step.action_masks[0, 0], allowed)


@pytest.mark.parametrize(("space", "mask", "words"), WRONG_MASKS)
def test_a_mask_that_means_something_else_is_refused(space, mask, words):
    for given in (({"action_mask": mask},) * 2, ({"action_mask": np.ones(4)}, {"action_mask": mask})):
        with pytest.raises(ValueError, match=re.escape(words)):
            stepped(space=FLOATS, first=np.zeros(3), then=np.zeros(3), actions=space, info=given)
        if not isinstance(space, Discrete):
            break


def test_a_mask_only_at_steps_or_only_at_reset_is_refused_and_none_is_no_mask():
    zeros, mask = np.zeros(3), {"action_mask": np.ones(4)}
    with pytest.raises(ValueError, match="at a step but not at reset"):
        stepped(space=FLOATS, first=zeros, then=zeros, info=({}, mask))
    with pytest.raises(ValueError, match="at reset but not at this step"):
        stepped(space=FLOATS, first=zeros, then=zeros, info=(mask, {"action_mask": None}))
    assert stepped(space=FLOATS, first=zeros, then=zeros, info=({"action_mask": None},) * 2).action_masks is None


class Method(World):
    """The mask is a method, as sb3-contrib wants it; it forbids the action that was taken last."""

    last = 0

    def action_masks(self):
        return np.arange(4) != self.last

    def step(self, action):
        assert action != self.last
        self.last = action
        return super().step(action)


def test_a_method_action_masks_is_noticed():
    settings = {"space": FLOATS, "first": np.zeros(3), "then": np.zeros(3)}
    with opened(Method, seeds=[0], num_envs=2, env_kwargs=settings) as environments:
        _, masks = environments.reset()
        for time in range(1, 9):
            np.testing.assert_array_equal(masks, np.arange(4)[None, None] != [[[(time - 1) % 4]] * 2])
            masks = environments.step(np.full((1, 2), time % 4)).action_masks


@pytest.mark.parametrize("lead", [(), (2,), (0,)])
def test_checks_of_batches_are_those_of_each(lead):
    fit = observation_fit(BYTES, lead)
    x = np.full((*lead, 3), 7, np.uint8)
    assert fit(x) is x
    np.testing.assert_array_equal(rewards_fit(np.zeros(lead, int), lead, "r"), np.zeros(lead))
    assert flags_fit(np.zeros(lead), lead, "f").dtype == bool
    for wrong in (x[..., None], x[..., :2]):
        with pytest.raises(ValueError, match="shape"):
            fit(wrong)


# The same door for a policy's caller


@pytest.fixture(scope="module")
def policy():
    settings = {"space": BYTES, "first": np.zeros(3, np.uint8), "then": np.zeros(3, np.uint8), "ends": True}
    config = PPO(env=World, env_kwargs=settings, num_steps=8, minibatch_size=8, epochs=1, total_steps=8, compile="off")
    for metrics in train(config):
        return Policy(config, metrics.policy)


@pytest.mark.parametrize(("space", "first", "then", "words"), [row for row in WRONG if row[0] is BYTES])
def test_act_and_value_check_observations(policy, space, first, then, words):
    for call in (policy.act, policy.value):
        call(first)
        with pytest.raises(ValueError, match=re.escape(words)):
            call(then)
        with pytest.raises(ValueError, match=re.escape(words)):
            call(np.stack([first, then]) if words.startswith("dtype") else [first, then])


@pytest.mark.parametrize(("space", "mask", "words"), [row for row in WRONG_MASKS if row[0] == Discrete(4)])
def test_act_checks_masks(policy, space, mask, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        policy.act(np.zeros(3, np.uint8), action_mask=mask)


def test_act_takes_one_mask_for_each_observation(policy):
    two = np.zeros((2, 3), np.uint8)
    assert policy.act(two, action_mask=[[0, 1, 0, 0], [0, 0, 0, 1]]).tolist() == [1, 3]
    assert policy.act(two[0], action_mask=[0, 0, 1, 0]) == 2
    for wrong in (np.ones(4), np.ones((1, 4)), np.ones((3, 4)), np.ones((2, 3))):
        with pytest.raises(ValueError, match=re.escape("expected 4 in shape (2, 4)")):
            policy.act(two, action_mask=wrong)


def test_act_refuses_what_is_not_finite():
    config = PPO(env="Pendulum-v1", num_steps=8, minibatch_size=8, epochs=1, total_steps=8, compile="off")
    policy = Policy(config, next(iter(train(config))).policy)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            policy.act([0.0, bad, 0.0])


@pytest.mark.parametrize("evaluating", [False, True])
def test_a_first_observation_that_is_not_finite_is_told(evaluating):
    zeros, broken = np.zeros(3), np.array([0.0, np.nan, 0.0])
    settings = {"space": FLOATS, "first": zeros if evaluating else broken, "then": zeros, "ends": True}
    config = PPO(env=World, env_kwargs=settings, num_steps=8, minibatch_size=8, epochs=1, total_steps=8, compile="off")
    if evaluating:
        policy = Policy(config, next(iter(train(config))).policy)
        policy.config.env_kwargs["then"] = broken
        with pytest.raises(FloatingPointError, match="observation of seed 0, environment 0 is nan in an evaluation"):
            policy.evaluate(2)
    else:
        with pytest.raises(FloatingPointError, match="observation of seed 0, environment 0 is nan at reset"):
            next(iter(train(config)))


@pytest.mark.parametrize("dtype", ["float16", "longdouble", ">f4", ">f8", "bool", "uint8", "uint64", "int64"])
def test_every_kind_of_number_is_normalised_alike(dtype):
    """The statistics are those of float64 observations with the same values, to the last bit."""
    moments = []
    for kind in (dtype, "float64"):
        x = np.ones(3, kind)
        space = Box(0, 1, (3,), np.dtype(kind))
        settings = {"space": space, "first": np.zeros(3, kind), "then": x, "ends": True}
        config = PPO(
            env=World, env_kwargs=settings, num_steps=8, minibatch_size=8, epochs=1, total_steps=8, compile="off"
        )
        config = config.__class__(**{**config.__dict__, "normalise_observations": True})
        moments.append(next(iter(train(config))).policy["normaliser"])
    for name, array in moments[0].items():
        np.testing.assert_array_equal(array, moments[1][name])


# One object


def test_one_environment_object_is_not_stepped_as_several():
    zeros = np.zeros(3)
    world = World(FLOATS, zeros, zeros)
    for options in ({"seeds": [0], "num_envs": 2}, {"seeds": [0, 1], "num_envs": 1}):
        with pytest.raises(ValueError, match="same World object twice"):
            Environments(lambda: world, **options)
        with pytest.raises(ValueError, match="same World object twice"):
            Environments(lambda: gym.wrappers.TimeLimit(world, 5), **options)
    for _ in range(2):  # one at a time is fine, again and again
        with opened(lambda: world, seeds=[0], num_envs=1) as environments:
            environments.reset()
            with pytest.raises(ValueError, match="same World object twice"):
                Environments(lambda: world, seeds=[0], num_envs=1)


def test_one_environment_object_is_not_trained_in_and_evaluated_in():
    world = World(FLOATS, np.zeros(3), np.zeros(3), ends=True)
    config = PPO(env=lambda: world, num_steps=8, minibatch_size=8, epochs=1, total_steps=16, compile="off")
    policy = Policy(config, list(train(config))[-1].policy)
    assert policy.evaluate(3).lengths.tolist() == [[1, 1, 1]] if policy.config.eval_episodes == 1 else True
    with pytest.raises(ValueError, match="same World object twice"):  # before anything is trained
        next(iter(train(config.__class__(**{**config.__dict__, "eval_every": 16}))))

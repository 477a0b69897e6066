"""Laws of the environments: one stream of transitions, whatever the vectorization, autoreset mode or company.

The oracle is a plain loop over single Gymnasium environments.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode

from telescope.control.environments.cartpole import CartPolePopulation
from telescope.control.environments.population import Environments, environment_seed

MODES = ("next_step", "same_step", "disabled")


class Scripted(gym.Env):
    """Counts its steps; by the script its episodes terminate, are truncated, or both at once.

    Hands out the same observation array each time, as some environments do.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(3, start=5)

    def __init__(self, lengths=(1, 3, 2), masks=False):
        self.lengths, self.masks, self.episode, self.seen = lengths, masks, -1, np.zeros(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time = 0 if seed is not None else self.episode + 1, 0
        self.seen[:] = self.np_random.random(), 0
        return self.seen, self._info(5)

    def step(self, action):
        assert self.action_space.contains(action), action
        self.time += 1
        self.seen[:] = self.seen[0] + action, self.time
        over = self.time >= self.lengths[self.episode % len(self.lengths)]
        kind = self.episode % 3
        return self.seen, 0.1 * self.time, over and kind != 1, over and kind != 0, self._info(action)

    def _info(self, last):
        return {"action_mask": np.arange(5, 8) != last, "noise": "text"} if self.masks else {}


class Framed(Scripted):
    """A scripted environment with a Discrete observation that counts from 10."""

    observation_space = spaces.Discrete(7, start=10)

    def reset(self, *, seed=None, options=None):
        _, info = super().reset(seed=seed)
        return 10, info

    def step(self, action):
        _, *rest = super().step(action)
        return 10 + self.time, *rest


def opened(*args, **kwargs):
    return contextlib.closing(Environments(*args, **kwargs))


def scripted_actions(space, row, steps):
    """The actions of environment `row`, in the counting of the agents (0..n-1)."""
    own = np.random.default_rng([7, row])
    if isinstance(space, spaces.Discrete):
        return own.integers(space.n, size=steps)
    return own.uniform(space.low, space.high, (steps, *space.shape)).astype(space.dtype)


def single_transitions(make, seed, actions, start):
    """A plain loop over one environment: (observation, reward, terminated, truncated, successor) for each action."""
    env, transitions = make(), []
    observation, _ = env.reset(seed=seed)
    for action in actions:
        observation = np.array(observation)
        successor, reward, terminated, truncated, _ = env.step(action + start if start is not None else action)
        transitions.append((observation, float(reward), terminated, truncated, np.array(successor)))
        observation = env.reset()[0] if terminated or truncated else successor
    env.close()
    return transitions


def vector_transitions(environments, steps):
    """The same from the class under test, for every row in the order of seeds, with masked rows left out."""
    rows = len(environments.seeds) * environments.num_envs
    shape = (len(environments.seeds), environments.num_envs)
    actions = np.stack([scripted_actions(environments.action_space, row, steps) for row in range(rows)])
    taken, transitions = np.zeros(rows, int), [[] for _ in range(rows)]
    observations, _ = environments.reset()
    for _ in range(steps):
        chosen = actions[np.arange(rows), taken]
        step = environments.step(chosen.reshape(*shape, *chosen.shape[1:]))
        assert (step.observations is step.next_observations) or (step.terminated | step.truncated).any()
        flat = [array.reshape(rows, *array.shape[2:]) for array in (observations, *step[1:6])]
        for row in range(rows):
            before, after, reward, terminated, truncated, live = (array[row] for array in flat)
            if live:
                transitions[row].append((before.copy(), reward, terminated, truncated, after.copy()))
                taken[row] += 1
            else:
                assert reward == 0
                assert not terminated
                assert not truncated
        observations = step.observations
    return transitions


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b, strict=isinstance(a, np.ndarray))


WORLDS = {
    "CartPole-v1": (partial(gym.make, "CartPole-v1"), {}),
    "MountainCar-v0": (
        partial(gym.make, "MountainCar-v0", max_episode_steps=7),
        {"max_episode_steps": 7},
    ),
    "scripted": (Scripted, {}),
}


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("autoreset", MODES)
@pytest.mark.parametrize("world", WORLDS)
def test_transitions_are_those_of_a_plain_loop(world, autoreset, vectorization):
    make, kwargs = WORLDS[world]
    env, steps = (Scripted if world == "scripted" else world), 90
    with opened(
        env, seeds=[3, 1], num_envs=1, vectorization=vectorization, autoreset=autoreset, env_kwargs=kwargs
    ) as environments:
        rows = vector_transitions(environments, steps)
        assert (environments.autoreset, environments.vectorization) == (autoreset, vectorization)
        start = getattr(environments.action_space, "start", None)
        for row, (seed, got) in enumerate(zip([3, 1], rows, strict=True)):
            assert len(got) == steps or autoreset == "next_step"
            actions = scripted_actions(environments.action_space, row, len(got))
            assert_same(got, single_transitions(make, environment_seed(seed, 0, 0), actions, start))
            assert sum(terminated or truncated for _, _, terminated, truncated, _ in got) >= 2


@pytest.mark.parametrize("autoreset", MODES)
def test_both_flags_at_once_come_through(autoreset):
    with opened(Scripted, seeds=[0], num_envs=2, autoreset=autoreset) as environments:
        ends = [(te, tr) for _, _, te, tr, _ in vector_transitions(environments, 30)[1] if te or tr]
    assert ends[:3] == [(True, False), (False, True), (True, True)]


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("CartPole-v1", {}),
        ("CartPole-v1", {"vectorization": "sync"}),
        ("Hopper-v5", {}),
        ("CartPole-v1", {"backend": "envpool"}),
        ("Hopper-v5", {"backend": "envpool"}),
    ],
)
def test_a_seed_sees_the_same_alone_and_in_company(env, options):
    together, alone = [], []
    policy = {}
    for seeds, record in (([9, 4, 6], together), ([4], alone)):
        with opened(env, seeds=seeds, num_envs=3, **options) as environments:
            position = seeds.index(4)
            observations, _ = environments.reset()
            for time in range(80):
                record.append(observations[position])
                if time not in policy:
                    policy[time] = scripted_actions(environments.action_space, time, 3)
                step = environments.step(np.stack([policy[time]] * len(seeds)))
                record.extend(array[position] for array in step[1:6])
                observations = step.observations
    assert_same([together], [alone])
    assert any(record.dtype == bool and record.any() for record in together[3::6])


def test_seeds_environments_and_streams_all_differ():
    starts = []
    for seeds, stream in (([0, 1], 0), ([0, 1], 1)):
        for options in ({"vectorization": "sync"}, {"vectorization": "vector_entry_point"}):
            with opened("CartPole-v1", seeds=seeds, num_envs=2, stream=stream, **options) as environments:
                starts.append(environments.reset()[0].reshape(-1, 4))
    for kind in (starts[0::2], starts[1::2]):
        assert len(np.unique(np.concatenate(kind), axis=0)) == 8


def test_vector_entry_point_is_gymnasiums_own():
    """Against `make_vec` itself, one vector environment per seed; the resets of its carts share a generator."""
    seeds, steps = [5, 2], 120
    actions = np.random.default_rng(0).integers(2, size=(steps, 2, 4))
    with opened("CartPole-v1", seeds=seeds, num_envs=4) as environments:
        assert (environments.vectorization, environments.autoreset) == ("vector_entry_point", "next_step")
        first, _ = environments.reset()
        ours = [environments.step(chosen) for chosen in actions]
    for position, seed in enumerate(seeds):
        vector = gym.make_vec("CartPole-v1", 4, vectorization_mode="vector_entry_point")
        observations, _ = vector.reset(seed=environment_seed(seed, 0, 0))
        np.testing.assert_array_equal(first[position], observations)
        ended = np.zeros(4, bool)
        for chosen, step in zip(actions[:, position], ours, strict=True):
            observations, rewards, terminated, truncated, _ = vector.step(chosen)
            np.testing.assert_array_equal(step.observations[position], observations, strict=True)
            np.testing.assert_array_equal(step.rewards[position], rewards)
            np.testing.assert_array_equal(step.terminated[position], terminated)
            np.testing.assert_array_equal(step.truncated[position], truncated)
            np.testing.assert_array_equal(step.mask[position], ~ended)
            ended = terminated | truncated
        assert ended.any() or not step.mask.all() or any(s.terminated.any() for s in ours)
        vector.close()


@pytest.mark.parametrize("kwargs", [{}, {"sutton_barto_reward": True, "max_episode_steps": 9}], ids=str)
def test_carts_move_as_gymnasiums_to_the_last_bit(kwargs):
    """Also in the float64 state that the observations round."""
    ours, theirs = CartPolePopulation(13, 1, **kwargs), CartPoleVectorEnv(13, **kwargs)
    actions = np.random.default_rng(1).integers(2, size=(400, 13))
    np.testing.assert_array_equal(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
    for chosen in actions:
        for mine, other in zip(ours.step(chosen), theirs.step(chosen), strict=True):
            np.testing.assert_array_equal(mine, other)
        assert ours.state.tobytes() == theirs.state.tobytes()


class Clocks(gym.vector.VectorEnv):
    """A vector environment of each autoreset mode; its observations are its own array, overwritten at each step.

    Rows tick up to a random limit. Careless: the rows that it resets by itself have a reward and a flag as well.
    """

    single_observation_space, single_action_space = spaces.Box(0, 9, (2,), np.float64), spaces.Discrete(2)

    def __init__(self, num_envs, mode, **_):
        self.num_envs, self.metadata = num_envs, {"autoreset_mode": mode}
        self.seen, self.ended = np.zeros((num_envs, 2)), np.zeros(num_envs, bool)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._restart((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        return self.seen, {}

    def _restart(self, rows):
        self.seen[rows, 0], self.ended[rows] = 0, False
        self.seen[rows, 1] = self.np_random.integers(1, 5, size=rows.sum())

    def step(self, actions):
        mode, fresh, infos = self.metadata["autoreset_mode"], self.ended.copy(), {}
        self.seen[~fresh, 0] += 1
        self.ended = (self.seen[:, 0] >= self.seen[:, 1]) & ~fresh
        ended = self.ended.copy()
        if mode is AutoresetMode.NEXT_STEP:
            self._restart(fresh)
        elif mode is AutoresetMode.SAME_STEP and ended.any():
            infos = {"final_obs": self.seen.copy(), "_final_obs": ended}
            self._restart(ended)
        return self.seen, np.ones(self.num_envs), ended | fresh, fresh, infos


@pytest.fixture(params=list(AutoresetMode))
def clocks(request):
    gym.register("Clocks-v0", vector_entry_point=Clocks, kwargs={"mode": request.param})
    yield request.param
    del gym.registry["Clocks-v0"]


def test_a_vector_entry_point_of_any_mode(clocks):
    """Successors count up to the limit in each episode, and a restored copy goes on in the same way."""
    with opened("Clocks-v0", seeds=[3, 1], num_envs=2) as environments:
        assert environments.autoreset == clocks.name.lower()
        assert environments.exact_resume
        for row in vector_transitions(environments, 40):
            time = 0.0
            for before, reward, terminated, truncated, after in row:
                assert before[0] == time
                assert after.tolist() == [time + 1, before[1]]
                assert reward == 1
                assert terminated == (after[0] == after[1])
                assert not truncated
                time = 0.0 if terminated else time + 1
            assert sum(terminated for _, _, terminated, _, _ in row) >= 5
        for _ in range(9):
            state, rest = environments.state(), [environments.step(np.zeros((2, 2))) for _ in range(9)]
            environments.restore(state)
            for step in rest:
                assert_same([step[:6]], [environments.step(np.zeros((2, 2)))[:6]])


@pytest.mark.parametrize("env", ["CartPole-v1", "HalfCheetah-v5"])
def test_envpool_gives_the_same_kind_of_step(env):
    """A masked row follows every end, with reward 0, and no other row is masked."""
    with opened(env, seeds=[1, 2], num_envs=2, backend="envpool", env_kwargs={"max_episode_steps": 12}) as environments:
        assert environments.autoreset == "next_step"
        assert not environments.exact_resume
        observations, masks = environments.reset()
        assert masks is None
        assert observations.shape == (2, 2, *environments.observation_space.shape)
        ended, ends, time = np.zeros((2, 2), bool), 0, np.zeros((2, 2), int)
        for _ in range(60):
            step = environments.step(np.zeros((2, 2, *environments.action_space.shape)))
            np.testing.assert_array_equal(step.mask, ~ended)
            assert (step.rewards[ended] == 0).all()
            assert not (step.terminated | step.truncated)[ended].any()
            assert (step.rewards[~ended] != 0).all()
            assert step.rewards.dtype == np.float64
            time = np.where(ended, 0, time + 1)
            np.testing.assert_array_equal(step.truncated, time == 12)
            ended = step.terminated | step.truncated
            ends += ended.sum()
        assert ends >= 8


@pytest.mark.parametrize("autoreset", MODES)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_action_masks_belong_to_what_the_policy_sees_next(autoreset, vectorization):
    """Scripted's mask forbids the action taken last, and 0 (5 in its own counting) after a reset."""
    with opened(
        partial(Scripted, masks=True), seeds=[0], num_envs=2, vectorization=vectorization, autoreset=autoreset
    ) as environments:
        _, masks = environments.reset()
        np.testing.assert_array_equal(masks, [[[False, True, True]] * 2])
        seen = set()
        for time in range(12):
            actions = np.array([[time % 3, (time + 1) % 3]])
            step = environments.step(actions)
            for row in range(2):
                ended = step.terminated[0, row] or step.truncated[0, row]
                if ended and autoreset == "next_step":
                    expected = [True] * 3  # no choice is made here
                else:
                    last = 0 if ended or not step.mask[0, row] else actions[0, row]
                    expected = [last != choice for choice in range(3)]
                assert step.action_masks[0, row].tolist() == expected
                seen.add((bool(ended), bool(step.mask[0, row])))
        assert len(seen) == 2 + (autoreset == "next_step")


class Forgetful(Scripted):
    def __init__(self, at_reset):
        super().__init__(lengths=(9,))
        self.at_reset = at_reset

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0], {"action_mask": np.ones(self.at_reset)}


def test_a_missing_or_misshaped_mask_is_an_error():
    with opened(Forgetful, seeds=[0], num_envs=1, env_kwargs={"at_reset": 3}) as environments:
        environments.reset()
        with pytest.raises(ValueError, match="at reset but not at this step"):
            environments.step(np.zeros((1, 1)))
    with (
        opened(Forgetful, seeds=[0], num_envs=1, env_kwargs={"at_reset": 4}) as environments,
        pytest.raises(ValueError, match=r"4 entries .* expected 3"),
    ):
        environments.reset()


@pytest.mark.parametrize("autoreset", MODES)
def test_discrete_spaces_count_from_zero(autoreset):
    with opened(Framed, seeds=[0, 1], num_envs=1, autoreset=autoreset) as environments:
        observations, _ = environments.reset()
        np.testing.assert_array_equal(observations, np.zeros((2, 1), np.int64))
        for _ in range(12):
            step = environments.step(np.full((2, 1), 2, np.int32))  # 7 in its own counting, or it would assert
            ends = step.terminated | step.truncated
            assert (step.next_observations[step.mask] >= 1).all()
            assert (step.next_observations <= 3).all()
            assert (step.observations[ends] == 0).all() or autoreset == "next_step"


class Spaces(gym.Env):
    """Any spaces at all; checks that the actions that arrive belong to it."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.mark.parametrize(
    ("space", "action", "received"),
    [
        (spaces.MultiDiscrete([2, 3], start=[4, 1]), [1.0, 2.0], [5, 3]),
        (spaces.MultiBinary(3), [1.0, 0.0, 1.0], [1, 0, 1]),
        (spaces.Box(-1, np.inf, (2, 2), np.float32), np.eye(2), np.eye(2)),
    ],
)
def test_actions_arrive_in_the_spaces_own_dtype(space, action, received):
    image = spaces.Box(0, 255, (4, 3, 2), np.uint8)
    with opened(Spaces, seeds=[0], num_envs=2, env_kwargs={"observation_space": image, "action_space": space}) as e:
        assert e.reset()[0].shape == (1, 2, 4, 3, 2)
        e.step(np.array([[action] * 2]))
        np.testing.assert_array_equal(e.state()["lanes"]["0"]["actions"], [received] * 2)


def test_results_are_not_overwritten_by_later_steps():
    for options in ({"vectorization": "sync"}, {"vectorization": "async"}, {}, {"backend": "envpool"}):
        with opened("CartPole-v1", seeds=[0, 1], num_envs=2, **options) as environments:
            results = [environments.reset()[0]]
            kept = [results[0].copy()]
            for _ in range(12):
                results += list(environments.step(np.ones((2, 2)))[:6])
                kept += [array.copy() for array in results[-6:]]
            environments.reset()
            assert_same([results], [kept])


def test_reset_starts_the_same_episodes_again():
    for options in ({"vectorization": "sync"}, {}, {"backend": "envpool"}):
        with opened("CartPole-v1", seeds=[2], num_envs=2, **options) as environments:
            first = vector_transitions(environments, 30)
            for one, again in zip(first, vector_transitions(environments, 30), strict=True):
                assert_same(one, again)


DICT = spaces.Dict({"a": spaces.Discrete(2)})


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        ("CartPol-v1", {}, "env 'CartPol-v1' is not registered.*CartPole-v1"),
        ("HalfCheetah-v5x", {}, "HalfCheetah-v5x.*did you mean HalfCheetah-v5"),
        ("no_such_module_here:Env-v0", {}, "no_such_module_here"),
        ("CartPol-v1", {"backend": "envpool"}, "CartPol-v1.*EnvPool.*CartPole-v1"),
        (3, {}, "env must be an environment id or a callable.*got 3"),
        (Scripted, {"backend": "envpool"}, "must be an id for backend"),
        (Scripted, {"backend": "envpol"}, "backend is 'envpol', expected one of: gymnasium, envpool"),
        (Scripted, {"vectorization": "fast"}, "vectorization is 'fast'.*auto, sync, async, vector_entry_point"),
        (Scripted, {"autoreset": "never"}, "autoreset is 'never'.*next_step, same_step, disabled"),
        (Scripted, {"vectorization": "vector_entry_point"}, "Scripted has no vector entry point"),
        ("Acrobot-v1", {"vectorization": "vector_entry_point"}, "Acrobot-v1 has no vector entry point"),
        (Scripted, {"num_envs": 0}, "num_envs is 0"),
        (Scripted, {"seeds": []}, r"seeds is \[\]"),
        (Scripted, {"seeds": [1, -1]}, r"seeds is \[1, -1\]"),
        (Scripted, {"env_kwargs": {"lenths": 3}}, "'lenths': 3.*Scripted.*lenths"),
        ("Acrobot-v1", {"env_kwargs": {"colour": 1}}, "Acrobot-v1.*'colour': 1"),
        ("CartPole-v1", {"env_kwargs": {"colour": 1}}, "CartPole-v1.*'colour': 1"),
        ("CartPole-v1", {"env_kwargs": {"colour": 1}, "backend": "envpool"}, "'colour': 1.*CartPole-v1"),
        (lambda: "surprise", {}, "must return a gymnasium.Env, but .* returned a str"),
        (lambda: Spaces(spaces.Text(3), spaces.Discrete(2)), {}, "observation space Text.*TransformObservation"),
        (lambda: Spaces(spaces.Discrete(2), spaces.Text(3)), {}, "action space Text.*TransformAction"),
    ],
)
def test_bad_input_is_told_what_is_wrong(env, options, message):
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        Environments(env, **{"seeds": [0], "num_envs": 1, **options})


def missing_package():
    raise ModuleNotFoundError("No module named 'somewhere'")


def test_missing_packages_are_named(monkeypatch):
    with pytest.raises(ImportError, match=r"missing_package needs a package.*'somewhere'.*telescope-rl\[control\]"):
        Environments(missing_package, seeds=[0], num_envs=1)
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r"pip install \"telescope-rl\[envpool\]\""):
        Environments("CartPole-v1", seeds=[0], num_envs=1, backend="envpool")


def broken(**kwargs):
    raise TypeError("a mistake of its own")


def test_an_environments_own_mistake_is_not_blamed_on_env_kwargs():
    with pytest.raises(TypeError, match="a mistake of its own"):
        Environments(broken, seeds=[0], num_envs=1)


def test_workers_survive_an_interrupt_and_end_with_close():
    before = signal.getsignal(signal.SIGINT)
    with opened("CartPole-v1", seeds=[0], num_envs=2, vectorization="async") as environments:
        environments.reset()
        workers = [child for child in multiprocessing.active_children() if "AsyncVectorEnv" in child.name]
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker.pid, signal.SIGINT)
        for _ in range(3):
            assert environments.step(np.zeros((1, 2))).mask.all()
        assert signal.getsignal(signal.SIGINT) is before  # the parent still can be interrupted
    assert not any(worker.is_alive() for worker in workers)


def test_mujoco_keeps_quiet_and_leaves_no_log(tmp_path):
    """In a new process, as MuJoCo writes past sys.stderr and makes its log in the working directory."""
    code = (
        "from telescope.control.environments.population import Environments as E\n"
        "if __name__ == '__main__':\n"
        "    for kind in ('sync', 'async'):\n"
        "        e = E('HalfCheetah-v5', seeds=[0], num_envs=1, vectorization=kind); e.reset(); e.close()\n"
    )
    (tmp_path / "script.py").write_text(code)
    run = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout + run.stderr == ""
    assert sorted(os.listdir(tmp_path)) == ["script.py"]

"""Laws of exact restore: environments brought back from plain data go on as if they had never stopped.

The oracle is the run that was not interrupted, compared bit for bit.
"""

import contextlib
import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from telescope.control.environments.population import Environments
from telescope.control.environments.snapshots import encode, pack, random_state, set_random_state, uncopyable, unpack

MODES = ("next_step", "same_step", "disabled")
CLASSIC = ("CartPole-v0", "CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1")
MUJOCO = (
    "Ant-v5",
    "HalfCheetah-v5",
    "Hopper-v5",
    "Humanoid-v5",
    "HumanoidStandup-v5",
    "InvertedDoublePendulum-v5",
    "InvertedPendulum-v5",
    "Pusher-v5",
    "Reacher-v5",
    "Swimmer-v5",
    "Walker2d-v5",
)


class Lottery(gym.Env):
    """Episodes of random length whose steps are random; terminates, is truncated, or both; gives action masks."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.MultiDiscrete([2, 3])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.np_random.integers(1, 5)
        return self._seen(0)

    def step(self, action):
        self.left -= 1
        observation, info = self._seen(action.sum())
        kind = self.np_random.integers(1, 4)
        return observation, float(self.left), self.left == 0 and bool(kind & 1), self.left == 0 and kind > 1, info

    def _seen(self, shift):
        mask = self.np_random.random(5) < 0.5
        mask[[0, 2]] |= ~mask[[1, 3]]  # something is always allowed
        return (shift + self.np_random.normal(size=1)).astype(np.float32), {"action_mask": (mask[:2], mask[2:])}


def opened(*args, **kwargs):
    return contextlib.closing(Environments(*args, **kwargs))


def leaves(state, path=()):
    for name, value in state.items():
        assert isinstance(name, str)
        yield from leaves(value, (*path, name)) if isinstance(value, dict) else [((*path, name), value)]


def through_files(state):
    """What a checkpoint does: the arrays' bytes on one side, JSON on the other; fails if anything else is in it."""
    arrays = {path: array for path, array in leaves(state) if isinstance(array, np.ndarray)}
    stored = {path: (array.tobytes(), array.dtype.str, array.shape) for path, array in arrays.items()}
    rest = json.loads(json.dumps([[path, value] for path, value in leaves(state) if path not in arrays]))
    read = {path: np.frombuffer(data, kind).reshape(shape) for path, (data, kind, shape) in stored.items()}
    assert not any(array.dtype.hasobject for array in arrays.values())
    result = {}
    for path, value in [*read.items(), *((tuple(path), value) for path, value in rest)]:
        *parents, name = path
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    result.setdefault("lanes", {})
    return result


def random_actions(environments, steps, seed=0):
    space, own = environments.action_space, np.random.default_rng(seed)
    shape = (steps, len(environments.seeds), environments.num_envs, *space.shape)
    if isinstance(space, spaces.Box):
        return own.uniform(space.low, space.high, shape)
    return own.integers(getattr(space, "n", None) or space.nvec, size=shape)


def assert_same(first, second):
    """Bit for bit, NaN and dtype included."""
    for a, b in zip(first, second, strict=True):
        if a is None or b is None:
            assert a is b
        else:
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def check_restore(env, interruptions, after, **options):
    """Interrupt a run at some of its steps and compare the next `after` steps with the run that went on."""
    options = {"seeds": [3, 1], "num_envs": 2, **options}
    states, seen = {}, {}
    with opened(env, **options) as whole:
        actions = random_actions(whole, max(interruptions) + after)
        observations, masks = whole.reset()
        steps = []
        for time, chosen in enumerate(actions):
            if time in interruptions:
                states[time], seen[time] = through_files(whole.state()), (observations, masks)
            steps.append(whole.step(chosen))
            observations, masks = steps[-1].observations, steps[-1].action_masks
    with opened(env, **options) as used:
        used.reset()
        used.step(actions[0])  # it has a past of its own, which must not shine through
        for time, state in states.items():
            assert_same(used.restore(state), seen[time])
            assert json.dumps(state, default=np.ndarray.tolist) == json.dumps(
                through_files(used.state()), default=np.ndarray.tolist
            )
            for chosen, step in zip(actions[time : time + after], steps[time:], strict=False):
                assert_same(used.step(chosen), step)
    return steps


@pytest.mark.parametrize("autoreset", MODES)
@pytest.mark.parametrize("env", [Lottery, "CartPole-v1"])
def test_restore_at_any_step_in_every_autoreset_mode(env, autoreset):
    steps = check_restore(env, range(60), 12, vectorization="sync", autoreset=autoreset)
    assert sum((step.terminated | step.truncated).sum() for step in steps) >= 4
    assert autoreset != "next_step" or not all(step.mask.all() for step in steps)
    assert all((step.action_masks is None) == (env != Lottery) for step in steps)


@pytest.mark.parametrize("autoreset", MODES)
def test_restore_in_worker_processes(autoreset):
    check_restore(Lottery, range(0, 20, 3), 10, vectorization="async", autoreset=autoreset)


@pytest.mark.parametrize("kwargs", [{}, {"max_episode_steps": 9, "sutton_barto_reward": True}])
def test_restore_the_vector_entry_point_with_its_time_limit(kwargs):
    steps = check_restore("CartPole-v1", range(0, 60, 5), 30, env_kwargs=kwargs)
    assert any(step.truncated.any() for step in steps) == bool(kwargs)


@pytest.mark.parametrize("env", CLASSIC)
def test_restore_classic_control(env):
    check_restore(env, (0, 1, 90), 130, env_kwargs={"max_episode_steps": 100})


@pytest.mark.parametrize("env", MUJOCO)
def test_restore_mujoco(env):
    steps = check_restore(env, (0, 45), 30, num_envs=1, env_kwargs={"max_episode_steps": 50})
    assert any(step.truncated.any() or step.terminated.any() for step in steps[45:])


def test_every_classic_and_mujoco_id_is_covered():
    def of(module, version=""):
        return {n for n, spec in gym.registry.items() if module in str(spec.entry_point) and n.endswith(version)}

    assert of("classic_control") == set(CLASSIC)
    assert of("envs.mujoco", "-v5") == set(MUJOCO)


class Own(gym.Env):
    """Draws its observations from a generator that nobody else can see."""

    observation_space = spaces.Box(0, 1, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, generator=None, dtype=np.float64):
        self.own = generator or np.random.default_rng(0)
        self.observation_space = spaces.Box(0, 1, (2,), dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.step(0)[0], {}

    def step(self, action):
        return self.own.random(2).astype(self.observation_space.dtype), 0.0, False, False, {}


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_replay_that_goes_elsewhere_is_refused(vectorization):
    with opened(Own, seeds=[0], num_envs=1, vectorization=vectorization) as environments:
        environments.reset()
        environments.step(np.zeros((1, 1)))
        with pytest.raises(ValueError, match="environment 0 cannot be restored: replaying the 1 actions"):
            environments.restore(environments.state())


def test_a_changed_environment_is_refused():
    with opened(Own, seeds=[0], num_envs=1) as environments:
        environments.reset()
        state = environments.state()
    with (
        opened(Own, seeds=[0], num_envs=1, env_kwargs={"dtype": np.float32}) as environments,
        pytest.raises(ValueError, match=r"observations are float32\(2,\), the stored ones float64\(2,\)"),
    ):
        environments.restore(state)


def test_a_random_generator_that_strays_is_refused():
    with opened(Lottery, seeds=[0], num_envs=1) as environments:
        environments.reset()
        state = environments.state()
        state["lanes"]["0"]["random_now"] = [encode(random_state(np.random.default_rng(1)))]
        with pytest.raises(ValueError, match="random generator in another state"):
            environments.restore(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [1]}, r"saved with seeds=\[0\] .* seeds=\[1\]"),
        ({"num_envs": 2}, "saved with num_envs=1 .* num_envs=2"),
        ({"autoreset": "disabled"}, "saved with autoreset='same_step' .* autoreset='disabled'"),
        ({"vectorization": "async"}, "saved with vectorization='sync' .* vectorization='async'"),
    ],
)
def test_a_state_of_other_settings_is_refused(change, message):
    options = {"seeds": [0], "num_envs": 1}
    with opened(Lottery, **options) as first, opened(Lottery, **{**options, **change}) as second:
        first.reset()
        with pytest.raises(ValueError, match=message):
            second.restore(first.state())


@pytest.mark.parametrize("options", [{"vectorization": "sync"}, {}, {"backend": "envpool"}])
def test_there_is_no_state_before_the_first_reset(options):
    with (
        opened("CartPole-v1", seeds=[0], num_envs=1, **options) as environments,
        pytest.raises(ValueError, match=r"before the first reset\(\)"),
    ):
        environments.state()


def test_envpool_starts_new_episodes_and_says_so():
    options = {"seeds": [0, 1], "num_envs": 2, "backend": "envpool"}
    with opened("CartPole-v1", **options) as first, opened("CartPole-v1", **options) as second:
        assert not first.exact_resume
        assert "EnvPool" in first.resume_note
        assert "new episodes" in first.resume_note
        starts = [first.reset()[0]]
        for _ in range(3):  # each resume goes on from the state of the one before
            starts.append(second.restore(through_files(first.state()))[0])
            first, second = second, first
        assert len(np.unique(np.concatenate(starts).reshape(-1, 4), axis=0)) == 16
        again = second.restore(through_files(first.state()))[0]
        assert_same([again], [second.reset()[0]])


class Hoarder(gym.vector.VectorEnv):
    """A vector environment that keeps its state in a list, where nobody looks."""

    single_observation_space, single_action_space = spaces.Box(0, 1, (1,), np.float64), spaces.Discrete(2)

    def __init__(self, num_envs, **_):
        self.num_envs, self.metadata = num_envs, {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.store = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.store = [self.np_random.random() for _ in range(self.num_envs)]
        return np.array(self.store)[:, None], {}

    def step(self, actions):
        zeros = np.zeros(self.num_envs)
        return np.array(self.store)[:, None], zeros, zeros > 0, zeros > 0, {}


@pytest.fixture
def hoarder():
    gym.register("Hoarder-v0", vector_entry_point=Hoarder)
    yield "Hoarder-v0"
    del gym.registry["Hoarder-v0"]


def test_a_vector_environment_with_hidden_state_starts_new_episodes(hoarder):
    with opened(hoarder, seeds=[0, 1], num_envs=2) as environments:
        assert not environments.exact_resume
        assert "Hoarder" in environments.resume_note
        assert "store" in environments.resume_note
        start, _ = environments.reset()
        assert_same([environments.step(np.zeros((2, 2))).observations], [start])
        anew, _ = environments.restore(through_files(environments.state()))
        assert len(np.unique(np.concatenate([start, anew]))) == 8


def test_what_can_be_copied_is_told_by_its_type():
    vector = Hoarder(1)
    assert uncopyable(vector) == ["store"]
    vector.store = np.zeros(3)
    assert uncopyable(vector) == []
    vector.store, vector.names = [np.random.default_rng()], np.array([None])
    assert uncopyable(vector) == ["names"]


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_random_states_survive_as_text(kind):
    first, second = (np.random.Generator(getattr(np.random, kind)(seed)) for seed in (1, 2))
    first.integers(9, size=3, dtype=np.int32)  # leaves half of a 64-bit draw behind
    set_random_state(second, json.loads(json.dumps(encode(random_state(first)))))
    np.testing.assert_array_equal(first.integers(9, size=9, dtype=np.int32), second.integers(9, size=9, dtype=np.int32))
    np.testing.assert_array_equal(first.normal(size=9), second.normal(size=9))


def test_unpack_undoes_pack():
    snapshots = [
        {
            "seed": row,
            "random_at_reset": None if row else "a",
            "random_now": "b",
            "actions": np.full((length, 2), row, np.float32),
            "rewards": np.full(length, row / 2),
            "observation": np.full(3, row),
        }
        for row, length in enumerate((2, 0, 1))
    ]
    for before, after in zip(snapshots, unpack(pack(snapshots)), strict=True):
        assert before.keys() == after.keys()
        for name, value in before.items():
            np.testing.assert_array_equal(value, after[name], strict=isinstance(value, np.ndarray))

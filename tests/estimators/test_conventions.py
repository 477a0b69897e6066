"""Conventions: the same rollout, told in the way of each codebase, gives the same advantages; nothing gets lost.

Leaves out the packages themselves; `test_rivals.py` runs those.
"""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch

import oracle
import switching
import telescope
from telescope.estimators import conventions

GAMMA, LAM = 0.9, 0.8
T, B = 30, 4


def in_numpy(array: np.ndarray) -> np.ndarray:
    return array


LIBRARIES = pytest.mark.parametrize("told", [in_numpy, torch.from_numpy], ids=["numpy", "torch"])


class World(NamedTuple):
    """What really happened: T steps of B environments, and the values along the way."""

    rewards: np.ndarray
    values: np.ndarray
    last_values: np.ndarray
    final_values: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray

    def truth(self) -> oracle.Rollout:
        steps = oracle.Rollout(
            self.rewards, self.values, self.values, self.terminated, self.truncated, np.ones((T, B), bool)
        )
        return steps._replace(next_values=oracle.successors(steps, self.last_values, self.final_values))


@pytest.fixture
def world() -> World:
    steps = oracle.rollout((T, B))
    random = np.random.default_rng(5)
    last, final = random.normal(size=B), random.normal(size=(T, B))
    return World(steps.rewards, steps.values, last, final, steps.terminated, steps.truncated)


def assert_true(world: World, arguments: dict[str, Any]) -> None:
    """Advantages and returns are those of what really happened."""
    result = telescope.gae(**{"gamma": GAMMA, "lam": LAM} | arguments)
    expected = oracle.advantages(world.truth(), GAMMA, LAM)
    time_first = [np.asarray(array).T if arguments["axis"] else np.asarray(array) for array in result]
    np.testing.assert_allclose(time_first[0], expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(time_first[1], expected + world.values, rtol=1e-12, atol=1e-12)


# --- environments


@LIBRARIES
@pytest.mark.parametrize("axis", [0, 1])
def test_flags_of_this_step(world: World, told: Any, axis: int) -> None:
    w = World(*(told(np.ascontiguousarray(x.T if axis and x.ndim == 2 else x)) for x in world))
    ends = {"truncated": w.truncated, "final_values": w.final_values, "axis": axis}
    done = w.terminated | w.truncated
    both = w.terminated & w.truncated
    xp = np if told is in_numpy else torch
    longer = xp.concatenate([w.values, w.last_values[None] if axis == 0 else w.last_values[:, None]], axis)
    assert_true(
        world, conventions.from_last_values(w.rewards, w.values, w.last_values, terminated=w.terminated, **ends)
    )
    assert_true(world, conventions.from_values_with_bootstrap(w.rewards, longer, terminated=w.terminated, **ends))
    limits = ends | {"truncated": w.truncated & ~both}  # one flag for both: a time limit is one that is nothing else
    assert_true(world, conventions.from_dones(w.rewards, w.values, w.last_values, dones=done, **limits))
    starts = xp.concatenate([xp.ones_like(done[:1]), done[:-1]]) if axis == 0 else None
    if starts is not None:
        late = {"episode_starts": starts, "last_dones": done[-1]}
        assert_true(world, conventions.from_episode_starts(w.rewards, w.values, w.last_values, **late, **limits))
        assert_true(
            world,
            conventions.from_episode_starts(
                w.rewards, w.values, w.last_values, **{k: 1.0 * v for k, v in late.items()}, **limits
            ),
        )
    discounts = xp.where(w.terminated, 0.0, xp.full_like(w.values, GAMMA))
    rollout = conventions.from_discounts(w.rewards, longer, discounts=discounts, **ends)
    assert rollout["gamma"] is discounts
    assert_true(world, rollout)


@LIBRARIES
def test_rewards_that_arrive_a_row_late(world: World, told: Any) -> None:
    def late(array: np.ndarray, before: float) -> Any:
        return told(np.concatenate([np.full((1, B), before, array.dtype), array]))

    arguments = conventions.from_arrivals(
        late(world.rewards, np.nan),
        told(np.concatenate([world.values, world.last_values[None]])),
        terminated=late(world.terminated, True),
        truncated=late(world.truncated, True),
        final_values=late(world.final_values, np.nan),
    )
    assert_true(world, arguments)


def test_episode_starts_in_batch_major_order(world: World) -> None:
    done = world.terminated | world.truncated
    starts = np.concatenate([done[:1], done[:-1]]).T
    rollout = conventions.from_episode_starts(
        world.rewards.T,
        world.values.T,
        world.last_values,
        episode_starts=starts,
        last_dones=done[-1],
        truncated=(world.truncated & ~world.terminated).T,
        final_values=world.final_values.T,
        axis=1,
    )
    assert_true(world, rollout)


def test_a_truncated_step_that_is_not_done_is_refused(world: World) -> None:
    none = np.zeros((T, B), bool)
    with pytest.raises(ValueError, match=rf"truncated is True at {world.truncated.sum()} steps where dones is not"):
        conventions.from_dones(
            world.rewards, world.values, world.last_values, dones=none, truncated=world.truncated, final_values=None
        )


@LIBRARIES
def test_sparse_final_values(world: World, told: Any) -> None:
    places = np.nonzero(world.truncated)
    dense = conventions.dense_final_values(told(world.values), places, told(world.final_values[places]))
    np.testing.assert_array_equal(dense, np.where(world.truncated, world.final_values, np.nan))
    nothing = tuple(array[:0] for array in places)
    empty = conventions.dense_final_values(told(world.values), nothing, told(world.final_values[nothing]))
    assert np.isnan(np.asarray(empty)).all()


def test_one_environment_needs_no_batch_axis() -> None:
    """[T], where a plain number or a plain flag stands for what there is one of."""
    rewards, values = np.ones(3), np.zeros(3)
    flags = {"episode_starts": np.array([True, False, True]), "last_dones": True, "truncated": None}
    rollout = conventions.from_episode_starts(rewards, values, 9.0, **flags)
    np.testing.assert_array_equal(telescope.gae(**rollout, gamma=1.0, lam=1.0).advantages, [2, 1, 1])
    flags = {"terminated": np.array([True, False, False]), "truncated": None, "previous_dones": np.False_}
    rollout = conventions.from_next_step_autoreset(rewards, values, 9.0, **flags)
    np.testing.assert_array_equal(telescope.gae(**rollout, gamma=1.0, lam=1.0).advantages, [1, 0, 10])


# --- Gymnasium: one environment, three autoreset modes


class Clock(gym.Env):
    """Counts up and pays its count; episode k terminates at 3 or is cut at 5, turn about. State: (k, count)."""

    observation_space = gym.spaces.Box(0, 1000, (2,), np.float64)
    action_space = gym.spaces.Discrete(2)
    episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.count = self.episode + 1, 0
        return np.array([self.episode, 0.0]), {}

    def step(self, action: int) -> Any:
        self.count += 1
        ends, cut = self.episode % 2 == 0 and self.count == 3, self.count == 5
        return np.array([self.episode, self.count], float), float(self.count), ends, cut, {}


def critic(observations: np.ndarray) -> np.ndarray:
    """A value that tells every state from every other."""
    return np.sin(3 * observations[..., 0] + observations[..., 1])


def collected(mode: gym.vector.AutoresetMode, steps: int) -> dict[str, Any]:
    """The names of the page, as a loop over `step` finds them."""
    environments = gym.vector.SyncVectorEnv([Clock, Clock], autoreset_mode=mode)
    observations, _ = environments.reset()
    rows = []
    for _ in range(steps):
        returned, rewards, terminated, truncated, infos = environments.step(np.zeros(2, int))
        rows.append((observations, returned.copy(), rewards, terminated, truncated, infos))
        ended = terminated | truncated
        if mode is gym.vector.AutoresetMode.DISABLED and ended.any():
            returned, _ = environments.reset(options={"reset_mask": ended})
        observations = returned.copy()
    seen, returned, rewards, terminated, truncated, infos = zip(*rows, strict=True)
    names = {"rewards": rewards, "terminated": terminated, "truncated": truncated, "returned": returned}
    names = {name: np.stack(array) for name, array in names.items()}
    names |= {"values": critic(np.stack(seen)), "last_values": critic(observations), "infos": infos}
    return names | {"observations": observations, "previous_dones": np.zeros(2, bool), "critic": critic}


def sums_over_episodes(episodes: int) -> list[float]:
    """Advantages of whole episodes of the clock, from its rules alone."""
    result = []
    for k in range(episodes):
        length = 5 if k % 2 else 3
        states = critic(np.array([[k, count] for count in range(length + 1)], float))
        if length == 3:
            states[-1] = 0  # terminated
        delta = np.arange(1, length + 1) + GAMMA * states[1:] - states[:-1]
        result += [sum((GAMMA * LAM) ** i * d for i, d in enumerate(delta[start:])) for start in range(length)]
    return result


@pytest.mark.parametrize(
    ("block", "mode", "steps"), [(0, "NEXT_STEP", 4 * 4 + 4 * 6), (1, "SAME_STEP", 32), (2, "DISABLED", 32)]
)
def test_the_three_autoreset_modes_agree(block: int, mode: str, steps: int) -> None:
    """Eight episodes and no inserted row; the page's lines, on what each mode gives."""
    names = collected(gym.vector.AutoresetMode[mode], steps)
    result = switching.run(switching.blocks("Gymnasium")[block], names | {"gamma": GAMMA, "lam": LAM})
    mask = result["rollout"]["mask"] if block == 0 else None
    for column in range(2):
        live = slice(None) if mask is None else mask[:, column]
        np.testing.assert_allclose(result["advantages"][live, column], sums_over_episodes(8), rtol=1e-12)


def test_a_buffer_may_begin_with_the_row_that_resets() -> None:
    names = collected(gym.vector.AutoresetMode.NEXT_STEP, 40)
    whole = switching.run(switching.blocks("Gymnasium")[0], names | {"gamma": GAMMA, "lam": LAM})["advantages"]
    for cut in 3, 4, 5:
        part = {name: names[name][cut:] for name in ("rewards", "values", "terminated", "truncated")}
        before = names["terminated"][cut - 1] | names["truncated"][cut - 1]
        rest = switching.run(
            switching.blocks("Gymnasium")[0], names | part | {"previous_dones": before, "gamma": GAMMA, "lam": LAM}
        )
        np.testing.assert_allclose(rest["advantages"], whole[cut:], rtol=1e-12)


def test_final_observations_keep_their_structure() -> None:
    like = {"a": np.zeros((2, 3), np.float32), "b": (np.zeros(2, np.int64),)}
    end = {"a": np.ones(3), "b": (7,)}
    infos = [{}, {"final_obs": np.array([None, end], object), "_final_obs": np.array([False, True])}]
    places, found = conventions.final_observations(infos, like)
    assert [index.tolist() for index in places] == [[1], [1]]
    np.testing.assert_array_equal(found["a"], np.ones((1, 3)))
    assert (found["a"].dtype, found["b"][0].dtype, found["b"][0].tolist()) == (np.float32, np.int64, [7])
    places, found = conventions.final_observations([{}, {}], like)
    assert (len(places[0]), found["a"].shape, found["b"][0].shape) == (0, (0, 3), (0,))


# --- sequences


class Tokens(NamedTuple):
    """Sequences of several lengths, some of which ended by themselves."""

    lengths: np.ndarray
    terminated: np.ndarray
    final_values: np.ndarray
    rewards: list[np.ndarray]
    values: list[np.ndarray]

    def advantages(self) -> list[np.ndarray]:
        result = []
        for r, v, ended, final in zip(self.rewards, self.values, self.terminated, self.final_values, strict=True):
            flags = np.zeros((2, len(v), 1), bool)
            flags[:, -1:] = [[[ended]], [[not ended]]]
            ahead = np.append(v[1:], final)[: len(v)]
            steps = oracle.Rollout(*(x[:, None] for x in (r, v, ahead)), *flags, np.ones((len(v), 1), bool))
            result.append(oracle.advantages(steps, GAMMA, LAM)[:, 0])
        return result


@pytest.fixture
def sequences() -> Tokens:
    random = np.random.default_rng(6)
    lengths = np.array([3, 0, 1, 7, 0, 4])
    rewards, values = ([random.normal(size=n) for n in lengths] for _ in range(2))
    return Tokens(lengths, np.array([1, 0, 0, 0, 1, 1], bool), random.normal(size=6), rewards, values)


@LIBRARIES
def test_packed_sequences(sequences: Tokens, told: Any) -> None:
    s = sequences
    packed = [told(np.concatenate(parts)) for parts in (s.rewards, s.values)]
    ends = {"terminated": told(s.terminated), "final_values": told(s.final_values)}
    by_length = conventions.from_lengths(*packed, told(s.lengths), **ends)
    offsets = np.concatenate([[0], np.cumsum(s.lengths)]).astype(np.int32)
    by_offset = conventions.from_cu_seqlens(*packed, told(offsets), **ends)
    for rollout in by_length, by_offset:
        advantages, _ = telescope.gae(**rollout, gamma=GAMMA, lam=LAM)
        np.testing.assert_allclose(advantages, np.concatenate(s.advantages()), rtol=1e-12)
    both = [np.append(v, final) for v, final in zip(s.values, s.final_values, strict=True)]
    values, finals = conventions.split_packed_values(told(np.concatenate(both)), told(s.lengths))
    np.testing.assert_array_equal(values, packed[1])
    np.testing.assert_array_equal(finals, s.final_values)


@LIBRARIES
@pytest.mark.parametrize("side", ["left", "right", "holes"])
def test_response_masks(sequences: Tokens, told: Any, side: str) -> None:
    """The same sequences side by side, NaN wherever the mask is False."""
    s, width = sequences, 12
    rewards, values, expected = (np.full((6, width), number) for number in (np.nan, np.nan, 0.0))
    mask = np.zeros((6, width), bool)
    for row, n in enumerate(s.lengths):
        places = {"left": np.arange(width - n, width), "right": np.arange(n), "holes": np.arange(n) * 12 // 7}[side]
        mask[row, places] = True
        rewards[row, places], values[row, places] = s.rewards[row], s.values[row]
        expected[row, places] = s.advantages()[row]
    ends = {"terminated": told(s.terminated), "final_values": told(s.final_values)}
    rollout = conventions.from_response_mask(told(rewards), told(values), told(mask), **ends)
    np.testing.assert_allclose(telescope.gae(**rollout, gamma=GAMMA, lam=LAM).advantages, expected, rtol=1e-12)
    if side == "right":  # nothing lies between: time may stand still or not
        rollout = conventions.from_response_mask(told(rewards), told(values), told(mask), **ends, masked="decayed")
        np.testing.assert_allclose(telescope.gae(**rollout, gamma=GAMMA, lam=LAM).advantages, expected, rtol=1e-12)


def test_nothing_is_guessed_about_a_sequence_that_did_not_end() -> None:
    ones, lengths = np.ones(3), np.array([1, 2])
    for terminated in None, np.array([True, False]):
        with pytest.raises(ValueError, match=r"final_values is None, but . sequences did not terminate"):
            conventions.from_lengths(ones, ones, lengths, terminated=terminated)
    with pytest.raises(ValueError, match=r"final_values is None, but 1 sequences"):
        conventions.from_response_mask(np.ones((1, 3)), np.ones((1, 3)), np.ones((1, 3)), terminated=None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: conventions.from_lengths(x, x, np.array([1, 1]), terminated=None), r"lengths sum to 2; expected 3"),
        (lambda x: conventions.from_lengths(x, x, np.array([4, -1]), terminated=None), r"lengths .* none below 0"),
        (lambda x: conventions.from_lengths(x, x, np.array([3.0]), terminated=None), r"lengths has dtype float64"),
        (lambda x: conventions.from_lengths(x, x, [3], terminated=None), r"lengths is a list"),
        (
            lambda x: conventions.from_lengths(x, x, np.array([3]), terminated=np.ones((1, 1), bool)),
            r"terminated has shape \(1, 1\) but one per sequence is \(1,\)",
        ),
        (
            lambda x: conventions.from_lengths(
                x, x, np.array([3]), terminated=None, final_values=np.ones(1, np.float32)
            ),
            r"final_values has dtype float32 but values has float64",
        ),
        (
            lambda x: conventions.from_cu_seqlens(x, x, np.array([1, 2]), terminated=None),
            r"cu_seqlens begins with 1, expected 0; are these lengths\?",
        ),
        (
            lambda x: conventions.from_values_with_bootstrap(x, x, terminated=None, truncated=None),
            r"values has shape \(3,\) but rewards and a bootstrap row make \(4,\)",
        ),
        (
            lambda x: conventions.from_episode_starts(
                x, x, 0.0, episode_starts=x > 5, last_dones=x > 5, truncated=None
            ),
            r"last_dones has shape \(3,\)",
        ),
        (lambda x: conventions.from_response_mask(x, x, x, terminated=None), r"values has shape \(3,\); expected \[B"),
        (
            lambda x: conventions.from_response_mask(x[None], x[None], x[None], terminated=None, masked="zero"),
            r"masked is 'zero'; expected 'skipped' or 'decayed'",
        ),
        (lambda x: conventions.dense_final_values(x, (np.array([0]),), x), r"final_values has shape \(3,\) but places"),
        (lambda x: conventions.dense_final_values(x, (), x), r"places is 0 arrays"),
        (
            lambda x: conventions.from_arrivals(x[:0], x[:0], terminated=None, truncated=None),
            r"rewards has shape \(0,\); expected at least",
        ),
    ],
)
def test_bad_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(np.ones(3))


# --- the page


@pytest.mark.parametrize("name", switching.CASES)
def test_the_pages_lines_keep_each_codebases_results(name: str) -> None:
    case = switching.CASES[name]()
    (code,) = switching.blocks(name)
    result = switching.run(code, case.names)
    for array, expected in (result["advantages"], case.advantages), (result["returns"], case.advantages + case.values):
        different = np.asarray(array, float) - expected
        np.testing.assert_allclose(np.where(case.counts, different, 0), 0, atol=1e-5 if array.itemsize == 4 else 1e-12)


def test_every_function_is_on_the_page() -> None:
    functions = [name for name in conventions.__all__ if name.islower()]
    assert [name for name in functions if f"`{name}`" not in switching.PAGE] == []


def test_the_steps_that_are_given_up() -> None:
    """Brax: at a truncated step A = 0 and the trace stops; the page's row for it."""
    steps = oracle.rollout((T, B))
    kept = ~steps.truncated
    delta = (steps.rewards + GAMMA * ~steps.terminated * steps.next_values - steps.values) * kept
    expected = switching.backwards(delta, GAMMA * LAM * ~steps.terminated * kept)
    rewards = np.where(steps.truncated, steps.values, steps.rewards)
    ends = {"terminated": steps.terminated | steps.truncated, "truncated": None}
    advantages, _ = telescope.gae(rewards, steps.values, steps.next_values, **ends, gamma=GAMMA, lam=LAM)
    np.testing.assert_allclose(advantages, expected, rtol=1e-12, atol=1e-12)


# --- the last row


def rollout_ends_in_a_time_limit(told: Any) -> dict[str, Any]:
    """Two steps of one environment; the second ends by the clock, and the value after it is the next episode's."""
    arrays = {
        "rewards": np.ones((2, 1)),
        "values": np.full((2, 1), 10.0),
        "last_values": np.array([-50.0]),
        "truncated": np.array([[False], [True]]),
        "final_values": np.array([[np.nan], [9.0]]),
    }
    return {name: told(array) for name, array in arrays.items()}


def told_by(convention: str, given: dict[str, Any], final_values: Any, xp: Any) -> dict[str, Any]:
    rewards, values, last, truncated = (given[key] for key in ("rewards", "values", "last_values", "truncated"))
    longer, late = xp.concatenate([values, last[None]]), lambda x: xp.concatenate([x[:1], x])
    ends = {"truncated": truncated, "final_values": final_values}
    if convention == "from_last_values":
        return conventions.from_last_values(rewards, values, last, terminated=None, **ends)
    if convention == "from_values_with_bootstrap":
        return conventions.from_values_with_bootstrap(rewards, longer, terminated=None, **ends)
    if convention == "from_dones":
        return conventions.from_dones(rewards, values, last, dones=truncated, **ends)
    if convention == "from_episode_starts":
        starts = xp.zeros_like(truncated)
        return conventions.from_episode_starts(
            rewards, values, last, episode_starts=starts, last_dones=truncated[-1], **ends
        )
    if convention == "from_discounts":
        return conventions.from_discounts(rewards, longer, discounts=xp.full_like(values, GAMMA), **ends)
    moved = {name: None if array is None else late(array) for name, array in ends.items()}
    return conventions.from_arrivals(late(rewards), longer, terminated=None, **moved)


CONVENTIONS = [
    "from_last_values",
    "from_values_with_bootstrap",
    "from_dones",
    "from_episode_starts",
    "from_discounts",
    "from_arrivals",
]


@LIBRARIES
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_time_limit_on_the_last_row_never_looks_at_the_next_episode(convention: str, told: Any) -> None:
    """Kills: a bootstrap from the state after the reset, which follows as `last_values` in every one of them."""
    given, xp = rollout_ends_in_a_time_limit(told), np if told is in_numpy else torch
    for missing in (None, xp.full_like(given["values"], xp.nan)):
        with pytest.raises(ValueError, match="final_values holds no value for 1 truncated steps"):
            told_by(convention, given, missing, xp)
    rollout = told_by(convention, given, given["final_values"], xp)
    assert np.asarray(rollout["next_values"])[:, 0].tolist() == [10.0, 9.0]


# --- what was seen at the end


def observations_of(kind: str) -> tuple[list[Any], np.ndarray]:
    """Three steps of two environments; the second ends at step 1, having seen [7, 8]."""
    seen, like = np.array([7.0, 8.0], np.float32), np.zeros((2, 2), np.float32)
    both = np.array([None, seen], dtype=object)
    ended = np.array([False, True])
    infos = {
        "Gymnasium 1": {"final_obs": both, "_final_obs": ended},
        "Gymnasium 0.29": {"final_observation": both, "_final_observation": ended},
        "without a mask": {"final_obs": both},
        "Stable-Baselines3": [{"lives": 3}, {"terminal_observation": seen, "TimeLimit.truncated": True}],
        "a dictionary for each": ({}, {"final_observation": seen}),
    }
    nothing: Any = [{}, {}] if isinstance(infos[kind], list | tuple) else {}
    return [nothing, infos[kind], nothing], like


@pytest.mark.parametrize(
    "kind", ["Gymnasium 1", "Gymnasium 0.29", "without a mask", "Stable-Baselines3", "a dictionary for each"]
)
def test_final_observations_are_found_by_every_name_they_have_had(kind: str) -> None:
    """Kills: nothing found under an older name, and so a time limit without a value."""
    infos, like = observations_of(kind)
    (steps, environments), found = conventions.final_observations(infos, like)
    assert (steps.tolist(), environments.tolist(), found.tolist()) == ([1], [1], [[7.0, 8.0]])
    assert found.dtype == like.dtype


def test_infos_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="infos holds a str at step 1"):
        conventions.final_observations([{}, "abc"], np.zeros((2, 1)))


@LIBRARIES
@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_place_outside_the_buffer_is_refused(told: Any, wrong: int) -> None:
    """Kills: −1 as the last row."""
    places = (told(np.array([0, wrong])), told(np.array([0, 1])))
    with pytest.raises(ValueError, match=r"places holds indices outside \[0, 3\) for axis 0"):
        conventions.dense_final_values(told(np.ones((3, 2))), places, told(np.ones(2)))


def test_a_step_that_is_given_up_is_brax_s() -> None:
    """The recipe of docs/switching.md, against Brax's recursion written out. Kills: `gae` for Brax's advantages."""
    steps, last = oracle.rollout((T, B)), np.random.default_rng(5).normal(size=B)
    rewards, values, truncated = steps.rewards, steps.values, steps.truncated
    ended = steps.terminated & ~truncated
    targets, later = np.zeros((T + 1, B)), np.zeros(B)
    targets[T] = last
    ahead = np.concatenate([values[1:], last[None]])
    for t in reversed(range(T)):  # a truncated step passes nothing on, and is worth its own value
        delta = rewards[t] + GAMMA * ~ended[t] * ahead[t] - values[t]
        later = np.where(truncated[t], 0, delta + GAMMA * LAM * ~ended[t] * later)
        targets[t] = values[t] + later
    wanted = np.where(truncated, 0, rewards + GAMMA * ~ended * targets[1:] - values)

    given = {"terminated": ended | truncated, "truncated": None, "gamma": GAMMA, "lam": LAM}
    kept = np.where(truncated, values, rewards)
    found = telescope.vtrace(kept, values, ahead, log_ratios=np.zeros((T, B)), **given)
    np.testing.assert_allclose(found.targets, targets[:T], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.advantages, wanted, rtol=1e-12, atol=1e-12)
    advantages, returns = telescope.gae(kept, values, ahead, **given)
    np.testing.assert_allclose(returns, targets[:T], rtol=1e-12, atol=1e-12)
    assert not np.allclose(advantages, wanted)

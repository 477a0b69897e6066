"""Rules for λ: against the mixtures that they stand for, written out over each episode, and against their limits.

Leaves out dtypes, layouts and wrong arguments, which `test_every_function.py` and `test_invalid_calls.py` try.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import oracle
import telescope
from telescope.estimators import conventions

GAMMA = 0.9
EXACT = {"rtol": 0, "atol": 1e-12}
SHAPES = [(0,), (1,), (40, 3), (3, 0), (1, 2), (9, 2, 2)]


def rollout(shape: tuple[int, ...] = (40, 3), *, masked: bool = True, ends: float = 0.1) -> oracle.Rollout:
    steps = oracle.rollout(shape, ends=ends)
    steps = steps if masked else steps._replace(mask=np.ones(shape, bool))
    random = np.random.default_rng(7)
    successors = oracle.successors(steps, random.normal(size=shape[1:]), random.normal(size=shape))
    return steps._replace(next_values=successors)


def ends_of(steps: oracle.Rollout) -> dict[str, Any]:
    return {"terminated": steps.terminated, "truncated": steps.truncated, "mask": steps.mask}


def advantages_ahead(steps: oracle.Rollout, gamma: float = GAMMA) -> Iterator[tuple[Any, list[Any], list[float]]]:
    """For each live step: itself, the live steps from it to the end of its episode, and Â⁽¹⁾, Â⁽²⁾, … up to there."""
    for episode in oracle.episodes(steps):
        for start, first in enumerate(episode):
            total, found = 0.0, []
            for k, i in enumerate(episode[start:]):
                bootstrap = 0.0 if steps.terminated[i] else gamma * steps.next_values[i]
                total += gamma**k * (steps.rewards[i] + bootstrap - steps.values[i])
                found.append(total)
            yield first, episode[start:], found


# --- end_corrected


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_mixture_normalised_over_what_remains(shape: tuple[int, ...], lam: float, masked: bool) -> None:
    steps, expected = rollout(shape, masked=masked), np.zeros(shape)
    for first, ahead, found in advantages_ahead(steps):
        weights = np.array([lam**k for k in range(len(ahead))])
        expected[first] = weights @ found / weights.sum()
    corrected = telescope.end_corrected(steps.values, **ends_of(steps), lam=lam)
    result = telescope.gae(**steps._asdict(), gamma=GAMMA, lam=corrected).advantages
    np.testing.assert_allclose(result, expected, **EXACT)


def test_its_closed_form_and_its_limit() -> None:
    steps = rollout()
    remain = np.zeros(steps.values.shape)
    for first, ahead, _ in advantages_ahead(steps):
        remain[first] = len(ahead)
    n = remain[steps.mask]
    for lam in 0.5, 0.95, 0.999:
        found = telescope.end_corrected(steps.values, **ends_of(steps), lam=lam)
        np.testing.assert_allclose(found[steps.mask], lam * (1 - lam ** (n - 1)) / (1 - lam**n), **EXACT)
        assert (found[~steps.mask] == 0).all()
    plain = telescope.end_corrected(steps.values, **ends_of(steps), lam=1.0)
    np.testing.assert_allclose(plain[steps.mask], (n - 1) / n, rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_near_one_nothing_cancels(dtype: Any) -> None:
    """1 − λⁿ would be rounding: the closed form in the same precision is off by a thousandth and more."""
    lam = 1 - 4 * np.finfo(dtype).eps
    found = telescope.end_corrected(np.zeros(1000, dtype), terminated=None, truncated=None, lam=float(lam))
    n = np.arange(1000, 0, -1)
    assert np.abs(found - (n - 1) / n).max() <= 1000 * np.finfo(dtype).eps


def test_far_from_an_end_it_is_lambda_itself() -> None:
    found = telescope.end_corrected(np.zeros((500, 2)), terminated=None, truncated=None, lam=np.array([0.9, 0.5]))
    np.testing.assert_allclose(found[0], [0.9, 0.5], **EXACT)
    assert (found[-1] == 0).all()


def test_lambda_may_differ_from_step_to_step() -> None:
    """Â⁽ᵏ⁾ has a weight in proportion to the λs of the k − 1 steps before its last one."""
    steps = rollout()
    lam = np.random.default_rng(1).random(steps.values.shape)
    expected = np.zeros(steps.values.shape)
    for first, ahead, found in advantages_ahead(steps):
        weights = np.cumprod([1.0, *(lam[i] for i in ahead[:-1])])
        expected[first] = weights @ found / weights.sum()
    corrected = telescope.end_corrected(steps.values, **ends_of(steps), lam=lam)
    np.testing.assert_allclose(telescope.gae(**steps._asdict(), gamma=GAMMA, lam=corrected)[0], expected, **EXACT)


def test_two_steps_are_weighed_one_to_lambda() -> None:
    """GAE would give the longer estimate λ, and the shorter one 1 − λ."""
    common: dict[str, Any] = {"terminated": None, "truncated": None}
    corrected = telescope.end_corrected(np.zeros(2), **common, lam=0.9)
    found = telescope.gae(np.array([0.0, 1.0]), np.zeros(2), np.zeros(2), **common, gamma=1.0, lam=corrected)
    np.testing.assert_allclose(found.advantages, [0.9 / 1.9, 1.0], **EXACT)


# --- all that count steps


RULES = {
    "end_corrected": lambda *arrays, **ends: telescope.end_corrected(*arrays, **ends, lam=0.9),
    "length_adaptive": lambda *arrays, **ends: telescope.length_adaptive(*arrays, **ends, alpha=0.4),
}


@pytest.mark.parametrize("rule", RULES)
def test_packed_sequences_are_each_by_itself(rule: str) -> None:
    lengths = np.array([3, 1, 0, 6])
    packed = conventions.from_lengths(
        np.ones(10), np.ones(10), lengths, terminated=np.array([True, False, True, False]), final_values=np.ones(4)
    )
    ends = {name: packed[name] for name in ("terminated", "truncated", "mask", "axis")}
    alone = [RULES[rule](np.ones(n), terminated=None, truncated=None) for n in lengths]
    np.testing.assert_array_equal(RULES[rule](packed["values"], **ends), np.concatenate(alone))


@pytest.mark.parametrize("rule", RULES)
def test_batch_first_and_padded(rule: str) -> None:
    """[B, T] with a response mask: padding on either side, and a tool's tokens in between, do not count."""
    mask = np.array([[0, 1, 1, 0, 1, 1], [1, 1, 0, 0, 0, 0]], bool)
    given = conventions.from_response_mask(np.ones((2, 6)), np.ones((2, 6)), mask, terminated=np.ones(2, bool))
    ends = {name: given[name] for name in ("terminated", "truncated", "mask", "axis")}
    found = RULES[rule](given["values"], **ends)
    for row, n in enumerate([4, 2]):
        np.testing.assert_array_equal(found[row][mask[row]], RULES[rule](np.ones(n), terminated=None, truncated=None))
    assert (found[~mask] == 0).all()


@pytest.mark.parametrize("rule", RULES)
def test_the_values_are_not_read(rule: str) -> None:
    steps = rollout()
    expected = RULES[rule](steps.values, **ends_of(steps))
    np.testing.assert_array_equal(RULES[rule](np.full_like(steps.values, np.nan), **ends_of(steps)), expected)


@pytest.mark.parametrize("rule", RULES)
def test_torch_and_compiled_jax_agree(rule: str) -> None:
    steps = rollout()
    expected = RULES[rule](steps.values.astype("f4"), **ends_of(steps))
    ends = {name: torch.from_numpy(flag) for name, flag in ends_of(steps).items()}
    np.testing.assert_array_equal(RULES[rule](torch.from_numpy(steps.values.astype("f4")), **ends), expected)
    compiled = jax.jit(lambda values, ends: RULES[rule](values, **ends))
    found = compiled(jnp.asarray(steps.values, "f4"), {k: jnp.asarray(v) for k, v in ends_of(steps).items()})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# --- length_adaptive


def test_the_weights_sum_to_a_share_of_the_length() -> None:
    """Σ_k λᵏ = α l (VAPO, eq. 8), where that is 1 or more."""
    found = telescope.length_adaptive(np.zeros((80, 1)), terminated=None, truncated=None, alpha=0.25)
    np.testing.assert_allclose((found ** np.arange(10_000)).sum(1), 0.25 * 80, rtol=1e-12)


def test_short_sequences_take_one_step_and_infinite_alpha_the_whole() -> None:
    common: dict[str, Any] = {"terminated": None, "truncated": None}
    for length in 12, 20:
        assert (telescope.length_adaptive(np.zeros(length), **common) == 0).all()  # α is 0.05
    np.testing.assert_allclose(telescope.length_adaptive(np.zeros(21), **common), 1 - 20 / 21, rtol=1e-12)
    assert (telescope.length_adaptive(np.zeros(3), **common, alpha=float("inf")) == 1).all()


@pytest.mark.parametrize("alpha", [0, 0.0, -1.0, float("nan"), True, "long"])
def test_alpha_is_a_number_above_0(alpha: Any) -> None:
    with pytest.raises(ValueError, match=r"alpha is .*; expected a number"):
        telescope.length_adaptive(np.zeros(3), terminated=None, truncated=None, alpha=alpha)


# --- per_segment


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_segments_mix_what_reaches_up_to_a_border(lam: float) -> None:
    steps = rollout()
    borders = np.random.default_rng(3).random(steps.values.shape) < 0.3
    expected = np.zeros(steps.values.shape)
    for first, ahead, found in advantages_ahead(steps):
        reach = [advantage for i, advantage in zip(ahead[:-1], found, strict=False) if borders[i]]
        mixed = sum((1 - lam) * lam**m * advantage for m, advantage in enumerate(reach))
        expected[first] = mixed + lam ** len(reach) * found[-1]
    chosen = telescope.per_segment(steps.values, segment_ends=borders, lam=lam, mask=steps.mask)
    np.testing.assert_allclose(telescope.gae(**steps._asdict(), gamma=GAMMA, lam=chosen)[0], expected, **EXACT)
    assert (chosen[~steps.mask] == 0).all()


def test_a_border_after_every_step_and_none() -> None:
    x = np.zeros((4, 2))
    assert (telescope.per_segment(x, segment_ends=np.ones((4, 2), bool), lam=0.8) == 0.8).all()
    assert (telescope.per_segment(x, segment_ends=None, lam=0.8) == 1).all()
    borders = np.array([[True], [False], [True], [False]]) & np.ones((4, 2), bool)
    per_column = telescope.per_segment(x, segment_ends=borders, lam=np.array([0.2, 0.6]))
    np.testing.assert_array_equal(per_column, [[0.2, 0.6], [1, 1], [0.2, 0.6], [1, 1]])


# --- per_turn


def turn_level(steps: oracle.Rollout, ends: np.ndarray, gamma: float, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """GAE over turns, then shared by their steps: a chain of turns per episode, from its end."""
    advantages, returns = np.zeros(steps.values.shape), np.zeros(steps.values.shape)
    for episode in oracle.episodes(steps):
        turns: list[list[Any]] = [[]]
        for i in episode:
            turns[-1].append(i)
            if ends[i] and i is not episode[-1]:
                turns.append([])
        ahead, ahead_value = 0.0, 0.0
        for u, turn in reversed(list(enumerate(turns))):
            if u == len(turns) - 1:
                ahead_value = 0.0 if steps.terminated[turn[-1]] else steps.next_values[turn[-1]]
            value = steps.values[turn[0]]
            delta = sum(steps.rewards[i] for i in turn) + gamma * ahead_value - value
            ahead, ahead_value = delta + gamma * lam * ahead, value
            for i in turn:
                advantages[i], returns[i] = ahead, value + ahead
    return advantages, returns


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_turn_is_one_step(shape: tuple[int, ...], masked: bool) -> None:
    steps = rollout(shape, masked=masked)
    ends = np.random.default_rng(5).random(shape) < 0.3
    turns = telescope.per_turn(*steps[:3], turn_ends=ends, **ends_of(steps), gamma=0.97, lam=0.8)
    result = telescope.gae(**turns._asdict(), **ends_of(steps))
    for found, expected in zip(result, turn_level(steps, ends, 0.97, 0.8), strict=True):
        np.testing.assert_allclose(found, expected, **EXACT)


def test_turns_batch_first() -> None:
    """As language models have them: [B, T], with a tool's tokens masked between the turns."""
    mask = np.array([[1, 1, 0, 1, 1, 1], [1, 0, 1, 1, 0, 0]], bool)
    random = np.random.default_rng(0)
    rewards, values = random.normal(size=(2, 6)), random.normal(size=(2, 6))
    given = conventions.from_response_mask(rewards, values, mask, terminated=np.ones(2, bool))
    ends = {name: given[name] for name in ("terminated", "truncated", "mask", "axis")}
    turn_ends = mask & ~np.roll(mask, -1, 1)
    turns = telescope.per_turn(rewards, values, given["next_values"], turn_ends=turn_ends, **ends, gamma=0.9, lam=0.5)
    found = telescope.gae(**turns._asdict(), **ends)
    steps = oracle.Rollout(
        rewards.T, values.T, given["next_values"].T, given["terminated"].T, given["truncated"].T, mask.T
    )
    for one, expected in zip(found, turn_level(steps, turn_ends.T, 0.9, 0.5), strict=True):
        np.testing.assert_allclose(one.T, expected, **EXACT)


def test_a_turn_after_every_step_changes_nothing() -> None:
    steps = rollout()
    every = np.ones(steps.values.shape, bool)
    turns = telescope.per_turn(*steps[:3], turn_ends=every, **ends_of(steps), gamma=0.9, lam=0.8)
    expected = telescope.gae(**steps._asdict(), gamma=0.9, lam=0.8)
    for one, other in zip(telescope.gae(**turns._asdict(), **ends_of(steps)), expected, strict=True):
        np.testing.assert_allclose(one, other, **EXACT)


def test_gamma_and_lambda_of_a_turn_are_those_of_its_last_step() -> None:
    gamma, lam = np.array([0.5, 0.9, 0.1, 0.7]), np.array([0.3, 0.2, 0.6, 0.4])
    steps: list[Any] = [np.zeros(4)] * 3
    common: dict[str, Any] = {"terminated": None, "truncated": None}
    turns = telescope.per_turn(*steps, turn_ends=np.array([0, 1, 0, 1]), **common, gamma=gamma, lam=lam)
    np.testing.assert_array_equal(turns.gamma, [1, 0.9, 1, 0.7])
    np.testing.assert_array_equal(turns.lam, [1, 0.2, 1, 0.4])


def test_only_the_first_value_and_the_last_next_value_of_a_turn_are_read() -> None:
    steps = rollout(masked=False, ends=0.0)
    ends = np.arange(40)[:, None] % 4 == np.array([3, 3, 3])
    expected = telescope.per_turn(*steps[:3], turn_ends=ends, **ends_of(steps), gamma=0.9, lam=0.8)
    first = np.arange(40)[:, None] % 4 == np.array([0, 0, 0])
    values, successors = np.where(first, steps.values, np.nan), np.where(ends, steps.next_values, np.nan)
    found = telescope.per_turn(steps.rewards, values, successors, turn_ends=ends, **ends_of(steps), gamma=0.9, lam=0.8)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


# --- from_explained_variance


def test_the_better_the_critic_the_lower_lambda() -> None:
    shares = np.array([-3.0, 0.0, 0.25, 1.0, 2.0, np.nan, np.inf, -np.inf])
    found = telescope.from_explained_variance(shares, low=0.5, high=0.9)
    np.testing.assert_allclose(found, [0.9, 0.9, 0.8, 0.5, 0.5, 0.9, 0.5, 0.9], **EXACT)
    assert telescope.from_explained_variance(0.25, low=0.5, high=0.9) == pytest.approx(0.8)
    assert isinstance(telescope.from_explained_variance(np.float32(0.25), low=0.5, high=0.9), float)
    assert (telescope.from_explained_variance(shares, low=0.7, high=0.7) == 0.7).all()


def test_bounds_that_are_the_wrong_way_round() -> None:
    with pytest.raises(ValueError, match=r"low is 0\.9 and high is 0\.5; expected low <= high"):
        telescope.from_explained_variance(0.5, low=0.9, high=0.5)

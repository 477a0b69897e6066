"""Few long columns are cut into stretches that are walked side by side: the sums are the loop's, and so are its cuts.

The bound: at most twice the error of the plain loop in the same precision, plus one ulp of the largest intermediate.
"""

from typing import Any

import numpy as np
import pytest

import oracle
import telescope
from telescope.recurrence import cpu, linear_recurrence, naive

SHAPES = [(256, 1), (257, 8), (1030, 1), (4100, 2), (17_001, 1)]  # a tile has 16 stretches of 1024 steps at most


def both_ways(x: np.ndarray, a: np.ndarray) -> list[np.ndarray]:
    """The recurrence from contiguous columns, and from columns that lie backwards in memory, as traces have it."""
    x, a = np.asfortranarray(x), np.asfortranarray(a)
    turned = [np.asfortranarray(array[::-1]) for array in (x, a)]
    return [linear_recurrence(x, a), cpu.linear_recurrence(*(array[::-1] for array in turned))]


def assert_within_bound(results: list[np.ndarray], x: np.ndarray, a: np.ndarray) -> None:
    expected = naive.linear_recurrence(x.astype(np.longdouble), a.astype(np.longdouble))
    loop = naive.linear_recurrence(x, a)
    for y in results:
        assert_close(y, loop, expected)


def assert_close(y: np.ndarray, loop: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(np.isnan(y), np.isnan(loop))
    np.testing.assert_array_equal(np.isinf(y) * np.sign(y), np.isinf(loop) * np.sign(loop))
    finite = np.isfinite(loop)
    largest = np.abs(loop[finite]).max(initial=0).astype(y.dtype)
    allowed = 2 * np.abs(loop - expected)[finite].max(initial=0) + np.spacing(largest)
    assert np.abs(y - expected)[finite].max(initial=0) <= allowed


def weights(kind: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if kind == "a sum":
        return np.ones(shape)
    if kind == "GAE with ends":
        return np.where(random.random(shape) < 0.002, 0, 0.99 * 0.95)
    if kind == "signs":
        return random.choice([-1, 1, 0.5, 0], shape, p=[0.45, 0.45, 0.099, 0.001])
    if kind == "shrinks and grows again":  # ∏a of a stretch is 0 or infinite on the way, but not in the end
        half = len(np.zeros(shape)) // 2
        return np.where((np.arange(shape[0]) % half < half // 2)[:, None], 2.0, 0.5) * np.ones(shape)
    return np.full(shape, {"fades": 0.9999, "grows": 1.0003}[kind])


@pytest.mark.parametrize("kind", ["a sum", "GAE with ends", "signs", "shrinks and grows again", "fades", "grows"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_error_is_the_loops(shape: tuple[int, ...], dtype: str, kind: str) -> None:
    random = np.random.default_rng([*shape])
    x, a = random.normal(size=shape).astype(dtype), weights(kind, shape, random).astype(dtype)
    if kind == "shrinks and grows again":
        x *= np.ldexp(1.0, -100).astype(dtype)
    with np.errstate(all="ignore"):
        assert_within_bound(both_ways(x, a), x, a)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weight", [1.0, 0.9, 0.001, -0.001])
def test_what_is_not_finite_goes_as_far_as_in_the_loop(weight: float, bad: float) -> None:
    """∏a of a stretch may be smaller than any number; only a = 0 is a cut."""
    x = np.random.default_rng(0).normal(size=(9000, 2)).astype("f4")
    a = np.full_like(x, weight)
    a[[100, 4000]] = 0
    x[8000, 0] = x[3000, 1] = bad
    a[8500, 1] = np.nan
    with np.errstate(all="ignore"):
        assert_within_bound(both_ways(x, a), x, a)


def test_a_million_steps() -> None:
    """γ = λ = 1: NumPy's running sum adds one after the other, as the loop does."""
    x = np.random.default_rng(1).normal(size=(1_000_000, 1)).astype("f4")
    loop, expected = (x[::-1].astype(kind).cumsum(0)[::-1] for kind in ("f4", np.longdouble))
    assert_close(linear_recurrence(x, np.ones_like(x)), loop, expected)


@pytest.mark.parametrize("returns_lam", [None, 0.5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((5000, 1), "f4"), ((700, 3), "f8"), ((17_001, 2), "f8"), ((32, 37), "f4"), ((64, 20), "f8"), ((40, 20), "f4")],
    ids=str,
)
def test_gae(shape: tuple[int, ...], dtype: Any, masked: bool, returns_lam: float | None) -> None:
    """Against the sums over episodes; arrays batch-major, long columns and short ones that lie end to end."""
    steps = oracle.rollout(shape, dtype, ends=0.05)
    if not masked:
        steps = steps._replace(mask=np.ones(shape, bool))
    turned: dict[str, Any] = {name: np.ascontiguousarray(array.T) for name, array in steps._asdict().items()}
    if not masked:
        turned["mask"] = None
    found = telescope.gae(**turned, gamma=0.99, lam=0.95, returns_lam=returns_lam, axis=1)
    tolerance = {"rtol": 0, "atol": 2e-5 if dtype == "f4" else 1e-12}
    expected = oracle.advantages(steps, 0.99, 0.95)
    np.testing.assert_allclose(found.advantages.T, expected, **tolerance)
    ahead = oracle.advantages(steps, 0.99, 0.95 if returns_lam is None else returns_lam)
    np.testing.assert_allclose(found.returns.T, np.where(steps.mask, ahead + steps.values, 0), **tolerance)


def test_gae_meets_nan_as_the_pair_does() -> None:
    steps = oracle.rollout((6000, 1), "f4", ends=0.0005)
    rewards = steps.rewards.copy()
    rewards[5500] = np.nan
    given = {**steps.arguments(), "rewards": rewards, "gamma": 0.9, "lam": 0.5}
    paired = telescope.gae(**{**given, "lam": np.full((6000, 1), 0.5, "f4")})
    np.testing.assert_array_equal(np.isnan(telescope.gae(**given).advantages), np.isnan(paired.advantages))
    assert 2 < np.isnan(paired.advantages).sum() < 6000

"""Laws of the statistics: interquartile mean, bootstrap intervals, explained variance, the summary."""

import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telescope.metrics import bootstrap_ci, explained_variance, iqm, summarise

scores_lists = st.lists(st.integers(-1000, 1000), min_size=1, max_size=13)


def iqm_by_copies(scores: list[int]) -> Fraction:
    """Each score four times, then drop a quarter of the copies at each end: exact, without any weights."""
    copies = sorted(x for x in scores for _ in range(4))
    middle = copies[len(scores) : 3 * len(scores)]
    return Fraction(sum(middle), len(middle))


@given(scores_lists)
def test_iqm_is_the_mean_of_the_middle_half_of_four_copies(scores: list[int]) -> None:
    assert iqm(scores) == pytest.approx(float(iqm_by_copies(scores)), rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("count", [4, 8, 12])
def test_iqm_is_the_trimmed_mean_where_four_divides_the_count(count: int) -> None:
    scores = np.random.default_rng(count).normal(size=count)
    assert iqm(scores) == pytest.approx(np.sort(scores)[count // 4 : 3 * count // 4].mean())


def test_iqm_along_an_axis_is_that_of_each_slice() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 7, 2))
    expected = [[iqm(scores[i, :, j]) for j in range(2)] for i in range(3)]
    np.testing.assert_array_equal(iqm(scores, axis=1), expected)


def test_iqm_trims_infinities_and_keeps_nan() -> None:
    assert iqm([-math.inf, 1.0, 2.0, math.inf]) == 1.5
    assert math.isnan(iqm([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, math.nan]))


def test_iqm_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 0\)"):
        iqm(np.zeros((3, 0)))


def test_bootstrap_is_reproducible_and_takes_a_generator() -> None:
    scores = np.random.default_rng(0).normal(size=8)
    assert bootstrap_ci(scores) == bootstrap_ci(scores, rng=0) == bootstrap_ci(scores, rng=np.random.default_rng(0))
    assert bootstrap_ci(scores) != bootstrap_ci(scores, rng=1)


def test_bootstrap_of_two_runs_has_the_known_distribution() -> None:
    # Two runs 0 and 1: the resampled mean is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4.
    assert bootstrap_ci([0.0, 1.0], np.mean, level=0.6) == (0.0, 1.0)  # tails of 20 % lie inside the quarters
    assert bootstrap_ci([0.0, 1.0], np.mean, level=0.4) == (0.5, 0.5)  # tails of 30 % do not


def test_bootstrap_resamples_each_task_on_its_own() -> None:
    # Tasks that differ by 1000 but not within themselves: no resample can change the mean.
    table = np.tile([0.0, 1000.0], (5, 1))
    assert bootstrap_ci(table, np.mean) == (500.0, 500.0)
    # Together, one run's tasks would always be drawn as a pair and their sum would be constant.
    opposite = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert bootstrap_ci(opposite, np.mean, level=0.8) == (0.25, 0.75)


@pytest.mark.parametrize("statistic", [iqm, lambda x, axis: x.mean(axis=axis)], ids=["iqm", "mean"])
def test_interval_covers_the_truth_about_as_often_as_it_says(statistic: Callable[..., Any]) -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        low, high = bootstrap_ci(rng.normal(size=20), statistic, resamples=400, rng=rng)
        hits += low <= 0.0 <= high
    assert 0.87 < hits / 300 < 0.98  # percentile intervals of 20 runs: about 93 %; 3 standard errors are 0.045


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scores": []}, "scores has shape"),
        ({"scores": [1.0], "level": 95}, "level is 95"),
        ({"scores": [1.0], "resamples": 0}, "resamples is 0"),
    ],
)
def test_bootstrap_names_the_bad_argument(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bootstrap_ci(**arguments)


def test_explained_variance_of_known_critics() -> None:
    returns = np.random.default_rng(0).normal(size=(50, 4))
    assert explained_variance(returns + 7.0, returns) == pytest.approx(1.0)
    assert explained_variance(np.full_like(returns, 3.0), returns) == pytest.approx(0.0)
    assert explained_variance(-returns, returns) == pytest.approx(-3.0)  # Var[2R] = 4 Var[R]
    assert explained_variance(returns / 2, returns) == pytest.approx(0.75)
    assert math.isnan(explained_variance(returns, np.ones_like(returns)))


def test_masked_entries_do_not_enter_explained_variance() -> None:
    rng = np.random.default_rng(1)
    values, returns = rng.normal(size=(2, 30))
    mask = rng.random(30) < 0.6
    dirty = np.where(mask, values, np.nan)
    assert explained_variance(dirty, returns, mask) == pytest.approx(explained_variance(values[mask], returns[mask]))
    assert math.isnan(explained_variance(values, returns, np.zeros(30, dtype=bool)))


def test_explained_variance_per_seed_is_that_of_each_seed_alone() -> None:
    rng = np.random.default_rng(2)
    values, returns = rng.normal(size=(2, 9, 3, 4))  # T time, S seeds, B environments
    mask = rng.random((9, 3, 4)) < 0.7
    alone = [explained_variance(values[:, s], returns[:, s], mask[:, s]) for s in range(3)]
    np.testing.assert_allclose(explained_variance(values, returns, mask, axis=(0, 2)), alone)


def test_explained_variance_refuses_a_column_against_a_row() -> None:
    with pytest.raises(ValueError, match="squeeze"):
        explained_variance(np.zeros((5, 1)), np.zeros(5))
    with pytest.raises(ValueError, match="mask has shape"):
        explained_variance(np.zeros(5), np.zeros(5), np.ones(4, dtype=bool))


def test_summary_is_plain_json_of_the_seed_means() -> None:
    table = np.arange(80.0).reshape(8, 10) ** 1.5
    summary = summarise(table)
    assert json.loads(json.dumps(summary)) == summary
    assert list(summary) == ["iqm", "mean", "worst", "ci95", "episodes", "per_seed", "std"]
    means = [sum(row) / 10 for row in table.tolist()]
    assert summary["per_seed"] == pytest.approx(means)
    assert summary["iqm"] == pytest.approx(sum(means[2:6]) / 4)
    assert summary["mean"] == pytest.approx(sum(means) / 8)
    assert summary["worst"] == pytest.approx(means[0])
    assert summary["episodes"] == 10
    assert summary["std"] == pytest.approx(math.sqrt(sum((m - sum(means) / 8) ** 2 for m in means) / 8))
    low, high = summary["ci95"]
    assert means[0] <= low < summary["iqm"] < high <= means[-1]


def test_summary_of_one_seed_has_a_point_interval() -> None:
    assert summarise([[1.0, 2.0]]) == {
        "iqm": 1.5,
        "mean": 1.5,
        "worst": 1.5,
        "ci95": [1.5, 1.5],
        "episodes": 2,
        "per_seed": [1.5],
        "std": 0.0,
    }
    with pytest.raises(ValueError, match="per_seed_episode_returns has shape"):
        summarise([1.0, 2.0])

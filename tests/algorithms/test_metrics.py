"""Laws of the statistics: interquartile mean, bootstrap intervals, explained variance, the summary."""

import itertools
import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telescope.metrics import (
    bootstrap_ci,
    explained_variance,
    improvement_replicates,
    interval,
    intervals,
    iqm,
    optimality_gap,
    pass_at_k,
    performance_profile,
    probability_of_improvement,
    profile_interval,
    summarise,
)

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


@given(scores_lists, scores_lists)
def test_improvement_counts_pairs_and_a_tie_as_half(x: list[int], y: list[int]) -> None:
    pairs = [Fraction(1, 2) if a == b else Fraction(int(a > b)) for a in x for b in y]
    assert probability_of_improvement(x, y) == pytest.approx(float(sum(pairs) / len(pairs)))
    assert probability_of_improvement(x, y) + probability_of_improvement(y, x) == pytest.approx(1.0)


def test_improvement_is_the_statistic_of_mann_and_whitney() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    rng = np.random.default_rng(0)
    for sizes in ((8, 8), (5, 11), (1, 3)):
        x, y = (rng.integers(6, size=size).astype(float) for size in sizes)  # with ties
        found = stats.mannwhitneyu(x, y).statistic / (len(x) * len(y))
        assert probability_of_improvement(x, y) == pytest.approx(found)


def test_equal_infinities_are_a_tie_and_nan_is_unknown() -> None:
    assert probability_of_improvement([math.inf, -math.inf], [math.inf]) == 0.25
    assert math.isnan(probability_of_improvement([math.nan, 1.0], [0.0]))


def test_replicates_draw_within_each_side() -> None:
    # Every run of x beats every run of y: no resample can change that.
    assert set(improvement_replicates([3.0, 4.0], [1.0, 2.0, 2.0])) == {1.0}
    # x is 0 or 2 and y is 1: a replicate is the share of 2s among two draws, so 0, ½, 1 with chances ¼, ½, ¼.
    found, counts = np.unique(improvement_replicates([0.0, 2.0], [1.0], resamples=4000), return_counts=True)
    assert found.tolist() == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=3 * 0.5 / 4000**0.5)


def test_replicates_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(5, size=6).astype(float), rng.integers(5, size=4).astype(float)
    rng = np.random.default_rng(7)
    rows, columns = (rng.integers(len(scores), size=(50, len(scores))) for scores in (x, y))
    loop = [
        np.mean([1.0 if a > b else 0.5 * (a == b) for a in x[drawn] for b in y[others]])
        for drawn, others in zip(rows, columns, strict=True)
    ]
    np.testing.assert_allclose(improvement_replicates(x, y, 50, np.random.default_rng(7)), loop)


@given(scores_lists)
def test_a_profile_counts_the_runs_above_a_threshold(scores: list[int]) -> None:
    levels = np.arange(-1000, 1001, 250)
    expected = [sum(score > level for score in scores) / len(scores) for level in levels]
    assert performance_profile(scores, levels).tolist() == pytest.approx(expected)


def test_the_area_under_a_profile_is_the_mean() -> None:
    scores = np.random.default_rng(0).random((8, 3))
    levels = np.linspace(0, 1, 100_001)
    assert performance_profile(scores, levels).mean() == pytest.approx(scores.mean(), abs=1e-4)


def test_a_profiles_interval_is_the_binomial_one() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    scores = np.arange(10.0)
    low, high = profile_interval(scores, [2.5, 4.5, 20.0])
    for k, share in enumerate((0.7, 0.5, 0.0)):
        # the count of runs above is binomial; 2,000 replicates may miss its quantile by one run
        wanted = stats.binom.ppf([0.025, 0.975], 10, share) / 10 if share else (0, 0)
        assert (low[k], high[k]) == pytest.approx(wanted, abs=0.1 + 1e-9)
    # Two tasks that do not vary within themselves: no resample within a task can change the share.
    assert [x.tolist() for x in profile_interval(np.tile([0.0, 2.0], (5, 1)), [1.0])] == [[0.5], [0.5]]


def test_the_gap_counts_what_is_missing_and_nothing_beyond() -> None:
    assert optimality_gap([0.5, 1.0, 3.0]) == pytest.approx(0.5 / 3)
    assert optimality_gap([400.0, 500.0], 475.0) == pytest.approx(75.0 / 2)


@pytest.mark.parametrize("runs", [1, 3, 5, 8, 10])
def test_intervals_of_columns_are_those_of_each_column(runs: int) -> None:
    scores = np.random.default_rng(runs).normal(size=(runs, 7)).round(1)
    expected = np.array([interval(column) for column in scores.T]).T
    np.testing.assert_allclose(intervals(scores), expected, rtol=1e-12, atol=1e-12)


def test_intervals_of_infinity_and_nan_are_those_of_each_column() -> None:
    scores = np.array([[1.0, math.nan], [2.0, 1.0], [3.0, 1.0], [4.0, 1.0], [math.inf, 1.0]])
    np.testing.assert_array_equal(np.array(intervals(scores)).T, [interval(column) for column in scores.T])
    assert np.isfinite(intervals(scores)[0]).tolist() == [True, False]


@pytest.mark.parametrize("function", [probability_of_improvement, improvement_replicates])
def test_a_comparison_names_the_bad_argument(function: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"x has shape \(0,\)"):
        function([], [1.0])
    with pytest.raises(ValueError, match=r"y has shape \(1, 1\)"):
        function([1.0], [[1.0]])


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


def test_pass_at_k_is_the_share_of_choices_of_k_with_one_that_passes():
    for samples in (1, 4, 6):
        for passed in range(samples + 1):
            row = [True] * passed + [False] * (samples - passed)
            for k in range(1, samples + 1):
                chosen = [any(some) for some in itertools.combinations(row, k)]
                assert pass_at_k(passed, samples, k) == pytest.approx(np.mean(chosen))
    np.testing.assert_allclose(pass_at_k([0, 500, 1000], 1000, 1), [0, 0.5, 1])
    assert pass_at_k(1, 10_000, 100) == pytest.approx(0.01)
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k is {k}; expected 1 to 4"):
            pass_at_k(2, 4, k)
    with pytest.raises(ValueError, match="whole numbers from 0 to 4"):
        pass_at_k([2, 5], 4, 1)

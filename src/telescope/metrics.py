"""Statistics of runs: interquartile mean, bootstrap intervals, comparisons, explained variance, a summary.

The functions take plain NumPy arrays. Leaves out reading (`runs/`) and drawing (`runs/formats/curves.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from telescope import arrays
from telescope.quiet import quiet

Array = npt.NDArray[Any]


@quiet
def iqm(scores: npt.ArrayLike, axis: int = -1) -> Any:
    """Interquartile mean: the mean of the middle half of the scores.

    Sorted scores x₁ ≤ … ≤ xₙ are a step function on [0, n]; the result is its mean over [n/4, 3n/4]. If 4 divides n,
    this is the 25 % trimmed mean of Agarwal et al. 2021 (arXiv:2108.13264, §4.3). Otherwise the two scores at the
    quartiles count partly; rliable rounds the cut down instead, so with three runs it trims nothing. One score is its
    own mean; two give their plain mean. NaN among the scores gives NaN; the trimmed scores may be infinite.

    scores: any shape with at least one entry along `axis`; the result lacks that axis.
    """
    table = _numbers("scores", scores)
    if table.ndim == 0:
        raise ValueError("scores has shape (); expected at least one axis")
    axis = arrays.checked_axis(axis, table.ndim)
    ordered = np.sort(np.moveaxis(table, axis, -1), axis=-1)
    count = ordered.shape[-1]
    if count == 0:
        raise ValueError(f"scores has shape {np.shape(scores)}: no score along axis {axis} to take the mean of")
    rank = np.arange(count)
    weight = _in_the_middle(rank, rank + 1, count)
    kept = weight > 0  # 0 · ∞ would be NaN
    middle = (ordered[..., kept] * weight[kept]).sum(-1) / weight.sum()
    return np.where(np.isnan(ordered[..., -1]), np.nan, middle)[()]  # NaN is sorted last


def _in_the_middle(start: Array, end: Array, count: int) -> Array:
    """How much of each stretch from start to end lies in the middle half of [0, count]."""
    return np.clip(np.minimum(end, 0.75 * count) - np.maximum(start, 0.25 * count), 0.0, None)


RESAMPLES = 2000
"""Replicates of a bootstrap."""
TAILS = (0.025, 0.975)
"""The quantiles between which a 95 % interval lies."""


@quiet
def bootstrap_ci(
    scores: npt.ArrayLike,
    statistic: Callable[..., Any] = iqm,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    rng: np.random.Generator | int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over independent runs, stratified by task.

    Each replicate draws as many runs as there are, with replacement, separately within each task (column), and computes
    the statistic of all drawn scores. The interval spans the central `level` of the replicates (Agarwal et al. 2021,
    arXiv:2108.13264, §4.1; as in rliable). With few runs the interval is too narrow: with 8 Gaussian runs, a 95 %
    interval of the mean contains the truth about 9 times in 10.

    scores: `[S]` one score per run (seed), or `[S, tasks]`. statistic: called as `statistic(replicates,
    axis=-1)`. rng: a Generator or a seed; the same seed gives the same interval.
    """
    table = _numbers("scores", scores)
    if table.ndim not in (1, 2) or table.size == 0:
        raise ValueError(f"scores has shape {table.shape}; expected [seeds] or [seeds, tasks] with at least one entry")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}; expected a share between 0 and 1, such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; expected at least 1")
    table = table.reshape(len(table), -1)
    runs, tasks = table.shape
    drawn = np.random.default_rng(rng).integers(runs, size=(resamples, runs, tasks))
    replicates = table[drawn, np.arange(tasks)].reshape(resamples, runs * tasks)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(statistic(replicates, axis=-1), [tail, 1.0 - tail])
    return float(low), float(high)


ENOUGH = 5
"""The minimum number of runs for a bootstrap interval. With two or three runs it would be their range."""


def interval(scores: npt.ArrayLike) -> tuple[float, float]:
    """The interval around the interquartile mean of runs `[S]`: a 95 % bootstrap interval, or the range of few runs."""
    runs = _numbers("scores", scores)
    return bootstrap_ci(runs) if len(runs) >= ENOUGH else (float(runs.min()), float(runs.max()))


@quiet
def intervals(scores: npt.ArrayLike) -> tuple[Array, Array]:
    """`interval` of every column of `[S, T]` scores, each `[T]`.

    Every column uses the same resamples of the runs, so a band over time is as smooth as the curves are.
    """
    table = _numbers("scores", scores)
    if table.ndim != 2 or len(table) == 0:
        raise ValueError(f"scores has shape {table.shape}; expected [seeds, steps] with at least one seed")
    if len(table) < ENOUGH:
        return table.min(axis=0), table.max(axis=0)
    counts, order = _drawn(len(table), RESAMPLES, 0), np.argsort(table, axis=0)
    low, high = np.empty((2, table.shape[1]))
    for t in range(table.shape[1]):  # a resample is sorted if its runs are taken in the order of their scores
        ends = counts[:, order[:, t]].cumsum(axis=1)  # [resamples, S]
        ordered = table[order[:, t], t]
        starts = np.concatenate([np.zeros((len(ends), 1)), ends[:, :-1]], axis=1)
        weight = _in_the_middle(starts, ends, len(table))
        products = np.where(weight > 0, weight * ordered, 0.0)  # 0 · ∞ would be NaN
        middles = products.sum(axis=1) / weight.sum(axis=1)
        low[t], high[t] = np.quantile(middles, TAILS)
    undefined = np.isnan(table).any(axis=0)
    return np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)


def _drawn(runs: int, resamples: int, rng: np.random.Generator | int) -> Array:
    """How often each run is drawn in each replicate: `[resamples, runs]`, as `bootstrap_ci` draws them."""
    drawn = np.random.default_rng(rng).integers(runs, size=(resamples, runs))
    where = drawn + runs * np.arange(resamples)[:, None]
    return np.bincount(where.ravel(), minlength=resamples * runs).reshape(resamples, runs)


@quiet
def probability_of_improvement(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """P(X > Y) + ½ P(X = Y): how likely a run of X scores higher than a run of Y on one task.

    It is the Mann-Whitney U statistic divided by the number of pairs (Agarwal et al. 2021, arXiv:2108.13264, §4.3).
    Over several tasks, take the mean of the tasks' probabilities. NaN among the scores gives NaN.

    x, y: scores `[S]` and `[S']`, one per run; the two may differ in length.
    """
    return float(_wins(x, y).mean())


@quiet
def improvement_replicates(
    x: npt.ArrayLike, y: npt.ArrayLike, resamples: int = RESAMPLES, rng: np.random.Generator | int = 0
) -> Array:
    """Bootstrap replicates `[resamples]` of `probability_of_improvement`.

    Runs are drawn with replacement within x and within y, each as often as there are runs. For several tasks, pass one
    Generator to all calls and average the replicates over tasks: the bootstrap is then stratified by task.
    """
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; expected at least 1")
    wins, rng = _wins(x, y), np.random.default_rng(rng)
    rows, columns = (_drawn(count, resamples, rng) for count in wins.shape)
    return np.asarray(((rows @ wins) * columns).sum(axis=1) / wins.size)


def _wins(x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
    """1 where a run of x beats one of y, ½ where they are equal: `[S, S']`."""
    tables = []
    for name, scores in (("x", x), ("y", y)):
        table = _numbers(name, scores)
        if table.ndim != 1 or table.size == 0:
            raise ValueError(f"{name} has shape {table.shape}; expected [seeds] with at least one score")
        tables.append(table)
    difference = np.sign(np.subtract.outer(tables[0], tables[1]))  # ∞ − ∞ is NaN, but two equal infinities are a tie
    equal = np.equal.outer(tables[0], tables[1])
    return np.where(equal, 0.5, 0.5 * (1.0 + difference))


@quiet
def performance_profile(scores: npt.ArrayLike, thresholds: npt.ArrayLike) -> Array:
    """The share of runs that score above each threshold, `[K]` (Agarwal et al. 2021, §4.2: the score distribution).

    A profile that lies above another one everywhere is that of stochastically larger scores. The area under it, from 0
    on, is the mean of scores that are not negative.

    scores: `[S]` or `[S, tasks]`, normalised if there are several tasks; NaN is above nothing. thresholds: `[K]`.
    """
    table, levels = _leveled(scores, thresholds)
    ordered = np.sort(table[~np.isnan(table)])
    return np.asarray((len(ordered) - np.searchsorted(ordered, levels, side="right")) / table.size)


@quiet
def profile_interval(scores: npt.ArrayLike, thresholds: npt.ArrayLike) -> tuple[Array, Array]:
    """The pointwise 95 % bootstrap interval of `performance_profile`, each `[K]`, stratified by task."""
    table, levels = _leveled(scores, thresholds)
    rng = np.random.default_rng(0)
    above = table[:, :, None] > levels  # [S, tasks, K]
    shares = [_drawn(len(table), RESAMPLES, rng) @ above[:, task] for task in range(table.shape[1])]
    low, high = np.quantile(np.sum(shares, axis=0) / table.size, TAILS, axis=0)
    return low, high


def _leveled(scores: npt.ArrayLike, thresholds: npt.ArrayLike) -> tuple[Array, Array]:
    """Scores `[S, tasks]` and thresholds `[K]`."""
    table, levels = _numbers("scores", scores), _numbers("thresholds", thresholds)
    if table.ndim not in (1, 2) or table.size == 0:
        raise ValueError(f"scores has shape {table.shape}; expected [seeds] or [seeds, tasks] with at least one entry")
    if levels.ndim != 1:
        raise ValueError(f"thresholds has shape {levels.shape}; expected one axis, [K]")
    return table.reshape(len(table), -1), levels


@quiet
def optimality_gap(scores: npt.ArrayLike, target: float = 1.0) -> float:
    """The mean of max(target − score, 0): how far runs stay below the target (Agarwal et al. 2021, §4.3).

    Scores beyond the target do not make up for others that miss it. Lower is better.
    """
    table = _numbers("scores", scores)
    if table.size == 0:
        raise ValueError(f"scores has shape {table.shape}; expected at least one score")
    return float(np.maximum(target - table, 0.0).mean())


@quiet
def pass_at_k(passed: npt.ArrayLike, samples: int, k: int) -> Any:
    """The chance that at least one of k samples passes, without bias: 1 − C(n − c, k) / C(n, k).

    Chen et al. 2021, arXiv 2107.03374, equation 1. With k = 1 it is c / n.

    passed: c, how many of n = `samples` samples passed, of any shape.
    """
    counts = _numbers("passed", passed)
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}; expected 1 to {samples}, the number of samples")
    if ((counts < 0) | (counts > samples) | (counts != np.floor(counts))).any():
        raise ValueError(f"passed holds {counts.ravel().tolist()[:8]}; expected whole numbers from 0 to {samples}")
    none = np.ones_like(counts)  # C(n − c, k) / C(n, k), factor by factor so that nothing overflows
    for i in range(k):
        none = none * np.maximum(samples - counts - i, 0.0) / (samples - i)
    return (1.0 - none)[()]


def interval_name(runs: int) -> str:
    """The name of `interval` for this number of runs."""
    return "95 % bootstrap interval" if runs >= ENOUGH else "lowest to highest seed"


@quiet
def explained_variance(
    values: npt.ArrayLike,
    returns: npt.ArrayLike,
    mask: npt.ArrayLike | None = None,
    axis: int | tuple[int, ...] | None = None,
) -> Any:
    """The share of the returns' variance that the values explain: 1 − Var[returns − values] / Var[returns].

    1 is a perfect critic (up to a constant), 0 is no better than a constant, and below 0 is worse. NaN if the returns
    do not vary, or nothing is live.

    values, returns: of one shape. mask: True counts. axis: the axes to reduce, by default all; a `[T, S, B]` batch with
    `axis=(0, 2)` gives one number per seed.
    """
    values, returns = _numbers("values", values), _numbers("returns", returns)
    if values.shape != returns.shape:
        raise ValueError(
            f"values has shape {values.shape} but returns has {returns.shape}; did the critic forget .squeeze(-1)?"
        )
    live = np.ones(values.shape, dtype=bool) if mask is None else _live(mask)
    if live.shape != values.shape:
        raise ValueError(f"mask has shape {live.shape} but values has {values.shape}")
    values, returns = values / 2, returns / 2  # halved, so that no difference overflows
    residual, total = _root_squares(returns - values, live, axis), _root_squares(returns, live, axis)
    share = residual / np.where(total > 0, total, 1.0)
    return np.where(total > 0, 1.0 - np.square(share), np.nan)[()]


def _root_squares(x: Array, live: Array, axis: int | tuple[int, ...] | None) -> Array:
    """√Σ (x − mean)² over the live entries; other entries have no effect."""
    count = np.maximum(live.sum(axis=axis, keepdims=True), 1)
    smallest = np.where(live, x, np.inf).min(axis=axis, keepdims=True, initial=np.inf)
    above = np.where(live, x - smallest, 0.0)  # exactly 0 where all are equal
    centred = np.where(live, above - (above / count).sum(axis=axis, keepdims=True), 0.0)
    largest = np.abs(centred).max(axis=axis, keepdims=True, initial=0.0)
    unit = centred / np.where(largest == 0, 1.0, largest)  # its square neither overflows nor vanishes
    return np.asarray((largest * np.sqrt(np.square(unit).sum(axis=axis, keepdims=True))).squeeze(axis))


def _numbers(name: str, values: npt.ArrayLike) -> Array:
    """The array in float64. An error if that loses information, as for masked arrays and complex numbers."""
    array = _array(name, values)
    arrays.check_real(name, array)
    return array.astype(np.float64)


def _live(mask: npt.ArrayLike) -> Array:
    return np.asarray(arrays.to_bool("mask", _array("mask", mask)))


def _array(name: str, values: npt.ArrayLike) -> Array:
    """A list, a number, or an array of any library."""
    if isinstance(values, np.ndarray) or hasattr(values, "detach"):
        arrays.library(name, values)
    try:
        return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{name} is a {type(values).__name__}, not an array of numbers: {error}") from error


@quiet
def summarise(per_seed_episode_returns: npt.ArrayLike) -> dict[str, Any]:
    """The evaluation of a population in plain Python numbers, as `telescope eval --json` prints it.

    per_seed_episode_returns: `[S, E]`, the returns of E evaluation episodes of each of S seeds.

    A seed's score is the mean of its episodes (`per_seed`). `iqm`, `mean`, `worst` (the lowest) and `std` (biased) are
    statistics of these S scores. `ci95` is the bootstrap interval of the interquartile mean over seeds, and `episodes`
    is E.
    """
    table = _numbers("per_seed_episode_returns", per_seed_episode_returns)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"per_seed_episode_returns has shape {table.shape}; expected [seeds, episodes]")
    per_seed = table.mean(axis=1)
    return {
        "iqm": float(iqm(per_seed)),
        "mean": float(per_seed.mean()),
        "worst": float(per_seed.min()),
        "ci95": list(bootstrap_ci(per_seed)),
        "episodes": table.shape[1],
        "per_seed": per_seed.tolist(),
        "std": float(per_seed.std()),
    }

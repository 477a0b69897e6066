"""Statistics of runs: interquartile mean, bootstrap intervals, explained variance, summary of an evaluation.

Leaves out where the numbers come from (`runs/`) and how they are drawn (`runs/curves.py`): plain NumPy arrays
in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def iqm(scores: npt.ArrayLike, axis: int = -1) -> Any:
    """Interquartile mean: the mean of the middle half of the scores.

    Sorted scores x₁ ≤ … ≤ xₙ are seen as a step function on [0, n]; its mean over [n/4, 3n/4] is returned.
    Where 4 divides n this is the 25 % trimmed mean of Agarwal et al. 2021 (arXiv:2108.13264, §4.3); elsewhere
    the two scores at the quartiles count in part, whereas rliable rounds the cut down, which at three runs
    trims nothing at all. One score is its own mean, two give their plain mean. NaN among the scores gives
    NaN; the trimmed scores may be infinite.

    scores: any shape with at least one entry along `axis`; the result lacks that axis.
    """
    ordered = np.sort(np.moveaxis(np.asarray(scores, dtype=np.float64), axis, -1), axis=-1)
    count = ordered.shape[-1]
    if count == 0:
        raise ValueError(f"scores has shape {np.shape(scores)}: no score along axis {axis} to take the mean of")
    rank = np.arange(count)
    weight = np.clip(np.minimum(rank + 1, 0.75 * count) - np.maximum(rank, 0.25 * count), 0.0, 1.0)
    kept = weight > 0  # a product with weight 0 would turn a trimmed infinity into NaN
    middle = (ordered[..., kept] * weight[kept]).sum(-1) / weight.sum()
    return np.where(np.isnan(ordered[..., -1]), np.nan, middle)[()]  # sort puts NaN last


def bootstrap_ci(
    scores: npt.ArrayLike,
    statistic: Callable[..., Any] = iqm,
    level: float = 0.95,
    resamples: int = 2000,
    rng: np.random.Generator | int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over independent runs, stratified by task.

    Runs are drawn with replacement, as many as there are, within each task (column) on its own; the statistic
    of all drawn scores together is one replicate, and the interval spans the central `level` of the
    replicates (Agarwal et al. 2021, arXiv:2108.13264, §4.1; as rliable). With few runs such an interval is
    too narrow: at 8 Gaussian runs a 95 % interval of the mean holds the truth about 9 times in 10.

    scores: `[S]` one score per run (seed), or `[S, tasks]`. statistic: called as `statistic(replicates,
    axis=-1)`. rng: a Generator or a seed; the same seed gives the same interval.
    """
    table = np.asarray(scores, dtype=np.float64)
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
"""Runs from which a bootstrap interval is drawn; that of two or three is their range, whatever it calls itself."""


def interval(scores: npt.ArrayLike) -> tuple[float, float]:
    """What to show around the interquartile mean of runs `[S]`: the 95 % bootstrap interval, or the range of a few."""
    runs = np.asarray(scores, dtype=np.float64)
    return bootstrap_ci(runs) if len(runs) >= ENOUGH else (float(runs.min()), float(runs.max()))


def interval_name(runs: int) -> str:
    """What `interval` is for this many runs."""
    return "95 % bootstrap interval" if runs >= ENOUGH else "lowest to highest seed"


def explained_variance(
    values: npt.ArrayLike,
    returns: npt.ArrayLike,
    mask: npt.ArrayLike | None = None,
    axis: int | tuple[int, ...] | None = None,
) -> Any:
    """Share of the variance of the returns that the values explain: 1 − Var[returns − values] / Var[returns].

    1 is a perfect critic (up to a constant), 0 is no better than a constant, below 0 is worse. NaN where the
    returns do not vary, or nothing is live.

    values, returns: the same shape. mask: True counts. axis: taken over these axes, all by default; a `[T, S,
    B]` batch with `axis=(0, 2)` gives one number per seed.
    """
    values, returns = np.asarray(values, dtype=np.float64), np.asarray(returns, dtype=np.float64)
    if values.shape != returns.shape:
        raise ValueError(
            f"values has shape {values.shape} but returns has {returns.shape}; did the critic forget .squeeze(-1)?"
        )
    live = np.ones(values.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if live.shape != values.shape:
        raise ValueError(f"mask has shape {live.shape} but values has {values.shape}")
    total = _variance(returns, live, axis)
    residual = _variance(returns - values, live, axis)
    return np.where(total > 0, 1.0 - residual / np.where(total > 0, total, 1.0), np.nan)[()]


def _variance(x: Array, live: Array, axis: int | tuple[int, ...] | None) -> Array:
    """Biased variance of the live entries; whatever stands in the others does not enter."""
    count = np.maximum(live.sum(axis=axis, keepdims=True), 1)
    x = np.where(live, x, 0.0)
    centred = np.where(live, x - x.sum(axis=axis, keepdims=True) / count, 0.0)
    return np.asarray((np.square(centred).sum(axis=axis, keepdims=True) / count).squeeze(axis))


def summarise(per_seed_episode_returns: npt.ArrayLike) -> dict[str, Any]:
    """The evaluation of a population in plain Python numbers, as `telescope eval --json` prints it.

    per_seed_episode_returns: `[S, E]`, E evaluation episodes of each of S seeds.

    A seed's score is the mean of its episodes (`per_seed`); `iqm`, `mean`, `worst` (the lowest) and `std`
    (biased) are taken over those S scores, `ci95` is the bootstrap interval of the interquartile mean over
    seeds, and `episodes` is E, the number of episodes of each seed.
    """
    table = np.asarray(per_seed_episode_returns, dtype=np.float64)
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

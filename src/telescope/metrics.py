"""Statistics of runs: interquartile mean, bootstrap intervals, explained variance, summary of an evaluation.

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
    weight = np.clip(np.minimum(rank + 1, 0.75 * count) - np.maximum(rank, 0.25 * count), 0.0, 1.0)
    kept = weight > 0  # 0 · ∞ would be NaN
    middle = (ordered[..., kept] * weight[kept]).sum(-1) / weight.sum()
    return np.where(np.isnan(ordered[..., -1]), np.nan, middle)[()]  # NaN is sorted last


@quiet
def bootstrap_ci(
    scores: npt.ArrayLike,
    statistic: Callable[..., Any] = iqm,
    level: float = 0.95,
    resamples: int = 2000,
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

"""A rollout as rows that can be judged one by one: what each step says about the advantages that somebody computed.

GAE's recursion A[t] = r[t] − v[t] + u[t] holds in every row by itself, with u[t] = γ v'[t] + γλ A[t+1] inside an
episode and γ v'[t] or 0 at its end. So u[t] = A[t] − r[t] + v[t] shows what was done there. Leaves out names for it.
"""

# T time, C columns
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

SLACK = 64
"""Roundings in float32 or float64 that a right row may be off, relative to the numbers in it."""
HALVES = {"bfloat16": 2.0**-7, "float16": 2.0**-10}
"""Spacing of numbers relative to their size."""
BITS = {"float16": 10, "float32": 23, "float64": 52}
"""dtype → bits of its mantissa."""


class Rollout(NamedTuple):
    """What a file or a program gives, time first. Everything but the rewards may be missing."""

    rewards: np.ndarray  # [T, *batch]
    values: np.ndarray | None = None  # [T, *batch] of the state before each step
    next_values: np.ndarray | None = None  # [T, *batch] of the state that each step led to
    terminated: np.ndarray | None = None  # [T, *batch] 0/1
    truncated: np.ndarray | None = None  # [T, *batch] 0/1
    mask: np.ndarray | None = None  # [T, *batch] 0/1, 1 = this row counts
    advantages: np.ndarray | None = None  # [T, *batch]
    returns: np.ndarray | None = None  # [T, *batch] targets of the critic
    gamma: float | None = None
    lam: float | None = None
    group: int | None = None
    """Completions per prompt: rewards and advantages [N] are relative to their group, without values."""

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are given, by name."""
        return {name: x for name, x in self._asdict().items() if isinstance(x, np.ndarray)}


class Rounding(NamedTuple):
    """How coarse the numbers are: `fine` of float32 or float64; the others are 0, or that of half precision."""

    fine: float
    rewards: float
    values: float
    next_values: float
    advantages: float

    @property
    def of_values(self) -> float:
        """The coarser one of values and next values."""
        return max(self.fine, self.values, self.next_values)


class Rows(NamedTuple):
    """The rows of a rollout [T, C] in float64; NaN is unknown."""

    rewards: Floats
    values: Floats
    reached: Floats  # v' of the state that the step led to, as the rollout says it; unknown where it does not
    following: Floats  # v at the column's next live row; NaN without one
    advantages: Floats
    later: Floats  # the advantage at the column's next live row; NaN without one
    terminated: Flags
    truncated: Flags  # and not terminated
    live: Flags
    last: Flags  # the column's last live row, if it does not end an episode
    next_row: npt.NDArray[np.int64]  # [T, C] time of the column's next live row; T without one
    rounding: Rounding

    @property
    def inside(self) -> Flags:
        """Rows whose episode goes on in the next row."""
        return self._going_on & ~self.gap

    @property
    def gap(self) -> Flags:
        """Rows whose episode goes on after rows that do not count."""
        times = np.arange(len(self.live))[:, None]
        return self._going_on & (self.next_row > times + 1)

    @property
    def _going_on(self) -> Flags:
        return self.live & ~self.terminated & ~self.truncated & ~self.last

    @property
    def rest(self) -> Floats:
        """u = A − r + v: what was added for everything after the step's reward."""
        return self.advantages - self.rewards + self.values

    @property
    def successors(self) -> Floats:
        """v' of every row: as the rollout says it, or the value of the next row inside an episode."""
        return np.where(np.isnan(self.reached) & self._going_on, self.following, self.reached)

    def tolerance(self, gamma: float, lam: float) -> Floats:
        """How far a right row may be off."""
        names = ("rewards", "values", "next_values", "advantages", "advantages")
        parts = (self.rewards, self.values, gamma * self.successors, self.advantages, gamma * lam * self.later)
        sizes = [np.abs(np.nan_to_num(x)) for x in parts]
        size = np.sum(sizes, 0)
        typical = float(np.mean(size[self.live])) if self.live.any() else 0.0
        stored = sum(getattr(self.rounding, name) * x for name, x in zip(names, sizes, strict=True))
        computed = 2 * self.rounding.advantages * (size + typical)  # in half precision, if they are stored so
        return np.asarray(SLACK * self.rounding.fine * (size + typical) + stored + computed)

    def off(self, expected: Floats, gamma: float, lam: float) -> Flags:
        """Live rows where u differs from what is expected there. Unknown numbers differ from nothing."""
        with np.errstate(invalid="ignore"):
            return self.live & (np.abs(self.rest - expected) > self.tolerance(gamma, lam))

    def expected(self, gamma: float, lam: float) -> Floats:
        """u of GAE(γ, λ)."""
        ahead = gamma * self.successors + gamma * lam * self.later
        cut = np.where(self.truncated | self.last, gamma * self.successors, ahead)
        return np.where(self.terminated, 0.0, cut)


def rows_of(rollout: Rollout) -> Rows:
    """The rows of a rollout whose arrays have one shape [T, *batch] and hold numbers."""
    shape = (len(rollout.rewards), -1)
    columns = int(np.prod(rollout.rewards.shape[1:]))

    def number(x: np.ndarray | None) -> Floats:
        return np.full((shape[0], columns), np.nan) if x is None else np.asarray(x, np.float64).reshape(shape)

    def flag(x: np.ndarray | None, otherwise: bool = False) -> Flags:
        return np.full((shape[0], columns), otherwise) if x is None else (np.asarray(x) != 0).reshape(shape)

    live = flag(rollout.mask, otherwise=True)
    terminated = flag(rollout.terminated) & live
    truncated = flag(rollout.truncated) & live & ~terminated
    next_row = following_rows(live)
    values, advantages = number(rollout.values), number(rollout.advantages)
    if rollout.advantages is None and rollout.returns is not None:
        advantages = number(rollout.returns) - values
    return Rows(
        number(rollout.rewards),
        values,
        number(rollout.next_values),
        at(values, next_row),
        advantages,
        at(advantages, next_row),
        terminated,
        truncated,
        live,
        live & (next_row == shape[0]) & ~terminated & ~truncated,
        next_row,
        _rounding(rollout),
    )


def _rounding(rollout: Rollout) -> Rounding:
    """The precision of each array: that of its dtype, or a coarser one that all of its numbers have."""
    if rollout.advantages is None and rollout.returns is not None:
        rollout = rollout._replace(advantages=rollout.returns)
    arrays = [getattr(rollout, name) for name in Rounding._fields[1:]]
    found = [precision(x) for x in arrays]
    coarsest = max(found)
    found = [coarsest if has_precision(x, coarsest) else eps for x, eps in zip(arrays, found, strict=True)]
    fine = [x for x in found if x < min(HALVES.values())]
    return Rounding(max([*fine, float(np.finfo(np.float64).eps)]), *(0.0 if x in fine else x for x in found))


def precision(x: np.ndarray | None) -> float:
    """The spacing of an array's numbers, relative to their size. Whole numbers are exact in every dtype."""
    if x is None or x.dtype.kind != "f" or not len(_fractions(x)):
        return float(np.finfo(np.float64).eps)
    for eps in (*HALVES.values(), float(np.finfo(np.float32).eps)):
        if has_precision(x, eps, least=0.2):
            return eps
    return float(np.finfo(x.dtype).eps)


def has_precision(x: np.ndarray | None, eps: float, least: float = 0.0) -> bool:
    """Whether all numbers have this spacing, and at least a share of them no coarser one."""
    if x is None or x.dtype.name not in BITS or 2.0 ** -BITS[x.dtype.name] > eps:
        return False
    numbers = np.unique(_fractions(x))
    if not len(numbers):
        return False
    bits = numbers.view(f"u{x.dtype.itemsize}")
    spare = bits.dtype.type(BITS[x.dtype.name] + round(np.log2(eps)))
    kept = bits >> spare
    return bool((kept << spare == bits).all() and (kept & bits.dtype.type(1)).mean() >= least)


def _fractions(x: np.ndarray) -> np.ndarray:
    """The numbers of an array that are not whole, if any is not; else none."""
    numbers = np.ascontiguousarray(x[np.isfinite(x) & (x != 0)])
    return numbers if (numbers != np.round(numbers)).any() else numbers[:0]


def following_rows(live: Flags) -> npt.NDArray[np.int64]:
    """The time of each column's next live row [T, C]; T without one."""
    times = np.where(live, np.arange(len(live))[:, None], len(live))
    ahead = np.minimum.accumulate(times[::-1], 0)[::-1]  # of this row or a later one
    return np.concatenate([ahead[1:], np.full((1, live.shape[1]), len(live))])


def at(x: Floats, rows: npt.NDArray[np.int64]) -> Floats:
    """x at these rows of its columns; NaN beyond the end."""
    return np.take_along_axis(np.concatenate([x, np.full((1, x.shape[1]), np.nan)]), rows, 0)


class Fit(NamedTuple):
    """γ and λ that explain rows inside episodes, and how the advantages were shifted and scaled."""

    gamma: float
    lam: float
    mean: float  # raw advantages are scale · A + mean
    scale: float


def fitted_scale(rows: Rows, gamma: float, lam: float) -> Fit | None:
    """How advantages of known γ and λ were shifted and scaled, by all rows of which most are right; None if not at all.

    scale A + mean = r − v + γ v' + γλ (scale A' + mean), with v' and A' only where they count.
    """
    ahead, decay = gamma * rows.successors, np.where(rows.inside | rows.gap, gamma * lam, 0.0)
    ahead = np.where(rows.terminated, 0.0, ahead)
    trace = np.where(decay > 0, decay * rows.later, 0.0)
    with np.errstate(invalid="ignore"):
        use = rows.live & np.isfinite(rows.advantages + ahead + trace)
    matrix = np.stack([(rows.advantages - trace)[use], (1 - decay)[use]], 1)
    solution = _robust(matrix, (rows.rewards - rows.values + ahead)[use])
    if solution is None or solution[0] <= 1e-6 * np.abs(rows.rewards - rows.values)[use].mean():
        return None
    return Fit(gamma, lam, float(solution[1]), float(solution[0]))


def fitted_discounts(rows: Rows, *, scaled: bool, gamma: float | None = None, lam: float | None = None) -> Fit | None:
    """The least-squares γ and λ of rows inside episodes, in which a few rows may be wrong; None if rows do not tell.

    `scaled` also fits mean and scale. A given `gamma` or `lam` is taken, not fitted.
    """
    if gamma is not None and lam is not None:
        return fitted_scale(rows, gamma, lam) if scaled else Fit(gamma, lam, 0.0, 1.0)
    with np.errstate(invalid="ignore"):
        use = rows.inside & np.isfinite(rows.rest + rows.successors + rows.later)
    a, ahead, v, later = (x[use] for x in (rows.advantages, rows.successors, rows.values, rows.later))
    target = rows.rewards[use] - v  # r − v = scale A + mean − γ v' − γλ (scale A' + mean)
    columns = {"decay": -later}  # γλ · scale
    if gamma is None:
        columns["gamma"] = -ahead
    else:
        target = target + gamma * ahead
    if scaled:
        columns |= {"scale": a, "mean": np.ones_like(a)}
    else:
        target = target - a
    solution = _robust(np.stack(list(columns.values()), 1), target)
    if solution is None:
        return None
    found = dict(zip(columns, solution.tolist(), strict=True))
    scale, g = found.get("scale", 1.0), found.get("gamma", gamma)
    if scale <= 0 or g is None:
        return None
    decay = found["decay"] / scale
    mean = found.get("mean", 0.0) / (1 - decay) if abs(1 - decay) > 1e-9 else 0.0
    fit = Fit(g, decay / g if g else 0.0, mean, scale)
    return fit if lam is None else fitted_discounts(rows, scaled=scaled, gamma=g, lam=lam)


def _robust(matrix: Floats, target: Floats, rounds: int = 8) -> Floats | None:
    """Least squares over the rows that agree with each other, from a solution of least absolute errors."""
    weights = np.ones(len(target))
    solution = _solved(matrix, target, weights)
    for _ in range(2 * rounds):
        if solution is None:
            return None
        errors = np.abs(matrix @ solution - target)
        weights = 1 / np.sqrt(np.maximum(errors, 1e-9 * errors.max() + 1e-300))
        solution = _solved(matrix, target, weights)
    if solution is None:
        return None
    use = np.zeros(len(target), bool)
    for _ in range(rounds):
        errors = np.abs(matrix @ solution - target)
        kept = errors <= max(8 * float(np.median(errors)), 1e-12 * float(np.abs(target).max()))
        better = None if np.array_equal(kept, use) else _solved(matrix[kept], target[kept], np.ones(int(kept.sum())))
        if better is None:
            break
        use, solution = kept, better
    return solution


def _solved(matrix: Floats, target: Floats, weights: Floats) -> Floats | None:
    """Weighted least squares; None if the rows do not determine the solution."""
    if len(target) <= matrix.shape[1]:
        return None
    size = np.abs(matrix).max(0)
    if (size == 0).any():
        return None
    weights = weights / weights.max()
    solved, _, rank, _ = np.linalg.lstsq(matrix / size * weights[:, None], target * weights, rcond=1e-10)
    return np.asarray(solved / size, np.float64) if rank == matrix.shape[1] else None


def matched(x: Floats, others: Floats, tolerance: float) -> float:
    """The share of the numbers x that have an equal among as many others, each of which counts once."""
    x, others = np.sort(x[np.isfinite(x)]), np.sort(others[np.isfinite(others)])
    place = found = 0
    for number in x.tolist():
        while place < len(others) and others[place] < number - tolerance:
            place += 1
        if place < len(others) and others[place] <= number + tolerance:
            place, found = place + 1, found + 1
    return found / max(len(x), len(others), 1)

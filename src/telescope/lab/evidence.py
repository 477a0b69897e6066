"""A rollout as rows that can be judged one by one: what each step says about the advantages that somebody computed.

GAE's recursion A[t] = r[t] − v[t] + u[t] holds in every row by itself, with u[t] = γ v'[t] + γλ A[t+1] inside an
episode and γ v'[t] or 0 at its end. So u[t] = A[t] − r[t] + v[t] shows what was done there. Leaves out names for it.
"""

# T time, C columns
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

SLACK = 64
"""Roundings of the coarsest dtype that a right row may be off, relative to the numbers in it."""


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
    rounding: float  # of the coarsest dtype

    @property
    def inside(self) -> Flags:
        """Rows whose episode goes on in the next live row."""
        return self.live & ~self.terminated & ~self.truncated & ~self.last

    @property
    def rest(self) -> Floats:
        """u = A − r + v: what was added for everything after the step's reward."""
        return self.advantages - self.rewards + self.values

    @property
    def successors(self) -> Floats:
        """v' of every row: as the rollout says it, or the value of the next row inside an episode."""
        return np.where(np.isnan(self.reached) & self.inside, self.following, self.reached)

    def tolerance(self, gamma: float, lam: float) -> Floats:
        """How far a right row may be off."""
        parts = (self.rewards, self.values, self.advantages, gamma * self.successors, gamma * lam * self.later)
        size = np.abs(np.nan_to_num(np.stack(parts))).sum(0)
        typical = float(np.mean(size[self.live])) if self.live.any() else 0.0
        return np.asarray(SLACK * self.rounding * (size + typical))

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
    given = [x for x in rollout.arrays().values() if x.dtype.kind == "f"]
    rounding = max([float(np.finfo(x.dtype).eps) for x in given], default=float(np.finfo(np.float64).eps))
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
        rounding,
    )


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


def fitted_discounts(rows: Rows, *, scaled: bool, gamma: float | None = None, lam: float | None = None) -> Fit | None:
    """The least-squares γ and λ of rows inside episodes, in which a few rows may be wrong; None if rows do not tell.

    `scaled` also fits mean and scale. A given `gamma` or `lam` is taken, not fitted.
    """
    with np.errstate(invalid="ignore"):
        use = rows.inside & np.isfinite(rows.rest + rows.successors + rows.later)
    a, ahead, v, later = (x[use] for x in (rows.advantages, rows.successors, rows.values, rows.later))
    target = rows.rewards[use] - v  # r − v = scale A + mean − γ v' − γλ (scale A' + mean)
    if gamma is not None:
        target = target + gamma * ahead
    known = None if gamma is None or lam is None else gamma * lam
    columns: dict[str, Floats] = {} if gamma is not None else {"gamma": -ahead}
    if scaled:
        columns["scale"] = a if known is None else a - known * later
        columns["mean"] = np.ones_like(a)
    else:
        target = target - a
    if known is None:
        columns["decay"] = -later  # γλ · scale
    elif not scaled:
        target = target + known * later
    if not columns:
        return Fit(float(gamma), float(lam), 0.0, 1.0)  # type: ignore[arg-type]
    solution = _robust(np.stack(list(columns.values()), 1), target)
    if solution is None:
        return None
    found = dict(zip(columns, solution.tolist(), strict=True))
    scale, g = found.get("scale", 1.0), found.get("gamma", gamma)
    if scale <= 0 or g is None:
        return None
    decay = known if known is not None else found["decay"] / scale
    mean = found.get("mean", 0.0) / (1 - decay) if abs(1 - decay) > 1e-9 else 0.0
    return Fit(g, decay / g if g else 0.0, mean, scale)


def _robust(matrix: Floats, target: Floats, rounds: int = 8) -> Floats | None:
    """Least squares over the rows that agree with each other."""
    use = np.ones(len(target), bool)
    solution = None
    for _ in range(rounds):
        if use.sum() <= matrix.shape[1]:
            return None
        size = np.abs(matrix[use]).max(0)
        if (size == 0).any():
            return None
        solved, _, rank, _ = np.linalg.lstsq(matrix[use] / size, target[use], rcond=1e-10)
        if rank < matrix.shape[1]:
            return None
        solution = np.asarray(solved / size, np.float64)
        errors = np.abs(matrix @ solution - target)
        kept = errors <= max(8 * float(np.median(errors)), 1e-12)
        if np.array_equal(kept, use):
            break
        use = kept
    return solution


def matched(x: Floats, others: Floats, tolerance: float) -> float:
    """The share of the numbers x that have an equal among the others."""
    others = np.sort(others[np.isfinite(others)])
    x = x[np.isfinite(x)]
    if not len(x) or not len(others):
        return 0.0
    places = np.clip(np.searchsorted(others, x), 1, max(len(others) - 1, 1))
    nearest: Any = np.minimum(np.abs(x - others[places - 1]), np.abs(x - others[np.minimum(places, len(others) - 1)]))
    return float((nearest <= tolerance).mean())

"""How far advantages in float32 are from the truth, beside the plain loop: `python -m benchmarks.accuracy`.

It writes the table in docs/estimators.md, between its two marks. The truth is the recursion in float64, errors are in
units in the last place (ulp) of the largest number on the way. It leaves out speed, and estimators other than GAE:
they run the same kernels on another pair.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import telescope
from benchmarks import machine

PAGE = Path(__file__).parents[1] / "docs" / "estimators.md"
MARKS = "<!-- accuracy: begin -->", "<!-- accuracy: end -->"
SHAPES = [(8, 128), (256, 2048), (3, 65_536), (1, 1_000_000)]  # columns, steps
DISCOUNTS = [(1.0, 1.0), (0.99, 0.95)]
ENDS = [0.0, 0.01]  # the share of steps that terminate, and as many that are truncated


class Case(NamedTuple):
    """Float32 arrays [T, B]; discounts are float32 numbers too, as the kernels see them."""

    rewards: np.ndarray
    values: np.ndarray
    next_values: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    gamma: float
    lam: float

    @property
    def name(self) -> str:
        steps, columns = self.values.shape
        ends = "ends" if self.terminated.any() else "no end"
        return f"{columns} × {steps}, γ = {self.gamma:g}, λ = {self.lam:g}, {ends}"


def case(columns: int, steps: int, gamma: float, lam: float, ends: float) -> Case:
    random = np.random.default_rng([columns, steps])
    # Numbers that half precision holds too, so that all contestants are given the same problem.
    rewards, values, ahead = random.standard_normal((3, steps, columns), np.float32).astype(np.float16)
    flags = (random.random((2, steps, columns)) < ends).astype(bool)
    return Case(*(array.astype(np.float32) for array in (rewards, values, ahead)), *flags, gamma, lam)


def solved(given: Case, dtype: Any) -> np.ndarray:
    """The plain loop in a dtype: δ, then A[t] = δ[t] + γλ A[t+1], each operation rounded to it."""
    rewards, values, ahead = (array.astype(dtype) for array in given[:3])
    gamma = dtype(given.gamma)
    x = rewards + np.where(given.terminated, dtype(0), gamma * ahead) - values
    a = np.where(given.terminated | given.truncated, dtype(0), dtype(given.gamma * given.lam))
    if x.shape[1] == 1:
        return _scalars(x[:, 0], a[:, 0])[:, None]
    y, later = np.empty_like(x), np.zeros_like(x[0])
    for t in reversed(range(len(x))):
        later = x[t] + a[t] * later
        y[t] = later
    return y


def _scalars(x: np.ndarray, a: np.ndarray) -> np.ndarray:
    """The same for one column, without an array for every step."""
    found, later = [], x.dtype.type(0)
    for residual, decay in zip(x[::-1], a[::-1], strict=True):
        later = residual + decay * later
        found.append(later)
    return np.array(found[::-1], x.dtype)


def contestants() -> dict[str, Callable[[Case], Any]]:
    """Every kernel that this machine can run: from a case to its advantages."""
    found: dict[str, Callable[[Case], Any]] = {
        "NumPy, time-major": lambda c: _gae(c, np.asarray),
        "NumPy, batch-major": lambda c: _gae(c, np.asfortranarray),
        "NumPy, γ as an array": lambda c: _gae(c, np.asarray, gamma=np.float32(c.gamma) * np.ones(1, np.float32)),
        "NumPy, float16 in": lambda c: _gae(c, lambda x: x if x.dtype == bool else x.astype(np.float16)),
        "torch CPU": lambda c: _gae(c, lambda x: torch.from_numpy(x)),
        "torch CPU, float16 in": lambda c: _gae(c, lambda x: _halved(torch.from_numpy(x))),
        "torch CPU, with a gradient": lambda c: _gae(c, lambda x: torch.from_numpy(x), differentiable=True),
    }
    if find_spec("jax"):
        import jax
        import jax.numpy as jnp

        from telescope.recurrence import jax as scans

        found["JAX"] = lambda c: jax.jit(lambda: _gae(c, jnp.asarray))()
        found["JAX, as on accelerators"] = lambda c: _tree(c, scans)
    if torch.cuda.is_available():
        found["torch CUDA"] = lambda c: _gae(c, lambda x: torch.from_numpy(x).cuda()).cpu()
        found["torch CUDA, float16 in"] = lambda c: _gae(c, lambda x: _halved(torch.from_numpy(x)).cuda()).cpu()
    return found


def _gae(c: Case, told: Callable[[np.ndarray], Any], **more: Any) -> Any:
    floats, flags = (tuple(map(told, arrays)) for arrays in (c[:3], c[3:5]))
    ends = dict(zip(("terminated", "truncated"), flags, strict=True))
    return telescope.gae(*floats, **ends, **{"gamma": c.gamma, "lam": c.lam} | more).advantages


def _halved(array: torch.Tensor) -> torch.Tensor:
    return array if array.dtype == torch.bool else array.half()


def _tree(c: Case, scans: Any) -> Any:
    """The associative scan, on whatever platform this is."""
    kept = scans._by_platform
    scans._by_platform = scans._tree
    try:
        import jax.numpy as jnp

        return _gae(c, jnp.asarray)
    finally:
        scans._by_platform = kept


class Row(NamedTuple):
    """Errors of one case, in ulp of the largest number on the way."""

    name: str
    plain: float
    errors: dict[str, float]

    @property
    def bound(self) -> float:
        return 2 * self.plain + 1


def measured(given: Case, entrants: dict[str, Callable[[Case], Any]]) -> Row:
    truth = solved(given, np.float64)
    ulp = float(np.spacing(np.float32(np.abs(truth).max())))

    def error(found: Any) -> float:
        found = found.detach() if isinstance(found, torch.Tensor) else found
        return float(np.abs(np.asarray(found, np.float64) - truth).max() / ulp)

    return Row(given.name, error(solved(given, np.float32)), {n: error(run(given)) for n, run in entrants.items()})


def rows() -> Iterator[Row]:
    entrants = contestants()
    for columns, steps in SHAPES:
        for gamma, lam in DISCOUNTS:
            for ends in ENDS:
                yield measured(case(columns, steps, gamma, lam, ends), entrants)


def table(found: list[Row]) -> str:
    names = list(found[0].errors)
    lines = [f"| columns × steps | plain loop | {' | '.join(names)} |", "|---|" + "---:|" * (len(names) + 1)]
    for row in found:
        cells = [f"{row.plain:.3g}", *(f"{row.errors[name]:.3g}" for name in names)]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    found = list(rows())
    facts = machine.facts()
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    where = f"*Written by `python -m benchmarks.accuracy` on {facts['processor']}, {facts['versions']}; do not edit.*"
    PAGE.write_text(f"{before}{MARKS[0]}\n{where}\n\n{table(found)}\n{MARKS[1]}{after}", encoding="utf-8")
    beyond = [(row.name, name) for row in found for name, error in row.errors.items() if error > row.bound]
    print(table(found))
    for row, name in beyond:
        print(f"beyond twice the plain loop's error and one ulp: {name} at {row}")
    return 1 if beyond else 0


if __name__ == "__main__":
    raise SystemExit(main())

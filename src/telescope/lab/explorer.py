"""A rollout as one HTML page in which you move γ and λ: `write("page.html", files.read("rollout.npz"))`.

The page computes everything itself (`pages/estimators.js`). Leaves out where rollouts come from (`files.py`,
`playing.py`).
"""

# T time, C columns
from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from telescope.lab import files
from telescope.lab.doctor import examine
from telescope.lab.evidence import Rollout, Rows, rows_of
from telescope.lab.pages import page, text_of

SCRIPTS = ("estimators.js", "charts.js", "panels.js", "cards.js", "explorer.js")
GAMMA, LAM = 0.99, 0.95
"""Where the sliders begin if the rollout does not say."""
MANY = 50_000
"""Steps beyond which a page saves bytes."""
BATCH_FIRST = ("torchrl", "trl", "verl")
"""Conventions whose time axis is 1."""


class Extras(NamedTuple):
    """What the page shows besides the rollout itself. Everything may be missing."""

    log_ratios: np.ndarray | None = None  # [T, *batch] log π(a|s) − log μ(a|s)
    tokens: np.ndarray | None = None  # [T, *batch] strings
    prompts: Sequence[str] | None = None  # [C] what stands before each column's first token
    columns: Sequence[str] | None = None  # [C] names of the columns
    recorded: str = "Recorded in the file"
    """What the recorded advantages are called."""
    notes: Sequence[str] = ()
    """Sentences for the reader, above the controls."""


def from_file(path: str | Path, convention: str = "telescope") -> tuple[Rollout, Extras]:
    """The rollout in an npz file, its `log_ratios` and `tokens` if it has them, and what the doctor finds in it."""
    arrays = files.load(path)
    found = files.rollout(arrays, convention)
    more = {name: arrays[name] for name in ("log_ratios", "tokens") if name in arrays}
    if convention in BATCH_FIRST:
        more = {name: np.swapaxes(x, 0, 1) if x.ndim > 1 else x for name, x in more.items()}
    notes = [f"The doctor finds: {finding.sentence}." for finding in examine(found).findings]
    return found, Extras(log_ratios=more.get("log_ratios"), tokens=more.get("tokens"), notes=notes)


def write(
    path: str | Path,
    rollout: Rollout,
    *,
    title: str = "Advantages",
    extras: Extras = Extras(),  # noqa: B008
) -> Path:
    """Write the page to a file.

    Raises:
        ValueError: the arrays differ in shape, or a step that counts holds no finite number.
    """
    path = Path(path)
    path.write_text(html(rollout, title=title, extras=extras), encoding="utf-8")
    return path


def html(rollout: Rollout, *, title: str = "Advantages", extras: Extras = Extras()) -> str:  # noqa: B008
    """The page as text; see `write`."""
    shape = rollout.rewards.shape
    if not shape or rollout.rewards.size == 0:
        raise ValueError(f"rewards has shape {shape}; expected [T, …] with at least one step")
    if rollout.group is not None:
        raise ValueError(
            "this rollout has one reward per completion, compared within groups; the page needs rewards per token"
        )
    found = {**rollout.arrays(), "log_ratios": extras.log_ratios, "tokens": extras.tokens}
    for name, x in found.items():
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} has shape {x.shape} but rewards has {shape}; `telescope doctor` says more")
    rows, notes = _filled(rollout, rows_of(rollout))
    _require_finite(rows, found)
    data = {
        "shape": rows.rewards.shape,
        "gamma": GAMMA if rollout.gamma is None else rollout.gamma,
        "lam": LAM if rollout.lam is None else rollout.lam,
        "recorded": extras.recorded,
        "columns": _names(shape, extras.columns),
        "facts": _facts(rows),
        "notes": [*extras.notes, *notes],
        "arrays": _embedded(rows, found),
        "tokens": None if extras.tokens is None else _columns(extras.tokens).tolist(),
        "prompts": extras.prompts and list(extras.prompts),
    }
    return page(title, text_of("explorer.html"), styles=["explorer.css"], scripts=SCRIPTS, data={"rollout": data})


def _filled(rollout: Rollout, rows: Rows) -> tuple[Rows, list[str]]:
    """The rows with a number in place of everything that is not known, and what was done in sentences."""
    notes = []
    if rollout.values is None:
        rows = rows._replace(values=np.zeros_like(rows.rewards), following=np.zeros_like(rows.rewards))
        notes.append("There are no values: they are 0 here, so advantages are sums of rewards.")
    cut = rows.live & (rows.truncated | rows.last) & np.isnan(rows.reached)
    if cut.any() and rollout.values is not None:
        where = f"Where the data stop before the episode does ({int(cut.sum())} steps), next_values are missing: "
        if _are_gae(rollout, rows):
            assert rollout.gamma is not None
            rows = rows._replace(reached=np.where(cut, rows.rest / rollout.gamma, rows.reached))
            notes.append(where + "they are recovered from the recorded advantages.")
        else:
            rows = rows._replace(reached=np.where(cut, rows.values, rows.reached))
            notes.append(where + "the value of the step itself stands in.")
    elif cut.any():
        rows = rows._replace(reached=np.where(cut, 0.0, rows.reached))
    missing = [name for name in ("gamma", "lam") if getattr(rollout, name) is None]
    if missing:
        begins = " and ".join(f"{name} {value}" for name, value in (("γ", GAMMA), ("λ", LAM)) if _ours(name) in missing)
        notes.append(f"The rollout does not say its {' and '.join(missing)}; the sliders begin at {begins}.")
    return rows, notes


def _ours(letter: str) -> str:
    return {"γ": "gamma", "λ": "lam"}[letter]


def _are_gae(rollout: Rollout, rows: Rows) -> bool:
    """Whether the recorded advantages are GAE in all rows whose successor is known."""
    gamma, lam = rollout.gamma, rollout.lam
    if not gamma or lam is None or (rollout.advantages is None and rollout.returns is None):
        return False
    known = np.isfinite(rows.rest + rows.expected(gamma, lam))
    return bool(known[rows.inside | rows.gap].any() and not rows.off(rows.expected(gamma, lam), gamma, lam).any())


def _require_finite(rows: Rows, found: Mapping[str, Any]) -> None:
    """A ValueError for the first number that the page would need and that is none."""
    needed = {"rewards": rows.rewards, "values": rows.values, "next_values": _successors(rows)}
    for name, x in found.items():
        if name in ("advantages", "returns", "log_ratios") and x is not None:
            needed[name] = np.asarray(x, np.float64).reshape(rows.live.shape)
    for name, x in needed.items():
        wrong = rows.live & ~np.isfinite(x)
        if wrong.any():
            t, c = (int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(f"{name} is {x[t, c]} at step {t} of column {c}; `telescope doctor` says more")


def _successors(rows: Rows) -> np.ndarray:
    """v' [T, C], 0 where terminated: there it is not read, and may be no number."""
    return np.where(rows.terminated, 0.0, rows.successors)


def _embedded(rows: Rows, found: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The arrays [C, T] for `decoded` in estimators.js."""
    flags = 1 * rows.terminated + 2 * rows.truncated + 4 * rows.live
    arrays = {"rewards": rows.rewards, "values": rows.values} | _recorded(rows, found)
    if found.get("log_ratios") is not None:
        arrays["log_ratios"] = _kept(np.asarray(found["log_ratios"], np.float64).reshape(rows.live.shape))
    packed = {name: _packed(_columns(np.where(rows.live, x, 0.0))) for name, x in arrays.items()}
    return packed | {"flags": _packed(_columns(flags.astype(np.uint8)))} | _reached(rows)


def _recorded(rows: Rows, found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Recorded advantages and, if these are not V + Â, targets."""
    if np.isnan(rows.advantages).all():  # neither advantages nor returns are recorded
        return {}
    recorded = {"advantages": rows.advantages}
    if found.get("returns") is not None:
        returns = np.asarray(found["returns"], np.float64).reshape(rows.live.shape)
        usual = rows.values + rows.advantages
        if not np.allclose(returns[rows.live], usual[rows.live], rtol=1e-5, atol=1e-7):
            recorded["returns"] = returns
    return {name: _kept(x) for name, x in recorded.items()}


def _kept(x: np.ndarray) -> np.ndarray:
    """The numbers; of many steps as float32 has them, for these are compared by eye."""
    return x.astype(np.float32).astype(np.float64) if x.size > MANY else x


def _reached(rows: Rows) -> dict[str, dict[str, str]]:
    """Successors [K], and their places [K] among all steps: where they are not the next row's value. If many: all."""
    successors, usual = _successors(rows), np.where(rows.inside | rows.gap, np.nan_to_num(rows.following), 0.0)
    other = _columns(rows.live & ~rows.terminated & (successors != usual))
    if 12 * other.sum() > 8 * other.size:
        return {"reached": _packed(_columns(np.where(rows.live, successors, 0.0)))}
    return {
        "places": _packed(np.flatnonzero(other).astype(np.uint32)),
        "reached": _packed(_columns(successors)[other]),
    }


def _columns(x: np.ndarray) -> np.ndarray:
    """[T, *batch] → [C, T]."""
    return np.ascontiguousarray(x.reshape(len(x), -1).T)


def _packed(x: np.ndarray) -> dict[str, str]:
    """Base64 of little-endian numbers. Floats become float32 where that loses nothing."""
    if x.dtype.kind == "f":
        small = x.astype(np.float32)
        x = small if np.array_equal(small, x) else x.astype(np.float64)
    kind = {"float32": "f4", "float64": "f8", "uint8": "u1", "uint32": "u4"}[x.dtype.name]
    return {"type": kind, "data": base64.b64encode(x.astype(f"<{kind}").tobytes()).decode()}


def _names(shape: tuple[int, ...], names: Sequence[str] | None) -> list[str]:
    if names is not None:
        return list(names)
    places = np.ndindex(shape[1:])
    return [f"column {', '.join(map(str, place))}" if place else "the only one" for place in places]


def _facts(rows: Rows) -> dict[str, str]:
    counts = {
        "steps": rows.live.sum(),
        "columns": rows.live.shape[1],
        "terminated": (rows.terminated & rows.live).sum(),
        "truncated": (rows.truncated & rows.live).sum(),
        "cut by the end": rows.last.sum(),
    }
    return {name: f"{int(count):,}" for name, count in counts.items()}

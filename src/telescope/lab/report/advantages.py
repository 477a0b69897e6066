"""A rollout of each run, kept in its folder or played by its agents: its advantages, and what the doctor finds in it.

Leaves out how mistakes are found (`telescope.lab.doctor`) and how agents play (`telescope.lab.playing`).
"""

# T time, N rows that count
from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from telescope.estimators import gae
from telescope.lab.doctor import examine
from telescope.lab.evidence import Rollout, rows_of
from telescope.lab.files import read
from telescope.lab.pages import escaped
from telescope.lab.reading import Report
from telescope.lab.report import plots
from telescope.lab.report.files import Floats
from telescope.lab.report.lines import Line
from telescope.lab.report.runs import Run
from telescope.metrics import explained_variance

KEPT = "rollout.npz"
"""The file in a run's folder."""
PLAYED, ENVS = 6, 4
"""Lines whose agents play at most, and environments that they play in: loading agents takes most of a report's time."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Kept(NamedTuple):
    """What one rollout says."""

    line: Line
    source: str
    """Where it comes from."""
    examined: Report | None
    """None if there is no rollout."""
    problem: str
    advantages: Floats  # [N]
    explained: float
    rows: int
    episodes: int
    rollout: Rollout | None


def kept(some: Sequence[Line], convention: str, replay: int, trust: bool) -> list[Kept]:
    """The rollouts of all runs that have one. Of other lines, the agents of the first run of ours play one."""
    found, played = list[Kept](), 0
    for line in some:
        before = len(found)
        for run in line.runs:
            path = (run.path if run.path.is_dir() else run.path.parent) / KEPT
            if path.is_file():
                found.append(_read(line, path, convention))
        mine = [run for run in line.runs if run.library == "telescope" and run.clock == "steps" and run.status]
        if len(found) == before and mine and replay and played < PLAYED:
            found.append(_play(line, mine[0], replay, trust))
            played += 1
    return found


def _read(line: Line, path: Path, convention: str) -> Kept:
    try:
        return _of(line, str(path), read(path, convention))
    except (ValueError, OSError) as error:
        return _without(line, str(path), str(error))


def _play(line: Line, run: Run, steps: int, trust: bool) -> Kept:
    """A rollout of a run's first seed. Whatever goes wrong in somebody's environment is told on the page."""
    try:
        from telescope.lab.playing import played

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rollout, _ = played(run.path, steps=steps, envs=ENVS, trust=trust)
    except Exception as error:
        return _without(line, str(run.path), f"its agents could not play a rollout: {error}")
    return _of(line, f"played by seed {run.seeds[0]} of {run.path}: {steps} steps in {ENVS} environments", rollout)


def _without(line: Line, source: str, problem: str) -> Kept:
    return Kept(line, source, None, problem, np.zeros(0), np.nan, 0, 0, None)


def _of(line: Line, source: str, rollout: Rollout) -> Kept:
    report, rows = examine(rollout), rows_of(rollout)
    live = rows.live
    computed = rows.advantages
    if np.isnan(computed[live]).all() and rollout.gamma is not None and rollout.lam is not None:
        computed, _ = gae(
            rows.rewards,
            rows.values,
            np.nan_to_num(rows.successors),
            terminated=rows.terminated,
            truncated=rows.truncated,
            mask=live,
            gamma=rollout.gamma,
            lam=rollout.lam,
        )
    numbers = computed[live & np.isfinite(computed)]
    known = live & np.isfinite(computed + rows.values)
    explained = float(explained_variance(rows.values, computed + rows.values, known)) if known.any() else np.nan
    episodes = int((rows.terminated | rows.truncated).sum())
    return Kept(line, source, report, "", numbers, explained, int(live.sum()), episodes, rollout)


def advantages(some: Sequence[Kept]) -> str:
    """The section on kept rollouts; empty without any."""
    if not some:
        return ""
    having = [one for one in some if len(one.advantages)]
    table = _statistics(having) if having else ""
    figure = (
        f"<div>{plots.legend([(one.line.label, one.line.colour) for one in having])}{_histogram(having)}</div>"
        if having
        else ""
    )
    findings = "".join(_findings(one) for one in some)
    return f"""<section class="card" id="advantages"><h2>Advantages and mistakes</h2>
<p class="soft">Of the rollout that a run keeps as <code>{KEPT}</code>, or that the agents of its checkpoint play.</p>
<div class="columns">{figure}<div>{table}</div></div><h3>What the doctor says</h3>{findings}</section>"""


def _statistics(some: Sequence[Kept]) -> str:
    """A row of the table per statistic, a column per rollout."""
    head = "".join(
        f'<th scope="col" class="number">{plots.swatch(one.line.colour)}{escaped(one.line.label)}</th>' for one in some
    )
    rows: dict[str, list[str]] = {}
    for one in some:
        x, rollout = one.advantages, one.rollout
        spread = float(x.std())
        skew = float(((x - x.mean()) ** 3).mean() / spread**3) if spread > 0 else np.nan
        low, quarter, middle, upper, high = (plots.number(float(q), spread) for q in np.quantile(x, QUANTILES))
        values = {
            "rows": f"{one.rows:,}",
            "episode ends": f"{one.episodes:,}",
            "γ, λ": ", ".join("–" if v is None else f"{v:g}" for v in (rollout.gamma, rollout.lam)) if rollout else "–",
            "mean": plots.number(float(x.mean()), spread),
            "standard deviation": plots.number(spread),
            "median": middle,
            "middle half": f"{quarter} … {upper}",
            "5 % … 95 %": f"{low} … {high}",
            "share above 0": f"{100 * float((x > 0).mean()):.0f} %",
            "skewness": plots.number(skew),
            "explained variance": plots.number(one.explained),
        }
        for name, value in values.items():
            rows.setdefault(name, []).append(value)
    body = "".join(
        f'<tr><th scope="row">{name}</th>' + "".join(f'<td class="number">{x}</td>' for x in cells) + "</tr>"
        for name, cells in rows.items()
    )
    top = f'<thead><tr><th scope="col">advantages</th>{head}</tr></thead>'
    return f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>'


def _histogram(some: Sequence[Kept]) -> str:
    named = [(one.line.label, one.line.colour, one.advantages) for one in some]
    words = "How the advantages are distributed, without the 2 % at the ends."
    return plots.histogram("Histogram of the advantages", named, ("advantage", "share of rows"), words=words)


def _findings(one: Kept) -> str:
    path = f'<span class="soft">{escaped(one.source)}</span>'
    name = f"{plots.swatch(one.line.colour)}<strong>{escaped(one.line.label)}</strong> {path}"
    if one.examined is None:
        return f'<p class="note bad">{name}<br>{escaped(one.problem)}</p>'
    items = [
        f"<strong>{escaped(found.name)}</strong>: {escaped(found.sentence)}.{_where(found.row, found.rows)}"
        for found in one.examined.findings
    ]
    notes = [f"note: {escaped(note)}" for note in one.examined.notes]
    said = "".join(f"<li>{item}</li>" for item in [*items, *notes])
    if not items:
        said = f"<li>nothing wrong was found</li>{said}"
    return f'<div class="{"note bad" if items else "said"}">{name}<ul class="plain">{said}</ul></div>'


def _where(row: tuple[int, ...] | None, rows: int) -> str:
    return "" if row is None else f" First at row {', '.join(map(str, row))}; {rows:,} rows."

"""The figures over steps: the column that runs are compared by, and what each run logged while it learned.

Leaves out the table of final scores (`scores.py`).
"""

# S seeds, K points of a curve
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from telescope.lab.pages import escaped
from telescope.lab.report import plots
from telescope.lab.report.files import Floats
from telescope.lab.report.lines import Band, Curves, Line, band, curves, environments
from telescope.lab.report.names import QUANTITIES, quantity
from telescope.metrics import interval_name

SEEDS = 24
"""Lines of single seeds are drawn up to this many."""
FEW = 60
"""Points of a small figure at most."""
CUT = 0.02
"""Beyond this share of the values at each end, a small figure may be cut: one bad update would flatten the rest."""


def clock_of(some: Sequence[Line]) -> str:
    """The label of the horizontal axis."""
    clocks = {run.clock for line in some for run in line.runs}
    return clocks.pop() if len(clocks) == 1 else "steps"


def learning_curves(some: Sequence[Line], column: str) -> str:
    """A figure per environment."""
    found = environments(some)
    figures = [_figure(env, mine, column, small=False, titled=len(found) > 1) for env, mine in found.items()]
    return f"""<section class="card" id="curves"><h2>{escaped(quantity(column).title)}</h2>
<p class="soft">{_meaning(some)}</p>
{"" if len(found) > 1 else plots.legend(_names(some))}
<div class="columns">{"".join(figures)}</div></section>"""


def _meaning(some: Sequence[Line]) -> str:
    kinds = {interval_name(line.seeds) for line in some if line.seeds > 1}
    bands = f", with the {' or '.join(sorted(kinds))} around it" if kinds else ""
    alone = "" if all(line.seeds > 1 for line in some) else " A line of one seed has no interval."
    return (
        f"Interquartile mean over seeds{bands}; thin lines are seeds.{alone}"
        if kinds
        else f"Each line is one seed.{alone}"
    )


def learned(some: Sequence[Line], but: str) -> str:
    """Every column that the runs have, in small figures."""
    parts, found = list[str](), environments(some)
    for env, mine in found.items():
        columns = list(dict.fromkeys(column for line in mine for column in line.columns if column != but))
        known = [name for name in QUANTITIES if name in columns]
        others = [name for name in columns if name not in QUANTITIES and not name.startswith("time")]
        if known or others:
            shown = f"{plots.legend(_names(mine))}{_small(env, mine, known)}{_folded(env, mine, others)}"
            opened = "" if parts else " open"
            title = f"<summary>{escaped(env or 'unknown environment')}</summary>"
            parts.append(f'<details class="part"{opened}>{title}{shown}</details>' if len(found) > 1 else shown)
    if not parts:
        return ""
    several = any(line.seeds > 1 for line in some)
    words = "Interquartile mean over seeds; the band goes from the lowest to the highest seed." if several else ""
    return f"""<section class="card" id="learned"><h2>How {"they" if len(some) > 1 else "it"} learned</h2>
<p class="soft">{words}</p>
{"".join(parts)}</section>"""


def _small(env: str, some: Sequence[Line], columns: Sequence[str]) -> str:
    figures = [_figure(env, some, name, small=True, titled=True) for name in columns]
    return f'<div class="columns small">{"".join(figures)}</div>'


def _folded(env: str, some: Sequence[Line], columns: Sequence[str]) -> str:
    """Columns that the report has no words for."""
    if not columns:
        return ""
    return f"<details><summary>{len(columns)} other columns</summary>{_small(env, some, columns)}</details>"


def _names(some: Sequence[Line]) -> list[tuple[str, int]]:
    """The entries of a legend. A line alone needs none."""
    return [(line.label, line.colour) for line in some] if len(some) > 1 else []


def _figure(env: str, some: Sequence[Line], column: str, *, small: bool, titled: bool) -> str:
    having = [line for line in some if line.tracks(column)]
    if not having:
        return ""
    found = curves([line.tracks(column) for line in having], *((FEW,) if small else ()))
    bands = [band(scores, spread=small) for scores in found.scores]
    x = plots.axis(0.0, float(found.steps[-1]), snug=True)
    y = plots.axis(*_limits(found, bands, small))
    what, clock = quantity(column), clock_of(having)
    shapes = [
        one
        for line, scores, around in zip(having, found.scores, bands, strict=True)
        for one in _shapes(line, scores, around, x.at(found.steps), y, small)
    ]
    if y.low < 0 < y.high:
        zero = 1.0 - float(y.at(np.array(0.0)))
        shapes.insert(0, f'<path class="zero" d="M0 {plots.UNITS * zero:.0f}H{plots.UNITS}"/>')
    title = what.title if small else env
    name, labels = f"{what.title}{f' on {env}' if env else ''}", (clock, what.unit or " ")
    words = _words(having, found, what.sentence if small else "")
    body = plots.figure(name, shapes, x, y, labels, _table(having, found, bands, x, clock), words=words)
    mine = plots.legend([(line.label, line.colour) for line in having]) if titled and not small else ""
    return f"<div>{f'<h3>{escaped(title)}</h3>' if titled and title else ''}{mine}{body}</div>"


def _shapes(line: Line, scores: Floats, around: Band, x: Floats, y: plots.Axis, small: bool) -> list[str]:
    """What is drawn of a line: its band, its seeds, its middle."""
    found = (
        [plots.shape("band", line.colour, plots.area(x, y.at(around.low), y.at(around.high)))]
        if len(scores) > 1
        else []
    )
    if 1 < len(scores) <= SEEDS and not small:
        found += [plots.shape("seed", line.colour, plots.path(x, y.at(seed))) for seed in scores]
    found.append(plots.shape("middle", line.colour, plots.path(x, y.at(around.middle))))
    if np.isfinite(around.middle).sum() <= 1:
        found.append(plots.shape("mark", line.colour, plots.path(x, y.at(around.middle))))
    return found


def _limits(found: Curves, bands: Sequence[Band], small: bool) -> tuple[float, float]:
    """The vertical range: all that is drawn, but in small figures without rare values far outside."""
    drawn = [x for one in bands for x in one] if small else [*found.scores, *(x for one in bands for x in one)]
    values = np.concatenate([np.ravel(x) for x in drawn])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if small and len(values) > 20:
        inner = np.quantile(values, [CUT, 1.0 - CUT])
        room = 1.5 * float(inner[1] - inner[0])
        low, high = max(low, float(inner[0]) - room), min(high, float(inner[1]) + room)
    return low, high


def _table(some: Sequence[Line], found: Curves, bands: Sequence[Band], x: plots.Axis, clock: str) -> plots.Table:
    rows = []
    for k, step in enumerate(found.steps):
        cells = [_cell(one, k, len(scores)) for one, scores in zip(bands, found.scores, strict=True)]
        rows.append([f"{step:,.0f}", *cells])
    places = [min(max(float(p), 0.0), 1.0) for p in x.at(found.steps)]
    return plots.Table([clock, *(line.label for line in some)], [line.colour for line in some], rows, places)


def _cell(one: Band, k: int, seeds: int) -> str:
    middle, low, high = (float(x[k]) for x in one)
    if np.isnan(middle):
        return "–"
    return plots.number(middle) + (f" [{plots.number(low, middle)}, {plots.number(high, middle)}]" if seeds > 1 else "")


def _words(some: Sequence[Line], found: Curves, sentence: str) -> str:
    """The caption: what is shown, and which lines end before some of their seeds do."""
    early = []
    for line, scores in zip(some, found.scores, strict=True):
        last = [int(np.flatnonzero(np.isfinite(seed))[-1]) for seed in scores if np.isfinite(seed).any()]
        if last and max(last) - min(last) > 0.02 * len(found.steps) + 1:
            early.append(f"{escaped(line.label)} has seeds that go on after {found.steps[min(last)]:,.0f}")
    ends = f" {'; '.join(early)}: its middle line ends where the first seed does." if early else ""
    return f"{escaped(sentence)}{ends}"

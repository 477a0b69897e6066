"""Final scores: the table, and which line is better: probability of improvement and performance profiles.

Leaves out the statistics (`telescope.metrics`).
"""

# S seeds, L lines
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from telescope.lab.pages import escaped
from telescope.lab.report import plots
from telescope.lab.report.files import Floats
from telescope.lab.report.lines import Line, environments, final_scores, scale_of
from telescope.lab.report.names import Scale, quantity
from telescope.metrics import (
    ENOUGH,
    TAILS,
    improvement_replicates,
    interval,
    interval_name,
    iqm,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    profile_interval,
)

CROWD = 7
"""With more lines than this, a table of pairs shows no intervals."""
THRESHOLDS = 101


class Scored(NamedTuple):
    """A line and the final scores of its seeds."""

    line: Line
    scores: Floats  # [S]

    @property
    def iqm(self) -> float:
        return float(iqm(self.scores))


def scored(some: Sequence[Line], column: str, final: float) -> list[Scored]:
    """The lines with their scores, of each environment the best first."""
    found = [Scored(line, final_scores(line, column, final)) for line in some]
    return sorted(found, key=lambda one: (one.line.env, -one.iqm))


def by_environment(some: Sequence[Scored]) -> dict[str, list[Scored]]:
    """Environment → its lines, the best first."""
    return {env: [one for one in some if one.line.env == env] for env in environments([one.line for one in some])}


def around(one: Scored) -> str:
    """The interval of a score, or why there is none."""
    if len(one.scores) == 1:
        return "one seed"
    low, high = interval(one.scores)
    return f"[{plots.number(low, one.iqm)}, {plots.number(high, one.iqm)}]"


# The table


def final_table(some: Sequence[Scored], column: str, final: float, given: tuple[float, float] | None) -> str:
    """The statistics of the final scores, per environment."""
    found = by_environment(some)
    scales = {env: scale_of(env, column, given) for env in found}
    names = ["IQM", "mean", "median", "worst", "best", *(["optimality gap"] if any(scales.values()) else []), "seeds"]
    cells = [f'<th scope="col" class="number">{name}</th>' for name in names]
    head = "".join([cells[0], "<th></th>", *cells[1:]])
    gaps, titled = any(scales.values()), len(found) > 1
    bodies = "".join(_scores(env if titled else "", mine, scales[env], gaps) for env, mine in found.items())
    kinds = sorted({interval_name(len(one.scores)) for one in some if len(one.scores) > 1})
    brackets = f" Brackets: {' or '.join(kinds)} of the IQM." if kinds else ""
    alone = " One seed has no interval." if any(len(one.scores) == 1 for one in some) else ""
    what = escaped(quantity(column).title.lower())
    return f"""<section class="card" id="scores"><h2>Final scores</h2>
<p class="soft">A seed’s score is its mean {what} over the last {100 * final:g} % of the steps that it reached.
A dot is a seed, the tall mark the IQM.{brackets}{alone}</p>
<div class="wide"><table class="scores"><thead><tr><th scope="col">line</th>{head}</tr></thead>{bodies}</table></div>
{_units(scales, known=given is None)}</section>"""


def _scores(title: str, some: Sequence[Scored], scale: Scale | None, gaps: bool) -> str:
    """The rows of one environment."""
    every = np.concatenate([one.scores for one in some])
    axis = plots.axis(float(every.min()), float(every.max()), cheap=1.0)
    ends = " … ".join(plots.short(x) for x in (axis.low, axis.high))
    name, rest = f'<th scope="rowgroup" colspan="2">{escaped(title)}</th>', f'<td colspan="{5 + gaps}"></td>'
    rows = [f'<tr class="group">{name}<td class="ends">{ends}</td>{rest}</tr>']
    for one in some:
        numbers = [one.scores.mean(), np.median(one.scores), one.scores.min(), one.scores.max()]
        cells = [plots.number(float(x), one.iqm) for x in numbers]
        if gaps:
            missing = optimality_gap((one.scores - scale.low) / (scale.target - scale.low)) if scale else None
            cells.append("–" if missing is None else f"{missing:.3f}")
        low, high = interval(one.scores) if len(one.scores) > 1 else (np.nan, np.nan)
        rows.append(
            f'<tr><th scope="row">{plots.swatch(one.line.colour)}{escaped(one.line.label)}{_progress(one.line)}</th>'
            f'<td class="number"><strong>{plots.number(one.iqm)}</strong> {around(one)}</td>'
            f'<td class="plotted">{plots.whisker(axis, one.scores, low, high, one.iqm, one.line.colour)}</td>'
            + "".join(f'<td class="number">{cell}</td>' for cell in [*cells, str(len(one.scores))])
            + "</tr>"
        )
    return f"<tbody>{''.join(rows)}</tbody>"


def _units(scales: Mapping[str, Scale | None], *, known: bool) -> str:
    """What the optimality gap counts in."""
    found: dict[Scale, list[str]] = {}
    for env, scale in scales.items():
        if scale is not None:
            found.setdefault(scale, []).append(escaped(env))
    if not found:
        return ""
    share = all(scale == Scale(0.0, 1.0) for scale in found)
    ends = (
        "from random actions to Gymnasium’s reward threshold"
        if known and not share
        else "from the low score to the target"
    )
    of = [f"{', '.join(envs)} {plots.short(low)} … {plots.short(high)}" for (low, high), envs in found.items()]
    return f'<p class="small soft">Optimality gap: the share of the way {ends} that is missing ({"; ".join(of)}).</p>'


def _progress(line: Line) -> str:
    """A mark where a line's runs have not reached their end."""
    late = [run for run in line.runs if run.unfinished]
    if not late:
        return ""
    shares = [f"{100 * run.reached / run.total:.0f} %" for run in late if run.total]
    at = f" at {min(shares, key=lambda text: float(text[:-2]))}" if shares else ""
    words = f"{late[0].status or 'unfinished'}{at}" + (
        f", {len(late)} of {len(line.runs)}" if len(line.runs) > 1 else ""
    )
    return f' <span class="chip {late[0].status or "unfinished"}">{words}</span>'


# Who is better?


class Chance(NamedTuple):
    """The probability that one line's runs score higher than another's, over the environments that both have."""

    probability: float
    low: float
    high: float
    """NaN where there are too few seeds for an interval."""
    environments: int

    @property
    def text(self) -> str:
        return "" if np.isnan(self.low) else f"[{self.low:.2f}, {self.high:.2f}]"


def chance(x: Sequence[Floats], y: Sequence[Floats]) -> Chance:
    """Of lines x and y, whose scores are given per environment.

    The mean of the environments' probabilities; the bootstrap draws seeds within each line and environment.
    """
    pairs = list(zip(x, y, strict=True))
    probability = float(np.mean([probability_of_improvement(a, b) for a, b in pairs]))
    if min(len(scores) for pair in pairs for scores in pair) < ENOUGH:
        return Chance(probability, np.nan, np.nan, len(pairs))
    rng = np.random.default_rng(0)
    replicates = np.mean([improvement_replicates(a, b, rng=rng) for a, b in pairs], axis=0)
    low, high = np.quantile(replicates, TAILS)
    return Chance(probability, float(low), float(high), len(pairs))


def comparison(some: Sequence[Scored], column: str, scale: tuple[float, float] | None) -> str:
    """The section on who is better; empty with one line."""
    parts = []
    found = by_environment(some)
    for env, mine in found.items():
        if len(mine) > 1:
            title = f"<h3>{escaped(env)}</h3>" if len(found) > 1 else ""
            both = f'<div>{_pairs({env: mine})}</div><div class="low">{_profile(env, mine)}</div>'
            parts.append(f'{title}<div class="columns">{both}</div>')
    shared = _shared(found)
    if len(shared) > 1:
        parts.append(f"<h3>Across {len(shared)} environments</h3>{_across(shared, column, scale)}")
    if not parts:
        return ""
    few = (
        ""
        if all(len(one.scores) >= ENOUGH for one in some)
        else f" Pairs with fewer than {ENOUGH} seeds on a side have no interval."
    )
    late = (
        " Runs that have not reached their end are compared as far as they went."
        if any(run.unfinished for one in some for run in one.line.runs)
        else ""
    )
    return f"""<section class="card" id="better"><h2>Who is better?</h2>
<p class="soft">The probability that a seed of the line on the left scores higher than a seed of the line above; a tie
counts half. Brackets: 95 % bootstrap interval, seeds drawn within each line.{few}{late}</p>
{"".join(parts)}</section>"""


def _shared(found: Mapping[str, Sequence[Scored]]) -> dict[str, list[Scored]]:
    """The environments in which all those labels have scores that are in more than one of them."""
    labels = [{one.line.label for one in mine} for mine in found.values()]
    common = set.intersection(*labels) if labels else set()
    if len(common) < 2:
        return {}
    return {env: [one for one in mine if one.line.label in common] for env, mine in found.items()}


def _pairs(shared: Mapping[str, Sequence[Scored]]) -> str:
    """A table of pairs. The lines stand in the order of the first environment."""
    first = next(iter(shared.values()))
    scores = {one.line.label: [_of(mine, one.line.label) for mine in shared.values()] for one in first}
    head = "".join(f'<th scope="col">{plots.swatch(one.line.colour)}{escaped(one.line.label)}</th>' for one in first)
    rows = []
    for one in first:
        cells = [_pair(scores[one.line.label], scores[other.line.label], one is other, len(first)) for other in first]
        name = f'<th scope="row">{plots.swatch(one.line.colour)}{escaped(one.line.label)}</th>'
        rows.append(f"<tr>{name}{''.join(cells)}</tr>")
    return f"""<div class="wide"><table class="heat"><caption class="hidden">Probability of improvement</caption>
<thead><tr><th scope="col">better than →</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>"""


def _of(some: Sequence[Scored], label: str) -> Floats:
    return next(one.scores for one in some if one.line.label == label)


def _pair(x: Sequence[Floats], y: Sequence[Floats], same: bool, lines: int) -> str:
    if same:
        return '<td class="none">·</td>'
    found = chance(x, y)
    strength = round(abs(found.probability - 0.5) * 80)
    colour = "var(--good)" if found.probability >= 0.5 else "var(--bad)"
    back = f"color-mix(in srgb, {colour} {strength}%, transparent)"
    text = f"<small>{found.text}</small>" if found.text and lines <= CROWD else ""
    return f'<td style="background:{back}" title="{found.text}">{found.probability:.2f}{text}</td>'


def _across(shared: Mapping[str, Sequence[Scored]], column: str, given: tuple[float, float] | None) -> str:
    """The same over all environments that the lines share, and the profile of normalised scores if all have a scale."""
    names = f'<p class="small soft">The mean over {escaped(", ".join(shared))}.</p>'
    scales = {env: scale_of(env, column, given) for env in shared}
    counts = {len(one.scores) for mine in shared.values() for one in mine}
    if None in scales.values() or len(counts) > 1:
        return f"{_pairs(shared)}{names}"
    normal = []
    for one in next(iter(shared.values())):
        parts = [
            (_of(mine, one.line.label) - scale.low) / (scale.target - scale.low)
            for env, mine in shared.items()
            if (scale := scales[env])
        ]
        normal.append(one._replace(scores=np.stack(parts, axis=1)))
    return f'<div class="columns"><div>{_pairs(shared)}{names}</div><div class="low">{_profile("", normal)}</div></div>'


# Performance profiles


def _profile(env: str, some: Sequence[Scored]) -> str:
    """The share of seeds above each score, with intervals from five seeds on."""
    every = np.concatenate([one.scores.ravel() for one in some])
    x = plots.axis(float(every.min()), float(every.max()), snug=every.max() > every.min())
    y = plots.axis(0.0, 1.0)
    thresholds = np.linspace(x.low, x.high, THRESHOLDS)
    places = x.at(thresholds)
    shapes, columns = [], []
    for one in some:
        share = performance_profile(one.scores, thresholds)
        cells = [f"{s:.2f}" for s in share]
        if len(one.scores) >= ENOUGH:
            low, high = profile_interval(one.scores, thresholds)
            shapes.append(plots.shape("band", one.line.colour, plots.area(places, y.at(low), y.at(high))))
            cells = [f"{s:.2f} [{a:.2f}, {b:.2f}]" for s, a, b in zip(share, low, high, strict=True)]
        levels = np.unique(np.concatenate([[x.low], one.scores.ravel(), [x.high]]))
        exact = performance_profile(one.scores, levels)
        shapes.append(plots.shape("middle", one.line.colour, plots.steps_path(x.at(levels), y.at(exact))))
        columns.append(cells)
    rows = [[plots.number(t), *(cells[k] for cells in columns)] for k, t in enumerate(thresholds)]
    table = plots.Table(
        ["score τ", *(one.line.label for one in some)], [one.line.colour for one in some], rows, places.tolist()
    )
    label = "normalised score τ: 0 random actions, 1 the target" if not env and some[0].scores.ndim > 1 else "score τ"
    words = "Performance profile: the share of seeds that score above τ. Further to the right is better."
    title = f"Performance profile{f' on {env}' if env else ''}"
    return plots.figure(title, shapes, x, y, (label, "share of seeds above τ"), table, words=words)


def in_short(some: Sequence[Scored], column: str) -> list[str]:
    """A sentence per environment: which line ends highest, and how sure that is."""
    found = by_environment(some)
    return [
        _sentence(f" on {escaped(env)}" if env else "", mine, quantity(column).title.lower())
        for env, mine in found.items()
    ]


def _sentence(on: str, some: Sequence[Scored], what: str) -> str:
    best = some[0]
    score = f"{plots.number(best.iqm)} {around(best) if len(best.scores) > 1 else '(one seed)'}"
    names = [f"<strong>{escaped(one.line.label)}</strong>" for one in some if one.iqm == best.iqm]
    if len(some) == 1:
        return f"{names[0]}{on}: final {escaped(what)} {score}."
    if len(names) > 1:
        return f"{', '.join(names[:-1])} and {names[-1]} end equal{on}: {score}."
    odds = chance([best.scores], [some[1].scores])
    sure = f" {odds.text}" if odds.text else ""
    clear = "; that is no clear difference" if odds.low <= 0.5 else ""
    return (
        f"{names[0]} ends highest{on}: {score}. A seed of it beats one of {escaped(some[1].line.label)} with "
        f"probability {odds.probability:.2f}{sure}{clear}."
    )

"""Figures as HTML: an SVG that stretches to the width it is given, with its labels as text beside it.

Shapes are drawn on 1000 × 1000 units and stretched; their outlines are not, and text is never scaled. So one figure
fits a phone and a wide screen. `report.js` reads the numbers under the pointer from the figure's table. Leaves out what
is drawn.
"""

# K points of a curve
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from telescope.lab.pages import escaped
from telescope.lab.report.files import Floats

UNITS = 1000
BINS = 60
"""Bars of a histogram."""
COLOURS = 8
"""Series colours of `page.css`. Further lines repeat them, dashed."""


CHEAP, MARGIN = 0.1, 0.03
"""An axis is lengthened to a round number by at most the first share of its range, else by the second."""


class Axis(NamedTuple):
    """A range with round ticks."""

    low: float
    high: float
    ticks: list[float]

    def at(self, x: Floats) -> Floats:
        """Positions from 0 to 1."""
        return np.asarray((np.asarray(x, np.float64) - self.low) / (self.high - self.low))


def axis(low: float, high: float, *, count: int = 5, snug: bool = False, cheap: float = CHEAP) -> Axis:
    """An axis over this range. `snug` ends where the data end. Else its ends are round numbers where that costs little.

    cheap: the share of the range that it may be lengthened by to end at a round number.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = 0.0, 1.0
    if high <= low:
        low, high = (low - 0.1 * abs(low), low + 0.1 * abs(low)) if low else (0.0, 1.0)
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough * 0.999)
    if not snug:
        room = high - low
        below, above = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)
        low = below if low - below <= cheap * room else low - MARGIN * room
        high = above if above - high <= cheap * room else high + MARGIN * room
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(low, high, [k * step for k in range(first, last + 1)])


def number(x: float, like: float | None = None) -> str:
    """A number for a reader: three or four digits that count. `like`: the size that decides how many digits."""
    if not math.isfinite(x):
        return "–"
    size = abs(x if like is None else like)
    digits = 0 if size >= 1000 else 1 if size >= 10 else 3 if size >= 0.01 or size == 0 else None
    text = f"{x:.2e}" if digits is None else f"{x:,.{digits}f}"
    return ("0" if float(text.replace(",", "")) == 0 else text).replace("-", "−")


def short(x: float) -> str:
    """A tick: 80000 → 80k, 1500000 → 1.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size * 0.9999 and abs(x) >= 2000:
            return f"{x / size:g}{unit}".replace("-", "−")
    return f"{0.0 if abs(x) < 1e-12 else x:.4g}".replace("-", "−")


def style(colour: int) -> str:
    """The classes of a line."""
    return f"s{colour % COLOURS + 1}" + (" dashed" if colour // COLOURS % 2 else "")


def path(x: Floats, y: Floats) -> str:
    """A line through the points [K] in units from 0 to 1, broken where y is NaN. A lone point is a dot."""
    parts, drawing = list[str](), False
    for a, b in zip(_units(x), _units(1.0 - y), strict=True):
        if math.isnan(b):
            drawing = False
            continue
        parts.append(f"{'L' if drawing else 'M'}{a:.0f} {b:.0f}")
        drawing = True
    text = "".join(parts)
    return f"{text}h0" if text.count("M") == len(parts) == 1 else text


def area(x: Floats, low: Floats, high: Floats) -> str:
    """What lies between two lines."""
    kept = ~np.isnan(low) & ~np.isnan(high)
    if kept.sum() < 2:
        return ""
    forth = path(x[kept], high[kept])
    back = path(x[kept][::-1], low[kept][::-1]).replace("M", "L", 1)
    return f"{forth}{back}Z"


def steps_path(x: Floats, y: Floats) -> str:
    """A staircase: y[k] holds from x[k] to x[k + 1]."""
    return path(np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1])


def _units(x: Floats) -> list[float]:
    return [UNITS * float(one) for one in np.asarray(x)]


def shape(kind: str, colour: int, data: str) -> str:
    """An SVG path of a kind: seed, band, middle, mark."""
    return f'<path class="{kind} {style(colour)}" d="{data}"/>' if data else ""


class Table(NamedTuple):
    """The numbers of a figure: a row per position on its horizontal axis."""

    head: Sequence[str]
    colours: Sequence[int | None]
    """The colour of each column after the first."""
    rows: Sequence[Sequence[str]]
    places: Sequence[float]
    """Each row's place on the horizontal axis, from 0 to 1."""


def figure(
    name: str, shapes: Iterable[str], x: Axis, y: Axis, labels: tuple[str, str], table: Table, *, words: str
) -> str:
    """A figure with its axes and its table.

    name: plain text, what a screen reader says. labels: of the two axes. words: HTML of the caption.
    """
    lines = [f'<path class="line" d="M0 {UNITS * (1 - t):.0f}H{UNITS}"/>' for t in y.at(np.array(y.ticks))]
    marks = [
        *(f'<span class="y" style="top:{100 * (1 - p):.2f}%">{short(t)}</span>' for t, p in _places(y)),
        *(
            f'<span class="x{" odd" if k % 2 else ""}" style="left:{100 * p:.2f}%">{short(t)}</span>'
            for k, (t, p) in enumerate(_places(x))
        ),
    ]
    widest = max((len(short(t)) for t in y.ticks), default=1)
    return f"""<figure class="plot" style="--digits:{widest}">
<div class="unit">{escaped(labels[1])}</div>
<div class="frame" tabindex="0" role="img" aria-label="{escaped(name)}. The table below the figure has its numbers.">
<svg viewBox="0 0 {UNITS} {UNITS}" preserveAspectRatio="none" aria-hidden="true">{"".join([*lines, *shapes])}</svg>
{"".join(marks)}</div>
<div class="unit right">{escaped(labels[0])}</div>
<figcaption>{words}</figcaption>
<details><summary>Numbers</summary>{_numbers(name, table)}</details>
</figure>"""


def _places(of: Axis) -> list[tuple[float, float]]:
    return list(zip(of.ticks, of.at(np.array(of.ticks)).tolist(), strict=True))


def _numbers(name: str, table: Table) -> str:
    classes = ["number", *("number" if colour is None else f"number {style(colour)}" for colour in table.colours)]
    head = "".join(
        f'<th scope="col" class="{kind}">{escaped(title)}</th>' for kind, title in zip(classes, table.head, strict=True)
    )
    rows = "\n".join(
        f'<tr data-x="{place:.4f}"><th scope="row" class="number">{row[0]}</th>'
        + "".join(f'<td class="number">{cell}</td>' for cell in row[1:])
        + "</tr>"
        for row, place in zip(table.rows, table.places, strict=True)
    )
    return (
        f'<div class="wide tall"><table class="numbers"><caption class="hidden">{escaped(name)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>"
    )


def legend(labels: Sequence[tuple[str, int]]) -> str:
    """Which colour is which line."""
    items = "".join(f'<li><i class="{style(colour)}"></i>{escaped(label)}</li>' for label, colour in labels)
    return f'<ul class="legend">{items}</ul>' if labels else ""


def whisker(axis: Axis, dots: Floats, low: float, high: float, middle: float, colour: int) -> str:
    """A row of a dot plot: a dot per seed, the interval as a bar, the middle as a mark; for a cell of a table."""

    def left(value: float) -> str:
        return f"{100 * float(axis.at(np.array(value))):.2f}%"

    parts = [f'<b style="left:{left(value)}"></b>' for value in dots]
    if math.isfinite(low) and math.isfinite(high):
        width = 100 * float(axis.at(np.array(high)) - axis.at(np.array(low)))
        parts.insert(0, f'<u style="left:{left(low)};width:{width:.2f}%"></u>')
    parts.append(f'<s style="left:{left(middle)}"></s>')
    return f'<div class="whisker {style(colour)}" aria-hidden="true">{"".join(parts)}</div>'


def swatch(colour: int) -> str:
    """The colour of a line, before its name."""
    return f'<span class="swatch {style(colour)}"></span>'


def histogram(title: str, named: Sequence[tuple[str, int, Floats]], axes: tuple[str, str], *, words: str) -> str:
    """How the numbers of some lines are distributed. named: label, colour and numbers of each."""
    every = np.concatenate([numbers for _, _, numbers in named])
    low, high = np.quantile(every, [0.01, 0.99])
    x = axis(float(low), float(high), snug=high > low)
    edges = np.linspace(x.low, x.high, BINS + 1)
    shares = [np.histogram(numbers, edges)[0] / len(numbers) for _, _, numbers in named]
    y = axis(0.0, float(max(share.max() for share in shares)))
    shapes = [f'<path class="zero" d="M{UNITS * float(x.at(np.array(0.0))):.0f} 0V{UNITS}"/>'] * (x.low < 0 < x.high)
    for (_, colour, _), share in zip(named, shares, strict=True):
        stairs = np.append(share, share[-1])
        shapes.append(shape("band", colour, _filled(x.at(edges), y.at(stairs))))
        shapes.append(shape("middle", colour, steps_path(x.at(edges), y.at(stairs))))
    middles = (edges[1:] + edges[:-1]) / 2
    spread = float(every.std())
    rows = [[number(float(m), spread), *(f"{100 * share[k]:.1f} %" for share in shares)] for k, m in enumerate(middles)]
    labels, colours = [label for label, _, _ in named], [colour for _, colour, _ in named]
    table = Table([axes[0], *labels], colours, rows, x.at(middles).tolist())
    return figure(title, shapes, x, y, axes, table, words=words)


def _filled(x: Floats, y: Floats) -> str:
    return area(np.repeat(x, 2)[1:], np.zeros(2 * len(x) - 1), np.repeat(y, 2)[:-1])

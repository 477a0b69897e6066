"""The picture and the table of a map over λ and γ.

Leaves out the numbers (`maps.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from telescope.lab.maps import PAPER, Cell, Map, Summary, Task, summary
from telescope.runs.files import require, write_atomic
from telescope.runs.formats.curves import DASHES, GRID, INK
from telescope.runs.formats.tables import as_csv

DETAIL = 0.99
"""γ of the learning curves, or the nearest one in the map."""


def axes(found: Map) -> tuple[list[float | None], list[float]]:
    """The λs of a map from 0 on, none last, and its γs."""
    lams = sorted({cell.lam for cell in found}, key=lambda lam: (lam is None, lam or 0.0))
    return lams, sorted({cell.gamma for cell in found})


def table(task: Task, found: Map) -> str:
    """Markdown: the score at the end of each cell with its standard error over seeds; the best one in bold."""
    lams, gammas = axes(found)
    numbers = {cell: summary(task, curve) for cell, curve in found.items()}
    best = max(numbers, key=lambda cell: numbers[cell].final)
    rows = [["λ \\ γ", *(f"{gamma:g}" for gamma in gammas)], ["---"] * (len(gammas) + 1)]
    for lam in lams:
        cells = [Cell(lam, gamma) for gamma in gammas]
        words = [_words(numbers.get(cell), bold=cell == best) for cell in cells]
        rows.append(["no V" if lam is None else f"{lam:g}", *words])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _words(numbers: Summary | None, *, bold: bool) -> str:
    if numbers is None:
        return ""
    error = "" if np.isnan(numbers.final_error) else f" ± {numbers.final_error:.0f}"
    return f"**{numbers.final:.0f}{error}**" if bold else f"{numbers.final:.0f}{error}"


def write_table(task: Task, found: Map, path: Path) -> None:
    """Write one row per cell: λ, γ and the numbers of its summary."""
    ordered = sorted(found.items(), key=lambda item: (item[0].lam is None, item[0].lam or 0, item[0].gamma))
    rows = (["none" if cell.lam is None else cell.lam, cell.gamma, *summary(task, curve)] for cell, curve in ordered)
    write_atomic(path, as_csv([["lam", "gamma", *Summary._fields], *rows]))


def draw(task: Task, found: Map, path: Path) -> None:
    """Write the picture: learning curves over λ at one γ, and the map of the scores at the end."""
    figure = require("matplotlib.figure").Figure(figsize=(11.0, 4.6), layout="constrained")
    require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _curves(left, task, found)
    _map(figure, right, task, found)
    figure.savefig(path, dpi=120)


def _curves(panel: Any, task: Task, found: Map) -> None:
    lams, gammas = axes(found)
    gamma = min(gammas, key=lambda gamma: abs(gamma - DETAIL))
    colours = require("matplotlib").colormaps["viridis_r"]
    for i, lam in enumerate(lams):
        if (cell := Cell(lam, gamma)) not in found:
            continue
        curve = found[cell]
        colour = "#999999" if lam is None else colours(0.12 + 0.88 * i / max(1, len(lams) - 1))
        label = "no V" if lam is None else f"λ = {lam:g}"
        dashes = DASHES[1] if lam is None else DASHES[0]
        panel.plot(curve.steps, np.nanmean(curve.scores, 1), color=colour, linestyle=dashes, linewidth=1.6, label=label)
    panel.grid(color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#bbbbbb")
    _titles(panel, f"Learning curves at γ = {gamma:g}, mean of {task.seeds} seeds", *names(task))
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.legend(fontsize=7, frameon=False, labelcolor=INK)


def names(task: Task) -> tuple[str, str]:
    """What the axes of a curve are."""
    if task.env == PAPER:
        return "iterations of TRPO", "steps that the pole stays up"
    return "environment steps of a seed", "return of training episodes"


def _map(figure: Any, panel: Any, task: Task, found: Map) -> None:
    lams, gammas = axes(found)
    scores = np.full((len(lams), len(gammas)), np.nan)
    for cell, curve in found.items():
        scores[lams.index(cell.lam), gammas.index(cell.gamma)] = summary(task, curve).final
    image = panel.imshow(scores, aspect="auto", origin="lower", cmap="viridis")
    middle = (np.nanmax(scores) + np.nanmin(scores)) / 2
    for i, j in np.argwhere(np.isfinite(scores)):
        colour = "black" if scores[i, j] > middle else "white"
        panel.text(j, i, f"{scores[i, j]:.0f}", ha="center", va="center", fontsize=8, color=colour)
    panel.set_xticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])
    panel.set_yticks(range(len(lams)), ["no V" if lam is None else f"{lam:g}" for lam in lams])
    end = f"after {task.iterations} iterations" if task.env == PAPER else "in the last tenth"
    _titles(panel, f"{names(task)[1].capitalize()} {end}", "γ", "λ")
    figure.colorbar(image, ax=panel).ax.tick_params(labelsize=8, labelcolor=INK)


def _titles(panel: Any, title: str, x: str, y: str) -> None:
    panel.set_title(title, fontsize=10, color=INK, loc="left", fontweight="bold")
    panel.set_xlabel(x, fontsize=8, color=INK)
    panel.set_ylabel(y, fontsize=8, color=INK)
    panel.tick_params(labelsize=8, labelcolor=INK, color=GRID)

"""The picture of a study: six panels, drawn from the same numbers as its table.

Leaves out the numbers (`study.py`, `demonstrations.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from telescope.lab.demonstrations import MISTAKES, first, responses
from telescope.lab.study import VALUES, Case, Line, measure
from telescope.runs.files import require
from telescope.runs.formats.curves import DASHES, GRID, INK, PALETTE


def draw(lines: Sequence[Line], case: Case, path: Path, *, lam: float = 0.9) -> None:
    """Write the picture of a study. `case` has time limits and the right values, for the panel of mistakes."""
    figure = require("matplotlib.figure").Figure(figsize=(11.0, 6.4), layout="constrained")
    require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    panels = [_panel(figure, i) for i in range(6)]
    for i, kind in enumerate(VALUES):
        style: dict[str, Any] = {"color": PALETTE[i], "linestyle": DASHES[i], "label": f"{kind} V"}
        rows = [line for line in lines if line.values == kind and line.estimator == "GAE"]
        lams, found = [line.setting for line in rows], [line.measured for line in rows]
        panels[0].plot(lams, [one.error for one in found], **style)
        panels[1].plot(lams, [one.gradient_bias for one in found], **style)
        panels[2].plot(lams, [one.gradient_deviation for one in found], **style)
        if kind == "exact":
            noise = [2 * one.gradient_bias_error for one in found]
            panels[1].fill_between(lams, 0, noise, color=GRID, label="what noise alone gives", zorder=0)
    _titles(panels[0], "Error of the advantage", "λ", "RMSE / spread of A")
    _titles(panels[1], "Bias of the policy gradient", "λ", "length / length of the gradient")
    _titles(panels[2], "Noise of the policy gradient", "λ", "deviation of one rollout / length")
    _clips(panels[3], lines)
    _mistakes(panels[4], case, lam)
    _responses(panels[5], case)
    for panel in panels:
        panel.legend(fontsize=7, frameon=False, labelcolor=INK)
    figure.savefig(path, dpi=150)


def _panel(figure: Any, i: int) -> Any:
    panel = figure.add_subplot(2, 3, i + 1)
    panel.grid(color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8, labelcolor=INK, color=GRID)
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#bbbbbb")
    return panel


def _titles(panel: Any, title: str, x: str, y: str) -> None:
    panel.set_title(title, fontsize=10, color=INK, loc="left", fontweight="bold")
    panel.set_xlabel(x, fontsize=8, color=INK)
    panel.set_ylabel(y, fontsize=8, color=INK)


def _clips(panel: Any, lines: Sequence[Line]) -> None:
    rows = [line for line in lines if line.values == "exact" and line.estimator == "V-trace"]
    names = ["none" if line.setting > 1e6 else f"{line.setting:g}" for line in rows]
    for i, (label, found) in enumerate(
        (
            ("bias", [line.measured.gradient_bias for line in rows]),
            ("noise", [line.measured.gradient_deviation for line in rows]),
        )
    ):
        panel.plot(names, found, color=PALETTE[i], linestyle=DASHES[i], marker="o", markersize=3, label=label)
    _titles(panel, "What V-trace's clip costs (exact V)", "ρ̄", "of the gradient / its length")


def _mistakes(panel: Any, case: Case, lam: float) -> None:
    counts = [n for n in (25, 50, 100, 200, 400, 800, 1600, 3200, 6400) if n <= case.samples.states.shape[1]]
    for i, (name, estimate) in enumerate(MISTAKES.items()):
        found = [measure(some, estimate(some, lam)).gradient_bias for some in (first(case, n) for n in counts)]
        panel.loglog(counts, found, color=PALETTE[i], linestyle=DASHES[i], label=name)
    _titles(
        panel,
        f"Mistakes at a limit of {case.world.time_limit} steps (exact V)",
        "rollouts",
        "error of the mean gradient / its length",
    )


def _responses(panel: Any, case: Case) -> None:
    for i, (name, sizes) in enumerate(
        zip(("the rewards", "rewards shaped by Φ = V"), responses(case.world, case.policy, case.gamma), strict=True)
    ):
        shown = np.maximum(sizes / sizes.max(), 1e-6)
        panel.semilogy(shown, color=PALETTE[i], linestyle=DASHES[i], label=name)
    _titles(panel, "Response to an action, l steps later", "l", "mean |γ^l χ(l)|, largest = 1")

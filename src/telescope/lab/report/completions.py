"""What language models wrote, from the samples of their runs: scores and lengths, as they are distributed.

Leaves out the texts themselves (`telescope show RUN`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from telescope.lab.report import plots
from telescope.lab.report.files import Floats
from telescope.lab.report.lines import Line
from telescope.runs.formats.tables import read_table

LAST = 0.3
"""The share of the steps at the end whose samples are shown."""


def completions(some: Sequence[Line]) -> str:
    """The section on completions; empty where no run has samples."""
    found = [(line, samples_of(line)) for line in some]
    having = [(line, numbers) for line, numbers in found if len(numbers)]
    if not having:
        return ""
    figures = []
    for place, (name, unit) in enumerate((("Scores", "score"), ("Lengths", "tokens"))):
        named = [(line.label, line.colour, numbers[:, place]) for line, numbers in having]
        named = [(label, colour, known) for label, colour, x in named if len(known := x[np.isfinite(x)])]
        if named:
            words = f"{name} of the completions, without the 2 % at the ends."
            figures.append(plots.histogram(f"{name} of completions", named, (unit, "share"), words=words))
    keys = plots.legend([(line.label, line.colour) for line, _ in having])
    count = ", ".join(f"{len(numbers):,}" for _, numbers in having)
    return f"""<section class="card" id="completions"><h2>Completions</h2>
<p class="soft">Of the samples in the last {LAST:.0%} of the steps ({count} completions), as the run drew them.</p>
{keys}<div class="columns">{"".join(f"<div>{figure}</div>" for figure in figures)}</div></section>"""


def samples_of(line: Line) -> Floats:
    """Score and length of each late sample of a line's runs [N, 2]; a score is NaN where there is none."""
    numbers = list[tuple[float, float]]()
    for run in line.runs:
        rows = read_table(run.path / "samples.csv") if run.path.is_dir() else []
        rows = [row for row in rows if {"step", "score", "length"} <= row.keys()]
        first = (1 - LAST) * max((float(row["step"]) for row in rows), default=0.0)
        late = [row for row in rows if float(row["step"]) >= first]
        numbers += [(float(row["score"] or "nan"), float(row["length"])) for row in late]
    return np.array(numbers, np.float64).reshape(-1, 2)

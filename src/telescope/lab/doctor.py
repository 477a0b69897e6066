"""Find what is wrong in a rollout, whatever library made it: `examine(Rollout(rewards=…, values=…, advantages=…, …))`.

First the rows themselves are read (`reading.py`), then the advantages are judged (`judging.py`). Leaves out files.
"""

from __future__ import annotations

import numpy as np

from telescope.lab.evidence import Rollout, rows_of
from telescope.lab.judging import Judging
from telescope.lab.reading import Finding, Report

__all__ = ["Finding", "Report", "Rollout", "examine"]


def examine(rollout: Rollout) -> Report:
    """Look for mistakes in a rollout. Never raises an error because of its numbers."""
    examination = Judging(rollout)
    with np.errstate(all="ignore"):
        if examination.readable():
            examination.rows = rows_of(rollout)
            examination.read_rows()
            examination.judge()
    return Report(examination.findings, examination.notes)

"""Find what is wrong in a rollout, whatever library made it: `examine(Rollout(rewards=…, values=…, advantages=…, …))`.

First the rows themselves are read (`reading.py`), then the advantages are judged (`judging.py`). Leaves out files.
"""

from __future__ import annotations

import numpy as np

from telescope.lab.evidence import Rollout
from telescope.lab.groups import Grouped
from telescope.lab.judging import Judging
from telescope.lab.reading import Finding, Report

__all__ = ["Finding", "Report", "Rollout", "examine"]


def examine(rollout: Rollout) -> Report:
    """Look for mistakes in a rollout. Never raises an error because of its numbers."""
    with np.errstate(all="ignore"):
        examination = Judging(rollout) if rollout.group is None else Grouped(rollout)
        if examination.readable():
            examination.judge()
    return Report(examination.findings, examination.notes)

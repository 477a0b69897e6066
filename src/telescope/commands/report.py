"""`telescope report`: one HTML page about one or more runs, of this library or another.

Leaves out what the page shows (`telescope.lab.report`).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from telescope.commands.arguments import parse, positionals


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Write one HTML page that compares runs: curves, final scores, times, settings, advantages and mistakes.

    RUN is a run folder, a folder of CSV or TensorBoard files from another library, or a folder of such folders.
    NAME=RUN gives its line a name; folders with the same name share a line. NAME="runs/ppo-*" takes several.
    """

    out: str = "report.html"
    """File to write. It needs no network and no other file."""
    metric: str = "auto"
    """Column to compare runs by. auto: evaluation returns if every run has them, else episode returns; on language
    models the exact match, reward or accuracy."""
    final: float = 0.1
    """Share of a run's steps, at its end, over which a seed's final score is the mean."""
    join: Literal["seeds", "methods", "none"] = "seeds"
    """Folders that share a line: runs that differ only by their seed, all runs of one method, or none."""
    columns: tuple[str, ...] = ()
    """What columns of other programs mean, as OURS=THEIRS: step=frames return=score. Known without it:
    Stable-Baselines3 and CleanRL."""
    scale: tuple[float, float] | None = None
    """Score of a random policy and of a good one, for the optimality gap. none: those of known environments."""
    convention: str = "telescope"
    """Library that wrote the rollout.npz in the folders, as in telescope doctor."""

    replay: int = 256
    """Steps that the saved agents of a run play, in 4 environments each, if its folder keeps no rollout; 0: none."""
    trust: bool = False
    """Let agents play although somebody else began the run and its folder names code (an environment's module)."""

    def __post_init__(self) -> None:
        if not 0 < self.final <= 1:
            raise ValueError(f"final is {self.final}; expected a share above 0 and at most 1, such as 0.1")
        if self.replay < 0:
            raise ValueError(f"replay is {self.replay}; expected a number of steps, or 0")
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale is {self.scale[0]} {self.scale[1]}; expected a low score, then a higher one")


def report(arguments: list[str]) -> int:
    """`telescope report RUN [RUN …] --out FILE`."""
    runs, flags = positionals(arguments, ReportOptions)
    options: ReportOptions = parse(ReportOptions, flags, "telescope report RUN [RUN …]", {})
    if not runs:
        raise ValueError("telescope report takes at least one run folder")
    from telescope.lab.report import write

    print(write(runs, **dataclasses.asdict(options)))
    return 0

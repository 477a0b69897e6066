"""`telescope plot`: learning curves of one or more runs in one picture."""

from __future__ import annotations

import dataclasses

from telescope.commands.arguments import parse, positionals


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Draw learning curves: the interquartile mean over seeds, and its 95 % bootstrap interval from 5 seeds on."""

    out: str = "curves.png"
    """The picture to write; its ending (.png, .pdf or .svg) says in which format."""
    metric: str = "auto"
    """A column of metrics.csv. auto: return_mean; for a language model exact_match, or score with --reward."""


def plot(arguments: list[str]) -> int:
    """`telescope plot RUN [RUN …] --out FILE`."""
    runs, flags = positionals(arguments, PlotOptions)
    options: PlotOptions = parse(PlotOptions, flags, "telescope plot RUN [RUN …]", {})
    if not runs:
        raise ValueError("telescope plot takes at least one run folder")
    from telescope.runs.formats.curves import plot as draw

    print(draw(runs, options.out, metric=options.metric))
    return 0

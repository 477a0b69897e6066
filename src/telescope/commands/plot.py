"""`telescope plot`: learning curves of one or more runs in one picture."""

from __future__ import annotations

import dataclasses

from telescope.commands.arguments import parse, positionals


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Draw learning curves: interquartile mean over seeds with its 95 % bootstrap interval."""

    out: str = "curves.png"
    """The picture to write."""
    metric: str = "auto"
    """A column of metrics.csv; auto: return_mean, or exact_match or reward of a language model."""


def plot(arguments: list[str]) -> int:
    """`telescope plot RUN [RUN …] --out FILE`."""
    runs, flags = positionals(arguments, PlotOptions)
    options: PlotOptions = parse(PlotOptions, flags, "telescope plot RUN [RUN …]", {})
    if not runs:
        raise ValueError("telescope plot takes at least one run folder")
    from telescope.runs.curves import plot as draw

    print(draw(runs, options.out, metric=options.metric))
    return 0

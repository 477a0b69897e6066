"""`telescope plot`: learning curves of one or more runs in one picture."""

from __future__ import annotations

import dataclasses

from telescope.commands.arguments import notes, parse, positionals


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Draw learning curves: the interquartile mean over seeds, with a 95 % bootstrap interval from five seeds on."""

    out: str = "curves.png"
    """Image file to write. Its ending chooses the format: .png, .pdf or .svg."""
    metric: str = "auto"
    """Column of metrics.csv to draw. auto: return_mean; for language models exact_match, or score with --reward."""


def plot(arguments: list[str]) -> int:
    """`telescope plot RUN [RUN …] --out FILE`."""
    runs, flags = positionals(arguments, PlotOptions)
    options: PlotOptions = parse(PlotOptions, flags, "telescope plot RUN [RUN …]", {})
    if not runs:
        raise ValueError("telescope plot takes at least one run folder")
    from telescope.runs.formats.curves import plot as draw

    with notes(DeprecationWarning):
        drawn = draw(runs, options.out, metric=options.metric)
    print(drawn)
    return 0

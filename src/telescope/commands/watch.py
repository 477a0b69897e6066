"""`telescope watch`: follow a run in the terminal from its folder, while it trains or afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from telescope.checks import positive
from telescope.commands.arguments import HELP, parse, positionals

if TYPE_CHECKING:
    from telescope.runs.watching import Line, View

MOST_SEEDS = 12
"""The most seeds that the table shows one by one."""


@dataclasses.dataclass(frozen=True)
class WatchOptions:
    """Show a run from its folder: progress, returns with their curves, evaluations, speed, time left, seeds."""

    once: bool = False
    """Print it once, and do not follow the run. Also without a terminal."""
    every: float = 2.0
    """Seconds between two looks at the folder."""
    columns: tuple[str, ...] = ()
    """Further columns of metrics.csv to show."""

    def __post_init__(self) -> None:
        positive(self, "every")


def watch(arguments: list[str]) -> int:
    """`telescope watch RUN`."""
    runs, flags = positionals(arguments, WatchOptions)
    options: WatchOptions = parse(WatchOptions, flags, "telescope watch RUN", {})
    if len(runs) != 1 and not HELP & set(flags):
        raise ValueError(f"telescope watch takes one run folder, got {len(runs)}")
    from rich.console import Console

    console = Console()
    found = _look(runs[0], options)
    if options.once or not console.is_terminal:
        console.print(page(found, console), highlight=False)
        return 0
    with contextlib.suppress(KeyboardInterrupt):
        _follow(runs[0], options, found, console)
    return 0


def _look(run: str, options: WatchOptions) -> View:
    from telescope.lab.report.runs import being_written
    from telescope.runs.watching import view

    return view(run, options.columns, written=being_written(Path(run)))


def _follow(run: str, options: WatchOptions, found: View, console: Any) -> None:
    """Show the run until it ends. A folder that cannot be read for a moment leaves the last picture."""
    from rich.live import Live

    from telescope.runs.files import RunError

    with Live(page(found, console), console=console, auto_refresh=False) as live:
        while found.status == "running":
            time.sleep(options.every)
            with contextlib.suppress(RunError, OSError, ValueError):  # the run is writing: look again
                found = _look(run, options)
            live.update(page(found, console), refresh=True)


def page(found: View, console: Any) -> Any:
    """The run as something that rich prints."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Text(f"{found.title}  {found.status}", style="bold")
    bar = Table.grid(padding=(0, 1))
    done = f"{found.step:,} of {found.total_steps:,} steps"
    bar.add_row(ProgressBar(total=max(found.total_steps, 1), completed=found.step, width=30), done)
    return Group(head, bar, Text(_times(found)), _curves(found.lines, console), _seeds(found))


def _times(found: View) -> str:
    from telescope.runs.display import clock, rate

    words = [f"{clock(found.elapsed)} so far"] if found.elapsed else ["no rows yet"]
    if found.speed:
        words.append(f"{rate(found.speed)} steps/s of all seeds")
    if found.left is not None:
        words.append(f"{clock(found.left)} left")
    return ", ".join(words)


def _curves(lines: list[Line], console: Any) -> Any:
    from rich.table import Table

    from telescope.runs.display import number
    from telescope.runs.watching import BARS, PLAIN, sparkline

    bars = BARS if "utf" in (console.encoding or "").lower() else PLAIN
    width = max(10, min(60, console.width - 50))
    table = Table("", "over the run", "now", "seeds", box=None)
    for line in lines:
        seeds = f"{number(line.lowest)} to {number(line.highest)}"
        table.add_row(line.label, sparkline(line.values, width, bars), number(line.latest), seeds)
    return table


def _seeds(found: View) -> Any:
    """The seeds one by one, if there are several and they fit."""
    from rich.table import Table

    from telescope.runs.display import number

    table = Table("seed", "step", *found.columns, box=None)
    several = 1 < len(found.seeds) <= MOST_SEEDS
    for seed, row in found.seeds.items() if several else ():
        table.add_row(str(seed), f"{row['step']:,}", *(number(row[c]) if c in row else "–" for c in found.columns))
    return table if several else ""

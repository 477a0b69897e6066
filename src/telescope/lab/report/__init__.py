"""One HTML page about one or more runs, of this library or another: `write(["runs/ppo", "runs/trpo"], "report.html")`.

Runs are read from their folders (`runs.py`, `files.py`, `names.py`), put together as lines (`lines.py`), and shown in
sections (`curves.py`, `scores.py`, `about.py`, `completions.py`, `advantages.py`) by figures that stretch (`plots.py`).
Leaves out the command line.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from telescope.lab.files import CONVENTIONS
from telescope.lab.pages import escaped, page
from telescope.lab.report.about import runs_table, settings_table, time_table
from telescope.lab.report.advantages import advantages, kept
from telescope.lab.report.completions import completions
from telescope.lab.report.curves import learned, learning_curves
from telescope.lab.report.lines import Line, lines, main_column
from telescope.lab.report.names import SHORT
from telescope.lab.report.runs import Run, found
from telescope.lab.report.scores import comparison, final_table, in_short, scored
from telescope.runs.files import explained, write_atomic

__all__ = ["write"]


def write(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] = "report.html",
    *,
    metric: str = "auto",
    final: float = 0.1,
    join: str = "seeds",
    columns: Sequence[str] = (),
    scale: tuple[float, float] | None = None,
    convention: str = "telescope",
    replay: int = 256,
    trust: bool = False,
) -> Path:
    """Write the report of these folders into one HTML file, atomically, and return its path.

    runs: run folders, folders of other libraries, folders of such folders, or NAME=FOLDER. The others are as in
    `telescope report --help`.

    Raises:
        ValueError: an option makes no sense for these runs. RunError: a folder holds nothing that can be read.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is {convention!r}; expected {', '.join(CONVENTIONS)}")
    out = Path(out)
    read = found(runs, _columns(columns))
    some = lines(read, join)
    column = main_column(some, metric)
    scores = scored(some, column, final)
    ordered = [one.line for one in scores]
    body = "\n".join(
        [
            _top(read, some, in_short(scores, column)),
            learning_curves(ordered, column),
            final_table(scores, column, final, scale),
            comparison(scores, column, scale),
            learned(ordered, column),
            time_table(ordered),
            completions(ordered),
            advantages(kept(ordered, convention, replay, trust)),
            settings_table(ordered),
            runs_table(read),
        ]
    )
    text = page(_title(some), f"<main>{body}</main>", styles=["report.css"], scripts=["report.js"])
    with explained("create the folder of", out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, text.encode())
    return out


def _columns(pairs: Sequence[str]) -> Mapping[str, str]:
    """OURS=THEIRS words: our column → theirs."""
    found = {}
    for word in pairs:
        ours, equal, theirs = word.partition("=")
        if not (ours and equal and theirs):
            raise ValueError(
                f"--columns has {shlex.quote(word)}; expected OURS=THEIRS, such as step=frames return=score"
            )
        found[SHORT.get(ours, ours)] = theirs
    return found


def _title(some: Sequence[Line]) -> str:
    labels = list(dict.fromkeys(line.label for line in some))
    envs = list(dict.fromkeys(line.env for line in some if line.env))
    who = ", ".join(labels) if len(labels) <= 4 else f"{len(labels)} lines"
    return who + (f" on {envs[0]}" if len(envs) == 1 else f" on {len(envs)} environments" if envs else "")


def _top(read: Sequence[Run], some: Sequence[Line], short: Sequence[str]) -> str:
    facts = {
        "runs": f"{len(read)}",
        "seeds": f"{sum(line.seeds for line in some)}",
        "environments": f"{len({line.env for line in some})}",
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
    }
    unfinished = sum(run.unfinished for run in read)
    if unfinished:
        facts["not finished"] = f"{unfinished}"
    told = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    sentences = "".join(f"<li>{sentence}</li>" for sentence in short)
    title = f'<div><h1>{escaped(_title(some))}</h1><p class="soft">A report of runs by Telescope</p></div>'
    return f"""<header class="top">{title}<dl class="facts">{told}</dl></header>
<section class="card lead"><h2>In short</h2><ul class="plain">{sentences}</ul></section>"""

"""What is known of the runs besides their curves: where the time went, which settings differ, what was read.

Leaves out scores and advantages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from telescope.lab.pages import escaped
from telescope.lab.report import plots
from telescope.lab.report.lines import Line
from telescope.lab.report.runs import Run

PARTS = {
    "time_env": ("environments", 0),
    "time_policy": ("acting", 2),
    "time_sample": ("sampling", 0),
    "time_reward": ("scores and reference", 2),
    "time_update": ("updates", 1),
    "time_other": ("other", 7),
}
"""Column of seconds per iteration → its name and colour."""


# Time


def time_table(some: Sequence[Line]) -> str:
    """Seconds by what they went to, mean over the runs of a line; empty if nobody measured any."""
    rows, used = list[tuple[str, dict[str, str], str]](), dict[str, int]()
    several = len({line.env for line in some}) > 1
    for line in some:
        seconds = _seconds(line)
        total = sum(seconds.values()) or _total(line)
        if not total:
            continue
        used |= {PARTS[name][0]: PARTS[name][1] for name in seconds}
        rows.append(_time_row(line, seconds, total, several))
    if not rows:
        return ""
    names = [name for name, _ in PARTS.values() if name in used]
    head = "".join(f'<th scope="col" class="number">{name}</th>' for name in names)
    body = "".join(
        first + "".join(f'<td class="number">{shares.get(name, "–")}</td>' for name in names) + last
        for first, shares, last in rows
    )
    last = "".join(f'<th scope="col" class="number">{name}</th>' for name in ("time of a run", "steps/s"))
    return f"""<section class="card" id="time"><h2>Time</h2>
<p class="soft">Shares of the seconds that a run took. Steps per second count all seeds of a run together.</p>
{plots.legend(list(used.items()))}<div class="wide"><table>
<thead><tr><th scope="col">line</th><th scope="col"></th>{head}{last}</tr></thead>
<tbody>{body}</tbody></table></div></section>"""


def _seconds(line: Line) -> dict[str, float]:
    """Seconds of a run by column. All seeds of a run share its clock, so one seed's track is the run's."""
    found = {}
    for name in PARTS:
        runs = [list(run.tracks[name].values()) for run in line.runs if name in run.tracks]
        if runs and (seconds := sum(float(tracks[0].values.sum()) for tracks in runs) / len(runs)) > 0:
            found[name] = seconds
    return found


def _total(line: Line) -> float:
    ends = [
        max(float(t.values[-1]) for t in run.tracks["time_total"].values())
        for run in line.runs
        if "time_total" in run.tracks
    ]
    return sum(ends) / len(ends) if ends else 0.0


def _time_row(line: Line, seconds: dict[str, float], total: float, several: bool) -> tuple[str, dict[str, str], str]:
    bars = "".join(
        f'<i class="{plots.style(PARTS[name][1])}" style="width:{100 * x / total:.2f}%" title="{PARTS[name][0]}"></i>'
        for name, x in seconds.items()
    )
    steps = sum(run.reached * max(len(run.seeds), 1) for run in line.runs) / len(line.runs)
    name = f'<th scope="row">{plots.swatch(line.colour)}{escaped(line.label)}{_env(line) if several else ""}</th>'
    shares = {PARTS[name][0]: f"{100 * x / total:.0f} %" for name, x in seconds.items()}
    return (
        f'<tr>{name}<td class="plotted"><div class="bars" aria-hidden="true">{bars}</div></td>',
        shares,
        f'<td class="number">{duration(total)}</td><td class="number">{plots.number(steps / total)}</td></tr>',
    )


def _env(line: Line) -> str:
    return f' <span class="soft">{escaped(line.env)}</span>' if line.env else ""


def duration(seconds: float) -> str:
    """1 h 05 min, 3.4 min, 12 s."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


# Settings

ABSENT = "–"
"""Stands for a setting that a line does not have."""


def settings_table(some: Sequence[Line]) -> str:
    """The fields that differ between lines that have them. Those that are equal, or that only some have, are folded."""
    known = [line for line in some if any(run.settings for run in line.runs)]
    if not known:
        return ""
    names = sorted({name for line in known for run in line.runs for name in run.settings} - {"seed"})
    values = {name: [_value(line, name) for line in known] for name in names}
    kinds = {name: set(values[name]) - {ABSENT} for name in names}
    differing = [name for name in names if len(kinds[name]) > 1]
    partly = [name for name in names if name not in differing and ABSENT in values[name]]
    equal = [name for name in names if name not in differing and name not in partly]
    words = "What differs between the lines." if len(known) > 1 else "The settings of the runs."
    if len(known) > 1 and not differing:
        words = "All settings that the lines share are equal."
    unknown = ", ".join(line.label for line in some if line not in known)
    without = f'<p class="small soft">No settings are known of {escaped(unknown)}.</p>' if unknown else ""
    return f"""<section class="card" id="settings"><h2>Settings</h2><p class="soft">{words}</p>
{_differing(known, differing, values)}{_equal(equal, values, alone=len(known) == 1)}
{_partly(known, partly, values)}{without}</section>"""


def _partly(known: Sequence[Line], names: Sequence[str], values: Mapping[str, Sequence[str]]) -> str:
    if not names:
        return ""
    summary = f"{len(names)} settings that only some lines have"
    return f"<details><summary>{summary}</summary>{_differing(known, names, values)}</details>"


def _differing(known: Sequence[Line], names: Sequence[str], values: Mapping[str, Sequence[str]]) -> str:
    if not names:
        return ""
    several = len({line.env for line in known}) > 1
    head = "".join(
        f'<th scope="col">{plots.swatch(one.colour)}{escaped(one.label)}{_env(one) if several else ""}</th>'
        for one in known
    )
    rows = "".join(
        f'<tr><th scope="row"><code>{escaped(name)}</code></th>'
        + "".join(f'<td class="setting">{value}</td>' for value in values[name])
        + "</tr>"
        for name in names
    )
    return f"""<div class="wide"><table><thead><tr><th scope="col">setting</th>{head}</tr></thead>
<tbody>{rows}</tbody></table></div>"""


def _equal(names: Sequence[str], values: Mapping[str, Sequence[str]], *, alone: bool) -> str:
    if not names:
        return ""
    same = "".join(f"<div><dt><code>{escaped(name)}</code></dt><dd>{values[name][0]}</dd></div>" for name in names)
    summary = f"{len(names)} settings{'' if alone else ' are equal in all'}"
    return f'<details{" open" if alone else ""}><summary>{summary}</summary><dl class="facts">{same}</dl></details>'


def _value(line: Line, name: str) -> str:
    """A setting as text; several if a line's runs differ."""
    found = [_text(run.settings[name]) if name in run.settings else ABSENT for run in line.runs]
    distinct = list(dict.fromkeys(found))
    return escaped(", ".join(distinct[:4]) + (" …" if len(distinct) > 4 else ""))


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_text(one)}" for key, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value)) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else "none" if value is None else f"{value}"


# Folders


def runs_table(runs: Sequence[Run]) -> str:
    """Each folder: what it is, how far it went, what could not be read."""
    rows = "".join(_run_row(run) for run in runs)
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("folder", "library", "method", "environment", "status", "steps", "seeds", "notes")
    )
    return f"""<section class="card" id="runs"><h2>Runs</h2><div class="wide"><table>
<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>"""


def _run_row(run: Run) -> str:
    status = run.status or ("unfinished" if run.unfinished else "finished" if run.total else "")
    steps = f"{run.reached:,.0f}" + (f" of {run.total:,.0f}" if run.total else "")
    chip = f'<span class="chip {status}">{status}</span>' if status else '<span class="soft">not known</span>'
    cells = (run.library, run.method, run.env or "not known")
    middle = "".join(f"<td>{escaped(cell)}</td>" for cell in cells)
    seeds = ", ".join(seed for seed in run.seeds if seed) or "not known"
    return (
        f'<tr><td class="path"><code>{escaped(run.path)}</code></td>{middle}<td>{chip}</td><td>{steps}</td>'
        f"<td>{escaped(seeds)}</td><td>{escaped('; '.join(run.notes))}</td></tr>"
    )

"""The report: one Markdown page per machine for readers, and beside it a JSON file with every number.

It leaves out all judgement but one: which is the fastest rival.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.timing import Times

HEAD = "# GAE on {processor}\n\n*Written by `{command}`; do not edit.*\n"
RULES = """
Each contestant computes advantages and returns of the same rollout (float32, {ends:.0%} of the steps terminate), from
arrays of its own type, contiguous in its own layout, compiled and warm. It is timed only if both results differ from
a float64 oracle by at most {tolerance:g} of the largest number. Times are medians (quartiles) per call, in rounds in
which all take turns. "copy" is a plain single-threaded copy that reads and writes, together, as many bytes as GAE must.
"""


class Row(NamedTuple):
    """One contestant on one shape."""

    name: str
    error: float | None  # against the oracle; None for what has no result
    times: Times | None  # None: not timed
    note: str = ""

    @property
    def ours(self) -> bool:
        return self.name.startswith("telescope")


def write(folder: Path, machine: str, facts: dict[str, str], sections: dict[str, list[Row]], **rules: Any) -> Path:
    """`<folder>/<machine>.md` and `.json`; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{machine}.md"
    plain = {title: [{**row._asdict(), "times": row.times and row.times._asdict()} for row in rows]
             for title, rows in sections.items()}  # fmt: skip
    page.with_suffix(".json").write_text(json.dumps({**facts, "sections": plain}, indent=1) + "\n", encoding="utf-8")
    tables = [f"## {title}\n\n{table(rows)}" for title, rows in sections.items()]
    head = HEAD.format(**facts) + RULES.format(**rules) + "\n" + "\n".join(f"- {k}: {v}" for k, v in facts.items())
    page.write_text("\n\n".join([head, f"## Summary\n\n{overview(sections)}", *tables]) + "\n", encoding="utf-8")
    return page


def table(rows: list[Row]) -> str:
    lines = ["| | median | quartiles | samples | error |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        if row.times is None:
            lines.append(f"| {row.name} | {row.note} | | | {_error(row)} |")
        else:
            t = row.times
            low_high = f"{duration(t.low)} – {duration(t.high)}"
            lines.append(f"| {row.name} | {duration(t.median)} | {low_high} | {t.samples} | {_error(row)} |")
    return "\n".join(lines)


def overview(sections: dict[str, list[Row]]) -> str:
    """Ours against the fastest rival, Tianshou's kernel and the copies, in the shapes that have them."""
    lines = ["| columns × steps | ours | out= | fastest rival | × ours | Tianshou × ours | ours × copy | out= × copy |"]
    lines.append("|---|---:|---:|---|---:|---:|---:|---:|")
    for title, rows in sections.items():
        medians = {row.name: row.times.median for row in rows if row.times}
        rivals = {row.name: medians[row.name] for row in rows if row.times and row.error is not None and not row.ours}
        ours, given = _both(medians, ""), _both(medians, ", out=")
        if not ours or not rivals:
            continue
        best = min(rivals, key=rivals.__getitem__)
        cells = [title, _slash(ours), _slash(given), f"{best} {duration(rivals[best])}", _ratio(rivals[best], ours)]
        cells.append(_ratio(medians.get("Tianshou _gae_return (numba)"), ours))
        cells.append(_ratio(medians.get("copy"), ours, turned=True))
        cells.append(_ratio(medians.get("copy, out="), given, turned=True))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "Two numbers in one cell: time-major, batch-major."])


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 100 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def _both(medians: dict[str, float], suffix: str) -> list[float]:
    names = (f"telescope, {layout}{suffix}" for layout in ("time-major", "batch-major"))
    return [medians[name] for name in names if name in medians]


def _slash(times: list[float]) -> str:
    return " / ".join(map(duration, times))


def _ratio(other: float | None, ours: list[float], turned: bool = False) -> str:
    if other is None:
        return ""
    ratios = (mine / other if turned else other / mine for mine in ours)
    return " / ".join(f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2g}" for ratio in ratios)


def _error(row: Row) -> str:
    return "" if row.error is None else f"{row.error:.1e}"

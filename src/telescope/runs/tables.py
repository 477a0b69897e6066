"""Tables with text that grow with a run: samples.csv, completions with their scores, and health.csv, what looked wrong.

Leaves out what is in them (`language/`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from telescope.runs.files import Appender, explained, write_atomic


class GrowingTable:
    """Appends to a CSV file; begins it with the first rows that there are."""

    def __init__(self, path: Path, *, resume_step: int | None) -> None:
        """Start the table anew, or continue it after `resume_step`: later rows are dropped."""
        self.path = path
        header, *rows = _rows(path) if resume_step is not None and path.exists() else [[]]
        if header:
            kept = [row for row in rows if row[0].isdecimal() and int(row[0]) <= (resume_step or 0)]
            write_atomic(path, _csv([header, *kept]))
        else:
            path.unlink(missing_ok=True)

    def write(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows of one step, all with the same names."""
        if not rows:
            return
        lines = [[step, *row.values()] for row in rows]
        if not self.path.exists():
            write_atomic(self.path, _csv([["step", *rows[0]]]))
        file = Appender(self.path)
        try:
            file.write(_csv(lines))
        finally:
            file.close()


def _rows(path: Path) -> list[list[str]]:
    with explained("read", path):
        text = path.read_bytes().decode(errors="replace")
    rows = list(csv.reader(io.StringIO(text, newline="")))
    return [row for row in rows if len(row) == len(rows[0])] or [[]]  # a crash may have cut the last one short


def _csv(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()

"""Tables with text that grow with a run: samples.csv, completions with their scores, and health.csv, what looked wrong.

Leaves out what is in them (`language/`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from telescope.runs.files import Appender, explained, write_atomic

HEADER = b"step,"


class GrowingTable:
    """Appends to a CSV file; begins it with the first rows that there are."""

    def __init__(self, path: Path, *, resume_step: int | None) -> None:
        """Start the table anew, or continue it after `resume_step`: later rows are dropped."""
        self.path = path
        header, *rows = _records(path) if resume_step is not None and path.exists() else [b""]
        if header.startswith(HEADER):
            write_atomic(path, header, *(row for row in rows if _is_until(row, resume_step or 0)))
        else:
            path.unlink(missing_ok=True)

    def write(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows of one step, all with the same names."""
        if not rows:
            return
        if not self.path.exists():
            write_atomic(self.path, HEADER, _csv([list(rows[0])], csv.QUOTE_MINIMAL))
        with Appender(self.path) as file:
            file.write(_csv([[step, *row.values()] for row in rows], csv.QUOTE_NONNUMERIC))

    def sync(self) -> None:
        """Return once everything written is on the disk; to be called before every checkpoint."""
        if self.path.exists():
            with Appender(self.path) as file:
                file.sync()


def _records(path: Path) -> list[bytes]:
    """The complete records of a file as they stand there, of any size: a line's end within quotes ends none."""
    with explained("read", path):
        data = path.read_bytes()
    return list(_complete(data)) or [b""]


def _complete(data: bytes) -> Iterator[bytes]:
    """Records end with a newline where the quotes so far are closed; a crash may have cut the last one short."""
    record, quotes = list[bytes](), 0
    for line in io.BytesIO(data):  # ends lines at \n alone
        record.append(line)
        quotes += line.count(b'"')
        if line.endswith(b"\n") and quotes % 2 == 0:
            yield b"".join(record)
            record, quotes = [], 0


def _is_until(record: bytes, step: int) -> bool:
    first = record.partition(b",")[0]
    return first.isdigit() and int(first) <= step


def _csv(rows: Sequence[Sequence[Any]], quoting: Any) -> bytes:
    """Text is always quoted: a bare \\r in it would end the row for many readers."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n", quoting=quoting).writerows(rows)
    return text.getvalue().encode()

"""Tables with text that grow during a run: samples.csv (completions with scores) and health.csv (problems found).

Leaves out their content (`language/`).
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from telescope.runs.files import Table, read, until

HEADER = b"step,"


class GrowingTable:
    """Appends to a CSV file, which begins with the first rows."""

    def __init__(self, path: Path, *, resume_step: int | None, mark: Mapping[str, Any] | None = None) -> None:
        """Start a new table, or continue one after `resume_step`. Later rows are dropped.

        mark: the `mark` at that step; the table then continues with exactly these bytes, if it still has them.
        """
        self.path = path
        self._table: Table | None = None
        kept = b"" if resume_step is None else until(path, mark) if mark is not None else None
        if kept is None and resume_step is not None:
            header, *rows = _records(path) if os.path.lexists(path) else [b""]
            kept = b"".join([header, *(row for row in rows if _is_until(row, resume_step))])
        if kept and kept.startswith(HEADER):
            self._table = Table(path, kept)
        else:
            path.unlink(missing_ok=True)

    @property
    def mark(self) -> dict[str, Any]:
        """The current mark of the table, for a checkpoint."""
        return {"size": 0, "sha256": ""} if self._table is None else self._table.mark

    def write(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows of one step, all with the same columns."""
        if not rows:
            return
        if self._table is None:
            self._table = Table(self.path, HEADER + as_csv([list(rows[0])], end="\n"))
        # text is always quoted: a bare \\r in it would end the row for many readers
        cells = ([step, *row.values()] for row in rows)
        self._table.write(as_csv(cells, quoting=csv.QUOTE_NONNUMERIC, end="\n"))

    def sync(self) -> None:
        """Sync everything written to disk. Call this before every checkpoint."""
        if self._table is not None:
            self._table.sync()

    def close(self) -> None:
        """Close the file."""
        if self._table is not None:
            self._table.close()


def read_table(path: Path) -> list[dict[str, str]]:
    """The complete rows of such a table as text; none if there is no file."""
    if not os.path.lexists(path):
        return []
    before = csv.field_size_limit(sys.maxsize)  # a completion may be longer than csv allows
    try:
        return list(csv.DictReader(io.StringIO(b"".join(_records(path)).decode(), newline="")))
    finally:
        csv.field_size_limit(before)


def _records(path: Path) -> list[bytes]:
    """The complete records of a file, unchanged. A newline within quotes does not end a record."""
    return list(_complete(read(path))) or [b""]


def _complete(data: bytes) -> Iterator[bytes]:
    """Split records at newlines outside of quotes. A crash may have cut the last one."""
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


def as_csv(rows: Iterable[Iterable[Any]], *, quoting: Any = csv.QUOTE_MINIMAL, end: str = "\r\n") -> bytes:
    """Rows of cells as the bytes of a CSV file."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end, quoting=quoting).writerows(rows)
    return text.getvalue().encode()


def named_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Rows of equal names, with their names above them."""
    return [list(rows[0]), *([row[name] for name in rows[0]] for row in rows)]

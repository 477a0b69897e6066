"""Rows of data files as people have them: JSONL, JSON, CSV, Parquet, and folders that `datasets` saved.

Each row has a `prompt` afterwards, and what it says instead of one is translated. Leaves out how conversations become
text (`chat.py`) and which rows are held out (`tasks.py`).
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from telescope.language.data.chat import is_conversation, parted

Row = dict[str, Any]
"""A row of the data: `prompt`, `answer` if there is one correct answer, and any other columns."""

SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")
"""Files of which `save_to_disk` of `datasets` writes some into its folder."""


def is_data(name: str) -> bool:
    """Whether a task names a file or a folder of rows."""
    return os.path.splitext(name)[1].lower() in READERS or is_saved(name)


def is_saved(folder: str) -> bool:
    """Whether it is a folder that `datasets` saved."""
    return any((Path(folder) / name).is_file() for name in SAVED)


def read_rows(path: str | os.PathLike[str], fields: Sequence[str], *, alike: bool = False) -> list[Row]:
    """The rows of a file. Each has the named fields: non-empty strings, or conversations.

    A row with `messages` and no `prompt` is split before its last answer; a pair without one is split where `chosen`
    and `rejected` begin to differ. Errors name the row (from 1) and the field. alike: every row must have the same
    fields as the first, because a reward function receives them as lists.
    """
    path = os.fspath(path)
    rows = list[Row]()
    for number, found in _reader(path)(path):
        place = f"row {number} of {path}"
        rows.append(_row(found, place, fields))
        if alike and (lacking := rows[0].keys() ^ rows[-1].keys()):
            raise ValueError(_unlike(place, min(lacking), rows[-1]))
        if isinstance(rows[0]["prompt"], list) != isinstance(rows[-1]["prompt"], list):
            kinds = ["a conversation" if isinstance(row["prompt"], list) else "a text" for row in (rows[-1], rows[0])]
            raise ValueError(f"the prompt in {place} is {kinds[0]}, but that of the first row is {kinds[1]}")
    if not rows:
        raise ValueError(f"{path} has no rows; expected one prompt in each")
    return rows


def _reader(path: str) -> Callable[[str], Iterator[tuple[int, Any]]]:
    return _saved if is_saved(path) else READERS[os.path.splitext(path)[1].lower()]


def _lines(path: str) -> Iterator[tuple[int, Any]]:
    """One JSON object per line. Empty lines are skipped, but counted."""
    for number, line in enumerate(_bytes(path).splitlines(), 1):
        if line.strip():
            yield number, _json(line, f"row {number} of {path}")


def _whole(path: str) -> Iterator[tuple[int, Any]]:
    """A JSON array of objects; or JSON lines under another name."""
    data = _bytes(path).strip()
    if not data.startswith(b"["):
        yield from _lines(path)
        return
    yield from enumerate(_json(data, path), 1)


def _csv(path: str) -> Iterator[tuple[int, Any]]:
    """Comma-separated values, all of them strings: `007` is no number. An empty field is None."""
    try:
        table = csv.DictReader(io.StringIO(_bytes(path).decode(), newline=""), strict=True)
        for number, row in enumerate(table, 1):
            if None in row or None in row.values():
                raise ValueError(f"row {number} of {path} has more or fewer fields than the line of names")
            yield number, {name: value or None for name, value in row.items()}
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not CSV in UTF-8: {error}") from error


def _parquet(path: str) -> Iterator[tuple[int, Any]]:
    if not os.path.isfile(path):
        _bytes(path)  # says so
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(path)  # type: ignore[no-untyped-call]
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
    yield from enumerate(map(_without_gaps, table.to_pylist()), 1)


def _saved(path: str) -> Iterator[tuple[int, Any]]:
    """What `save_to_disk` wrote. Of several splits it is `train`."""
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(path)
    except Exception as error:  # of many types, for broken files
        raise ValueError(f"{path} cannot be read as a saved dataset: {' '.join(str(error).split())}") from error
    if isinstance(found, DatasetDict):
        if "train" not in found:
            raise ValueError(f"{path} has the splits {', '.join(found)}, but no train; name the folder of one of them")
        found = found["train"]
    yield from enumerate(map(_without_gaps, found.to_list()), 1)


def _without_gaps(row: Any) -> Any:
    """Arrow gives each message of a column the fields of all; those that are None were not there."""
    if isinstance(row, dict):
        return {name: _messages(value) for name, value in row.items()}
    return row


def _messages(value: Any) -> Any:
    if not is_conversation(value):
        return value
    return [{name: x for name, x in one.items() if x is not None or name == "content"} for one in value]


READERS: dict[str, Callable[[str], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _lines,
    ".json": _whole,
    ".csv": _csv,
    ".parquet": _parquet,
}
"""Ending of a file's name → its reader, which yields each row with its number."""


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a file of rows: {error.strerror}") from error


def _json(data: bytes, place: str) -> Any:
    try:
        found = json.loads(data.decode())
        json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair is not text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON in UTF-8: {error}") from error
    return found


def _unlike(place: str, field: str, row: Row) -> str:
    if field in row:
        return f"{place} has the field {field!r}, which the first row lacks; give it there too (null for none)"
    return f"{place} has no field {field!r}, which the first row has; give it there too (null for none)"


def _row(row: Any, place: str, fields: Sequence[str]) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{place} is a {type(row).__name__}; expected a JSON object")
    for name in ("messages", "prompt", *fields):
        if isinstance(row.get(name), list) and not is_conversation(row[name]):
            raise ValueError(
                f"{name} in {place} is {row[name]!r}; expected a string, or messages with a role and content: "
                '[{"role": "user", "content": …}, …]'
            )
    row = parted(row)
    for field in fields:
        if field not in row:
            raise ValueError(f"{place} has no field {field!r}; it has {', '.join(map(repr, row)) or 'none'}")
        value = row[field]
        if not isinstance(value, str | list):
            raise ValueError(f"{field} in {place} is {value!r}; expected a string, or a list of messages")
        if isinstance(value, list) and field != "prompt" and not isinstance(row["prompt"], list):
            raise ValueError(f"{field} in {place} is a conversation, but its prompt is a text; give both as messages")
        if not value or (isinstance(value, str) and not value.strip()):
            raise ValueError(f"{field} in {place} is empty")
    return row

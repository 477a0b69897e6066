"""Checks of a run folder, with a sentence each: an edited configuration, somebody else's code, incomplete tables.

Leaves out files with a digest of their own (`checkpoint.py`, `record.py`, `seal.py`).
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from telescope.runs.files import RunError, explained, join, read, shown, until
from telescope.runs.formats.config import read_toml
from telescope.runs.identity import trust
from telescope.runs.identity.record import NAME, as_json, here
from telescope.runs.lock import LOCK


def unused(path: Path) -> None:
    """Raise a RunError unless the path is free, or an empty folder, or holds only what a killed `create` leaves."""
    if not os.path.lexists(path):
        return
    with explained("look into", path):
        used = any(name != LOCK and not name.startswith(f".{NAME}.") for name in os.listdir(path))
    if os.path.lexists(path / NAME):
        raise RunError(
            f"{path} already holds a run; resume it with `telescope train --resume {shlex.quote(str(path))}` "
            "or choose another --out"
        )
    if used:
        raise RunError(f"{path} exists and is not empty; choose another --out")


def on_disk(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.toml; run.json's copy if it is missing, or older because of a kill between both writes."""
    told = read_toml(path) if os.path.lexists(path) else record["config"]
    return dict(record["config"] if told == record.get("before") else told)


def unedited(path: Path, record: Mapping[str, Any], but: Sequence[str] = ()) -> None:
    """Raise a RunError that names the differences between config.toml and the run's settings, except in `fields`."""
    told, known, absent = on_disk(path, record), record["config"], "absent"
    changes = [
        f"{name} is {told.get(name, absent)!r} and was {known.get(name, absent)!r}"
        for name in sorted(told.keys() | known.keys())
        if name not in but and trust.canonical(told.get(name, absent)) != trust.canonical(known.get(name, absent))
    ]
    if changes:
        raise RunError(
            f"{shown(path)} was changed: {join(changes)}. A run keeps its settings: undo the change, or delete the "
            "file, which is only a copy. `--total-steps` changes the length, `--device` the device; "
            "`telescope train ALGORITHM --config FILE` begins another run"
        )


def trusted(path: Path, config: Mapping[str, Any], record: Mapping[str, Any], said: bool) -> None:
    """Raise a RunError that lists a configuration's code, unless this user began the run or allows it."""
    code = trust.code_in(config)
    if code and not said and not trust.is_signed(record["id"], code, record.get("signature")):
        raise RunError(
            f"{path} names code that would run here: {join(code)}. You did not begin this run on this machine, or the "
            "code has changed since; if you trust it, add --trust (from Python: trust=True)"
        )


def executed_otherwise(record: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """The differences between the stored execution and the current one: settings, versions, processor."""
    today = here()
    then = record["execution"] | record["versions"] | {"processor": record["platform"].get("processor")}
    now = as_json(current) | today["versions"] | {"processor": today["platform"]["processor"]}
    return [
        f"{name} was {then.get(name, 'absent')} and is {now.get(name, 'absent')}"
        for name in sorted(then | now)
        if then.get(name) != now.get(name)
    ]


def made_otherwise(record: Mapping[str, Any], current: Mapping[str, str]) -> list[str]:
    """The inputs that have changed since the run began, as clauses. `current`: field → SHA-256."""
    then, places = record.get("inputs") or {}, record["config"]
    gone = {name for name in then if current.get(name, "absent") == "absent"}
    return [
        f"{name} ({places.get(name)}) {'is gone' if name in gone else 'has changed'}"
        for name in sorted(then)
        if current.get(name) != then[name]
    ]


def table(path: Path, mark: Mapping[str, Any]) -> str:
    """What is wrong with a table that had this mark at the checkpoint; empty if nothing."""
    if until(path, mark) is not None:
        return ""
    size = len(read(path)) if os.path.lexists(path) else 0
    if size < mark["size"]:
        return (
            f"{shown(path)} has {size:,} bytes, but had {mark['size']:,} when the checkpoint was written: rows are "
            "missing (was the folder copied while the run was training?)"
        )
    return f"{shown(path)} was changed or is damaged: it does not begin with what the run wrote"

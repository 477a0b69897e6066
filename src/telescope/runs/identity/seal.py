"""The seal of a folder: the run that wrote it, and a SHA-256 of each file, so that every change is noticed.

Leaves out what the files mean.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from telescope.runs.files import RunError, explained, read, shown, write_atomic

NAME = "seal.json"


def close(folder: Path, run: str) -> None:
    """Write a seal of the current files in the folder."""
    files = {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    write_atomic(folder / NAME, (json.dumps({"run": run, "files": files}, indent=2) + "\n").encode())


def check(folder: Path, run: str) -> None:
    """Raise a RunError that names a missing, changed or added file, or says that the folder is another run's.

    A user who intends a change deletes the seal.
    """
    if not os.path.lexists(folder / NAME):
        return
    try:
        seal = json.loads(read(folder / NAME))
        owner, files = seal["run"], {str(name): str(digest) for name, digest in seal["files"].items()}
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
        raise RunError(f"{shown(folder / NAME)} is damaged, or was not written by telescope") from error
    if owner != run:
        raise RunError(f"{shown(folder)} is the model of another run")
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != NAME and not path.is_dir()}
    for name in sorted(present | files.keys()):
        if name not in files:
            raise RunError(f"{shown(folder / name)} was not written by the run; remove it")
        if name not in present or _digest(folder / name) != files[name]:
            raise RunError(f"{shown(folder / name)} is missing, or is not what the run wrote; restore it")


def _digest(path: Path) -> str:
    if not path.is_file():
        return ""  # it cannot be read
    with explained("read", path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

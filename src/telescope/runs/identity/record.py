"""run.json: what a run is, where and with what it began, and its status. It contains a SHA-256 of its fixed parts.

Leaves out the folder around it (`folder.py`).
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from telescope import __version__
from telescope.runs.files import RunError, read, shown, write_atomic
from telescope.runs.identity import trust

NAME = "run.json"
FORMAT = 2
PACKAGES = ("numpy", "numba", "torch", "gymnasium", "mujoco", "envpool", "transformers", "tokenizers", "peft")
OPEN = {"status": str, "created": str, "command": list, "execution": dict, "versions": dict, "platform": dict}
"""Entries outside the digest: a run's status and machine. They are compared or shown, and decide nothing."""
MAY_CHANGE = {"total_steps", "device"}
"""Fields of the configuration that may change when a run continues: `--total-steps` and `--device` set them."""


def new(config: dict[str, Any], algorithm: str, execution: Mapping[str, Any], command: list[str]) -> dict[str, Any]:
    """The record of a run that begins now, with a new identity, signed by its user."""
    first_seed, seeds = config.get("seed", 0), config.get("seeds", 1)
    run, code = secrets.token_hex(16), trust.code_in(config)
    return {
        "format": FORMAT,
        "id": run,
        "algorithm": algorithm,
        "status": "running",
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": list(command),
        "seeds": list(range(first_seed, first_seed + seeds)),
        "execution": as_json(execution),
        **here(),
        "config": config,
        "signature": trust.sign(run, code) if code else None,
        "saved": False,
    }


def read_record(path: Path) -> dict[str, Any]:
    """Read what `write` wrote. A RunError if it is damaged, was edited, or has another format."""
    try:
        known = json.loads(read(path))
        version, digest = known["format"], known.pop("sha256", None)
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
        raise RunError(f"{shown(path)} is damaged, or was not written by telescope") from error
    if version != FORMAT:
        raise RunError(
            f"{shown(path.parent)} is a run folder of format {version}, but this version of telescope reads {FORMAT}"
        )
    if digest != _digest(_sealed(known)):
        raise RunError(f"{shown(path)} is damaged or was edited: its SHA-256 does not match; restore it")
    for name, kind in OPEN.items():
        if not isinstance(known.get(name), kind):
            raise RunError(f"{shown(path)} is damaged: {name} is {known.get(name)!r}")
    return known  # type: ignore[no-any-return]


def write(path: Path, known: dict[str, Any]) -> None:
    """Replace the file, atomically."""
    write_atomic(path, (json.dumps({**known, "sha256": _digest(_sealed(known))}, indent=2) + "\n").encode())


def fingerprint(config: Mapping[str, Any]) -> str:
    """A digest of the configuration's fields that stay the same for the whole run."""
    return _digest({name: value for name, value in config.items() if name not in MAY_CHANGE})


def here() -> dict[str, Any]:
    """Versions and machine of this process."""
    return {"versions": installed_versions(), "platform": _platform()}


def installed_versions() -> dict[str, str]:
    """Versions of telescope, Python and the installed `PACKAGES`, read without importing them."""
    versions = {"telescope": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def as_json(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping after a round trip through JSON, so that a tuple equals the list that it becomes."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(mapping)))
    return plain


def _sealed(known: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in known.items() if name not in OPEN}


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(trust.canonical(value).encode()).hexdigest()


def _platform() -> dict[str, Any]:
    """System, processor model and number of cores."""
    return {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

"""The code that a run folder names, and whether its user allows it to run.

A signature in run.json shows that the user began the run. Its key never leaves the user's machine. Leaves out running
code: callers that do so ask here first.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from telescope.checks import file_digest

KEY_BYTES = 32


def code_in(config: Mapping[str, Any]) -> dict[str, str]:
    """The code that a configuration names: a clause about each → its identity."""
    found: dict[str, str] = {}
    env, kwargs = config.get("env"), config.get("env_kwargs") or {}
    if isinstance(env, str) and ":" in env:
        found[f"env {env!r} imports {env.rpartition(':')[0]}"] = env
    elif isinstance(env, str) and env.startswith("GymV2") and kwargs:  # these import what env_id names
        found[f"env {env!r} imports what env_kwargs {kwargs!r} name"] = canonical(kwargs)
    if isinstance(task := config.get("task"), str) and task.startswith("verifiers:"):
        found[f"task {task!r} imports an environment of verifiers"] = task
    for word in config.get("wrap") or ():
        module, colon, _ = str(word).partition("=")[0].rpartition(":")
        if colon:
            found[f"wrap {word!r} imports {module}"] = f"wrap {word}"
    if network := config.get("network_module"):
        found[f"network {network!r} imports {str(network).rpartition(':')[0]}"] = f"network {network}"
    for field in ("reward", "environment"):
        sources = config.get(field) or ()
        for source in [sources] if isinstance(sources, str) else sources:
            path = str(source).rpartition(":")[0]
            if path.endswith(".py") and not os.path.isdir(source):  # anything else runs no code
                found[f"{field} {source!r} runs {path}"] = f"{source} {file_digest(path)}"
    return found


def sign(run: str, code: Mapping[str, str]) -> str | None:
    """The signature of a run's code by this user; None if no key can be stored."""
    key = _key(make=True)
    return None if key is None else _signature(key, run, code)


def is_signed(run: str, code: Mapping[str, str], signature: Any) -> bool:
    """Whether this user signed exactly this."""
    key = _key(make=False)
    return key is not None and isinstance(signature, str) and hmac.compare_digest(
        _signature(key, run, code).encode(), signature.encode()
    )  # fmt: skip


def canonical(value: Any) -> str:
    """A value as JSON, the same text for the same value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True)


def _signature(key: bytes, run: str, code: Mapping[str, str]) -> str:
    return hmac.new(key, canonical([run, sorted(code.values())]).encode(), hashlib.sha256).hexdigest()


def _key(*, make: bool) -> bytes | None:
    """The user's key, from `$XDG_STATE_HOME/telescope/key`; None if there is none and none can be created."""
    with contextlib.suppress(OSError, RuntimeError):  # no home folder, or not writable
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        path = Path(home) / "telescope" / "key"
        if (key := _read(path)) is None and make:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = path.with_name(f".key.{secrets.token_hex(4)}.tmp")
            try:
                with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(secrets.token_bytes(KEY_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
                if path.exists():  # damaged: runs that it signed now need --trust
                    os.replace(new, path)
                else:
                    with contextlib.suppress(FileExistsError):  # another process was first
                        os.link(new, path)
            finally:
                new.unlink(missing_ok=True)
            key = _read(path)
        return key
    return None


def _read(path: Path) -> bytes | None:
    """The key, if it is whole and the user's own."""
    try:
        with open(path, "rb") as file:
            own = os.fstat(file.fileno()).st_uid == os.getuid()
            key = file.read(KEY_BYTES + 1)
    except FileNotFoundError:
        return None
    return key if own and len(key) == KEY_BYTES else None

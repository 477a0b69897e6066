"""The inputs of a run besides its settings: data, reward and models, each identified by its SHA-256.

Leaves out where digests are stored and compared (`runs/folder.py`).
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from telescope.checks import ABSENT, file_digest
from telescope.language.data.files import is_data
from telescope.language.data.rewards import every, parsed
from telescope.language.models.causal import TINY, folder_of
from telescope.language.models.heads import critic_folder, reward_folder
from telescope.rewards import named


def resolved(config: Any) -> Any:
    """The configuration with absolute paths, so that a run can be resumed from any directory."""
    paths: dict[str, Any] = {
        name: _whole(name, getattr(config, name, None))
        for name in ("task", "model", "value_start", "reward", "environment")
    }
    if isinstance(several := getattr(config, "reward", None), tuple):
        paths["reward"] = tuple(_whole("reward", one) or one for one in several)
    return dataclasses.replace(config, **{name: path for name, path in paths.items() if path is not None})


def inputs(config: Any) -> dict[str, str]:
    """Field → SHA-256 of what it names: the data file, the model folder, the reward file or model. Runs no code.

    The digest of a reward file includes modules beside it that it imports; that of an adapter includes its base model.
    Built-in tasks and models have none.
    """
    found = {}
    if is_data(config.task):
        found["task"] = _data(Path(config.task))
    if (folder := _model_folder(config.model)) is not None:
        found["model"] = _model(folder)
    if (critic := getattr(config, "value_start", None)) is not None:
        found["value_start"] = _model(critic_folder(critic))
    if isinstance(game := getattr(config, "environment", None), str):
        found["environment"] = _code(Path(game.rpartition(":")[0]))
    digests = [_reward(one) for one in every(getattr(config, "reward", None)) if isinstance(one, str)]
    digests = [digest for digest in digests if digest]
    if digests:
        found["reward"] = digests[0] if len(digests) == 1 else _of([("reward", digest) for digest in digests])
    return found


def _reward(source: str) -> str:
    """The digest of a reward file, or of a reward model; empty for a ready-made reward."""
    bare, _ = parsed(source)
    if os.path.isdir(str(bare)):
        return _model(reward_folder(str(bare)))
    return "" if named(str(bare)) is not None else _code(Path(str(bare).rpartition(":")[0]))


def _whole(name: str, source: Any) -> str | None:
    """The absolute path; None if it is no path, or is absolute already."""
    if not isinstance(source, str):
        return None
    if name in ("reward", "environment") and not os.path.exists(source):
        bare = str(parsed(source)[0])
        file, colon, function = bare.rpartition(":")
        if os.path.exists(bare):
            return os.path.abspath(bare) + source.removeprefix(bare)
        if named(bare) is not None or not colon:
            return None
        return f"{os.path.abspath(file)}:{function}{source.removeprefix(bare)}"
    is_path = is_data(source) if name == "task" else os.path.exists(source) and source != TINY
    return os.path.abspath(source) if is_path else None


def _data(path: Path) -> str:
    """The digest of a data file, or of all files of a saved folder."""
    if not path.is_dir():
        return file_digest(path)
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith((".", "cache-")))
    return _of([(str(file.relative_to(path)), file_digest(file)) for file in files])


def _model_folder(source: str) -> Path | None:
    """The folder of a model's files; None for the built-in model, and for a hub model that is not downloaded yet."""
    if source == TINY:
        return None
    if os.path.isabs(source) or os.path.isdir(source):
        return Path(folder_of(source))
    from huggingface_hub import try_to_load_from_cache

    with contextlib.suppress(ValueError):  # not a valid name on the hub
        for file in ("config.json", "adapter_config.json"):
            if isinstance(cached := try_to_load_from_cache(source, file), str):
                return Path(cached).parent
    return None


def _model(folder: Path) -> str:
    """The digest of all files of a folder except documents for readers."""
    if not folder.is_dir():
        return ABSENT
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".md" and path.name[0] != ".")
    parts = [(path.name, file_digest(path)) for path in files]
    with contextlib.suppress(
        OSError, ValueError, TypeError, AttributeError
    ):  # a broken file raises an error where it is used
        base = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
        place = _model_folder(base)
        parts.append((base, ABSENT if place in (None, folder) else _model(place)))
    return _of(parts)


def _code(file: Path) -> str:
    files = sorted(_imported(file, {file})) if file.is_file() else []
    return _of([(path.name, file_digest(path)) for path in files]) if files else ABSENT


def _imported(file: Path, seen: set[Path]) -> set[Path]:
    """The file, and all files beside it that its import statements name."""
    for name in _names(file):
        for path in (file.parent / f"{name}.py", file.parent / name / "__init__.py"):
            if path.is_file() and path not in seen:
                seen.add(path)
                _imported(path, seen)
    return seen


def _names(file: Path) -> Iterator[str]:
    """The first parts of the module names that the file imports."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # running it raises the error
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def _of(parts: list[tuple[str, str]]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

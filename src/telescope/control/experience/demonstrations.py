"""Demonstrations in files: the steps of whole episodes, by whoever acted.

They come from an npz file (`telescope record` writes one), or from a Minari data set on disk. Leaves out what is
learned from them (`algorithms/bc.py`).
"""

# N steps, D observation size
from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from telescope.control.environments.checks import flags_fit, mask_fit, observation_fit, real_array
from telescope.control.environments.spaces import Packed, PackedActions, assembled, choices, in_row

Arrays = dict[str, np.ndarray]
NAMES = {
    "obs": "observations",
    "acts": "actions",
    "terminals": "terminated",
    "terminations": "terminated",
    "dones": "terminated",
    "timeouts": "truncated",
    "truncations": "truncated",
}
"""Other libraries' names for our arrays."""
MINARI = ("data/main_data.hdf5", "main_data.hdf5")


class Demonstrations(NamedTuple):
    """N steps, one episode after another."""

    observations: np.ndarray  # [N, …] as environments hand them out: numbers from 0, rows of composite spaces
    actions: np.ndarray  # [N, …] of the environment, counted from 0
    ends: np.ndarray  # [N] bool, the last step of each episode
    masks: np.ndarray | None  # [N, A] bool, actions that were allowed


def read(path: str | os.PathLike[str], observation_space: gym.Space, action_space: gym.Space) -> Demonstrations:
    """The demonstrations in a file or folder, checked against the (packed) spaces. A ValueError if they do not fit."""
    arrays = _arrays(Path(path))
    told = f"data {os.fspath(path)}"
    for name in ("observations", "actions"):
        if not any(key.partition(".")[0] == name for key in arrays):
            raise ValueError(f"{told} has the arrays {', '.join(sorted(arrays))}; expected {name}, one row per step")
    counts = {len(x) for x in arrays.values() if x.ndim}
    if len(counts) != 1 or not min(counts):
        raise ValueError(f"{told} has arrays of {sorted(counts)} rows; expected as many rows in each, one per step")
    (count,) = counts
    seen = observation_fit(observation_space, (count,), f"{told}: observations")
    found = seen(_structured(observation_space, arrays, "observations", told))
    if not np.isfinite(found).all():
        raise ValueError(f"{told} has observations that are not finite")
    ends = np.zeros(count, bool)
    for name in ("terminated", "truncated"):
        if name in arrays:
            ends |= flags_fit(arrays[name], (count,), f"{told}: {name}")
    ends[-1] = True
    masks = None
    if "action_masks" in arrays:
        masks = mask_fit(action_space, arrays["action_masks"], (count,), f"{told}: action_masks")
    start = getattr(observation_space, "start", 0)
    return Demonstrations(found - start if start else found, _actions(action_space, arrays, told), ends, masks)


def _actions(space: gym.Space, arrays: Arrays, told: str) -> np.ndarray:
    """The actions [N, …], counted from 0. A ValueError for one that is not in the space."""
    given, original = _structured(space, arrays, "actions", told), getattr(space, "original", space)
    if isinstance(space, PackedActions):
        rows = in_row(space, given)
    else:
        rows = real_array(given, f"{told}: actions")
        if rows.shape[1:] != (space.shape or ()):
            raise ValueError(f"{told} has actions of shape {rows.shape[1:]}; expected {space.shape}, as in {original}")
        rows = rows - getattr(space, "start", 0)
    for part in space.parts if isinstance(space, PackedActions) else ():
        _require_choices(part.space, rows[:, part.start : part.start + part.entries], part.sizes, f"{told}: actions")
    if not isinstance(space, PackedActions):
        _require_choices(space, rows.reshape(len(rows), -1), choices(space), f"{told}: actions")
    if not np.isfinite(rows).all():
        raise ValueError(f"{told} has actions that are not finite")
    return rows


def _require_choices(space: gym.Space, rows: np.ndarray, sizes: list[int], subject: str) -> None:
    if sizes and not ((rows >= 0) & (rows < np.array(sizes)) & (rows == np.floor(rows))).all():
        raise ValueError(f"{subject} hold a choice that is not in {space}")


def _structured(space: gym.Space, arrays: Arrays, name: str, told: str) -> Any:
    """The arrays of a space's parts, in its structure. `name.key` is the part under `key`."""
    if not isinstance(space, Packed):
        if name not in arrays:
            raise ValueError(f"{told} has {name} in parts, but the space is {space}; expected one array {name}")
        return arrays[name]
    keys = {part.path: ".".join((name, *map(str, part.path))) for part in space.parts}
    if missing := [key for key in keys.values() if key not in arrays]:
        raise ValueError(f"{told} has no array {missing[0]!r}, but {', '.join(sorted(arrays))}; the space is {space}")
    return assembled(space.original, {path: arrays[key] for path, key in keys.items()})


def _arrays(path: Path) -> Arrays:
    """The arrays of a file or data set under our names. A ValueError if it is neither."""
    if path.suffix in (".hdf5", ".h5") or path.is_dir():
        return _from_minari(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            return {NAMES.get(name, name): file[name] for name in file.files}
    except FileNotFoundError as error:
        raise ValueError(f"data is {os.fspath(path)!r}, which does not exist") from error
    except (ValueError, OSError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(f"data {os.fspath(path)} is not an npz file of arrays: {error}") from error


def _from_minari(path: Path) -> Arrays:
    """The steps of a Minari data set: its episodes have one observation more than actions."""
    files = [path] if path.is_file() else [path / name for name in MINARI if (path / name).is_file()]
    if not files:
        raise ValueError(f"data {path} is a folder without {MINARI[0]}; expected an npz file or a Minari data set")
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path} is a Minari data set, whose reading needs h5py: pip install h5py") from error
    found: dict[str, list[np.ndarray]] = {}
    with h5py.File(files[0], "r") as file:
        for name in sorted(file, key=lambda name: int(name.rpartition("_")[2])):
            steps = len(file[name]["rewards"])
            for key, x in _leaves(file[name], ()):
                if key[0] in NAMES or key[0] in ("observations", "actions", "rewards"):
                    ours = ".".join((NAMES.get(key[0], key[0]), *(part.removeprefix("_index_") for part in key[1:])))
                    found.setdefault(ours, []).append(np.asarray(x)[:steps])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _leaves(group: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, x in group.items():
        if hasattr(x, "items"):
            yield from _leaves(x, (*path, name))
        else:
            yield (*path, name), x


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as `read` reads them."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

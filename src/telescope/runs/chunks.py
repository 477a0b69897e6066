"""The steps of replay buffers in a run's folder: each is written once, in a file whose name stands in checkpoints.

So a checkpoint takes the time of the steps since the last one. Leaves out what the steps are (the algorithms).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from telescope.runs.files import RunError, explained, remove, shown
from telescope.runs.formats import checkpoint

if TYPE_CHECKING:
    from telescope.runs.folder import RunFolder

ENDING, KIND = ".safetensors", "replay"


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Chunks of one share of the seeds, by name. Iterating reads one after the other."""

    folder: Path
    owner: str
    names: list[str]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for name in self.names:
            path = self.folder / f"{name}{ENDING}"
            chunk, about = checkpoint.load_about(path, kind=KIND)
            if about != {"run": self.owner, "name": name}:
                raise RunError(f"{shown(path)} is not the file of this run's checkpoint; restore it")
            yield chunk


class Store:
    """The chunks of a run, for `AgentIteration.state_beside`. Names are SHARE-FIRST-STOP, by the rows of the chunk."""

    def __init__(self, run: RunFolder, state: dict[str, Any] | None) -> None:
        self._run = run
        self._names: dict[int, list[str]] = {}
        for share, replay in enumerate(_replays(state or {})):
            if isinstance(replay["chunks"], Chunks):
                self._names[share] = list(replay["chunks"].names)

    def stop(self, share: int) -> int:
        """The row after those of this share that are here."""
        names = self._names.get(share)
        return _parts(names[-1])[2] if names else 0

    def add(self, share: int, chunk: dict[str, Any]) -> None:
        """Write a chunk to a file of its own."""
        start = chunk["start"]
        name = f"{share}-{start}-{start + chunk['mask'].shape[1]}"
        folder = self._run.replay_path
        with explained("write", folder):
            folder.mkdir(exist_ok=True)
        about = {"run": self._run.id, "name": name}
        checkpoint.save(folder / f"{name}{ENDING}", chunk, kind=KIND, about=about)
        self._names.setdefault(share, []).append(name)

    def names(self, share: int, first: int) -> list[str]:
        """The names of this share's chunks with rows from `first` on."""
        self._names[share] = [name for name in self._names.get(share, []) if _parts(name)[2] > first]
        return list(self._names[share])

    def prune(self) -> None:
        """Delete the files that the checkpoint, which is on the disk by now, no longer names."""
        named = {f"{name}{ENDING}" for names in self._names.values() for name in names}
        for path in self._run.replay_path.glob("*"):
            if path.name not in named:
                remove(path)


def with_chunks(state: dict[str, Any], folder: Path, owner: str) -> dict[str, Any]:
    """The state of a checkpoint, whose names of chunks become `Chunks`."""
    for replay in _replays(state):
        names = replay.get("chunks", [])
        if all(isinstance(name, str) for name in names):
            replay["chunks"] = Chunks(folder, owner, names)
    return state


def _replays(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of replay buffers, one for each share of the seeds."""
    return [part["replay"] for part in state.get("shares", [state]) if "replay" in part]


def _parts(name: str) -> list[int]:
    return [int(part) for part in name.split("-")]

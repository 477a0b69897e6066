"""Composite spaces as rows: an observation as bytes, an action as numbers, whatever parts they have.

Dict and Tuple spaces may be nested. Every part of an observation keeps its own dtype, so a picture has one byte a
pixel; `agents/reading.py` turns rows into inputs of a network. Leaves out checks of values (`checks.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Path = tuple[str | int, ...]
LEAVES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
COMPOSITE = (spaces.Dict, spaces.Tuple)
WHY_NOT = {
    spaces.Text: "a text has no fixed number of entries",
    spaces.Sequence: "a sequence has no fixed number of entries",
    spaces.Graph: "a graph has no fixed number of entries",
}
"""Spaces without a row, and why."""


class Part(NamedTuple):
    """One part of a composite space, and where it lies in a row."""

    path: Path
    """Keys and indices from the whole to the part; () for a space without parts."""
    space: gym.Space
    start: int
    """Its first byte in a row of bytes, its first number in a row of numbers."""
    dtype: str = "f8"

    @property
    def entries(self) -> int:
        """How many numbers the part has."""
        return math.prod(self.space.shape or ())

    @property
    def name(self) -> str:
        return ".".join(map(str, self.path))

    @property
    def sizes(self) -> list[int]:
        """The number of values of each entry, where these are choices: [n] of Discrete, nvec of MultiDiscrete."""
        return choices(self.space)


def choices(space: gym.Space) -> list[int]:
    """[n] of Discrete, nvec of MultiDiscrete, otherwise empty."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    return [int(n) for n in space.nvec.flat] if isinstance(space, spaces.MultiDiscrete) else []


class Packed(spaces.Box):
    """A Box of rows, in the place of a composite space."""

    original: gym.Space
    parts: tuple[Part, ...]
    """In the order of the space."""

    def __repr__(self) -> str:
        return repr(self.original)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Packed) and self.original == other.original

    def native(self, rows: np.ndarray) -> Any:
        """Rows [*lead, n] as values of the space, each part with `lead` in front."""
        found = {part.path: self.part(part, rows) for part in self.parts}
        return assembled(self.original, found)

    def part(self, part: Part, rows: np.ndarray) -> Any:
        """One part of rows [*lead, n], [*lead, *shape]."""
        width = part.entries * np.dtype(part.dtype).itemsize if self.dtype == np.uint8 else part.entries
        entries = np.ascontiguousarray(rows[..., part.start : part.start + width])
        entries = entries.view(part.dtype) if self.dtype == np.uint8 else entries
        values = entries.reshape((*rows.shape[:-1], *(part.space.shape or ())))
        found = np.asarray(values + getattr(part.space, "start", 0)).astype(part.space.dtype)
        return found[()] if isinstance(part.space, spaces.Discrete) else found  # one choice is a number


class PackedObservations(Packed):
    """Rows of bytes: floats first, then other numbers, then large choices in four bytes, then single bytes.

    Only the first block, the entries of Boxes of floats, may be normalised. Choices count from 0.
    """

    def __init__(self, original: gym.Space) -> None:
        found = list(leaves(original))
        blocks = [[(path, leaf) for path, leaf in found if _block(leaf) == block] for block in range(4)]
        at, placed = 0, dict[Path, Part]()
        for dtype, block in zip(("f4", "f4", "i4", "u1"), blocks, strict=True):
            for path, leaf in block:
                placed[path] = part = Part(path, leaf, at, dtype)
                at += part.entries * np.dtype(dtype).itemsize
        self.original, self.parts = original, tuple(placed[path] for path, _ in found)
        self.floats = sum(math.prod(leaf.shape or ()) for _, leaf in blocks[0])
        """Entries that may be normalised, the first of a row."""
        super().__init__(0, 255, (max(4, -(-at // 4) * 4),), np.uint8)  # a row begins where a float may


class PackedActions(Packed):
    """Rows of numbers, one for each entry of an action. Choices count from 0."""

    def __init__(self, original: gym.Space) -> None:
        found = list(leaves(original))
        starts = itertools.accumulate((math.prod(leaf.shape or ()) for _, leaf in found), initial=0)
        self.original = original
        self.parts = tuple(Part(path, leaf, start) for (path, leaf), start in zip(found, starts, strict=False))
        super().__init__(-np.inf, np.inf, (sum(part.entries for part in self.parts),), np.float64)


def _block(space: gym.Space) -> int:
    """0 for floats, 1 for other numbers, 2 for choices among more than 256, 3 for what fits a byte."""
    kind = np.dtype(space.dtype)  # type: ignore[arg-type]
    if isinstance(space, spaces.Box) and kind not in (np.uint8, np.bool_):
        return 0 if kind.kind == "f" else 1
    return 2 if max(choices(space), default=0) > 256 else 3


def packed_observations(space: gym.Space) -> gym.Space:
    """The space of rows for a composite space, MultiDiscrete or MultiBinary; Box and Discrete stay."""
    return space if isinstance(space, (spaces.Box, spaces.Discrete)) else PackedObservations(space)


def packed_actions(space: gym.Space) -> gym.Space:
    """The space of rows for a Dict or Tuple; all others stay."""
    return PackedActions(space) if isinstance(space, COMPOSITE) else space


def leaves(space: gym.Space, path: Path = ()) -> Iterator[tuple[Path, gym.Space]]:
    """Every part without parts of its own, with its path."""
    if isinstance(space, COMPOSITE):
        for key, inner in space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces):
            yield from leaves(inner, (*path, key))
    else:
        yield path, space


def check_parts(space: gym.Space, what: str) -> None:
    """Raise a ValueError for a part that has no row."""
    found = list(leaves(space))
    if not found:
        raise ValueError(f"{what} space {space} has no parts; expected at least one")
    for path, leaf in found:
        if not isinstance(leaf, LEAVES) or np.dtype(leaf.dtype).kind not in "biuf":  # type: ignore[arg-type]
            place = f"{what} space {space}" if not path else f"the part {named(path)} of the {what} space, {leaf},"
            why = next((reason for kind, reason in WHY_NOT.items() if isinstance(leaf, kind)), "")
            raise ValueError(
                f"{place} is not supported{why and ': '}{why}; wrap the environment in gymnasium.wrappers."
                f"Transform{what.capitalize()} with a Box, Discrete, MultiDiscrete or MultiBinary, or a Dict or Tuple "
                "of those (--wrap, or pass a callable)"
            )


def named(path: Sequence[str | int]) -> str:
    """A path as Python writes it: ['camera'][0]."""
    return "".join(f"[{key!r}]" for key in path)


def part_of(value: Any, path: Path, subject: str) -> Any:
    """The part of a nested value at this path. A ValueError if there is none."""
    for depth, key in enumerate(path):
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError) as error:
            has = f"only {', '.join(map(repr, value))}" if isinstance(value, Mapping) else f"a {type(value).__name__}"
            raise ValueError(f"{subject}{named(path[:depth])} has no part {key!r}, {has}") from error
    return value


def require_same_keys(space: gym.Space, value: Any, subject: str) -> None:
    """Raise a ValueError for parts that the space does not have."""
    if isinstance(space, spaces.Dict) and isinstance(value, Mapping):
        if unknown := sorted(map(str, value.keys() - space.spaces.keys())):
            raise ValueError(f"{subject} has the part {unknown[0]!r}, which its space lacks: {space}")
        for key in space.spaces.keys() & value.keys():
            require_same_keys(space.spaces[key], value[key], f"{subject}[{key!r}]")
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            count = f"{len(value)} parts" if isinstance(value, tuple | list) else f"a {type(value).__name__}"
            raise ValueError(f"{subject} is {count}; expected a tuple of {len(space.spaces)}, as in the space {space}")
        for index, (inner, own) in enumerate(zip(space.spaces, value, strict=True)):
            require_same_keys(inner, own, f"{subject}[{index}]")


def assembled(space: gym.Space, found: Mapping[Path, Any], path: Path = ()) -> Any:
    """A nested value from those of the parts."""
    if isinstance(space, spaces.Dict):
        return {key: assembled(inner, found, (*path, key)) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(assembled(inner, found, (*path, index)) for index, inner in enumerate(space.spaces))
    return found[path]


def row_of(space: Any, values: Any, row: int) -> Any:
    """One environment's observation among those of a vector environment, which may be a dict of arrays or an array."""
    if not isinstance(values, Mapping):
        return values[row]
    return assembled(space.original, {part.path: part_of(values, part.path, "final_obs")[row] for part in space.parts})


def in_row(space: gym.Space, action: Any) -> Any:
    """An action as the row that packed environments take, a batch as rows. Without parts it stays as it is."""
    if not isinstance(space, PackedActions):
        return action
    entries = []
    for part in space.parts:
        own = np.asarray(part_of(action, part.path, "action")) - getattr(part.space, "start", 0)
        entries.append(own.reshape((*own.shape[: own.ndim - len(part.space.shape or ())], part.entries)))
    return np.concatenate(entries, axis=-1).astype(np.float64)


def native(space: gym.Space, row: Any) -> Any:
    """A row of a packed space as a value of the original one; the same value if the space is not packed."""
    return space.native(row) if isinstance(space, Packed) else row


class Rows(gym.Wrapper):
    """An environment of composite spaces that gives and takes rows. `pack` makes a row of an observation."""

    def __init__(self, env: gym.Env, pack: Callable[..., np.ndarray]) -> None:
        super().__init__(env)
        self.observation_space = packed_observations(env.observation_space)
        self.action_space = packed_actions(env.action_space)
        self._pack = pack

    def reset(self, **arguments: Any) -> Any:
        result: Any = self.env.reset(**arguments)
        return self._packed(result, " at reset") if isinstance(result, tuple | list) and len(result) == 2 else result

    def step(self, action: np.ndarray) -> Any:
        taken = self.action_space.native(action) if isinstance(self.action_space, Packed) else action
        result: Any = self.env.step(taken)
        return self._packed(result, " at a step") if isinstance(result, tuple | list) and len(result) == 5 else result

    def _packed(self, result: Sequence[Any], where: str) -> tuple[Any, ...]:
        return (self._pack(result[0], where) if isinstance(self.observation_space, Packed) else result[0], *result[1:])

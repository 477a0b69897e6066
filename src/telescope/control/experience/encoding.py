"""Turn an environment's observations into arrays for networks and rollouts."""

# S seeds, B environments per seed
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from telescope.control.agents.reading import width
from telescope.control.environments.spaces import PackedObservations


class Encoder(NamedTuple):
    """Observations [S, B, …] → [S, B, *shape]."""

    shape: tuple[int, ...]
    encode: Callable[[np.ndarray], np.ndarray]
    kept: torch.dtype = torch.float32
    """The dtype in which a rollout stores observations that are not normalised."""
    floats: int | None = None
    """Of rows of bytes: how many float32, at the beginning, may be normalised. None: observations are numbers."""

    @property
    def size(self) -> int:
        """The number of entries of one observation (D in formulas)."""
        return math.prod(self.shape)

    @property
    def normalised(self) -> tuple[int, ...]:
        """The shape of the entries that may be normalised."""
        return self.shape if self.floats is None else (self.floats,)


def encoder(space: gym.Space, *, shaped: bool = False) -> Encoder:
    """The encoder of a space. Discrete is one-hot. Box is flat floats [D]; `shaped` keeps shape, bytes, bools.

    Composite observations stay rows of bytes.
    """
    if isinstance(space, PackedObservations):
        return Encoder(space.shape, lambda rows: rows, torch.uint8, space.floats)
    if isinstance(space, gym.spaces.Discrete):
        table = np.eye(int(space.n), dtype=np.float32)
        return Encoder((int(space.n),), lambda observations: table[observations])
    whole = space.shape or ()
    if shaped and space.dtype in (np.uint8, np.bool_):  # a policy counts from 0, which makes numbers of bools
        kept = torch.uint8 if space.dtype == np.uint8 else torch.bool
        return Encoder(whole, lambda observations: observations.astype(space.dtype, copy=False), kept)
    shape = whole if shaped else (math.prod(whole),)
    # native floats for every kind of observation: float32 if it holds every value of the dtype, else float64
    dtype = np.result_type(space.dtype or np.float32, np.float32)
    dtype = dtype if dtype.itemsize <= 8 else np.dtype(np.float64)
    return Encoder(
        shape, lambda observations: observations.reshape(*observations.shape[:2], *shape).astype(dtype, copy=False)
    )


def tensor_encoder(encoding: Encoder, space: gym.Space) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same encoder for tensors [S, B, …] on any device."""
    if isinstance(space, gym.spaces.Discrete):
        return lambda x: torch.nn.functional.one_hot(x.long(), int(space.n)).float()
    if encoding.kept == torch.uint8:
        return lambda x: x.reshape(*x.shape[:2], *encoding.shape)
    dtype = encoding.encode(np.zeros((1, 1, *(space.shape or ())), space.dtype)).dtype
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    return lambda x: x.reshape(*x.shape[:2], *encoding.shape).to(kind)


def examples(space: gym.Space, *, shaped: bool) -> torch.Tensor:
    """Three observations [3, …] of ordinary size, as a network reads them from a rollout."""
    random = np.random.default_rng(0)
    found = encoder(space, shaped=shaped)
    if not isinstance(space, PackedObservations):
        floats = random.standard_normal((3, *found.shape), np.float32)
        if found.kept == torch.uint8:
            return torch.from_numpy(np.clip(40 * floats + 128, 0, 255).astype(np.uint8))
        if found.kept == torch.bool:
            return torch.from_numpy(floats > 0)
        return torch.from_numpy(floats)
    rows = np.zeros((3, *space.shape), np.uint8)
    for part in space.parts:
        numbers: np.ndarray = random.standard_normal((3, part.entries))
        if part.sizes or isinstance(part.space, gym.spaces.MultiBinary):
            numbers = random.integers(0, part.sizes or 2, (3, part.entries))
        elif part.dtype == "u1":
            box: Any = part.space
            numbers = np.clip(40 * numbers + 128, box.low.ravel(), box.high.ravel())
        stop = part.start + part.entries * np.dtype(part.dtype).itemsize
        rows[:, part.start : stop].view(part.dtype)[...] = numbers.astype(part.dtype)
    return torch.from_numpy(rows)


def input_size(space: gym.Space) -> int:
    """D, the numbers that a network of flat observations reads."""
    return width(space) if isinstance(space, PackedObservations) else encoder(space).size

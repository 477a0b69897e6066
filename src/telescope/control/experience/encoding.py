"""Turn an environment's observations into arrays for networks and rollouts."""

# S seeds, B environments per seed
from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch


class Encoder(NamedTuple):
    """Observations [S, B, …] → [S, B, *shape]."""

    shape: tuple[int, ...]
    encode: Callable[[np.ndarray], np.ndarray]
    kept: torch.dtype = torch.float32
    """The dtype in which a rollout stores observations that are not normalised."""

    @property
    def size(self) -> int:
        """The number of entries of one observation (D in formulas)."""
        return math.prod(self.shape)


def encoder(space: gym.Space, *, shaped: bool = False) -> Encoder:
    """The encoder of a space. Discrete is one-hot. Box is flat floats [D]; with `shaped` it keeps shape and uint8."""
    if isinstance(space, gym.spaces.Discrete):
        table = np.eye(int(space.n), dtype=np.float32)
        return Encoder((int(space.n),), lambda observations: table[observations])
    whole = space.shape or ()
    if shaped and space.dtype == np.uint8:
        return Encoder(whole, lambda observations: observations, torch.uint8)
    shape = whole if shaped else (math.prod(whole),)
    # native floats for every kind of observation: float32 if it holds every value of the dtype, else float64
    dtype = np.result_type(space.dtype or np.float32, np.float32)
    dtype = dtype if dtype.itemsize <= 8 else np.dtype(np.float64)
    return Encoder(
        shape, lambda observations: observations.reshape(*observations.shape[:2], *shape).astype(dtype, copy=False)
    )

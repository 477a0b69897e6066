"""Replay buffer: one ring buffer with the latest steps of each seed.

It stores steps encoded, but neither normalised nor scaled, with true successors and both flags. The caller passes the
random numbers to draw with. Leaves out priorities, n-step returns and shared frames.
"""

# S seeds, B environments per seed, C capacity, M samples
from __future__ import annotations

from typing import Any

import numpy as np

from telescope.checks import fits_memory, same_kind
from telescope.control.experience.rollout import Transition


class Replay:
    """The latest `capacity` steps of each seed, rounded down to a multiple of `num_envs`."""

    def __init__(self, capacity: int, seeds: int, num_envs: int) -> None:
        if capacity < num_envs:
            raise ValueError(
                f"capacity is {capacity}, but one step of {num_envs} environments adds {num_envs}; raise it"
            )
        self.capacity, self.seeds, self.num_envs = capacity // num_envs * num_envs, seeds, num_envs
        self.added = 0
        """Steps per seed added so far, including overwritten ones."""
        self._arrays: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        """Steps per seed in the buffer."""
        return min(self.added, self.capacity)

    def add(self, transition: Transition) -> None:
        """Store one step of all environments. It overwrites the oldest one when the buffer is full."""
        parts = {name: array for name, array in transition._asdict().items() if array is not None}
        if not self._arrays:
            self._arrays = self._allocated(parts)
        start = self.added % self.capacity
        for name, array in parts.items():
            self._arrays[name][:, start : start + self.num_envs] = array
        self.added += self.num_envs

    def _allocated(self, parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        numbers = self.capacity * sum(array[:, :1].size * array.itemsize for array in parts.values()) // 4
        fits_memory(numbers, f"a replay of {self.capacity} steps for {self.seeds} seeds needs")
        return {name: np.zeros((self.seeds, self.capacity, *x.shape[2:]), x.dtype) for name, x in parts.items()}

    def draw(self, uniform: np.ndarray) -> Transition:
        """The steps [K, S, M, …] that numbers [K, S, M] in [0, 1) choose, each with the same probability."""
        rows = (uniform * len(self)).astype(np.int64)
        seeds = np.arange(self.seeds)[:, None]
        drawn: dict[str, Any] = {name: array[seeds, rows] for name, array in self._arrays.items()}
        return Transition(**{"next_masks": None, **drawn})

    def state(self) -> dict[str, Any]:
        """The number of added steps, and a copy of the buffer."""
        return {"added": self.added, "kept": {name: x[:, : len(self)].copy() for name, x in self._arrays.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state()` was taken."""
        self.added, kept = int(state["added"]), state["kept"]
        self._arrays = self._allocated({name: np.asarray(array)[:, :1] for name, array in kept.items()})
        same_kind("replay", kept, {name: array[:, : len(self)] for name, array in self._arrays.items()})
        for name, array in kept.items():
            self._arrays[name][:, : len(self)] = array

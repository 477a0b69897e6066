"""A ring of what agents saw, each frame stored once: the successor of a frame is the next frame in the ring.

Where the next frame is another one (the first of a new episode), the true successor is kept aside. Leaves out actions
and rewards (`replay.py`).
"""

# S seeds, B environments per seed, R rows of steps, K frames aside
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Frame = Mapping[str, np.ndarray]
"""What agents saw at one time, by name (observations, action masks): [S, B, …] each."""
ASIDE = "aside_"
"""Begins the names of frames aside in `kept`."""


class Frames:
    """The frames of the latest R steps of each environment, and that which the last of them led to: R + 1 rows."""

    def __init__(self, rows: int, like: Frame, stack: int = 1) -> None:
        (seeds, envs), *_ = (x.shape[:2] for x in like.values())
        self.rows, self.stack = rows + 1, stack
        self.age = np.zeros((seeds, self.rows, envs), np.uint8) if stack > 1 else None
        """[S, R + 1, B], of stacks: frames of the episode before this one, stack − 1 at most."""
        self.ring = {name: np.zeros((seeds, self.rows, *x.shape[1:]), x.dtype) for name, x in like.items()}
        self.aside = {name: np.zeros((seeds, 8, *x.shape[2:]), x.dtype) for name, x in like.items()}
        self.number = np.full((seeds, self.rows, envs), -1, np.int32)
        """[S, R + 1, B], the number among the frames aside of what the step before this row led to; -1: this frame."""
        self._none = np.zeros((seeds, envs), bool)
        self.added, self.dropped = np.zeros(seeds, np.int64), np.zeros(seeds, np.int64)
        """[S] frames aside so far, and those of them that belong to overwritten rows. The first to come go first."""

    def add(self, time: int, frame: Frame, successor: Frame, begins: np.ndarray | None = None) -> np.ndarray:
        """Store the frame before and after the step at this time. Return where [S, B] a break lies before it.

        There the previous step led to another state than this frame. Of stacks, an episode begins with this frame where
        `begins` [S, B] is True.
        """
        here, there = time % self.rows, (time + 1) % self.rows
        if self.age is not None:
            older = np.minimum(self.age[:, here - 1] + 1, self.stack - 1) if time > 0 else 0
            self.age[:, here] = np.where(np.asarray(begins), 0, older)
        breaks = self._differs(here, frame)
        if time > 0 and breaks.any():
            self.number[:, here] = self._put_aside(breaks, {name: x[:, here] for name, x in self.ring.items()})
        if time + 1 >= self.rows:  # the ring is full
            self.dropped += (self.number[:, there] >= 0).sum(1)
            self.number[:, there] = -1
        for name, ring in self.ring.items():
            ring[:, here], ring[:, there] = frame[name], successor[name]
        return breaks

    def _differs(self, row: int, frame: Frame) -> np.ndarray:
        if all(np.array_equal(ring[:, row], frame[name]) for name, ring in self.ring.items()):  # usually, and fast
            return self._none
        differs = [ring[:, row] != frame[name] for name, ring in self.ring.items()]
        return np.any([x.reshape(*x.shape[:2], -1).any(-1) for x in differs], axis=0)

    def _put_aside(self, where: np.ndarray, frames: Frame) -> np.ndarray:
        """Keep the frames [S, N, …] where the mask [S, N] is True. Return their numbers [S, N], else -1."""
        counts = where.sum(1)
        while (self.added + counts - self.dropped).max() > len(next(iter(self.aside.values()))[0]):
            self._grow()
        numbers = np.where(where, self.added[:, None] + where.cumsum(1) - 1, -1)
        seeds, columns = np.nonzero(where)
        for name, store in self.aside.items():
            store[seeds, numbers[where] % store.shape[1]] = frames[name][seeds, columns]
        self.added += counts
        return numbers

    def _grow(self) -> None:
        """Make twice the room. A frame's place is its number modulo the room."""
        for name, old in self.aside.items():
            self.aside[name] = new = np.zeros((len(old), 2 * old.shape[1], *old.shape[2:]), old.dtype)
            for s in range(len(old)):
                numbers = np.arange(self.dropped[s], self.added[s])
                new[s, numbers % new.shape[1]] = old[s, numbers % old.shape[1]]

    def at(self, places: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
        """The frames at these places: seeds, times and environments, broadcast together."""
        seeds, times, envs = places
        found = {name: x[seeds, times % self.rows, envs] for name, x in self.ring.items()}
        return found if self.age is None else {**found, "observations": self._stacks(places)}

    def _stacks(self, places: tuple[np.ndarray, ...]) -> np.ndarray:
        """The stacks at these places, [..., K, *frame]."""
        assert self.age is not None
        seeds, times, envs = (x[..., None] for x in np.broadcast_arrays(*places))
        back = np.minimum(np.arange(self.stack)[::-1], self.age[seeds, times % self.rows, envs])
        return self.ring["observations"][seeds, (times - back) % self.rows, envs]

    def after(self, places: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
        """What the steps at these places led to."""
        seeds, times, envs = places
        found = {name: x[seeds, (times + 1) % self.rows, envs] for name, x in self.ring.items()}
        numbers = self.number[seeds, (times + 1) % self.rows, envs]
        where = np.nonzero(numbers >= 0)
        if len(where[0]):
            seeds = np.broadcast_to(seeds, numbers.shape)[where]
            for name, store in self.aside.items():
                found[name][where] = store[seeds, numbers[where] % store.shape[1]]
        if self.age is not None:  # the stack before the step, without its oldest frame
            latest, axis = np.expand_dims(found["observations"], numbers.ndim), numbers.ndim
            older = self._stacks(places).take(range(1, self.stack), axis)
            found["observations"] = np.concatenate([older, latest], axis)
        return found

    def kept(self, start: int, stop: int) -> dict[str, Any]:
        """Copies of the frames of rows start … stop - 1, and of those aside: `places` [J, 3] and what lies there."""
        rows = np.arange(start, stop) % self.rows
        numbers = self.number[:, rows]  # [S, rows, B]
        places = np.argwhere(numbers >= 0)
        seeds, found = places[:, 0], numbers[numbers >= 0]
        aside = {ASIDE + name: store[seeds, found % store.shape[1]] for name, store in self.aside.items()}
        ages = {} if self.age is None else {"ages": self.age[:, rows]}
        return {**{name: ring[:, rows] for name, ring in self.ring.items()}, "places": places, **aside, **ages}

    def extend(self, start: int, kept: Mapping[str, Any], skip: int) -> np.ndarray:
        """Store what `kept` returned, from row `start` on, without the first `skip` rows. Return `breaks` of them.

        The frames must be new: none of them overwrites another.
        """
        count = next(iter(kept[name] for name in self.ring)).shape[1]
        rows = np.arange(start + skip, start + count) % self.rows
        for name, ring in self.ring.items():
            ring[:, rows] = kept[name][:, skip:]
        if self.age is not None:
            self.age[:, rows] = kept["ages"][:, skip:]
        seeds, places = len(self.number), np.asarray(kept["places"])
        breaks = np.zeros((seeds, count, self.number.shape[2]), bool)
        breaks[tuple(places.T)] = True
        frames = {name: np.zeros((*breaks.shape, *x.shape[2:]), x.dtype) for name, x in self.aside.items()}
        for name, frame in frames.items():
            frame[tuple(places.T)] = kept[ASIDE + name]
        breaks = breaks[:, skip:]
        flat = {name: x[:, skip:].reshape(seeds, -1, *x.shape[3:]) for name, x in frames.items()}
        self.number[:, rows] = self._put_aside(breaks.reshape(seeds, -1), flat).reshape(breaks.shape)
        return breaks

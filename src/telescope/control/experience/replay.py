"""Replay buffer: one ring buffer with the latest steps of each seed.

It stores steps encoded, but neither normalised nor scaled, with true successors and both flags, and draws returns of
one or more steps. The caller passes the random numbers to draw with. Leaves out priorities.
"""

# S seeds, B environments per seed, R rows of S·B steps, M samples, n steps of a sample at most
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from telescope.checks import same_kind
from telescope.control.experience.frames import Frames
from telescope.control.experience.rollout import Transition
from telescope.estimators.temporal import discounted_return

STEP = ("actions", "rewards", "terminated", "truncated", "mask")
"""What a step has besides the frames before and after it."""
CHUNK_BYTES = 2**25
"""Size of the chunks in which a buffer is saved."""


class Batch(NamedTuple):
    """Samples drawn from a replay buffer: [K, S, M, …] arrays as drawn, [M, …] tensors in one agent's update."""

    observations: Any  # [M, D] normalised for an update
    masks: Any  # [M, A] bool, actions allowed there, or None
    actions: Any  # [M, …]
    rewards: Any  # [M] Σ γ^i r of the sample's k steps; k is n, or less if its episode or the buffer ends
    discounts: Any  # [M] γ^k, the discount of the value that follows them
    terminated: Any  # [M] bool, True where no value follows
    live: Any  # [M] bool, False on the row that a NEXT_STEP autoreset inserts
    next_observations: Any  # [M, D] of the state that the last of the k steps led to
    next_masks: Any  # [M, A] bool, actions allowed there, or None


class Replay:
    """The latest `capacity` steps of each seed, rounded down to a multiple of `num_envs`."""

    def __init__(
        self, capacity: int, seeds: int, num_envs: int, *, in_states: bool = True, stack: int = 1, flat: bool = False
    ) -> None:
        if capacity < num_envs:
            raise ValueError(
                f"capacity is {capacity}, but one step of {num_envs} environments adds {num_envs}; raise it"
            )
        self.rows, self.seeds, self.num_envs = capacity // num_envs, seeds, num_envs
        self.stack, self.flat = stack, flat
        """Frames of an observation, which are kept once; and whether a network reads them as one vector."""
        if self.rows < stack:
            raise ValueError(
                f"replay_capacity is {capacity}, but a stack has {stack} frames of each of {num_envs} environments; "
                "raise it"
            )
        self.in_states = in_states
        """Whether states include the steps in the buffer."""
        self.time = 0
        """Rows added so far, including overwritten ones."""
        self.first = 0
        """The oldest row in the buffer."""
        self.skipped = 0
        """Gradient steps per seed that were left out, because a resumed run began with an empty buffer."""
        self._steps: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        """Steps per seed in the buffer."""
        return (self.time - self.first) * self.num_envs

    def _reserve(self, like: Transition) -> None:
        parts, (frame, _) = {name: np.asarray(getattr(like, name)) for name in STEP}, _frames(like)
        self._steps = {name: np.zeros((self.seeds, self.rows, *x.shape[1:]), x.dtype) for name, x in parts.items()}
        self._stops = np.zeros((self.seeds, self.rows, self.num_envs), bool)
        """Steps with which a sample ends, because the next row does not follow from them."""
        self._frames = Frames(self.rows, frame, self.stack)

    def add(self, transition: Transition) -> None:
        """Store one step of all environments. It overwrites the oldest one when the buffer is full."""
        if not self._steps:
            self._reserve(transition)
        row, frames = self.time % self.rows, _frames(transition)
        breaks = self._frames.add(self.time, *frames, transition.begins) | ~transition.mask
        self._stops[:, row - 1] |= breaks
        self._stops[:, row] = transition.terminated | transition.truncated
        for name, ring in self._steps.items():
            ring[:, row] = getattr(transition, name)
        self.time += 1
        self.first = max(self.first, self.time - self.rows)

    def draw(self, uniform: np.ndarray, *, n: int = 1, gamma: float = 1.0) -> Batch:
        """The samples that the numbers [K, S, M] in [0, 1) choose, each with the same probability, as arrays."""
        first = self.first + (self.stack - 1 if self.first else 0)  # older frames of the oldest stacks are gone
        chosen = (uniform * ((self.time - first) * self.num_envs)).astype(np.int64)  # [K, S, M]
        seeds, envs = np.arange(self.seeds)[:, None], chosen % self.num_envs
        times = first + chosen // self.num_envs
        rows = times % self.rows
        rewards, discounts, last = self._steps["rewards"][seeds, rows, envs], np.full(chosen.shape, gamma), times
        if n > 1:
            rewards, discounts, last = self._window(times, seeds, envs, n, gamma)
        frame, successor = self._frames.at((seeds, times, envs)), self._frames.after((seeds, last, envs))
        seen = [x["observations"] for x in (frame, successor)]
        if self.flat:  # [K, S, M, stack, D]
            seen = [x.reshape(*chosen.shape, -1) for x in seen]
        return Batch(
            seen[0],
            frame.get("masks"),
            self._steps["actions"][seeds, rows, envs],
            rewards,
            discounts,
            self._steps["terminated"][seeds, last % self.rows, envs],
            self._steps["mask"][seeds, rows, envs],
            seen[1],
            successor.get("masks"),
        )

    def _window(self, times: Any, seeds: Any, envs: Any, n: int, gamma: float) -> tuple[np.ndarray, ...]:
        """Discounted rewards of up to n steps from these times on, the discount after them, and the last time."""
        window = times + np.arange(n).reshape(-1, *[1] * times.ndim)  # [n, K, S, M]
        rewards = self._steps["rewards"][seeds, window % self.rows, envs]
        stops = self._stops[seeds, window % self.rows, envs] | (window == self.time - 1)
        stops[-1] = True
        nothing, ends = np.zeros_like(rewards), {"terminated": None, "truncated": stops, "gamma": gamma}
        total = discounted_return(rewards, nothing, **ends)[0]  # type: ignore[arg-type]
        return total, discounted_return(nothing, nothing + 1, **ends)[0], times + stops.argmax(0)  # type: ignore[arg-type]

    def state(self) -> dict[str, Any]:
        """Copies of everything in the buffer."""
        whole = self._steps and self.in_states
        return self.saved([self.kept(self.first, self.time)] if whole else [])

    def saved(self, chunks: Iterable[Any] = ()) -> dict[str, Any]:
        """The state of a buffer whose steps are in these chunks."""
        if not self._steps or not self.in_states:
            return {"time": 0, "first": 0, "skipped": self.skipped, "latest": None, "chunks": []}
        place = {"time": self.time, "first": self.first, "skipped": self.skipped}
        return {**place, "latest": self._frames.kept(self.time, self.time + 1), "chunks": list(chunks)}

    def kept(self, start: int, stop: int) -> dict[str, Any]:
        """A chunk: copies of rows start … stop - 1."""
        rows = np.arange(start, stop) % self.rows
        steps = {name: x[:, rows] for name, x in self._steps.items()}
        return {"start": start, **steps, **self._frames.kept(start, stop)}

    def chunk(self, start: int) -> dict[str, Any] | None:
        """A chunk of bounded size: the rows that were added from `start` on and are in the buffer. None without any."""
        start = max(start, self.first)
        if start >= self.time or not self.in_states:
            return None
        row = sum(x[:, 0].nbytes for x in (*self._steps.values(), *self._frames.ring.values()))
        return self.kept(start, min(start + max(1, CHUNK_BYTES // row), self.time))

    def restore(self, state: Mapping[str, Any]) -> list[str]:
        """Continue where `state()` was taken. Return notes for the user. Chunks are read one after the other."""
        if "time" not in state:
            raise ValueError(
                "resume holds a replay buffer of an earlier version of telescope, which drew other samples; begin a "
                "new run from these agents (telescope train --start RUN, or start=state in Python)"
            )
        time, latest, self.skipped = int(state["time"]), state["latest"], int(state["skipped"])
        self.first = max(int(state["first"]), time - self.rows)
        for chunk in state["chunks"]:
            if not self._steps:
                self._reserve_like(chunk)
            self._extend(chunk)
        self.time = time
        if latest is not None:
            self._frames.extend(time, latest, 0)
        if self.in_states:
            return []
        return [
            "the replay buffer is empty, because the run does not save it (save_replay): it collects learning_starts "
            "steps again before it learns"
        ]

    def _reserve_like(self, chunk: Mapping[str, Any]) -> None:
        one: dict[str, Any] = {
            name: np.asarray(chunk[name])[:, 0] for name in (*STEP, "observations", "masks") if name in chunk
        }
        self._reserve(Transition(**one, next_observations=one["observations"], next_masks=one.get("masks")))

    def _extend(self, chunk: Mapping[str, Any]) -> None:
        start, count = int(chunk["start"]), np.asarray(chunk["mask"]).shape[1]
        skip = min(max(0, self.first - start), count)
        rows = np.arange(start + skip, start + count) % self.rows
        parts = {name: np.asarray(chunk[name])[:, skip:] for name in STEP}
        same_kind("replay", parts, {name: x[:, rows] for name, x in self._steps.items()})
        for name, array in parts.items():
            self._steps[name][:, rows] = array
        breaks = self._frames.extend(start, chunk, skip) | ~parts["mask"]
        breaks[:, : max(0, self.first + 1 - start - skip)] = False  # no step before the oldest is in the buffer
        self._stops[:, rows] = parts["terminated"] | parts["truncated"]
        self._stops[:, rows - 1] |= breaks


def _frames(transition: Transition) -> tuple[dict[str, Any], dict[str, Any]]:
    """The frames before and after a step."""
    before: dict[str, Any] = {"observations": transition.observations}
    after: dict[str, Any] = {"observations": transition.next_observations}
    if transition.next_masks is not None:
        before["masks"], after["masks"] = transition.masks, transition.next_masks
    return before, after

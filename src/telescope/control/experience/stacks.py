"""Stacks of the latest frames that keep each frame once: a stack is K places in a store of frames.

At the beginning of an episode its first frame stands in the place of the frames before it, as in Gymnasium's
FrameStackObservation. Leaves out normalised and composite observations, which that wrapper stacks.
"""

# T time, S seeds, B environments per seed, K frames of a stack, F frames of a seed in a store
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class Stack:
    """The latest K frames of each environment, [S, B, K, …]."""

    def __init__(self, count: int) -> None:
        self.count = count

    def begin(self, frames: np.ndarray) -> None:
        """Begin an episode in every environment with these frames [S, B, …]."""
        self.frames = np.repeat(frames[:, :, None], self.count, axis=2)
        self.age = np.zeros(frames.shape[:2], np.int64)
        """[S, B], frames of the episode before the latest, K − 1 at most."""

    def push(self, frames: np.ndarray, begins: np.ndarray) -> None:
        """Add the next frames. An episode begins where `begins` [S, B] is True."""
        self.frames = self.after(frames)
        self.age = np.where(begins, 0, np.minimum(self.age + 1, self.count - 1))
        self.frames[begins] = frames[begins][:, None]

    def after(self, frames: np.ndarray) -> np.ndarray:
        """The stacks that these frames would make, without taking them."""
        return np.concatenate([self.frames[:, :, 1:], frames[:, :, None]], axis=2)

    @property
    def seen(self) -> np.ndarray:
        """What a network reads: [S, B, K, …], or one vector [S, B, K·D] of frames that are vectors."""
        return flattened(self.frames)

    def back(self) -> np.ndarray:
        """[S, B, K], how many steps each frame of a stack lies behind the latest."""
        return np.minimum(np.arange(self.count)[::-1], self.age[..., None])

    def state(self) -> dict[str, Any]:
        return {"frames": self.frames.copy(), "age": self.age.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        self.frames, self.age = np.array(state["frames"]), np.array(state["age"])


def flattened(stacks: np.ndarray) -> np.ndarray:
    """[…, K, D] → […, K·D]; stacks of pictures stay. The axes in front are two."""
    return stacks.reshape(*stacks.shape[:2], -1) if stacks.ndim == 4 else stacks


class Store:
    """All frames of a rollout: those before it, which the first stacks need, then one for each step, then finals."""

    def __init__(self, stack: Stack, steps: int, kept: torch.dtype) -> None:
        seeds, envs, count, *shape = stack.frames.shape
        self.frames = torch.zeros((count + steps, seeds, envs, *shape), dtype=kept)  # [K − 1 + T + 1, S, B, …]
        self.frames.numpy()[: count - 1] = np.moveaxis(stack.frames[:, :, :-1], 2, 0)
        self.stack, self.time, self.envs = stack, count - 2, envs
        self.finals: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self) -> np.ndarray:
        """Store the latest frames. Return the places [S, B, K] of their stacks among the frames of a seed."""
        self.time += 1
        self.frames.numpy()[self.time] = self.stack.frames[:, :, -1]
        return self.places()

    def places(self) -> np.ndarray:
        return (self.time - self.stack.back()) * self.envs + np.arange(self.envs)[:, None]

    def add_finals(self, where: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Store the final frames [S, B, …] where the mask [S, B] is True. Return the places [k, K] of their stacks."""
        counts = np.zeros(len(where), np.int64)
        for earlier, _ in self.finals:
            counts += earlier
        seeds, envs = np.nonzero(where)
        number = counts[seeds] + (where.cumsum(1) - 1)[seeds, envs]  # of each final within its seed
        self.finals.append((where.sum(1), frames[seeds, envs]))
        before = self.places()[seeds, envs][:, 1:]
        return np.concatenate([before, len(self.frames) * self.envs + number[:, None]], axis=1)

    def whole(self) -> Tensor:
        """All frames, [S, F, …]."""
        by_seed = self.frames.transpose(0, 1).flatten(1, 2)
        if not self.finals:
            return by_seed
        most = sum(counts for counts, _ in self.finals).max()  # type: ignore[union-attr]
        more = torch.zeros((len(by_seed), int(most), *by_seed.shape[2:]), dtype=by_seed.dtype)
        used = np.zeros(len(by_seed), np.int64)
        for counts, frames in self.finals:
            seeds = np.repeat(np.arange(len(counts)), counts)
            order = np.concatenate([np.arange(count) for count in counts])
            more.numpy()[seeds, used[seeds] + order] = frames
            used += counts
        return torch.cat([by_seed, more], 1)

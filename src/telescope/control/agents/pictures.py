"""Which observations are pictures, and where their channels are.

Leaves out the networks that read them (`encoders.py`).
"""

# K frames, H × W pixels, C channels
from __future__ import annotations

from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

SMALLEST = 5
"""Pixels along each side from which on a space of three axes is a picture. Smaller ones are boards or tables."""
ORDERS = {
    "HW": ((0, 1, 2), "one channel"),
    "HWC": ((0, 1, 2, 3), "channels last"),
    "CHW": ((0, 2, 3, 1), "channels first"),
    "KHWC": ((0, 2, 3, 1, 4), "a stack of frames, channels last"),
    "KCHW": ((0, 3, 4, 1, 2), "a stack of frames, channels first"),
}
"""How axes are arranged, as [N, H, W, …], and in words."""


class Picture(NamedTuple):
    """A Box that is a picture, or a stack of K of them, whose frames then are channels."""

    shape: tuple[int, ...]
    order: str
    """One letter for each axis of `shape`: a key of ORDERS."""
    scale: float
    """What bytes are divided by: 255, or 1 where they are not brightness."""

    @property
    def height(self) -> int:
        return self.shape[self.order.index("H")]

    @property
    def width(self) -> int:
        return self.shape[self.order.index("W")]

    @property
    def channels(self) -> int:
        """Channels of all frames together."""
        sizes = [size for size, axis in zip(self.shape, self.order, strict=True) if axis in "KC"]
        return int(np.prod(sizes, dtype=int))

    @property
    def words(self) -> str:
        """What was found out, for the user."""
        return f"{list(self.shape)} is a picture of {self.height} × {self.width} pixels with {ORDERS[self.order][1]}"


def picture(space: gym.Space) -> Picture | None:
    """The picture that a space describes; None if it is none.

    A picture is a Box of bytes, of bools, or of floats with the bounds 0 and 1, with a height, a width and channels;
    bytes and bools may lack channels. Of three axes the shorter one of the first and the last has the channels; the
    last if both are equal. A fourth axis in front is a stack of frames.
    """
    if not isinstance(space, gym.spaces.Box):
        return None
    small = space.dtype in (np.uint8, np.bool_)
    if not small and not (space.dtype.kind == "f" and (space.low == 0).all() and (space.high == 1).all()):
        return None
    order = _order(space.shape, small)
    scale = 255.0 if space.dtype == np.uint8 and (space.high == 255).all() else 1.0
    found = None if order is None else Picture(space.shape, order, scale)
    return found if found and min(found.height, found.width) >= SMALLEST else None


def _order(shape: tuple[int, ...], small: bool) -> str | None:
    if len(shape) == 2:
        return "HW" if small else None
    if len(shape) == 4:
        return f"K{_order(shape[1:], small)}"
    return ("HWC" if shape[2] <= shape[0] else "CHW") if len(shape) == 3 else None


def pixels(found: Picture, x: Tensor) -> Tensor:
    """Observations [N, *shape] as pictures [N, H, W, C]: bytes and bools in float32, divided by the scale of bytes."""
    x = x.permute(ORDERS[found.order][0])
    x = x.reshape(*x.shape[:3], -1)  # the channels of all frames side by side
    if x.is_floating_point():
        return x
    return x.float() / found.scale if x.dtype == torch.uint8 else x.float()

"""Gather stacks of frames from a store that keeps each frame once.

Leaves out how the store comes about (`experience/stacks.py`).
"""

# S seeds, N observations, K frames of a stack, F frames of a seed

from __future__ import annotations

import torch
from torch import Tensor


def stacked(frames: Tensor | None, observations: Tensor) -> Tensor:
    """Observations [S, N, K, …] from places [S, N, K] among frames [S, F, …]; without frames, these observations.

    A frame of one axis is a vector, and a stack of them one longer vector.
    """
    if frames is None:
        return observations
    seeds = torch.arange(len(frames), device=frames.device)
    found = frames[seeds.view(-1, *(1,) * (observations.ndim - 1)), observations.long()]
    return found.flatten(-2) if frames.ndim == 3 else found

"""Optimisers as values: `adam_init` makes the state, and a step is a pure function of parameters, state and gradient.

They are written for one agent's flat vector [P]; a population lifts them. Leaves out schedules (the training loop).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Adam(NamedTuple):
    """Adam's moments, [P] and [P], and its step count t as β₁ᵗ and β₂ᵗ. Those of a population have S in front.

    The powers are stored on the device, so that a seed that stops early keeps its own. From a count, a compiled step
    would compute the powers again for every few parameters.
    """

    first_moment: Tensor
    second_moment: Tensor
    first_decay: Tensor
    second_decay: Tensor


def adam_init(parameters: Tensor) -> Adam:
    """Adam's state before its first step, for parameters [S, P]."""
    zeros, ones = torch.zeros_like(parameters), torch.ones(len(parameters), device=parameters.device)
    return Adam(zeros, zeros.clone(), ones, ones.clone())


def adam(
    parameters: Tensor,
    state: Adam,
    gradient: Tensor,
    learning_rate: Tensor,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float,
) -> tuple[Tensor, Adam]:
    """One Adam step of one agent (Kingma & Ba 2015, algorithm 1): θ ← θ − α m̂ / (√v̂ + ε)."""
    first = betas[0] * state.first_moment + (1 - betas[0]) * gradient
    second = betas[1] * state.second_moment + (1 - betas[1]) * gradient**2
    first_decay, second_decay = betas[0] * state.first_decay, betas[1] * state.second_decay
    step_size = learning_rate / (1 - first_decay)
    scale = torch.sqrt(second / (1 - second_decay)) + eps
    return parameters - step_size * first / scale, Adam(first, second, first_decay, second_decay)


def clip_by_norm(gradient: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    """Scale one agent's gradient [P] to a norm of at most `max_norm`. Return it and its norm before."""
    norm = torch.linalg.vector_norm(gradient)
    return gradient * torch.clamp(max_norm / (norm + 1e-6), max=1.0), norm

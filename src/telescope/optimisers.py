"""Optimisers as values: `init` makes their state, a step is a pure function of parameters, state and gradient.

Written for one agent's flat vector [P]; a population lifts them. Schedules are the training loop's business.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Adam(NamedTuple):
    """Adam's moments, [P] and [P], and its step count t as β₁ᵗ and β₂ᵗ; a population's have S in front.

    The powers live on the device, so that a seed that stops early keeps its own. As powers of a count, a compiled step
    would take them anew for every few parameters.
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
    """Scale one agent's gradient [P] to at most `max_norm`; returns it and the norm it had."""
    norm = torch.linalg.vector_norm(gradient)
    return gradient * torch.clamp(max_norm / (norm + 1e-6), max=1.0), norm

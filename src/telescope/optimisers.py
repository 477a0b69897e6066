"""Optimisers as values: `adam_init` makes the state, and a step is a pure function of parameters, state and gradient.

They are written for one agent's flat vector [P]; a population lifts them. Leaves out schedules (the training loop).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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


class Learner(NamedTuple):
    """What an algorithm with one optimiser learns: all parameters of an agent as one vector, and Adam's state."""

    parameters: Tensor  # [P] of one agent; [S, P] of the population
    adam: Adam

    @classmethod
    def begin(cls, parameters: Tensor) -> Learner:
        return cls(parameters, adam_init(parameters))

    @property
    def acting(self) -> Tensor:
        """The parameters that act."""
        return self.parameters


class Optimised(NamedTuple):
    """The same where the optimiser is a setting: `optimiser` is that one's state."""

    parameters: Tensor  # [P] of one agent; [S, P] of the population
    optimiser: Any

    @property
    def acting(self) -> Tensor:
        """The parameters that act."""
        return self.parameters


class Beginning(NamedTuple):
    """Makes the first `Optimised`, whose state is that of the optimiser in the settings."""

    config: Any

    def begin(self, parameters: Tensor) -> Optimised:
        return Optimised(parameters, OPTIMISERS[self.config.optimiser].begin(parameters))


class RAdam(NamedTuple):
    """RAdam's moments, [P] and [P], and its step count in float64. Those of a population have S in front."""

    first_moment: Tensor
    second_moment: Tensor
    steps: Tensor


def radam_init(parameters: Tensor) -> RAdam:
    """RAdam's state before its first step, for parameters [S, P]."""
    zeros = torch.zeros_like(parameters)
    return RAdam(zeros, zeros.clone(), torch.zeros(len(parameters), dtype=torch.float64, device=parameters.device))


def radam(
    parameters: Tensor,
    state: RAdam,
    gradient: Tensor,
    learning_rate: Tensor,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float,
) -> tuple[Tensor, RAdam]:
    """One step of RAdam (Liu et al. 2020, arXiv 1908.03265, algorithm 2): θ ← θ − α r m̂ / (√v̂ + ε).

    The rectification r grows from 0 to 1. In the first steps, where the variance of v̂ is infinite, θ ← θ − α m̂.
    """
    first = betas[0] * state.first_moment + (1 - betas[0]) * gradient
    second = betas[1] * state.second_moment + (1 - betas[1]) * gradient**2
    count, longest = state.steps + 1, 2 / (1 - betas[1]) - 1
    power = betas[1] ** count
    length = longest - 2 * count * power / (1 - power)  # ρ, of the average that v̂ approximates
    ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    rectified, scale = length > 5, torch.sqrt(second / (1 - power)) + eps
    factor = torch.where(rectified, torch.sqrt(ratio.clamp(min=0)), 1.0) * learning_rate / (1 - betas[0] ** count)
    step = factor.to(first.dtype) * first / torch.where(rectified, scale, 1.0).to(first.dtype)
    return parameters - step, RAdam(first, second, count)


class RMSprop(NamedTuple):
    """The running mean of squared gradients, [P]; that of a population has S in front."""

    mean_square: Tensor


def rmsprop_init(parameters: Tensor) -> RMSprop:
    """RMSprop's state before its first step, for parameters [S, P]."""
    return RMSprop(torch.zeros_like(parameters))


def rmsprop(
    parameters: Tensor,
    state: RMSprop,
    gradient: Tensor,
    learning_rate: Tensor,
    *,
    decay: float = 0.99,
    eps: float,
) -> tuple[Tensor, RMSprop]:
    """One RMSprop step of one agent (Tieleman & Hinton 2012, lecture 6.5): θ ← θ − α g / (√v + ε), v a mean of g²."""
    mean_square = decay * state.mean_square + (1 - decay) * gradient**2
    return parameters - learning_rate * gradient / (torch.sqrt(mean_square) + eps), RMSprop(mean_square)


class Optimiser(NamedTuple):
    """An optimiser as a row of `OPTIMISERS`: `begin(parameters)` makes its state, `step` is one step of one agent."""

    begin: Callable[[Tensor], Any]
    step: Callable[..., tuple[Tensor, Any]]


OPTIMISERS = {"adam": Optimiser(adam_init, adam), "rmsprop": Optimiser(rmsprop_init, rmsprop)}


def clip_by_norm(gradient: Tensor, max_norm: float | None) -> tuple[Tensor, Tensor]:
    """Scale one agent's gradient [P] to a norm of at most `max_norm` (None: any). Return it and its norm before."""
    norm = torch.linalg.vector_norm(gradient)
    if max_norm is None:
        return gradient, norm
    return gradient * torch.clamp(max_norm / (norm + 1e-6), max=1.0), norm


def polyak(old: Tensor, new: Tensor, rate: float) -> Tensor:
    """The running average θ̄ ← θ̄ + τ (θ − θ̄) (Polyak & Juditsky 1992), by which a target network follows; τ = `rate`."""
    return old + rate * (new - old)


def obgd_step_size(delta: Tensor, trace_norm: Tensor, learning_rate: Tensor, *, kappa: float) -> Tensor:
    """The step size of θ ← θ + α' δ e that cannot overshoot (Elsayed et al. 2024, arXiv 2410.14606, ObGD).

        α' = α / max(1, α κ δ̄ ‖e‖₁),   δ̄ = max(|δ|, 1)

    `trace_norm` is ‖e‖₁. With κ ≥ 1 the step moves a linear prediction, on features within ±1 and with an empty trace
    before, by at most min(|δ|, 1) / κ.
    """
    bound = kappa * delta.abs().clamp(min=1) * trace_norm
    return learning_rate / (learning_rate * bound).clamp(min=1)

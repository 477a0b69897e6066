"""Objectives of policy-gradient methods as pure functions: per element, unreduced, to be minimised.

How advantages are estimated, how elements are weighted and averaged, and what network produced the log-probabilities
are left to the caller: weights come from the whole batch before it is split.
"""

from __future__ import annotations

import torch
from torch import Tensor


def importance_ratio(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """ρ = π(a|s) / π_old(a|s) = exp(log π − log π_old), elementwise."""
    return torch.exp(log_probs - old_log_probs)


def ppo_clip(ratio: Tensor, advantages: Tensor, clip: Tensor | float) -> Tensor:
    """The clipped surrogate −min(ρ A, clip(ρ, 1−ε, 1+ε) A), PPO (arXiv 1707.06347), equation 7.

    With A > 0 the gain stops growing at ρ = 1+ε, with A < 0 at ρ = 1−ε; the minimum keeps the gradient where the ratio
    has moved the wrong way. With clip = inf it is the conservative surrogate −ρ A of TRPO.
    """
    # two tensors, not torch.clamp: the bounds may be tensors (an annealed clip) inside a compiled, vmapped update
    clipped = torch.minimum(torch.maximum(ratio, 1 - _like(clip, ratio)), 1 + _like(clip, ratio))
    return -torch.minimum(ratio * advantages, clipped * advantages)


def squared_value_loss(values: Tensor, targets: Tensor) -> Tensor:
    """½ (V(s) − R̂)², elementwise."""
    return 0.5 * (values - targets) ** 2


def clipped_value_loss(values: Tensor, old_values: Tensor, targets: Tensor, clip: Tensor | float) -> Tensor:
    """½ max((V − R̂)², (V_old + clip(V − V_old, −ε, ε) − R̂)²): the larger of the plain and the clipped error.

    From OpenAI baselines' PPO2 (Engstrom et al. 2020, "Implementation matters", section 3, item 1). ε is in the unit of
    the values, so it only makes sense where rewards are scaled. With clip = inf it is `squared_value_loss`.
    """
    bound = _like(clip, values)
    moved = torch.minimum(torch.maximum(values - old_values, -bound), bound)
    return torch.maximum(squared_value_loss(values, targets), squared_value_loss(old_values + moved, targets))


def kl_k1(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """k1 = log π_old − log π: unbiased for KL(π_old ‖ π) under samples of π_old, of either sign. Schulman 2020."""
    return old_log_probs - log_probs


def kl_k2(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """k2 = ½ (log π_old − log π)²: biased, low variance, never negative. Schulman 2020."""
    return 0.5 * (old_log_probs - log_probs) ** 2


def kl_k3(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """k3 = (ρ − 1) − log ρ: unbiased for KL(π_old ‖ π) under samples of π_old and never negative. Schulman 2020."""
    log_ratio = log_probs - old_log_probs
    return torch.expm1(log_ratio) - log_ratio


def _like(bound: Tensor | float, reference: Tensor) -> Tensor:
    return torch.as_tensor(bound, dtype=reference.dtype, device=reference.device)

"""Advantages and targets from a critic that predicts quantiles of the return.

Leaves out the loss of the quantiles (`telescope.losses.quantile_huber_loss`).
"""

# T time, S seeds, B environments per seed, N = T·B samples per seed, Q quantiles
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from telescope.control.config import OnPolicyConfig
from telescope.control.experience.rollout import Rollout
from telescope.control.experience.samples import final_values, per_seed, time_major
from telescope.control.risk import risk_weights
from telescope.estimators import distributional_gae, lambda_return, next_values
from telescope.randomness import BOOTSTRAPS, generator


def quantile_credit(
    config: OnPolicyConfig,
    session: Any,
    rollout: Rollout,
    outputs: Any,
    ends: dict[str, Any],
    lam: Any,
    returns_lam: float | None = None,
) -> dict[str, Tensor]:
    """Advantages [S, N] of the weighted quantiles, and targets [S, N, Q], from the critic's `outputs` [S, N, Q].

    `lam` is a number or [T, S, B]; `returns_lam`, if any, is the λ of the targets.

    The target of a quantile is the λ-return of this quantile, with a coin 0 or 1 in the place of λ: heads goes on to
    the next step, tails bootstraps. So it stops after n steps with the weight (1 − λ) λⁿ⁻¹ of the λ-return, and all
    targets of a state are samples of the mixture of n-step distributions. λ = 0 gives the one-step Bellman targets,
    λ = 1 the sampled return.
    """
    device = rollout.rewards.device
    quantiles = time_major(outputs.to(device), config.num_envs)  # [T, S, B, Q]
    each: dict[str, Any] = {name: None if x is None else x[..., None].expand_as(quantiles) for name, x in ends.items()}
    last = session.critic(rollout.last_observations, rollout.last_memory, rollout.frames).to(device)  # [S, B, Q]
    successors = next_values(quantiles, last, final_values=final_values(rollout, session.critic), **each)
    weights = torch.tensor(risk_weights(config.quantile_weights, config.quantiles), device=device)
    discounts = {"gamma": config.gamma, "lam": lam}
    advantages = distributional_gae(rollout.rewards, quantiles, successors, **discounts, weights=weights, **ends)[0]
    rewards = rollout.rewards[..., None].expand_as(quantiles)
    trust = torch.as_tensor(lam if returns_lam is None else returns_lam)[..., None]
    heads = coins(config.seed_values, session.iteration, quantiles.shape).to(device) < trust
    targets = lambda_return(rewards, successors, gamma=config.gamma, lam=heads.float(), **each)
    return {"advantages": per_seed(advantages), "targets": per_seed(targets)}


def coins(seeds: list[int], iteration: int, shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers in [0, 1) [T, S, …], those of each seed from its own generator."""
    time, _, *rest = shape
    drawn = [generator(seed, BOOTSTRAPS, iteration).random((time, *rest), dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(drawn, 1))

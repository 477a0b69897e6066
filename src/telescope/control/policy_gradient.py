"""One gradient step of an actor–critic on a whole rollout, without a ratio: what A2C, A3C and IMPALA share.

Leaves out where advantages come from (`experience/credit.py`, `experience/corrected.py`), and the loops (the
algorithms).
"""

# P parameters, N samples
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from telescope import checks
from telescope.control.agents.actor import ActorCritic
from telescope.control.agents.critics import critic_loss
from telescope.control.config import PolicyConfig
from telescope.control.experience.credit import Batch, mean_weights, remembered, whitened_minibatch
from telescope.losses import reinforce
from telescope.optimisers import OPTIMISERS, Optimised, clip_by_norm
from telescope.trees import where

STATISTICS = ("policy_loss", "value_loss", "entropy", "gradient_norm")
"""Metrics of an update."""


@dataclasses.dataclass(frozen=True)
class PolicyGradientConfig(PolicyConfig):
    """The settings of a gradient step on each rollout."""

    learning_rate: float = 7e-4
    """The optimiser's learning rate at the start of the run."""
    entropy_coefficient: float = 0.01
    """Weight of the entropy bonus in the total loss. Larger values keep the policy random for longer."""
    optimiser: Literal["rmsprop", "adam"] = "rmsprop"
    """Optimiser: rmsprop, as in the paper (decay 0.99; actors share it), or adam."""
    optimiser_eps: float = 1e-5
    """The optimiser's ε, added to the root of the mean squared gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self, "optimiser_eps")
        if getattr(self, "normalise_advantages", False) and self.batch_size == 1:
            raise ValueError(
                "normalise_advantages is True, but a rollout has one sample (num_steps 1 × num_envs 1), and the "
                "whitened advantage of one sample is 0; collect more, or set normalise_advantages to False"
            )

    @property
    def minibatch_size(self) -> int:
        """Samples per gradient step, per seed: the whole rollout."""
        return self.batch_size

    @property
    def updates(self) -> int:
        """Gradient steps in the whole run: one per rollout."""
        return self.iterations


def gradient_of_agent(config: Any, agent: ActorCritic) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the gradient [P] of one agent's loss on its rollout, and the loss's parts [3], as a pure function."""

    def loss(vector: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        seen = remembered(agent, vector, batch, config.num_steps)
        log_probs, entropy, outputs = agent.evaluate(vector, seen, batch.actions, batch.action_masks)  # [N] each
        whitens = getattr(config, "normalise_advantages", False)
        advantages = whitened_minibatch(batch) if whitens else batch.advantages
        weights = mean_weights(batch.live)  # [N]
        policy = (weights * reinforce(log_probs, advantages)).sum()
        value = (weights * critic_loss(config, outputs, batch)).sum()
        bonus = (weights * entropy).sum()
        total = policy + config.value_coefficient * value - config.entropy_coefficient * bonus
        return total, torch.stack([policy, value, bonus]).detach()

    return torch.func.grad(loss, has_aux=True)


def step_agent(config: Any) -> Callable[..., tuple[Optimised, Tensor]]:
    """Return one step of one agent along a gradient, as a pure function. `live`: whether the gradient had samples."""

    def step(old: Optimised, gradient: Tensor, live: Tensor, learning_rate: Tensor) -> tuple[Optimised, Tensor]:
        gradient, norm = clip_by_norm(gradient, config.max_grad_norm)
        step = OPTIMISERS[config.optimiser].step
        new = Optimised(*step(*old, gradient, learning_rate, eps=config.optimiser_eps))
        return where(live, new, old), norm

    return step


def update_agent(config: Any, agent: ActorCritic) -> Callable[..., tuple[Optimised, Tensor]]:
    """Return one gradient step of one agent on its rollout, as a pure function."""
    gradient_of, step = gradient_of_agent(config, agent), step_agent(config)

    def update(old: Optimised, batch: Batch, learning_rate: Tensor) -> tuple[Optimised, Tensor]:
        gradient, statistics = gradient_of(old.parameters, batch)
        new, norm = step(old, gradient, batch.live.any(), learning_rate)  # no step without a live row
        return new, torch.cat([statistics, norm[None]])

    return update

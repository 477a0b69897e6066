"""What a critic learns: the loss of its outputs, for every actor–critic on rollouts.

A gradient critic needs the whole gradient of its λ-returns: `with_gradient` computes them anew in each minibatch.

Leaves out its targets (`telescope.control.experience.credit`) and the formulas themselves (`telescope.losses`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from telescope.control.agents.actor import ActorCritic
from telescope.control.agents.layout import Layout
from telescope.control.config import OnPolicyConfig, PolicyConfig
from telescope.estimators import gae
from telescope.losses import clipped_value_loss, gradient_td_loss, quantile_huber_loss, squared_value_loss


def critic_loss(config: PolicyConfig, outputs: Tensor, batch: Any) -> Tensor:
    """The critic's loss [M] of one agent's samples, to be minimised.

    A value critic's outputs [M] have the squared error to the returns, with `value_clip` the clipped one. A quantile
    critic's outputs [M, Q] have the quantile-Huber loss to the targets [M, Q]. A gradient critic's outputs [M, 2] are
    values and corrections, and its returns are those of `with_gradient`.
    """
    kind = getattr(config, "critic", "value")
    if kind == "gradient":
        return gradient_td_loss(outputs[..., 0], batch.returns, outputs[..., 1])
    if kind == "quantile":
        return quantile_huber_loss(outputs, batch.targets, config.quantile_huber)  # type: ignore[attr-defined]
    clip = getattr(config, "value_clip", None)
    if clip is None:
        return squared_value_loss(outputs, batch.returns)
    return clipped_value_loss(outputs, batch.values, batch.returns, clip)


def with_gradient(config: OnPolicyConfig, agent: ActorCritic, vector: Tensor, outputs: Tensor, batch: Any) -> Any:
    """One agent's minibatch of sequences with λ-returns [M] from its present values, which carry their gradient.

    The samples are M / L whole sequences of L steps, time first. Each bootstraps from the state after its last step.
    """
    if agent.network.memory:
        raise ValueError("critic is 'gradient', but the network has a memory; use another critic, or no memory")
    reached = config.state_values(agent.value(vector, batch.steps.successors))  # [M]
    arrays = (batch.steps.rewards, config.state_values(outputs), reached, *batch.steps[1:3], batch.live)
    sequences = [x.unflatten(0, (config.sequence_steps, -1)) for x in arrays]  # [L, M / L]
    ends: dict[str, Any] = dict(zip(("terminated", "truncated", "mask"), sequences[3:], strict=True))
    lam: Any = config.lam if batch.lam is None else batch.lam.unflatten(0, (config.sequence_steps, -1))
    decay = lam if config.returns_lam is None else config.returns_lam
    rewards, values, successors = sequences[:3]
    returns = gae(rewards, values, successors, **ends, gamma=config.gamma, lam=decay, differentiable=True).returns
    return batch._replace(returns=returns.flatten())


def penalty(config: Any, agent: ActorCritic, vector: Tensor) -> Tensor:
    """½ β |θ|² of the parameters θ of a gradient critic's correction; a number without axes."""
    named: dict[str, Any] = agent.layout.unflatten(vector)
    squares = [x.square().sum() for name, x in named.items() if name.startswith("correction.")]
    if not squares:
        raise ValueError("critic is 'gradient', but no parameter's name begins with 'correction.'; name its module so")
    return 0.5 * config.correction_penalty * torch.stack(squares).sum()


def step_sizes(layout: Layout, learning_rate: Tensor, ratio: float) -> Tensor:
    """Learning rates [P] of one agent: `ratio` times the given one for the critic's own parameters."""
    ours = [name.startswith(("value.", "correction.")) for name in layout.names]
    if not any(ours):
        raise ValueError(
            "value_learning_rate is set, but no parameter's name begins with 'value.'; there are "
            + ", ".join(layout.names)
        )
    parts = [torch.full((n,), ratio if own else 1.0) for n, own in zip(layout.sizes, ours, strict=True)]
    return learning_rate * torch.cat(parts).to(learning_rate.device)

"""Fits of the value function to a rollout after the policy's step: by regression, or within a trust region.

Both leave the policy where it is, because the two share no parameters. Leaves out targets (`experience/credit.py`).
"""

# S seeds, N samples per seed, M minibatch, D observation size, P parameters of one agent
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from telescope.control.agents.actor import ActorCritic
from telescope.control.agents.critics import critic_loss
from telescope.control.experience.credit import Batch, mean_weights, remembered
from telescope.control.experience.minibatches import minibatches, shuffled_indices
from telescope.losses import squared_value_loss
from telescope.optimisers import Adam, adam, clip_by_norm
from telescope.second_order import conjugate_gradient, gauss_newton_product, line_search, step_of_least_squares
from telescope.trees import where

EDGE = 0.9999
"""Share of the trust region that a step aims at, so that rounding does not put it outside."""

Fitted = tuple[Tensor, Adam]  # parameters [S, P], and Adam's state
Fit = Callable[[Fitted, Batch, int, float], tuple[Fitted, Tensor]]
"""fit((parameters, adam), rollout, iteration, learning rate) → the same after the fit, and the value loss [S]"""


class Targets(NamedTuple):
    """What the value function is fitted to: [S, N, …] of the population, [M, …] in a minibatch of one agent."""

    observations: Tensor  # [S, N, D]
    returns: Tensor  # [S, N]
    targets: Tensor | None  # [S, N, Q] of a quantile critic
    live: Tensor  # [S, N] bool
    memory: Tensor | None  # [S, N, W] before each step, of policies that remember
    begins: Tensor | None  # [S, N] bool, True where an episode begins within the rollout, likewise


def by_regression(config: Any, session: Any) -> Fit:
    """Return a fit by Adam: `config.epochs` passes over the rollout in minibatches."""

    def loss(vector: Tensor, batch: Targets) -> Tensor:
        seen, weights = remembered(session.agent, vector, batch, config.sequence_steps), mean_weights(batch.live)
        outputs = session.agent.value(vector, seen)
        return (weights * critic_loss(config, outputs, batch)).sum()

    def update(parameters: Tensor, state: Adam, batch: Targets, learning_rate: Tensor) -> tuple[Tensor, Adam, Tensor]:
        gradient, error = torch.func.grad_and_value(loss)(parameters, batch)
        gradient, _ = clip_by_norm(config.value_coefficient * gradient, config.max_grad_norm)
        new = adam(parameters, state, gradient, learning_rate, eps=config.adam_eps)
        steps = batch.live.any()  # no step without a live row
        return torch.where(steps, new[0], parameters), where(steps, new[1], state), error

    lifted = session.lift(update, (0, 0, 0, None))

    def fit(fitted: Fitted, batch: Batch, iteration: int, learning_rate: float) -> tuple[Fitted, Tensor]:
        rate = torch.tensor(learning_rate, device=batch.returns.device)
        targets = Targets(batch.observations, batch.returns, batch.targets, batch.live, batch.memory, batch.begins)
        (parameters, state), errors = fitted, []
        for indices in shuffled_indices(config, session.agent, iteration):
            for minibatch in minibatches(targets, indices.to(batch.returns.device)):
                parameters, state, error = lifted(parameters, state, minibatch, rate)
                errors.append(error)
        return (parameters, state), torch.stack(errors).mean(0)

    return fit


def by_trust_region(config: Any, session: Any) -> Fit:
    """Return a fit by one Gauss–Newton step (Schulman et al. 2016, arXiv 1506.02438, equations 29 and 30).

    It minimises mean (V − R̂)² while mean (V − V_old)² / (2σ²) ≤ ε. σ² is the mean (V_old − R̂)² before the step.
    """
    agent = session.agent

    def product(vector: Tensor, batch: Batch, direction: Tensor) -> Tensor:
        def loss(values: Tensor) -> Tensor:
            return (mean_weights(batch.live) * squared_value_loss(values, batch.returns)).sum()

        return gauss_newton_product(lambda x: outputs(config, agent, x, batch), loss, vector, direction)

    def error(vector: Tensor, batch: Batch) -> Tensor:
        return value_change(config, agent, vector, batch)[0]

    differentiate = session.lift(torch.func.grad_and_value(error), (0, 0))
    products = session.lift(product, (0, 0, 0), staged=True)
    measure = session.lift(partial(value_change, config, agent), (0, 0))

    def fit(fitted: Fitted, batch: Batch, iteration: int, learning_rate: float) -> tuple[Fitted, Tensor]:
        parameters, state = fitted
        gradient, before = differentiate(parameters, batch)  # [S, P], [S] ½σ²
        solution = conjugate_gradient(products(parameters, batch), -gradient, **config.solving)
        radius = EDGE * config.max_value_change * 2 * before[:, None]  # εσ², the bound on mean (V − V_old)² / 2
        search = line_search(
            lambda vector: measure(vector, batch),
            parameters,
            step_of_least_squares(solution, gradient, radius, damping=config.damping),
            before,
            radius=config.max_value_change,
            **config.searching,
        )
        return (search.parameters, state), before

    return fit


def outputs(config: Any, agent: ActorCritic, vector: Tensor, batch: Batch) -> Tensor:
    """One agent's critic's outputs for its rollout: V(s) [N], or quantiles [N, Q]."""
    return agent.value(vector, remembered(agent, vector, batch, config.num_steps))


def value_change(config: Any, agent: ActorCritic, vector: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """One agent's mean ½ (V − R̂)², and mean (V − V_old)² / (2σ²) with σ² = mean (V_old − R̂)²."""
    weights, values = mean_weights(batch.live), config.state_values(outputs(config, agent, vector, batch))
    pairs = (values, batch.returns), (batch.values, batch.returns), (values, batch.values)
    new, old, moved = ((weights * squared_value_loss(x, y)).sum() for x, y in pairs)
    return new, torch.where(moved > 0, moved / (2 * old), 0.0)


FITS: dict[str, Callable[[Any, Any], Fit]] = {"regression": by_regression, "trust_region": by_trust_region}

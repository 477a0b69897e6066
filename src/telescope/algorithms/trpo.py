"""Trust-region policy optimisation (Schulman et al. 2015, arXiv 1502.05477) and natural policy gradient.

The loop is `train`; every formula in it is imported. Without a line search (`npg`) it is the natural policy gradient of
Kakade 2001 with the step size of Rajeswaran et al. 2017 (arXiv 1703.02660). Leaves out subsampling for the Fisher
matrix: each product is over the whole rollout.
"""

# S seeds, N samples per seed, K policy outputs, P parameters of one agent
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from telescope import checks
from telescope.control.agents.actor import ActorCritic
from telescope.control.agents.networks import Network
from telescope.control.config import MUJOCO_FAMILY, OnPolicyConfig, for_family
from telescope.control.experience.credit import (
    Batch,
    critic_statistics,
    mean_weights,
    remembered,
    samples,
    whitened_rollout,
    with_advantages,
)
from telescope.control.experience.minibatches import check_sequences
from telescope.control.training import Session
from telescope.control.value_fits import FITS, value_change
from telescope.control.workers.shares import over_processes
from telescope.iteration import AgentIteration
from telescope.losses import conservative_surrogate, importance_ratio
from telescope.optimisers import Learner
from telescope.second_order import conjugate_gradient, gauss_newton_product, line_search, step_to_the_edge
from telescope.threads import own_settings


@dataclasses.dataclass(frozen=True)
class TRPO(OnPolicyConfig):
    """Trust-region policy optimisation: one natural-gradient step per rollout, within a bound on the KL divergence."""

    may_share: ClassVar[bool] = False
    num_steps: int = 1024
    """Steps of each environment per iteration (T in formulas)."""
    num_envs: int = 2
    """Number of environments per seed."""
    normalise_advantages: bool = True
    """Whiten advantages over the rollout, per seed."""
    max_kl: float = 0.01
    """Bound δ on the mean KL divergence between the old and the new policy, in nats."""
    cg_iterations: int = 15
    """Most iterations of conjugate gradient. Each takes one Fisher–vector product over the whole rollout."""
    cg_tolerance: float = 1e-6
    """Conjugate gradient stops once its residual is this small, relative to the gradient."""
    damping: float = 0.1
    """Multiple λ of the identity that is added to the Fisher matrix. Larger values shorten steps that change little."""
    line_search_steps: int = 10
    """Steps that the line search tries before it keeps the old policy. 0: no line search (natural policy gradient)."""
    line_search_shrink: float = 0.8
    """Length of each step of the line search, relative to the one before."""
    value_fit: Literal["regression", "trust_region"] = "regression"
    """How to fit the value function: Adam on minibatches, or one Gauss–Newton step within a trust region."""
    max_value_change: float = 0.1
    """Trust region ε of the value fit: mean (V − V_old)² is at most 2ε times the mean squared error of V_old."""
    epochs: int = 20
    """Number of passes of the value regression over each rollout."""
    minibatch_size: int = 128
    """Samples per gradient step of the value regression, per seed. Each epoch shuffles the rollout again."""
    learning_rate: float = 1e-3
    """Learning rate of Adam in the value regression. The policy's step has none."""
    adam_eps: float = 1e-8
    """Adam's ε in the value regression."""
    sequence_length: int | None = None
    """Steps of the sequences in a minibatch of the value regression, with a memory. none: num_steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self, "max_kl", "cg_iterations", "max_value_change", "epochs", "minibatch_size", "adam_eps")
        checks.at_least_zero(self, "cg_tolerance", "damping", "line_search_steps")
        if not 0 < self.line_search_shrink < 1:
            raise ValueError(f"line_search_shrink is {self.line_search_shrink}; expected a number between 0 and 1")
        if self.minibatch_size > self.batch_size:
            raise ValueError(
                f"minibatch_size is {self.minibatch_size}, more than the {self.batch_size} samples of a rollout "
                f"(num_steps {self.num_steps} × num_envs {self.num_envs}); lower it, or raise num_steps or num_envs"
            )
        if self.value_fit == "trust_region" and self.critic == "quantile":
            raise ValueError(
                "value_fit is 'trust_region', but critic is 'quantile', whose loss is no squared error; use regression"
            )
        for name in ("shared_network", "shared_memory"):
            if getattr(self, name):
                raise ValueError(
                    f"{name} is True, but trpo fits values after the policy's step, and through shared parameters the "
                    "fit would move the policy out of its trust region; expected False (ppo can share)"
                )
        if self.value_fit == "regression":
            checks.unread(self, "max_value_change", "set value_fit to 'trust_region'", "value_fit is 'regression'")
            check_sequences(self)
        else:
            checks.unread(self, "sequence_length", "set value_fit to 'regression'", "value_fit is 'trust_region'")

    @property
    def minibatches(self) -> int:
        """Gradient steps per epoch. The last minibatch is smaller if N is not a multiple of its size."""
        return -(-self.batch_size // self.minibatch_size)

    @property
    def updates(self) -> int:
        """Gradient steps and curvature products in the whole run."""
        fit = self.epochs * self.minibatches if self.value_fit == "regression" else self.cg_iterations
        return self.iterations * (self.cg_iterations + fit)

    @property
    def solving(self) -> dict[str, Any]:
        """The settings of `conjugate_gradient`."""
        return {"iterations": self.cg_iterations, "damping": self.damping, "tolerance": self.cg_tolerance}

    @property
    def searching(self) -> dict[str, Any]:
        """The settings of `line_search`."""
        return {"attempts": self.line_search_steps, "shrink": self.line_search_shrink}


# The settings that flags start from, by environment: those of rl-baselines3-zoo, on HalfCheetah and Walker2d those of
# Tianshou, with shorter rollouts and a smaller first σ (docs/results.md).
CARTPOLE = TRPO(total_steps=100_000, num_steps=512, minibatch_size=512, lam=0.98, damping=1e-3)
CLASSIC = TRPO(total_steps=100_000, normalise_observations=True, normalise_rewards=True)
MUJOCO = dataclasses.replace(CLASSIC, total_steps=1_000_000, cg_iterations=25)
SHORT = dataclasses.replace(MUJOCO, num_envs=16, num_steps=64, minibatch_size=256, cg_iterations=10, log_std=-0.5)
PRESETS = {
    "CartPole": CARTPOLE,
    "Acrobot": CLASSIC,
    "MountainCar": CLASSIC,
    "MountainCarContinuous": dataclasses.replace(CLASSIC, gamma=0.9999),
    "Pendulum": dataclasses.replace(CLASSIC, gamma=0.9),
    "LunarLander": dataclasses.replace(CLASSIC, total_steps=1_000_000),
    "BipedalWalker": dataclasses.replace(MUJOCO, total_steps=5_000_000),
    **dict.fromkeys(MUJOCO_FAMILY, MUJOCO),
    "HalfCheetah": SHORT,
    "Walker2d": SHORT,
    "Swimmer": dataclasses.replace(MUJOCO, gamma=0.9999),
}


def preset(env: str, name: str = "trpo") -> TRPO:
    """The settings for an environment id. `npg` takes the natural gradient's whole step, without a line search."""
    found: TRPO = for_family(PRESETS, env, TRPO())
    return dataclasses.replace(found, line_search_steps=0) if name == "npg" else found


@over_processes
@own_settings
def train(
    config: TRPO,
    resume: dict[str, Any] | None = None,
    *,
    network: Network | None = None,
    start: dict[str, Any] | None = None,
    allow_inexact: bool = False,
) -> Iterator[AgentIteration]:
    """Train and yield after every rollout: `.rows` are its metrics, `.state` continues it bit for bit.

    `network`, `start` and `allow_inexact` are those of `ppo.train`. A network's policy and value share no parameters.
    """
    more: dict[str, Any] = {"network": network, "start": start, "allow_inexact": allow_inexact}
    session = Session(config, resume, Learner, recurrent=True, **more)
    improve, fit = policy_step(config, session), FITS[config.value_fit](config, session)
    measure_values = session.lift(partial(value_change, config, session.agent), (0, 0))
    for iteration in session.iterations():
        learning_rate = session.scheduled(config.learning_rate, config.anneal_learning_rate)
        rollout = session.collect()  # [T, S, B, …]
        batch = with_advantages(config, session, rollout, samples(session, rollout))  # [S, N, …]
        if config.normalise_advantages:
            batch = batch._replace(advantages=whitened_rollout(batch.advantages, batch.live))
        parameters, statistics = improve(session.learner.parameters, batch)
        # Values are fitted last: advantages from values that fit this very rollout would be too small.
        fitted, value_loss = fit((parameters, session.learner.adam), batch, iteration, learning_rate)
        session.learner = Learner(*fitted)
        _, change = measure_values(session.learner.parameters, batch)
        statistics |= {"value_loss": value_loss, "value_change": change}
        yield session.finish(summary(config, statistics, batch, learning_rate))


def policy_step(config: TRPO, session: Session) -> Callable[[Tensor, Batch], tuple[Tensor, dict[str, Tensor]]]:
    """Return the step of all policies: parameters [S, P] and a rollout → new parameters, and metrics by name."""
    loss, kl, product = policy_functions(config, session.agent)

    def moved(vector: Tensor, old: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        total, (outputs, _) = loss(vector, batch)
        return total, kl(outputs, old, batch)

    differentiate = session.lift(torch.func.grad_and_value(loss, has_aux=True), (0, 0))
    fisher, measure = session.lift(product, (0, 0, 0, 0), staged=True), session.lift(moved, (0, 0, 0))

    def step(old: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        gradient, (before, (outputs, entropy)) = differentiate(old, batch)  # [S, P], [S], [S, N, K], [S]
        solution = conjugate_gradient(fisher(old, outputs, batch), -gradient, **config.solving)
        search = line_search(
            lambda vector: measure(vector, outputs, batch),
            old,
            step_to_the_edge(solution, config.max_kl),
            before,
            radius=config.max_kl,
            **config.searching,
        )
        return search.parameters, {
            "surrogate_gain": before - search.loss,
            "entropy": entropy,
            "kl": search.distance,
            "step_fraction": search.fraction,
            "gradient_norm": torch.linalg.vector_norm(gradient, dim=-1),
            "cg_used": solution.iterations,
            "cg_residual": solution.residual,
        }

    return step


def policy_functions(config: TRPO, agent: ActorCritic) -> tuple[Callable[..., Any], ...]:
    """Pure functions of one agent: its loss, the mean KL of its outputs from old ones, its Fisher–vector product."""

    def policy(vector: Tensor, batch: Batch) -> Tensor:
        seen = remembered(agent, vector, batch, config.num_steps)
        return agent.policy(agent.layout.unflatten(vector), seen)  # type: ignore[return-value]  # [N, K]

    def loss(vector: Tensor, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        outputs, weights, masks = policy(vector, batch), mean_weights(batch.live), batch.action_masks
        ratio = importance_ratio(agent.distribution.log_prob(outputs, batch.actions, masks), batch.log_probs)  # [N]
        surrogate = (weights * conservative_surrogate(ratio, batch.advantages)).sum()
        entropy = (weights * agent.distribution.entropy(outputs, masks)).sum()
        return surrogate - config.entropy_coefficient * entropy, (outputs, entropy)

    def kl(outputs: Tensor, old: Tensor, batch: Batch) -> Tensor:
        return (mean_weights(batch.live) * agent.distribution.kl(outputs, old, batch.action_masks)).sum()

    def product(vector: Tensor, old: Tensor, batch: Batch, direction: Tensor) -> Tensor:
        return gauss_newton_product(lambda x: policy(x, batch), lambda y: kl(y, old, batch), vector, direction)

    return loss, kl, product


def summary(config: TRPO, statistics: dict[str, Tensor], batch: Batch, learning_rate: float) -> dict[str, np.ndarray]:
    """The iteration's metrics, name → [S]."""
    return {
        **{name: x.cpu().numpy() for name, x in statistics.items()},
        **critic_statistics(batch),
        "learning_rate": np.full(config.seeds, learning_rate),
    }

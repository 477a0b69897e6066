"""Streaming actor–critic with eligibility traces (Elsayed, Vasan & Mahmood 2024, arXiv 2410.14606) for many seeds.

The loop is `train`; every formula in it is imported. One step of the environment, one update, then the step is
forgotten: no batch, no replay, no target network. Leaves out several environments per seed (seeds are the batch here),
and parameters that policy and value share.
"""

# S seeds, D observation size, P parameters of one agent
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope import checks, td_error
from telescope.control.agents.actions import Bound, bounding
from telescope.control.agents.actor import ActorCritic
from telescope.control.agents.distributions import Distribution, distribution
from telescope.control.agents.networks import Network, with_softplus
from telescope.control.config import MUJOCO_FAMILY, for_family
from telescope.control.experience.steps import Batch, step_of
from telescope.control.streaming import Learner, StreamConfig, advanced, begun_anew
from telescope.control.training import Session, mean_statistics
from telescope.control.workers.shares import over_processes
from telescope.estimators.eligibility import trace_step
from telescope.iteration import AgentIteration
from telescope.optimisers import obgd_step_size
from telescope.threads import own_settings


@dataclasses.dataclass(frozen=True)
class StreamAC(StreamConfig):
    """Stream AC(λ): policy and value learn from each step as it happens, along eligibility traces."""

    may_share: ClassVar[bool] = False
    log_std: ClassVar[float] = math.log(math.log(2))
    """About log σ of a new Gaussian policy: its σ is log(1 + eˣ) with x near 0."""
    policy_kappa: float = 3.0
    """κ of the policy's step: larger values make smaller steps."""
    entropy_coefficient: float = 0.01
    """Weight of the entropy bonus, which has the sign of δ so that it always raises the entropy."""
    action_bounds: Literal["clip", "rescale", "squash"] = "clip"
    """How to keep actions within a Box's bounds: clip, rescale from -1 … 1 and clip, or squash with tanh."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self, "policy_kappa")
        checks.at_least_zero(self, "entropy_coefficient")

    def head(self, action_space: gym.Space) -> Distribution:
        """The action distribution of this space; the σ of a Gaussian depends on the state."""
        return distribution(action_space)

    def network(self, observation_size: int, action_space: gym.Space) -> Network:
        """Perceptrons for policy and value."""
        head = self.head(action_space)
        network = self.streaming(observation_size, {"policy": head.outputs, "value": 1})
        return with_softplus(network, head.scales) if head.scales else network

    def bound(self, action_space: gym.Space, device: Any = None) -> Bound:
        """The function that keeps a Gaussian's actions within a Box, as `action_bounds` says."""
        return bounding(action_space, self.action_bounds, device)


# The settings that flags start from, by environment: those of the paper, which are the same everywhere.
PENDULUM = StreamAC(total_steps=500_000, action_bounds="rescale")
PRESETS = {
    "CartPole": StreamAC(total_steps=500_000),
    "Acrobot": StreamAC(total_steps=500_000),
    "MountainCar": StreamAC(total_steps=500_000),
    "LunarLander": StreamAC(total_steps=1_000_000),
    "Pendulum": PENDULUM,
    **dict.fromkeys(MUJOCO_FAMILY, StreamAC(total_steps=1_000_000)),
}


def preset(env: str) -> StreamAC:
    """The settings for an environment id."""
    return for_family(PRESETS, env, StreamAC())  # type: ignore[no-any-return]


STATISTICS = ("td_error", "value_mean", "entropy", "policy_step_size", "step_size")


@over_processes
@own_settings
def train(
    config: StreamAC,
    resume: dict[str, Any] | None = None,
    *,
    network: Network | None = None,
    start: dict[str, Any] | None = None,
    allow_inexact: bool = False,
) -> Iterator[AgentIteration]:
    """Train and yield after every `num_steps` steps: `.rows` are its metrics, `.state` continues it bit for bit.

    `network`, `start` and `allow_inexact` are those of `ppo.train`. The names of a network's parameters begin with
    "policy" or with anything else for the value; they share none.
    """
    more: dict[str, Any] = {"network": network, "start": start, "allow_inexact": allow_inexact}
    session = Session(config, resume, Learner, **more)
    session.learner = begun_anew(session)
    update = session.lift(update_agent(config, session.agent), (0, 0, None))
    for iteration in session.iterations():
        learning_rate = session.scheduled(config.learning_rate, config.anneal_learning_rate)
        alpha = torch.tensor(learning_rate, device=config.device)
        noise, statistics = session.rollouts.noise(iteration), []
        for t in range(config.num_steps):
            session.learner, row = update(session.learner, step_of(session, noise[t], t), alpha)
            statistics.append(row)
        rate = np.full(config.seeds, learning_rate)
        yield session.finish({**mean_statistics(STATISTICS, statistics), "learning_rate": rate})


def update_agent(config: StreamAC, agent: ActorCritic) -> Callable[..., tuple[Learner, Tensor]]:
    """Return what one agent learns from one step of its environment, as a pure function."""
    policy, unflatten = agent.distribution, agent.layout.unflatten
    of_policy = torch.zeros(sum(agent.layout.sizes), device=config.device)  # [P] 1 for parameters of the policy
    of_policy[agent.layout.part("policy")] = 1.0

    def objective(vector: Tensor, batch: Batch, ahead: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """log π(a|s) + τ sign(δ) H + V(s): its gradient is what the trace gathers, for both parts at once."""
        outputs, values = agent.network.apply(unflatten(vector), batch.observations)
        delta = (ahead - values).detach()  # [1]
        entropy = policy.entropy(outputs, batch.action_masks)
        gain = policy.log_prob(outputs, batch.actions, batch.action_masks)
        total = gain + config.entropy_coefficient * torch.sign(delta) * entropy + values
        return total.sum(), (delta[0], values[0].detach(), entropy[0].detach())

    def update(old: Learner, batch: Batch, alpha: Tensor) -> tuple[Learner, Tensor]:
        after = agent.value(old.parameters, batch.next_observations)  # [1]
        # δ with value 0 is the target r + γ (1 − terminated) V(s')
        ends: dict[str, Any] = {"terminated": batch.terminated, "gamma": config.gamma}
        ahead = td_error(batch.rewards, torch.zeros_like(after), after, **ends)
        gradient, (delta, value, entropy) = torch.func.grad(objective, has_aux=True)(old.parameters, batch, ahead)
        trace = trace_step(old.trace, gradient, config.gamma * config.lam)
        actor = (trace.abs() * of_policy).sum()
        policy_step = obgd_step_size(delta, actor, alpha, kappa=config.policy_kappa)
        value_step = obgd_step_size(delta, trace.abs().sum() - actor, alpha, kappa=config.kappa)
        steps = value_step + of_policy * (policy_step - value_step)  # [P]
        new = advanced(old, old.parameters + steps * delta * trace, trace, batch)
        return new, batch.live * torch.stack([delta.abs(), value, entropy, policy_step, value_step])

    return update

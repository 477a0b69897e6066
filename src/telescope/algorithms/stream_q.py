"""Streaming Q-learning with Watkins's eligibility traces (Elsayed, Vasan & Mahmood 2024, arXiv 2410.14606).

The loop is `train`; every formula in it is imported. One step of the environment, one update, then the step is
forgotten: no batch, no replay, no target network. Leaves out several environments per seed (seeds are the batch here).
"""

# S seeds, D observation size, A actions, P parameters of one agent
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope import td_error
from telescope.control.agents.actor import ActorCritic
from telescope.control.agents.distributions import allowed, of_action
from telescope.control.agents.networks import Network
from telescope.control.config import for_family
from telescope.control.experience.steps import Batch, step_of
from telescope.control.exploration import ExploringConfig, exploring
from telescope.control.streaming import Learner, StreamConfig, advanced, begun_anew
from telescope.control.training import Session, mean_statistics
from telescope.control.workers.shares import over_processes
from telescope.estimators.eligibility import trace_step
from telescope.iteration import AgentIteration
from telescope.optimisers import obgd_step_size
from telescope.threads import own_settings


@dataclasses.dataclass(frozen=True)
class StreamQ(StreamConfig, ExploringConfig):
    """Stream Q(λ): action values learn from each step as it happens, along an eligibility trace."""

    exploration_end: float = 0.01
    """ε after its decay, and for stochastic evaluation."""

    def network(self, observation_size: int, action_space: gym.Space) -> Network:
        """A perceptron that returns Q-values of all actions."""
        return self.streaming(observation_size, {"q": self.head(action_space).outputs})


# The settings that flags start from, by environment: those of the paper, which are the same everywhere.
PRESETS = {
    **dict.fromkeys(("CartPole", "Acrobot", "MountainCar"), StreamQ(total_steps=500_000)),
    "LunarLander": StreamQ(total_steps=1_000_000),
}


def preset(env: str) -> StreamQ:
    """The settings for an environment id."""
    return for_family(PRESETS, env, StreamQ())  # type: ignore[no-any-return]


STATISTICS = ("td_error", "q_mean", "step_size")


@over_processes
@own_settings
def train(
    config: StreamQ,
    resume: dict[str, Any] | None = None,
    *,
    network: Network | None = None,
    start: dict[str, Any] | None = None,
    allow_inexact: bool = False,
) -> Iterator[AgentIteration]:
    """Train and yield after every `num_steps` steps: `.rows` are its metrics, `.state` continues it bit for bit.

    `network` maps observations to Q-values [N, A] and to [N] numbers that are not used. `start` and `allow_inexact` are
    those of `ppo.train`.
    """
    more: dict[str, Any] = {"network": network, "start": start, "allow_inexact": allow_inexact}
    session = Session(config, resume, Learner, **more)
    session.learner = begun_anew(session)
    update = session.lift(update_agent(config, session.agent), (0, 0, None))
    for _ in session.iterations():
        learning_rate = session.scheduled(config.learning_rate, config.anneal_learning_rate)
        alpha = torch.tensor(learning_rate, device=config.device)
        noise, statistics = exploring(config, session), []
        for t in range(config.num_steps):
            session.learner, row = update(session.learner, step_of(session, noise[t], t), alpha)
            statistics.append(row)
        constants = {"exploration": config.exploration(session.step), "learning_rate": learning_rate}
        rates = {name: np.full(config.seeds, number) for name, number in constants.items()}
        yield session.finish({**mean_statistics(STATISTICS, statistics), **rates})


def update_agent(config: StreamQ, agent: ActorCritic) -> Callable[..., tuple[Learner, Tensor]]:
    """Return what one agent learns from one step of its environment, as a pure function."""

    def q_values(vector: Tensor, observations: Tensor, masks: Tensor | None) -> Tensor:
        return allowed(agent.policy(agent.layout.unflatten(vector), observations), masks)  # type: ignore[return-value]

    def chosen(vector: Tensor, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Q(s, a), whose gradient the trace gathers; beside it, whether a is greedy."""
        q = q_values(vector, batch.observations, batch.action_masks)  # [1, A]
        value = of_action(q, batch.actions)[0]
        return value, (value.detach(), value.detach() >= q.detach().amax())

    def update(old: Learner, batch: Batch, alpha: Tensor) -> tuple[Learner, Tensor]:
        gradient, (value, greedy) = torch.func.grad(chosen, has_aux=True)(old.parameters, batch)
        after = q_values(old.parameters, batch.next_observations, batch.next_masks).amax(-1)  # [1]
        ends: dict[str, Any] = {"terminated": batch.terminated, "gamma": config.gamma}
        delta = td_error(batch.rewards, value[None], after, **ends)[0]
        # Watkins: what followed earlier actions is no longer due to the greedy policy once an action is not greedy
        trace = trace_step(old.trace, gradient, torch.where(greedy, config.gamma * config.lam, 0.0))
        step = obgd_step_size(delta, trace.abs().sum(), alpha, kappa=config.kappa)
        new = advanced(old, old.parameters + step * delta * trace, trace, batch)
        return new, batch.live * torch.stack([delta.abs(), value, step])

    return update

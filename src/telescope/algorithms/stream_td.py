"""Streaming TD(λ): a network learns the values of a policy (Elsayed, Vasan & Mahmood 2024, arXiv 2410.14606).

The loop is `train`; every formula in it is imported. One step of the environment, one update, then the step is
forgotten. Leaves out control (`stream_ac.py`, `stream_q.py`), and several environments per seed.
"""

# S seeds, D observation size, P parameters of one agent
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope import td_error
from telescope.algorithms import config_class
from telescope.behaviour import PredictionConfig
from telescope.control.agents.actor import ActorCritic
from telescope.control.agents.networks import Network
from telescope.control.agents.reading import reading
from telescope.control.agents.trial import require_no_network
from telescope.control.experience.encoding import input_size
from telescope.control.experience.steps import Batch, step_of
from telescope.control.streaming import Learner, StreamConfig, advanced, begun_anew
from telescope.control.training import Session, mean_statistics
from telescope.control.workers.shares import over_processes
from telescope.estimators.eligibility import trace_step
from telescope.iteration import AgentIteration
from telescope.optimisers import obgd_step_size
from telescope.threads import own_settings


@dataclasses.dataclass(frozen=True)
class StreamTD(StreamConfig, PredictionConfig):
    """Stream TD(λ): a network learns the values of a given policy from each step as it happens."""

    @staticmethod
    def config_class(algorithm: str) -> Any:
        """The config class of an algorithm's name."""
        return config_class(algorithm)

    def value_network(self, observation_space: gym.Space) -> Network:
        """Return a perceptron for V(s)."""
        return reading(self.streaming(input_size(observation_space), {"value": 1}), observation_space)


def preset(env: str) -> StreamTD:
    """The settings for an environment id: those of the paper, which are the same everywhere."""
    return StreamTD(env=env)


STATISTICS = ("td_error", "value_mean", "step_size")


@over_processes
@own_settings
def train(
    config: StreamTD,
    resume: dict[str, Any] | None = None,
    *,
    network: Network | None = None,
    start: dict[str, Any] | None = None,
    allow_inexact: bool = False,
) -> Iterator[AgentIteration]:
    """Train and yield after every `num_steps` steps: `.rows` are its metrics, `.state` continues it bit for bit.

    `start` and `allow_inexact` are those of `ppo.train`. A `network` of your own is refused: `policy` names its policy.
    """
    require_no_network(network, "stream_td has the network of its policy and one of its own")
    first = start if resume or start else config.start_of_policy()
    session = Session(config, resume, Learner, start=first, allow_inexact=allow_inexact)
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


def update_agent(config: StreamTD, agent: ActorCritic) -> Callable[..., tuple[Learner, Tensor]]:
    """Return what one agent learns from one step of its environment, as a pure function."""

    def value(vector: Tensor, observations: Tensor) -> Tensor:
        return agent.value(vector, observations)[0]

    def update(old: Learner, batch: Batch, alpha: Tensor) -> tuple[Learner, Tensor]:
        gradient, now = torch.func.grad_and_value(value)(old.parameters, batch.observations)
        after = agent.value(old.parameters, batch.next_observations)  # [1]
        ends: dict[str, Any] = {"terminated": batch.terminated, "gamma": config.gamma}
        delta = td_error(batch.rewards, now[None], after, **ends)[0]
        trace = trace_step(old.trace, gradient, config.gamma * config.lam)
        step = obgd_step_size(delta, trace.abs().sum(), alpha, kappa=config.kappa)
        new = advanced(old, old.parameters + step * delta * trace, trace, batch)
        return new, batch.live * torch.stack([delta.abs(), now, step])

    return update

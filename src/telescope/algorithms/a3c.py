"""Asynchronous advantage actor–critic (Mnih et al. 2016, arXiv 1602.01783) for a population of seeds.

Each actor computes the gradient of its own rollout by its own copy of the parameters. The learner applies gradients in
the order in which they come. Without actors it is A2C. The loop is `train`; every formula in it is imported. Leaves
out the correction of old gradients: there is none (`impala.py` has one).
"""

# T time, S seeds, B environments of an actor per seed, N = T·B samples per seed, P parameters
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from telescope.control.agents.networks import Network
from telescope.control.asynchronous import ActorConfig, ActorSession
from telescope.control.config import MUJOCO_FAMILY, OnPolicyConfig, for_family
from telescope.control.experience.credit import (
    critic_statistics,
    samples,
    with_advantages,
)
from telescope.control.experience.rollout import Rollout
from telescope.control.policy_gradient import STATISTICS, PolicyGradientConfig, gradient_of_agent, step_agent
from telescope.control.training import mean_statistics
from telescope.control.workers.shares import over_processes
from telescope.iteration import AgentIteration
from telescope.optimisers import Beginning
from telescope.threads import own_settings


@dataclasses.dataclass(frozen=True)
class A3C(PolicyGradientConfig, OnPolicyConfig, ActorConfig):
    """Asynchronous advantage actor–critic: actors send gradients, which the learner applies as they come."""

    num_envs: int = 4
    """Number of environments per seed of each actor."""
    num_steps: int = 20
    """Steps of each environment per gradient (T in formulas)."""
    lam: float = 1.0
    """GAE's λ. 1 gives n-step advantages: rewards up to the end of the rollout, then the value function."""


# The settings that flags start from, by environment. They are those of a2c.
CARTPOLE = A3C(
    env="CartPole-v1",
    total_steps=500_000,
    num_envs=8,
    num_steps=32,
    lam=0.95,
    entropy_coefficient=0.0,
    normalise_rewards=True,
)
MUJOCO = A3C(
    num_envs=16,
    num_steps=16,
    lam=0.95,
    log_std=-0.5,
    normalise_observations=True,
    normalise_rewards=True,
)
PRESETS = {
    "CartPole": CARTPOLE,
    "Acrobot": A3C(total_steps=500_000, num_envs=16, normalise_observations=True, normalise_rewards=True),
    "LunarLander": A3C(num_envs=16, gamma=0.995, normalise_rewards=True, lam=0.95),
    **dict.fromkeys(MUJOCO_FAMILY, MUJOCO),
}


def preset(env: str) -> A3C:
    """The settings for an environment id: the preset of its family, or the defaults."""
    return for_family(PRESETS, env, A3C())


@over_processes
@own_settings
def train(
    config: A3C,
    resume: dict[str, Any] | None = None,
    *,
    network: Network | None = None,
    start: dict[str, Any] | None = None,
    allow_inexact: bool = False,
) -> Iterator[AgentIteration]:
    """Train and yield after every gradient step: `.rows` are its metrics, `.state` continues it.

    Bit for bit without actors; see docs/asynchrony.md for the others. `network`, `start` and `allow_inexact` are those
    of `ppo.train`.
    """
    more: dict[str, Any] = {"network": network, "start": start, "allow_inexact": allow_inexact}
    session = ActorSession(config, resume, Beginning(config), gradients, recurrent=True, **more)
    step = session.lift(step_agent(config), (0, 0, 0, None))
    for _ in session.iterations():
        learning_rate = session.scheduled(config.learning_rate, config.anneal_learning_rate)
        made = session.gather()  # by the parameters of some updates ago
        gradient, live = session.to_device((torch.tensor(made["gradient"]), torch.tensor(made["live"])))  # [S, P], [S]
        session.learner, norm = step(session.learner, gradient, live, torch.tensor(learning_rate, device=config.device))
        more = {"gradient_norm": norm.double().cpu().numpy(), "learning_rate": np.full(config.seeds, learning_rate)}
        yield session.finish(made["statistics"] | more)


def gradients(config: A3C, session: Any) -> Callable[[Rollout], dict[str, Any]]:
    """In an actor: return the function from a rollout to the gradient of its loss, by the parameters that acted."""
    gradient = session.lift(gradient_of_agent(config, session.agent), (0, 0))

    def of(rollout: Rollout) -> dict[str, Any]:
        batch = with_advantages(config, session, rollout, samples(session, rollout, ratios=False))  # [S, N, …]
        found, row = gradient(session.parameters, batch)  # [S, P], [S, 3]
        statistics = mean_statistics(STATISTICS[:3], [row]) | critic_statistics(batch)
        arrays = {"gradient": found.cpu().numpy(), "live": batch.live.any(1).cpu().numpy()}
        return {**arrays, "statistics": statistics}

    return of

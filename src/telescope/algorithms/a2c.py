"""Advantage actor–critic (Mnih et al. 2016, arXiv 1602.01783, without its threads) for a population of seeds.

The loop is `train`; every formula in it is imported. One gradient step follows each rollout, so the policy that learns
is the one that acted: there is no ratio to clip. Leaves out minibatches and epochs (`ppo.py`).
"""

# T time, S seeds, B environments per seed, N = T·B samples per seed
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telescope.control.agents.networks import Network
from telescope.control.config import MUJOCO_FAMILY, OnPolicyConfig, for_family
from telescope.control.experience.credit import (
    Batch,
    critic_statistics,
    samples,
    with_advantages,
)
from telescope.control.policy_gradient import STATISTICS, PolicyGradientConfig, update_agent
from telescope.control.training import Session, mean_statistics
from telescope.control.workers.shares import over_processes
from telescope.iteration import AgentIteration
from telescope.optimisers import Beginning
from telescope.threads import own_settings


@dataclasses.dataclass(frozen=True)
class A2C(PolicyGradientConfig, OnPolicyConfig):
    """Advantage actor–critic: one gradient step on each short rollout."""

    num_envs: int = 16
    """Number of environments per seed."""
    num_steps: int = 16
    """Steps of each environment per iteration, and so per gradient step (T in formulas)."""
    lam: float = 1.0
    """GAE's λ. 1 gives n-step advantages: rewards up to the end of the rollout, then the value function."""


# The settings that flags start from, by environment.
CARTPOLE = A2C(
    env="CartPole-v1",
    total_steps=500_000,
    num_envs=8,
    num_steps=32,
    lam=0.95,
    entropy_coefficient=0.0,
    normalise_rewards=True,
)
ACROBOT = A2C(env="Acrobot-v1", total_steps=500_000, normalise_observations=True, normalise_rewards=True)
PENDULUM = A2C(
    env="Pendulum-v1",
    num_envs=8,
    gamma=0.9,
    lam=0.9,
    entropy_coefficient=0.0,
    normalise_observations=True,
    normalise_rewards=True,
)
MUJOCO = A2C(
    num_envs=16,
    num_steps=16,
    lam=0.95,
    log_std=-0.5,
    normalise_observations=True,
    normalise_rewards=True,
)
PRESETS = {
    "CartPole": CARTPOLE,
    "Acrobot": ACROBOT,
    "MountainCar": dataclasses.replace(ACROBOT, total_steps=1_000_000),
    "MountainCarContinuous": dataclasses.replace(PENDULUM, total_steps=100_000, gamma=0.9999),
    "Pendulum": PENDULUM,
    "LunarLander": A2C(gamma=0.995, normalise_rewards=True, lam=0.95),
    "BipedalWalker": dataclasses.replace(MUJOCO, total_steps=5_000_000),
    **dict.fromkeys(MUJOCO_FAMILY, MUJOCO),
    "Hopper": dataclasses.replace(MUJOCO, num_steps=80, entropy_coefficient=0.0),
}


def preset(env: str) -> A2C:
    """The settings for an environment id: the preset of its family, or the defaults."""
    return for_family(PRESETS, env, A2C())


@over_processes
@own_settings
def train(
    config: A2C,
    resume: dict[str, Any] | None = None,
    *,
    network: Network | None = None,
    start: dict[str, Any] | None = None,
    allow_inexact: bool = False,
) -> Iterator[AgentIteration]:
    """Train and yield after every gradient step: `.rows` are its metrics, `.state` continues it bit for bit.

    `network`, `start` and `allow_inexact` are those of `ppo.train`.
    """
    more: dict[str, Any] = {"network": network, "start": start, "allow_inexact": allow_inexact}
    session = Session(config, resume, Beginning(config), recurrent=True, **more)
    update = session.lift(update_agent(config, session.agent), (0, 0, None))
    for _ in session.iterations():
        learning_rate = session.scheduled(config.learning_rate, config.anneal_learning_rate)
        rollout = session.collect()  # [T, S, B, …]
        batch = with_advantages(config, session, rollout, samples(session, rollout, ratios=False))  # [S, N, …]
        session.learner, row = update(session.learner, batch, torch.tensor(learning_rate, device=config.device))
        yield session.finish(summary(config, row, batch, learning_rate))


def summary(config: A2C, row: Tensor, batch: Batch, learning_rate: float) -> dict[str, np.ndarray]:
    """The iteration's metrics, name → [S]."""
    return {
        **mean_statistics(STATISTICS, [row]),
        **critic_statistics(batch),
        "learning_rate": np.full(config.seeds, learning_rate),
    }

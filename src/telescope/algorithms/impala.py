"""IMPALA (Espeholt et al. 2018, arXiv 1802.01561) for a population of seeds: actors send rollouts, one learner learns.

Its parameters are some updates newer than those that acted, which V-trace corrects. The loop is `train`; every formula
in it is imported. Leaves out several passes over a rollout (`appo.py`).
"""

# T time, S seeds, B environments of an actor per seed, N = T·B samples per seed
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telescope.control.agents.networks import Network
from telescope.control.asynchronous import ActorSession, VTraceConfig
from telescope.control.config import MUJOCO_FAMILY, for_family
from telescope.control.experience.corrected import behaviour, unpacked, with_vtrace
from telescope.control.experience.credit import Batch, critic_statistics
from telescope.control.policy_gradient import STATISTICS, PolicyGradientConfig, update_agent
from telescope.control.training import mean_statistics
from telescope.control.workers.shares import over_processes
from telescope.iteration import AgentIteration
from telescope.optimisers import Beginning
from telescope.threads import own_settings


@dataclasses.dataclass(frozen=True)
class IMPALA(PolicyGradientConfig, VTraceConfig):
    """IMPALA: actors send rollouts to one learner, which corrects their age by V-trace."""

    num_envs: int = 8
    """Number of environments per seed of each actor."""
    num_steps: int = 20
    """Steps of each environment per rollout, and so per gradient step (T in formulas)."""
    learning_rate: float = 6e-4
    """The optimiser's learning rate at the start of the run."""


# The settings that flags start from, by environment. They are those of a2c.
CARTPOLE = IMPALA(
    env="CartPole-v1",
    total_steps=500_000,
    num_steps=32,
    lam=0.95,
    learning_rate=7e-4,
    entropy_coefficient=0.0,
    normalise_rewards=True,
)
MUJOCO = IMPALA(
    num_envs=16,
    num_steps=16,
    lam=0.95,
    entropy_coefficient=0.0,
    log_std=-0.5,
    normalise_observations=True,
    normalise_rewards=True,
)
PRESETS = {
    "CartPole": CARTPOLE,
    "Acrobot": IMPALA(total_steps=500_000, num_envs=16, normalise_observations=True, normalise_rewards=True),
    "LunarLander": IMPALA(gamma=0.995, normalise_rewards=True, lam=0.95),
    **dict.fromkeys(MUJOCO_FAMILY, MUJOCO),
}


def preset(env: str) -> IMPALA:
    """The settings for an environment id: the preset of its family, or the defaults."""
    return for_family(PRESETS, env, IMPALA())


@over_processes
@own_settings
def train(
    config: IMPALA,
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
    session = ActorSession(config, resume, Beginning(config), behaviour, recurrent=True, **more)
    update = session.lift(update_agent(config, session.agent), (0, 0, None))
    for _ in session.iterations():
        learning_rate = session.scheduled(config.learning_rate, config.anneal_learning_rate)
        rollout, log_probs = unpacked(session.gather())  # [T, S, B, …] and log μ [S, N], of some updates ago
        batch, clipped = with_vtrace(config, session, rollout, log_probs, session.parameters)
        session.learner, row = update(session.learner, batch, torch.tensor(learning_rate, device=config.device))
        yield session.finish(summary(config, row, batch, learning_rate) | clipped)


def summary(config: IMPALA, row: Tensor, batch: Batch, learning_rate: float) -> dict[str, np.ndarray]:
    """The iteration's metrics, name → [S]."""
    return {
        **mean_statistics(STATISTICS, [row]),
        **critic_statistics(batch),
        "learning_rate": np.full(config.seeds, learning_rate),
    }

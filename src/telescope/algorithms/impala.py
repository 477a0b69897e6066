"""IMPALA (Espeholt et al. 2018, arXiv 1802.01561) for a population of seeds: actors send rollouts, one learner learns.

Its parameters are some updates newer than those that acted, which V-trace corrects. The loop is `train`; every formula
in it is imported. Leaves out several passes over a rollout (`appo.py`).
"""

# T time, S seeds, B environments of an actor per seed, N = T·B samples per seed
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from telescope import checks
from telescope.control.agents.actor import ActorCritic
from telescope.control.agents.networks import Network
from telescope.control.asynchronous import ActorSession, VTraceConfig
from telescope.control.config import MUJOCO_FAMILY, for_family
from telescope.control.experience.corrected import behaviour, unpacked, with_vtrace
from telescope.control.experience.credit import Batch, critic_statistics, mean_weights, remembered
from telescope.control.training import mean_statistics
from telescope.control.workers.shares import over_processes
from telescope.iteration import AgentIteration
from telescope.losses import reinforce, squared_value_loss
from telescope.optimisers import OPTIMISERS, clip_by_norm
from telescope.threads import own_settings
from telescope.trees import where


@dataclasses.dataclass(frozen=True)
class IMPALA(VTraceConfig):
    """IMPALA: actors send rollouts to one learner, which corrects their age by V-trace."""

    num_envs: int = 8
    """Number of environments per seed of each actor."""
    num_steps: int = 20
    """Steps of each environment per rollout, and so per gradient step (T in formulas)."""
    learning_rate: float = 6e-4
    """The optimiser's learning rate at the start of the run."""
    entropy_coefficient: float = 0.01
    """Weight of the entropy bonus in the total loss. Larger values keep the policy random for longer."""
    optimiser: Literal["rmsprop", "adam"] = "rmsprop"
    """Optimiser: rmsprop, as in the paper (decay 0.99), or adam."""
    optimiser_eps: float = 1e-5
    """The optimiser's ε, added to the root of the mean squared gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self, "optimiser_eps")

    @property
    def minibatch_size(self) -> int:
        """Samples per gradient step, per seed: the whole rollout."""
        return self.batch_size

    @property
    def updates(self) -> int:
        """Gradient steps in the whole run: one per rollout."""
        return self.iterations


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


class Learner(NamedTuple):
    """What learning changes: all parameters of actor and critic as one vector, and the optimiser's state."""

    parameters: Tensor  # [P] of one agent; [S, P] of the population
    optimiser: Any

    @property
    def acting(self) -> Tensor:
        return self.parameters


class Beginning(NamedTuple):
    """Makes the first learner, whose state is that of the chosen optimiser."""

    config: IMPALA

    def begin(self, parameters: Tensor) -> Learner:
        return Learner(parameters, OPTIMISERS[self.config.optimiser].begin(parameters))


STATISTICS = ("policy_loss", "value_loss", "entropy", "gradient_norm")


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


def update_agent(config: IMPALA, agent: ActorCritic) -> Callable[..., tuple[Learner, Tensor]]:
    """Return one gradient step of one agent on a rollout, as a pure function."""

    def loss(vector: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        seen = remembered(agent, vector, batch, config.num_steps)
        log_probs, entropy, values = agent.evaluate(vector, seen, batch.actions, batch.action_masks)  # [N] each
        weights = mean_weights(batch.live)  # [N]
        policy = (weights * reinforce(log_probs, batch.advantages)).sum()
        value = (weights * squared_value_loss(values, batch.returns)).sum()
        bonus = (weights * entropy).sum()
        total = policy + config.value_coefficient * value - config.entropy_coefficient * bonus
        return total, torch.stack([policy, value, bonus]).detach()

    def update(old: Learner, batch: Batch, learning_rate: Tensor) -> tuple[Learner, Tensor]:
        gradient, statistics = torch.func.grad(loss, has_aux=True)(old.parameters, batch)  # [P], [3]
        gradient, norm = clip_by_norm(gradient, config.max_grad_norm)
        step = OPTIMISERS[config.optimiser].step
        new = Learner(*step(*old, gradient, learning_rate, eps=config.optimiser_eps))
        return where(batch.live.any(), new, old), torch.cat([statistics, norm[None]])  # no step without a live row

    return update


def summary(config: IMPALA, row: Tensor, batch: Batch, learning_rate: float) -> dict[str, np.ndarray]:
    """The iteration's metrics, name → [S]."""
    return {
        **mean_statistics(STATISTICS, [row]),
        **critic_statistics(batch),
        "learning_rate": np.full(config.seeds, learning_rate),
    }

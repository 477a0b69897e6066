"""REINFORCE (Williams 1992) for a population of seeds: one gradient step on each batch of whole episodes.

The loop is `train`; every formula in it is imported. `weight` chooses among the first three weights Ψ of the policy
gradient in the GAE paper (Schulman et al. 2016, arXiv 1506.02438, section 2). The other three need one step at a time:
see `telescope.algorithms.actor_critic`.
"""

# T time, S seeds, B environments per seed, N samples per seed, P parameters of one agent, D observation size, A actions
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
from telescope.control.config import MUJOCO_FAMILY, EpisodeConfig, for_family
from telescope.control.episodes import EpisodeSession
from telescope.control.experience.credit import mean_weights, whitened_rollout
from telescope.control.experience.episodes import mean_of_others, of_first_step, packed
from telescope.control.experience.rollout import Rollout
from telescope.control.experience.samples import final_values, per_seed, time_major
from telescope.control.training import mean_statistics
from telescope.control.workers.shares import over_processes
from telescope.estimators import discounted_return
from telescope.iteration import AgentIteration
from telescope.losses import reinforce, squared_value_loss
from telescope.metrics import explained_variance
from telescope.optimisers import Learner, adam, clip_by_norm
from telescope.threads import own_settings
from telescope.trees import where


@dataclasses.dataclass(frozen=True)
class Reinforce(EpisodeConfig):
    """REINFORCE: one gradient step on each batch of whole episodes."""

    episodes: int = 8
    """Whole episodes per iteration and seed. The environments share them as equally as can be."""
    weight: Literal["total", "to_go", "baselined"] = "to_go"
    """Weight of an action: the episode's return (total), the rewards after it (to_go), or these minus a baseline."""
    baseline: Literal["mean", "value"] | None = None
    """With weight baselined: the mean over the other episodes (mean), or a learned value function (value)."""
    normalise_returns: bool = False
    """Whiten the weights over the samples of each iteration, per seed."""
    adam_eps: float = 1e-8
    """Adam's ε. The default 1e-8 is PyTorch's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self, "episodes", "adam_eps")
        if self.weight == "baselined" and self.baseline is None:
            raise ValueError("weight is 'baselined', but baseline is none; expected mean or value")
        if self.weight != "baselined" and self.baseline is not None:
            raise ValueError(
                f"baseline is {self.baseline!r}, which weight {self.weight!r} does not read; set weight to "
                "'baselined', or baseline to none"
            )
        if self.baseline == "mean" and self.episodes == 1:
            raise ValueError("baseline is 'mean', the mean over other episodes, but episodes is 1; raise episodes")

    @property
    def learns_values(self) -> bool:
        """Only as a baseline."""
        return self.baseline == "value"


# Whitened weights, because their scale changes a hundredfold while a policy learns. With four episodes per gradient
# step and a learning rate of 5e-3, two of eight seeds lose what they have learned; with these none does.
CARTPOLE = Reinforce(
    env="CartPole-v1",
    total_steps=500_000,
    num_steps=500,
    learning_rate=3e-3,
    normalise_returns=True,
)
ACROBOT = dataclasses.replace(CARTPOLE, env="Acrobot-v1", normalise_observations=True)
MOUNTAIN_CAR = dataclasses.replace(ACROBOT, env="MountainCar-v0")
LUNAR_LANDER = Reinforce(
    env="LunarLander-v3",
    num_steps=1000,
    learning_rate=3e-3,
    weight="baselined",
    baseline="value",
    normalise_returns=True,
    normalise_observations=True,
    normalise_rewards=True,
)
PENDULUM = dataclasses.replace(LUNAR_LANDER, env="Pendulum-v1", num_steps=200, gamma=0.9)
MUJOCO = dataclasses.replace(LUNAR_LANDER, learning_rate=1e-3)
PRESETS = {
    "CartPole": CARTPOLE,
    "Acrobot": ACROBOT,
    "MountainCar": MOUNTAIN_CAR,
    "LunarLander": LUNAR_LANDER,
    "Pendulum": PENDULUM,
    **dict.fromkeys(MUJOCO_FAMILY, MUJOCO),
}


def preset(env: str) -> Reinforce:
    """The settings for an environment id: the preset of its family, or the defaults."""
    return for_family(PRESETS, env, Reinforce())


class Batch(NamedTuple):
    """Whole episodes as samples: [S, N, …] of the population, [N, …] of one agent."""

    observations: Tensor  # [S, N, D] as the policy saw them
    actions: Tensor  # [S, N, …]
    weights: Tensor  # [S, N] Ψ
    returns: Tensor  # [S, N] rewards to go, the targets of the value function
    values: Tensor  # [S, N] V, or 0 without a value function
    live: Tensor  # [S, N] bool, False after an environment's last episode
    action_masks: Tensor | None  # [S, N, A] bool, True = allowed


STATISTICS = ("policy_loss", "value_loss", "entropy", "gradient_norm")


@over_processes
@own_settings
def train(
    config: Reinforce,
    resume: dict[str, Any] | None = None,
    *,
    network: Network | None = None,
    start: dict[str, Any] | None = None,
    allow_inexact: bool = False,
) -> Iterator[AgentIteration]:
    """Train and yield after every iteration: `.rows` are its metrics, `.state` continues it bit for bit.

    The arguments are those of `telescope.algorithms.ppo.train`.
    """
    more: dict[str, Any] = {"network": network, "start": start, "allow_inexact": allow_inexact}
    session = EpisodeSession(config, resume, Learner, **more)
    update = session.lift(update_agent(config, session.agent), (0, 0, 0))
    for _ in session.iterations():
        learning_rate = session.learning_rates()  # [S]
        batch = samples(config, session, session.collect())
        session.learner, row = update(session.learner, packed(batch), learning_rate)
        yield session.finish(summary(config, row, batch, learning_rate))


def samples(config: Reinforce, session: EpisodeSession, rollout: Rollout) -> Batch:
    """A rollout as samples with weights Ψ. A time limit ends an episode; only a value function looks beyond it."""
    observations, learns_values = per_seed(rollout.observations), config.baseline == "value"
    values = beyond = torch.zeros_like(rollout.rewards)  # [T, S, B]
    if learns_values:
        values = time_major(session.value(observations).cpu(), config.num_envs)
        finals = final_values(rollout, session.value)
        beyond = beyond if finals is None else finals.nan_to_num()
    ends: dict[str, Any] = {"terminated": rollout.terminated, "truncated": rollout.truncated, "mask": rollout.mask}
    to_go = discounted_return(rollout.rewards, beyond, **ends, gamma=config.gamma)  # [T, S, B]
    if config.weight == "total":
        weights = of_first_step(to_go, rollout)
    else:
        weights = to_go - (mean_of_others(to_go, rollout) if config.baseline == "mean" else values)
    live = per_seed(rollout.mask)
    weights = whitened_rollout(per_seed(weights), live) if config.normalise_returns else per_seed(weights)
    masks = None if rollout.action_masks is None else per_seed(rollout.action_masks)
    batch = Batch(observations, per_seed(rollout.actions), weights, per_seed(to_go), per_seed(values), live, masks)
    return session.to_device(batch)  # type: ignore[no-any-return]


def update_agent(config: Reinforce, agent: ActorCritic) -> Callable[..., tuple[Learner, Tensor]]:
    """Return one gradient step of one agent on its episodes, as a pure function."""

    def loss(vector: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        log_probs, entropy, values = agent.evaluate(vector, batch.observations, batch.actions, batch.action_masks)
        weights = mean_weights(batch.live)  # [N]
        policy = (weights * reinforce(log_probs, batch.weights)).sum()
        value = (weights * squared_value_loss(values, batch.returns)).sum()
        bonus = (weights * entropy).sum()
        total = policy - config.entropy_coefficient * bonus
        if config.baseline == "value":
            total = total + config.value_coefficient * value
        return total, torch.stack([policy, value, bonus]).detach()

    def update(old: Learner, batch: Batch, learning_rate: Tensor) -> tuple[Learner, Tensor]:
        gradient, statistics = torch.func.grad(loss, has_aux=True)(old.parameters, batch)  # [P], [3]
        gradient, norm = clip_by_norm(gradient, config.max_grad_norm)
        new = Learner(*adam(*old, gradient, learning_rate, eps=config.adam_eps))
        return where(batch.live.any(), new, old), torch.cat([statistics, norm[None]])  # a finished seed has no live row

    return update


def summary(config: Reinforce, row: Tensor, batch: Batch, learning_rate: Tensor) -> dict[str, np.ndarray | None]:
    """The iteration's metrics, name → [S]; None for those of a value function that there is not."""
    found: dict[str, np.ndarray | None] = {
        **mean_statistics(STATISTICS, [row]),
        "explained_variance": None,
        "learning_rate": learning_rate.cpu().numpy(),
    }
    if config.baseline != "value":
        return found | {"value_loss": None}
    values, returns, live = (x.cpu().numpy() for x in (batch.values, batch.returns, batch.live))
    return found | {"explained_variance": explained_variance(values, returns, live, axis=1)}

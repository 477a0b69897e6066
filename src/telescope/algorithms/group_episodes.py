"""Group-relative policy optimisation on environments: GRPO, GSPO, Dr. GRPO, RLOO, … on groups of whole episodes.

The loop is `train`; every formula in it is imported. Objectives are the rows that language models use
(`telescope.objectives.rows`): a step is a token, an episode a completion, and a group has one start state instead of
one prompt. There is no critic.
"""

# S seeds, B episodes per seed, G in each group, M in a minibatch, T steps, P parameters of one agent
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
from telescope.control.experience.credit import mean_weights
from telescope.control.experience.episodes import padded_time
from telescope.control.experience.minibatches import group_indices
from telescope.control.experience.rollout import Rollout
from telescope.control.experience.samples import per_seed
from telescope.control.training import mean_statistics
from telescope.control.workers.shares import over_processes
from telescope.estimators import discounted_return
from telescope.iteration import AgentIteration
from telescope.losses import kl_k3
from telescope.objectives.advantages import penalised_scores, sample_advantages, token_advantages
from telescope.objectives.frameworks import named, with_clip
from telescope.objectives.loss import kl_penalty, policy_loss, token_weights
from telescope.objectives.rows import ROWS, Objective, cautions, describe
from telescope.optimisers import Adam, adam, adam_init, clip_by_norm
from telescope.threads import own_settings
from telescope.trees import mapped, where


@dataclasses.dataclass(frozen=True)
class GroupEpisodes(EpisodeConfig):
    """Group-relative policy optimisation: the other episodes from the same start state are the baseline."""

    num_envs: int = 32
    """Number of environments per seed, a multiple of group. Each plays one episode per iteration."""
    num_steps: int = 10_000
    """Longest episode; an error if one is longer. The objective dr_grpo divides by it."""
    vectorization: Literal["auto", "sync", "async", "vector_entry_point", "simulator"] = "sync"
    """How to step the environments: sync or async. An environment's own vector version cannot repeat a start state."""
    objective: str = "grpo"
    """Objective: a row of docs/objectives.md without a critic (grpo, dapo, rloo, …), or a framework's: trl/grpo, …"""
    group: int = 8
    """Episodes that begin from the same start state. Their environments are reset with one seed."""
    epochs: int = 4
    """Number of passes over each rollout."""
    minibatches: int = 1
    """Gradient steps per epoch, each on an equal number of whole groups."""
    clip: float | None = None
    """Clip range ε of the policy loss: the probability ratio counts within 1 − ε … 1 + ε. none: the objective's own."""
    clip_high: float | None = None
    """Upper clip range, if it differs: the ratio counts within 1 − clip … 1 + clip_high (DAPO). none: same as clip."""
    beta: float = 0.0
    """Coefficient of the KL to the policy that the run began with. The objective says where it is added."""
    adam_eps: float = 1e-8
    """Adam's ε. The default 1e-8 is PyTorch's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self, "group", "epochs", "minibatches", "adam_eps")
        checks.at_least_zero(self, "clip", "clip_high", "beta")
        objective = row(self)
        if objective.critic:
            raise ValueError(f"objective is {self.objective!r}, which needs a critic: telescope train ppo")
        if self.value_coefficient not in (0.0, EpisodeConfig.value_coefficient):
            raise ValueError(f"value_coefficient is {self.value_coefficient}, but groups need no critic; leave it out")
        if self.vectorization not in ("sync", "async"):
            raise ValueError(
                f"vectorization is {self.vectorization!r}, which cannot reset a group's environments with one seed; "
                "expected sync or async"
            )
        if self.num_envs % (self.group * self.minibatches):
            raise ValueError(
                f"num_envs is {self.num_envs}, but a minibatch has whole groups (group {self.group} × minibatches "
                f"{self.minibatches}); expected a multiple of {self.group * self.minibatches}"
            )
        if self.group < 2 and objective.baseline != "none":
            raise ValueError(
                f"group is {self.group}, but {self.objective} compares episodes of one start state; expected 2 or more"
            )

    @property
    def learns_values(self) -> bool:
        """Groups need no critic."""
        return False


def row(config: GroupEpisodes) -> Objective:
    """The effective objective: the named row, with the columns that the config replaces."""
    objective = with_clip(named(config.objective), config.clip, config.clip_high)
    gamma = objective.gamma if objective.credit == "sequence" else config.gamma
    return dataclasses.replace(objective, beta=config.beta, gamma=gamma)


CARTPOLE = GroupEpisodes(
    env="CartPole-v1", total_steps=200_000, num_envs=16, num_steps=500, gamma=1.0, learning_rate=3e-3
)
ACROBOT = dataclasses.replace(CARTPOLE, env="Acrobot-v1", normalise_observations=True)
MOUNTAIN_CAR = dataclasses.replace(ACROBOT, env="MountainCar-v0")
LUNAR_LANDER = GroupEpisodes(
    env="LunarLander-v3", num_steps=1000, gamma=1.0, learning_rate=3e-3, normalise_observations=True
)
PRESETS = {
    "CartPole": CARTPOLE,
    "Acrobot": ACROBOT,
    "MountainCar": MOUNTAIN_CAR,
    "LunarLander": LUNAR_LANDER,
    "Pendulum": dataclasses.replace(LUNAR_LANDER, env="Pendulum-v1", num_steps=200),
    **dict.fromkeys(MUJOCO_FAMILY, LUNAR_LANDER),
}
SEQUENCE_CLIP = 0.05
"""`clip` of the presets of GSPO, whose own is for the long completions of language models."""


def preset(env: str, name: str = "grpo") -> GroupEpisodes:
    """The settings for an environment id, and a row of the table."""
    clip = SEQUENCE_CLIP if ROWS[name].ratio in ("sequence", "sequence_token") else None
    return dataclasses.replace(for_family(PRESETS, env, GroupEpisodes()), objective=name, clip=clip)


class Learner(NamedTuple):
    """What learning changes: the policy's parameters and Adam's state; and those that it began with, for the KL."""

    parameters: Tensor  # [P] of one agent; [S, P] of the population
    reference: Tensor  # the same
    adam: Adam

    @classmethod
    def begin(cls, parameters: Tensor) -> Learner:
        return cls(parameters, parameters.clone(), adam_init(parameters))

    @property
    def acting(self) -> Tensor:
        return self.parameters


class Batch(NamedTuple):
    """Episodes as rows: [S, B, T, …] of the population, [M, T, …] in a minibatch of one agent."""

    observations: Tensor  # [S, B, T, D] as the policy saw them
    actions: Tensor  # [S, B, T, …]
    log_probs: Tensor  # [S, B, T] of the agents that acted
    reference: Tensor | None  # [S, B, T] log-probabilities of the agents that the run began with; None if β is 0
    advantages: Tensor  # [S, B, T]
    live: Tensor  # [S, B, T] bool, False after the end
    action_masks: Tensor | None  # [S, B, T, A] bool, True = allowed


STATISTICS = ("policy_loss", "entropy", "kl", "clipped", "gradient_norm")


@over_processes
@own_settings
def train(
    config: GroupEpisodes,
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
    session, objective = EpisodeSession(config, resume, Learner, **more), row(config)
    session.notes += [
        describe(objective),
        *cautions(objective, updates=config.epochs * config.minibatches, tokens=False),
    ]
    update = session.lift(update_agent(config, objective, session.agent), (0, 0, 0))
    for _ in session.iterations():
        learning_rate = session.learning_rates()  # [S]
        statistics = []
        batch, seen = episodes(config, objective, session, session.collect())
        for indices in group_indices(config, session.clock.iterations):  # [S, minibatches, M]
            for k in range(config.minibatches):
                minibatch = chosen(batch, indices[:, k])
                session.learner, one = update(session.learner, minibatch, learning_rate)
                statistics.append(one)
        found = mean_statistics(STATISTICS, statistics)
        yield session.finish({**seen, **found, "learning_rate": learning_rate.cpu().numpy()})


def episodes(
    config: GroupEpisodes, objective: Objective, session: EpisodeSession, rollout: Rollout
) -> tuple[Batch, dict[str, np.ndarray]]:
    """A rollout as rows of episodes with advantages per step, and statistics of its groups."""
    rollout = padded_time(rollout)  # [T, S, B, …]
    samples = per_seed(rollout.observations), per_seed(rollout.actions)
    masks = None if rollout.action_masks is None else per_seed(rollout.action_masks)

    def log_probs_of(parameters: Tensor) -> Tensor:
        found = session.agents.evaluate(parameters, *session.to_device((*samples, masks)))[0]
        return found.cpu().unflatten(1, (-1, config.num_envs)).transpose(1, 2)  # [S, B, T]

    live = rollout.mask.permute(1, 2, 0)  # [S, B, T]
    log_probs = log_probs_of(session.parameters)
    reference = log_probs_of(session.learner.reference) if config.beta else None
    kl: list[Tensor | None] = [None] * config.seeds
    if reference is not None and objective.kl_place == "reward":
        kl = [kl_penalty(objective, *rows) for rows in zip(log_probs, reference, live, strict=True)]
    over: dict[str, Any] = {
        "terminated": rollout.terminated | rollout.truncated,
        "truncated": None,
        "mask": rollout.mask,
    }
    nothing = torch.zeros_like(rollout.rewards)
    scores = discounted_return(rollout.rewards, nothing, **over, gamma=config.gamma)[0]  # [S, B] of whole episodes
    # one seed after the other: what is whitened is a seed's own batch
    advantages = [advantages_of(config, objective, *rows) for rows in zip(scores, live, kl, strict=True)]
    grouped = scores.view(config.seeds, -1, config.group)
    seen = {"score_std": grouped.std(2).mean(1), "equal_groups": (grouped == grouped[..., :1]).all(2).float().mean(1)}
    masks = None if rollout.action_masks is None else rollout.action_masks.movedim(0, 2)
    observations, actions = rollout.observations.movedim(0, 2), rollout.actions.movedim(0, 2)  # [S, B, T, …]
    batch = Batch(observations, actions, log_probs, reference, torch.stack(advantages), live, masks)
    return session.to_device(batch), {name: x.numpy() for name, x in seen.items()}


def advantages_of(
    config: GroupEpisodes, objective: Objective, scores: Tensor, live: Tensor, kl: Tensor | None
) -> Tensor:
    """One seed's advantages per step [B, T], from its scores [B]. A finished seed has no live step."""
    penalised = penalised_scores(objective, scores, kl, live)
    advantages = sample_advantages(objective, penalised.view(-1, config.group)).view(-1)  # [B]
    return token_advantages(objective, advantages, live, kl)


def chosen(batch: Batch, rows: Tensor) -> Batch:
    """The episodes [S, M] of a batch."""
    seeds, rows = torch.arange(len(rows), device=batch.live.device)[:, None], rows.to(batch.live.device)
    return mapped(lambda x: x[seeds, rows], batch)  # type: ignore[no-any-return]


def update_agent(
    config: GroupEpisodes, objective: Objective, agent: ActorCritic
) -> Callable[..., tuple[Learner, Tensor]]:
    """Return one gradient step of one agent on the episodes of a minibatch, as a pure function."""

    def loss(vector: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        steps = (
            None if x is None else x.flatten(0, 1) for x in (batch.observations, batch.actions, batch.action_masks)
        )
        found = agent.evaluate(vector, *steps)[:2]  # type: ignore[arg-type]
        log_probs, entropy = (x.unflatten(0, batch.live.shape) for x in found)  # [M, T] each
        result = policy_loss(
            objective, log_probs, batch.log_probs, batch.advantages, batch.live, reference_log_probs=batch.reference
        )
        weights, each = token_weights(objective, batch.live, max_tokens=config.num_steps), mean_weights(batch.live)
        total = (weights * result.loss).sum()
        policy = total - objective.beta * (weights * result.kl).sum()  # without the KL
        bonus = (each * entropy).sum()
        kl = (each * kl_k3(log_probs, batch.log_probs)).sum()
        statistics = torch.stack([policy, bonus, kl, (each * result.clipped).sum()])
        return total - config.entropy_coefficient * bonus, statistics.detach()

    def update(old: Learner, batch: Batch, learning_rate: Tensor) -> tuple[Learner, Tensor]:
        gradient, statistics = torch.func.grad(loss, has_aux=True)(old.parameters, batch)  # [P], [4]
        gradient, norm = clip_by_norm(gradient, config.max_grad_norm)
        parameters, state = adam(old.parameters, old.adam, gradient, learning_rate, eps=config.adam_eps)
        new = old._replace(parameters=parameters, adam=state)
        return where(batch.live.any(), new, old), torch.cat([statistics, norm[None]])  # a finished seed has no live row

    return update

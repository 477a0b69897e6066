"""From a rollout to the samples that an update learns from: probabilities and values as they were, then advantages.

Every actor–critic on rollouts shares these functions. Leaves out the loss (the algorithm), and which samples make a
minibatch (`minibatches.py`).
"""

# T time, S seeds, B environments per seed, N = T·B samples per seed, M minibatch, D observation size, A actions
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from telescope.control.agents.actor import ActorCritic
from telescope.control.agents.stacking import stacked
from telescope.control.config import AgentConfig, OnPolicyConfig
from telescope.control.experience.lambdas import chosen_lam
from telescope.control.experience.quantiles import quantile_credit
from telescope.control.experience.rollout import Rollout
from telescope.control.experience.samples import (
    episode_begins,
    final_values,
    live_mask,
    per_seed,
    successors,
    time_major,
)
from telescope.estimators import gae, next_values, whiten
from telescope.metrics import explained_variance


class Steps(NamedTuple):
    """What the environments answered, for a critic that computes its returns anew in each minibatch."""

    rewards: Tensor  # [S, N]
    terminated: Tensor  # [S, N] bool
    truncated: Tensor  # [S, N] bool
    successors: Tensor  # [S, N, D] the observation that each step led to


class Batch(NamedTuple):
    """One rollout as samples: [S, N, …] of the population, [M, …] in a minibatch of one agent."""

    observations: Tensor  # [S, N, D] as the policy saw them
    actions: Tensor  # [S, N, …]
    log_probs: Tensor  # [S, N] of the agents that acted
    values: Tensor  # [S, N]
    advantages: Tensor  # [S, N]
    returns: Tensor  # [S, N] targets of the critic
    live: Tensor  # [S, N] bool, False on rows that do not count
    action_masks: Tensor | None  # [S, N, A] bool, True = allowed
    memory: Tensor | None = None  # [S, N, W] before each step, of policies that remember
    begins: Tensor | None = None  # [S, N] bool, True where an episode begins within the rollout, likewise
    alone: Tensor | None = None  # [S, N] advantages whitened over the rollout, for minibatches with one live sample
    outputs: Tensor | None = None  # [S, N, Q] of a quantile critic, whose mean `values` are
    targets: Tensor | None = None  # [S, N, Q] of its quantiles, whose mean `returns` are in expectation
    lam: Tensor | None = None  # [S, N] λ of each sample, if a rule chooses it
    steps: Steps | None = None  # of a gradient critic
    frames: Tensor | None = None  # [S, F, …] of stacks, whose observations are places [S, N, K] until a minibatch


def samples(session: Any, rollout: Rollout, *, ratios: bool = True) -> Batch:
    """A rollout as samples, with log-probabilities and values by the agents that acted, but without advantages.

    `ratios` False leaves the log-probabilities at 0, for a loss that never divides by the old policy.
    """
    # [T, S, B, …] → [S, N, …]
    observations, actions, live = map(per_seed, (rollout.observations, rollout.actions, rollout.mask))
    masks = None if rollout.action_masks is None else per_seed(rollout.action_masks)
    memory, begins = memories(rollout)
    empty = torch.zeros(live.shape, device=session.config.device)  # [S, N]
    if ratios:
        log_probs, outputs = session.evaluate(observations, actions, masks, memory, rollout.frames)
    else:
        log_probs, outputs = empty, session.critic(observations, memory, rollout.frames)
    batch = Batch(observations, actions, log_probs, empty, empty, empty, live, masks, memory, begins)
    batch = batch._replace(frames=rollout.frames)
    if getattr(session.config, "critic", None) == "gradient":
        answers = (rollout.rewards, rollout.terminated, rollout.truncated, successors(rollout))
        batch = batch._replace(steps=Steps(*map(per_seed, answers)))
    return session.to_device(judged(session.config, batch, outputs))  # type: ignore[no-any-return]


def recalled(session: Any, parameters: Tensor, rollout: Rollout) -> Rollout:
    """The rollout with the memories that agents with these parameters [S, P] have on it.

    They begin with the memory before its first step, which stays. The same rollout if there is no memory.
    """
    if rollout.memory is None:
        return rollout
    begins, observations = episode_begins(rollout), rollout.observations
    if rollout.frames is not None:
        observations = time_major(stacked(rollout.frames, per_seed(observations)), begins.shape[2])
    given = session.to_device((observations, rollout.memory[0], begins))
    after = session.agents.unroll(parameters, *given).to(rollout.rewards.device)  # [T, S, B, W]
    fresh = torch.zeros_like(after[:1])
    before = torch.cat([rollout.memory[:1], torch.where(begins[1:, ..., None], fresh, after[:-1])])
    ended = rollout.terminated[-1] | rollout.truncated[-1] | ~rollout.mask[-1]  # [S, B]
    finals = rollout.finals
    if finals.memory is not None:
        reached = after[tuple(torch.as_tensor(i) for i in finals.places)]  # [K, W]
        finals = finals._replace(memory=reached if isinstance(finals.memory, Tensor) else reached.numpy())
    last = torch.where(ended[..., None], fresh[0], after[-1])
    return rollout._replace(memory=before, last_memory=last, finals=finals)


def judged(config: AgentConfig, batch: Batch, outputs: Tensor) -> Batch:
    """The same samples with these outputs of the critic."""
    kept: dict[str, Any] = {"outputs": outputs} if config.critic_outputs else {}
    return batch._replace(values=config.state_values(outputs), **kept)


def judged_again(session: Any, rollout: Rollout, batch: Batch) -> tuple[Rollout, Batch]:
    """The same rollout and samples with the memories and the outputs of the present critics."""
    rollout = recalled(session, session.parameters, rollout)
    if rollout.memory is not None:
        batch = batch._replace(memory=session.to_device(per_seed(rollout.memory)))
    return rollout, judged(session.config, batch, session.critic(batch.observations, batch.memory, batch.frames))


def with_advantages(config: OnPolicyConfig, session: Any, rollout: Rollout, batch: Batch) -> Batch:
    """The same samples with advantages and returns, computed from their values."""
    device = rollout.rewards.device  # where the rollout lies, which may not be that of the networks
    values = time_major(batch.values.to(device), config.num_envs)  # [T, S, B]
    ends: dict[str, Any] = {
        "terminated": rollout.terminated,
        "truncated": rollout.truncated,
        "mask": live_mask(rollout),
    }
    last = session.value(rollout.last_observations, rollout.last_memory, rollout.frames).to(device)  # [S, B]
    finals = final_values(rollout, session.value)  # [T, S, B]
    reached = next_values(values, last, final_values=finals, **ends)
    if batch.lam is None:
        lam = chosen_lam(config, rollout.rewards, values, reached, ends)
    else:  # of the critic that acted, as before the first epoch
        lam = time_major(batch.lam.to(device), config.num_envs)
    decays: dict[str, Any] = {"lam": lam, "returns_lam": config.returns_lam}
    advantages, returns = gae(rollout.rewards, values, reached, gamma=config.gamma, **decays, **ends)
    found = {"advantages": per_seed(advantages), "returns": per_seed(returns)}
    if isinstance(lam, Tensor):
        found["lam"] = per_seed(lam)
    if config.critic == "quantile":
        found |= quantile_credit(config, session, rollout, batch.outputs, ends, **decays)
    if config.normalise_advantages and session.rollouts.may_be_alone(config.minibatch_size):
        found["alone"] = whitened_rollout(found["advantages"], per_seed(rollout.mask))
    return batch._replace(**session.to_device(found))


def critic_statistics(batch: Batch) -> dict[str, np.ndarray]:
    """Columns of every actor–critic, name → [S]: what the values explain of their targets, and a rule's mean λ."""
    values, returns, live = (x.cpu().numpy() for x in (batch.values, batch.returns, batch.live))
    found = {"explained_variance": explained_variance(values, returns, live, axis=1)}
    if batch.lam is not None:
        found["lam_mean"] = (batch.lam.cpu().numpy() * live).sum(1) / live.sum(1).clip(1)
    return found


def mean_weights(live: Tensor) -> Tensor:
    """Weights [M] of the mean over live samples: they sum to 1, or are all 0 if none is live."""
    return live / live.sum().clamp(min=1)


def whitened_rollout(advantages: Tensor, live: Tensor) -> Tensor:
    """Advantages [S, N] whitened per seed; unchanged where only one sample is live."""
    return torch.where(live.sum(1, keepdim=True) > 1, whiten(advantages, mask=live, axis=1), advantages)


def whitened_minibatch(batch: Batch) -> Tensor:
    """One agent's advantages [M] whitened over its live samples."""
    advantages = whiten(batch.advantages, mask=batch.live)
    return advantages if batch.alone is None else torch.where(batch.live.sum() > 1, advantages, batch.alone)


def memories(rollout: Rollout) -> tuple[Tensor | None, Tensor | None]:
    """The memory before each step [S, N, W], and where an episode begins within the rollout [S, N]; None without."""
    if rollout.memory is None:
        return None, None
    return per_seed(rollout.memory), per_seed(episode_begins(rollout))


def remembered(agent: ActorCritic, vector: Tensor, batch: Any, steps: int) -> Tensor:
    """The inputs of one agent's heads for its samples: the observations [M, D], or the new memory [M, W].

    The samples of a policy with a memory are M / L sequences of L = `steps` steps, time first. Each is unrolled again
    from its first memory, so that gradients flow through all of its steps.
    """
    if batch.memory is None or batch.begins is None:
        return batch.observations
    observations, memory, begins = (
        x.unflatten(0, (steps, -1)) for x in (batch.observations, batch.memory, batch.begins)
    )  # [L, M / L, …]
    return agent.unroll(vector, observations, memory[0], begins).flatten(0, 1)

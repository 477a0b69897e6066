"""Rollouts of our own runs, for the explorer: agents play in their environments.

Leaves out language models (`completing.py`), and how a rollout is shown (`explorer.py`).
"""

# T time, B environments, one seed
from __future__ import annotations

import os
from typing import Any

import torch

from telescope.control.agents.actor import Agents
from telescope.control.environments.population import Environments
from telescope.control.experience.encoding import encoder
from telescope.control.experience.normalisation import ObservationNormaliser, RewardScaler
from telescope.control.experience.rollout import Rollouts
from telescope.control.experience.samples import final_values, live_mask, per_seed, time_major
from telescope.control.starting import Start, rows_of, start_from
from telescope.estimators import next_values
from telescope.lab.evidence import Rollout
from telescope.lab.explorer import Extras
from telescope.policy import Policy, load
from telescope.randomness import EVALUATION_ENVIRONMENTS
from telescope.runs.folder import RunFolder


def played(
    run: str | os.PathLike[str],
    *,
    steps: int,
    envs: int,
    seed: int | None = None,
    best: bool = False,
    trust: bool = False,
    device: str | None = None,
) -> tuple[Rollout, Extras]:
    """A rollout [steps, envs] of one agent, with sampled actions and its critic's values.

    Rewards are scaled as in training, because the values are in those units. Statistics of observations stay as they
    are. `best` takes the agent with the best evaluation.

    Raises:
        ValueError: `seed` is none of the run. RunError: there is no run, or nothing was saved yet.
    """
    policy = load(run, best=best, trust=trust, device=device)
    seed = policy.seeds[0] if seed is None else seed
    if seed not in policy.seeds:
        raise ValueError(f"seed is {seed}; this run has the seeds {policy.seeds[0]} to {policy.seeds[-1]}")
    s = policy.seeds.index(seed)
    state: Any = RunFolder.open(run).load_checkpoint()
    saved = rows_of(start_from(state, len(policy.seeds)), s, 1)
    environments = Environments.of(policy.config, seeds=[seed], num_envs=envs, stream=EVALUATION_ENVIRONMENTS)
    try:
        rollouts = _rollouts(policy, environments, saved, s, seed, steps)
        return _rollout(policy, policy.parameters[s : s + 1], rollouts), _extras(policy, seed, envs)
    finally:
        environments.close()


def _rollouts(policy: Policy, environments: Environments, saved: Start, s: int, seed: int, steps: int) -> Rollouts:
    """What collects the experience of one agent, with its statistics."""
    config, envs = policy.config, environments.num_envs
    encoding = encoder(environments.observation_space, shaped=policy.agent.network.shaped)
    clip = config.clip_observations
    normaliser = ObservationNormaliser(1, encoding.shape, enabled=config.normalise_observations, clip=clip, fixed=True)
    normaliser.restore({name: x[s : s + 1] for name, x in policy.normaliser.state().items()})
    usual = config.scaler()
    scaler = RewardScaler(1, envs, gamma=config.gamma, enabled=usual.enabled, clip=usual.clip)
    scaler.restore({**saved.rewards, "returns": scaler.returns})
    return Rollouts(
        environments,
        seeds=[seed],
        num_envs=envs,
        num_steps=steps,
        encoder=encoding,
        distribution=policy.agent.distribution,
        bound=config.bound(environments.action_space),
        normaliser=normaliser,
        scaler=scaler,
        memory=policy.agent.network.memory,
    )


def _rollout(policy: Policy, parameters: torch.Tensor, rollouts: Rollouts) -> Rollout:
    config, agents = policy.config, Agents(policy.agent)
    rollouts.reset()
    rollout, _ = rollouts.collect(agents.actor(parameters), iteration=0)
    envs = rollout.rewards.shape[2]

    def value(observations: torch.Tensor, memory: torch.Tensor | None) -> torch.Tensor:
        seen = observations.to(config.device), None if memory is None else memory.to(config.device)
        return config.state_values(agents.value(parameters, *seen)).cpu()

    memory = None if rollout.memory is None else per_seed(rollout.memory)
    values = time_major(value(per_seed(rollout.observations), memory), envs)  # [T, 1, B]
    last, finals = value(rollout.last_observations, rollout.last_memory), final_values(rollout, value)
    ends: dict[str, Any] = {"terminated": rollout.terminated, "truncated": rollout.truncated}
    reached = next_values(values, last, final_values=finals, mask=live_mask(rollout), **ends)
    critic = {"values": values, "next_values": reached} if config.learns_values else {}
    arrays = {"rewards": rollout.rewards, **critic, **ends, "mask": rollout.mask}
    numbers = {name: x[:, 0].numpy() for name, x in arrays.items()}  # [T, B]
    return Rollout(**numbers, gamma=config.gamma, lam=getattr(config, "lam", None))


def _extras(policy: Policy, seed: int, envs: int) -> Extras:
    config = policy.config
    notes = []
    if not config.learns_values:
        notes.append("This run has no critic.")
    if config.scaler().enabled:
        notes.append("Rewards are divided by the running deviation of the return, as in training.")
    if (rule := getattr(config, "lam_rule", "constant")) != "constant":
        notes.append(f"The run chose its λ by the rule {rule}; the slider begins at its λ.")
    return Extras(columns=[f"seed {seed}, environment {b}" for b in range(envs)], notes=notes)

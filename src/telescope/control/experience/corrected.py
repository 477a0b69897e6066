"""From a rollout of older parameters to samples with V-trace targets and advantages.

An actor sends its rollout with the log-probabilities by which it acted (`behaviour`); the learner judges it by the
present parameters (`with_vtrace`). Leaves out the loss (the algorithm), and how a rollout travels (`asynchronous.py`).
"""

# T time, S seeds, B environments per seed, N = T·B samples per seed, P parameters
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telescope.control.asynchronous import VTraceConfig
from telescope.control.experience.credit import Batch, memories, recalled
from telescope.control.experience.rollout import Finals, Rollout
from telescope.control.experience.samples import final_values, live_mask, per_seed, time_major
from telescope.estimators import next_values, vtrace


def behaviour(config: VTraceConfig, session: Any) -> Callable[[Rollout], dict[str, Any]]:
    """In an actor: return the function from a rollout to what is sent, the rollout and log μ(a|s) of its actions."""

    def of(rollout: Rollout) -> dict[str, Any]:
        rollout = recalled(session, session.parameters, rollout)  # as the learner does, so that equal ones have ratio 1
        masks = None if rollout.action_masks is None else per_seed(rollout.action_masks)
        taken = per_seed(rollout.observations), per_seed(rollout.actions), masks, memories(rollout)[0]
        log_probs, _ = session.evaluate(*taken)  # [S, N]
        return {"rollout": packed(rollout), "log_probs": log_probs.cpu().numpy()}

    return of


def packed(rollout: Rollout) -> dict[str, Any]:
    """A rollout as a nested dictionary of NumPy arrays; what lies on another device stays there."""

    def own(part: Any) -> dict[str, Any]:
        return {
            name: x.numpy() if isinstance(x, Tensor) and x.device.type == "cpu" else x
            for name, x in part._asdict().items()
        }

    return {**own(rollout), "finals": own(rollout.finals)}


def unpacked(sent: Mapping[str, Any]) -> tuple[Rollout, Tensor]:
    """What `behaviour` sent as a rollout [T, S, B, …] and log μ(a|s) [S, N].

    All arrays are copies: those of another process are read-only, and torch's allocator aligns its own.
    """
    finals = {name: np.array(x) if isinstance(x, np.ndarray) else x for name, x in sent["rollout"]["finals"].items()}
    tensors: dict[str, Any] = {
        name: torch.tensor(x) if isinstance(x, np.ndarray) else x
        for name, x in sent["rollout"].items()
        if name != "finals"
    }
    log_probs = torch.tensor(sent["log_probs"]).to(tensors["rewards"].device)
    return Rollout(**tensors, finals=Finals(**finals)), log_probs


def with_vtrace(
    config: VTraceConfig, session: Any, rollout: Rollout, behaviour: Tensor, parameters: Tensor
) -> tuple[Batch, dict[str, np.ndarray]]:
    """The rollout as samples [S, N, …] with targets and advantages for π and V of these parameters [S, P].

    Each sample's `log_probs` are those of the behaviour μ. A memory is that of these parameters, from the behaviour's
    before the first step. Also returns columns: the shares of clipped ratios.
    """

    def value(observations: Tensor, memory: Tensor | None = None) -> Tensor:  # [S, N]
        return session.agents.value(parameters, *session.to_device((observations, memory)))  # type: ignore[no-any-return]

    rollout = recalled(session, parameters, rollout)
    memory, begins = memories(rollout)
    samples = (rollout.observations, rollout.actions, rollout.mask)
    observations, actions, live = map(per_seed, samples)  # [S, N, …]
    masks = None if rollout.action_masks is None else per_seed(rollout.action_masks)
    log_probs, values = session.agents.evaluate(parameters, *session.to_device((observations, actions, masks, memory)))
    device = rollout.rewards.device
    log_ratios = log_probs.to(device) - behaviour if config.correction == "vtrace" else torch.zeros_like(behaviour)
    flags: dict[str, Any] = {
        "terminated": rollout.terminated,
        "truncated": rollout.truncated,
        "mask": live_mask(rollout),
    }
    judged = time_major(values.to(device), config.num_envs)  # [T, S, B]
    last = value(rollout.last_observations, rollout.last_memory).to(device)  # [S, B]
    reached = next_values(judged, last, final_values=final_values(rollout, value), **flags)
    bounds: dict[str, Any] = {"rho_clip": config.rho_clip, "c_clip": config.c_clip, "pg_rho_clip": config.rho_clip}
    targets, advantages = vtrace(
        rollout.rewards,
        judged,
        reached,
        log_ratios=time_major(log_ratios, config.num_envs),
        gamma=config.gamma,
        lam=config.lam,
        **bounds,
        **flags,
    )
    learned = per_seed(advantages), per_seed(targets), live, masks, memory, begins
    batch = Batch(observations, actions, behaviour, values.to(device), *learned)
    clipped = {
        "rho_clipped": clipped_share(log_ratios, live, config.rho_clip),
        "c_clipped": clipped_share(log_ratios, live, config.c_clip),
    }
    return session.to_device(batch), clipped


def clipped_share(log_ratios: Tensor, live: Tensor, bound: float | None) -> np.ndarray:
    """The share [S] of live samples [S, N] whose ratio is above the bound."""
    if bound is None:
        return np.zeros(len(live))
    above = (log_ratios > math.log(bound)) & live
    return (above.sum(1) / live.sum(1).clamp(min=1)).cpu().numpy()  # type: ignore[no-any-return]

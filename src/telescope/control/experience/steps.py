"""One step of all environments as an algorithm learns from it at once, without rollout or replay.

Leaves out the update (the algorithm's file).
"""

# S seeds, B environments per seed, A actions
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """One step of one agent's environments; those of the population have S in front."""

    observations: Tensor  # [B, D] as the policy saw them
    actions: Tensor  # [B, …]
    rewards: Tensor  # [B] scaled if the run scales rewards
    terminated: Tensor  # [B] bool
    truncated: Tensor  # [B] bool
    live: Tensor  # [B] bool, False on the row that a NEXT_STEP autoreset inserts
    next_observations: Tensor  # [B, D] of the state that the step led to
    action_masks: Tensor | None  # [B, A] bool, True = allowed
    next_masks: Tensor | None  # [B, A] bool, actions allowed there


def step_of(session: Any, noise: np.ndarray, t: int) -> Batch:
    """Play step t of this iteration in all environments: what was seen, done and reached [S, B, …]."""
    rollouts = session.rollouts
    seen, masks = rollouts.seen
    played = session.play(noise, t)
    rewards = rollouts.scaler(played.rewards, played.terminated | played.truncated, played.mask)
    batch = Batch(
        observations=torch.from_numpy(seen),
        actions=torch.tensor(played.actions),
        rewards=torch.from_numpy(np.float32(rewards)),
        terminated=torch.tensor(played.terminated),
        truncated=torch.tensor(played.truncated),
        live=torch.tensor(played.mask),
        next_observations=torch.tensor(rollouts.normaliser(played.next_observations)),
        action_masks=None if masks is None else torch.from_numpy(masks),
        next_masks=None if played.next_masks is None else torch.from_numpy(played.next_masks),
    )
    return session.to_device(batch)  # type: ignore[no-any-return]

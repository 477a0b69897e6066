"""Where sampler and trainer disagree: the trainer's own log-probabilities, and weights for what the sampler drew.

The formula is `off_policy_weights` in `policy_loss.py`. It leaves out why they disagree: other kernels, another
precision, another engine.
"""

# B completions of T tokens
from __future__ import annotations

import dataclasses
import math

from torch import Tensor

from telescope.language.config import RolloutConfig
from telescope.language.experience.rollout import Rollout, RolloutSession
from telescope.objectives.loss import mismatch, off_policy_weights
from telescope.objectives.rows import Correction, Objective

OFF_POLICY_STATISTICS = ("off_policy_weight", "off_policy_bounded")


def with_correction(objective: Objective, config: RolloutConfig) -> Objective:
    """The row, with the correction that the config puts in place of its own."""
    cap = config.off_policy_cap
    if config.off_policy == "truncate":
        return dataclasses.replace(objective, correction=Correction(high=cap))
    if config.off_policy == "mask":
        return dataclasses.replace(objective, correction=Correction(outside="drop", low=1 / cap, high=cap))
    return objective


def corrected(session: RolloutSession, rollout: Rollout) -> tuple[Rollout, dict[str, float]]:
    """The rollout with the trainer's log-probabilities in the sampler's place, and with weights π_old/π_sampler.

    That takes one more pass; without a correction in the objective it is the rollout as it is. The statistics are
    `sampler_mismatch`, the mean weight, and the share of tokens whose weight the bounds have changed.
    """
    correction, completions = session.objective.correction, rollout.completions
    if correction is None:
        return rollout, {}
    old, sampler, mask = session.all_log_probs(rollout), completions.log_probs, completions.mask
    weights = off_policy_weights(correction, old, sampler, mask)
    free = dataclasses.replace(correction, decision=correction.weight, outside="clamp", low=0.0, high=math.inf)
    bounded = weights != off_policy_weights(free, old, sampler, mask)
    statistics = {
        "sampler_mismatch": float(mismatch(old, sampler, mask)["max_difference"]),
        "off_policy_weight": _mean(weights, mask),
        "off_policy_bounded": _mean(bounded, mask),
    }
    return rollout._replace(completions=completions._replace(log_probs=old), correction=weights), statistics


def _mean(x: Tensor, mask: Tensor) -> float:
    """Over live tokens."""
    return float(x[mask].float().mean())

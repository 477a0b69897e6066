"""Off-policy correction where sampler and trainer disagree: the trainer's log-probabilities, and weights of tokens.

The formula is `off_policy_weights` in `objectives/loss.py`. Leaves out why they disagree: other kernels, another
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
    """The row, with the config's correction if it sets one."""
    cap = config.off_policy_cap
    if config.off_policy == "truncate":
        return dataclasses.replace(objective, correction=Correction(high=cap))
    if config.off_policy == "mask":
        return dataclasses.replace(objective, correction=Correction(outside="drop", low=1 / cap, high=cap))
    return objective


def corrected(session: RolloutSession, rollout: Rollout) -> tuple[Rollout, dict[str, float]]:
    """The rollout with the trainer's log-probabilities instead of the sampler's, and with weights π_old/π_sampler.

    This takes one more forward pass. Without a correction in the objective the rollout is unchanged. Statistics are
    `sampler_mismatch`, the mean weight, and the share of tokens whose weight was bounded.
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
    """The mean over live tokens."""
    return float(x[mask].float().mean())

"""The λ of a rollout's advantages, as the field `lam_rule` says.

The rules themselves are in `estimators/lambdas.py`. Nothing is remembered: a rule sees one rollout and its values.
"""

# T time, S seeds, B environments per seed
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from telescope.control.config import OnPolicyConfig
from telescope.estimators import discounted_return, end_corrected, from_explained_variance
from telescope.metrics import explained_variance


def chosen_lam(
    config: OnPolicyConfig, rewards: Tensor, values: Tensor, next_values: Tensor, ends: dict[str, Any]
) -> float | Tensor:
    """λ as one number, or [T, S, B] from a rule, for arrays [T, S, B]. `ends`: terminated, truncated, mask."""
    if config.lam_rule == "constant":
        return config.lam
    if config.lam_rule == "end_corrected":
        return end_corrected(values, **ends, lam=config.lam)  # type: ignore[no-any-return]
    returns = discounted_return(rewards, next_values, **ends, gamma=config.gamma)  # λ = 1: what the critic aims at
    live = None if ends["mask"] is None else ends["mask"].cpu()
    explained = explained_variance(values.cpu(), returns.cpu(), live, axis=(0, 2))  # [S]
    lam = from_explained_variance(explained, low=config.lam_low, high=config.lam)
    return torch.from_numpy(lam).to(values)[:, None].expand_as(values)

"""What a critic learns: the loss of its outputs, for every actor–critic on rollouts.

Leaves out its targets (`telescope.control.experience.credit`) and the formulas themselves (`telescope.losses`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from telescope.control.config import OnPolicyConfig
from telescope.losses import clipped_value_loss, quantile_huber_loss, squared_value_loss


def critic_loss(config: OnPolicyConfig, outputs: Tensor, batch: Any) -> Tensor:
    """The critic's loss [M] of one agent's samples, to be minimised.

    A value critic's outputs [M] have the squared error to the returns, with `value_clip` the clipped one. A quantile
    critic's outputs [M, Q] have the quantile-Huber loss to the targets [M, Q].
    """
    if config.critic == "quantile":
        return quantile_huber_loss(outputs, batch.targets, config.quantile_huber)
    clip = getattr(config, "value_clip", None)
    if clip is None:
        return squared_value_loss(outputs, batch.returns)
    return clipped_value_loss(outputs, batch.values, batch.returns, clip)

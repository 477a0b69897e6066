"""Running statistics of `normalisation.py` as tensors on a simulator's device.

Leaves out what is saved, and what evaluations use: these are NumPy arrays, which take over the numbers after each
rollout.
"""

# S seeds, B environments per seed
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from telescope.control.experience.normalisation import (
    EPSILON,
    ObservationNormaliser,
    RewardScaler,
    RunningMoments,
    joined,
)


class TensorMoments:
    """Mean and biased variance per seed [S, *shape], in float64, which begin as those of `host`."""

    def __init__(self, host: RunningMoments, device: torch.device) -> None:
        self.host = host
        self.moments: Any = {name: torch.tensor(x, device=device) for name, x in host.state().items()}
        self._refresh()

    def _refresh(self) -> None:
        self.scale = 1 / torch.sqrt(self.moments["variance"] + EPSILON)

    def update(self, x: Tensor, live: Tensor) -> None:
        """Update the statistics with a batch x [S, B, *shape] where live [S, B]."""
        counts = live.reshape(*live.shape, *(1,) * (x.ndim - 2))  # [S, B, 1, …]
        numbers, n = torch.where(counts, x, 0).double(), counts.sum(1).double()
        mean = numbers.sum(1) / n.clamp(min=1)
        spread = torch.where(counts, numbers - mean[:, None], 0).square().sum(1)
        seen: dict[str, Any] = {"mean": mean, "variance": spread / n.clamp(min=1), "count": n}
        self.moments = joined(self.moments, seen)
        self._refresh()

    def report(self) -> None:
        """Write the statistics into the host's."""
        self.host.restore({name: x.cpu().numpy() for name, x in self.moments.items()})


class TensorNormaliser:
    """The tensors' side of an `ObservationNormaliser`."""

    def __init__(self, host: ObservationNormaliser, device: torch.device) -> None:
        self.host = host
        self.active = host.enabled and host.floats != 0
        self.moments = TensorMoments(host.moments, device) if self.active else None

    def update(self, observations: Tensor, mask: Tensor | None = None) -> None:
        """Update the statistics with observations [S, B, *shape]. mask [S, B] is True where the policy acts on them."""
        if self.moments is not None and not self.host.fixed:
            live = torch.ones(observations.shape[:2], dtype=torch.bool, device=observations.device)
            self.moments.update(self._floats(observations), live if mask is None else mask)

    def __call__(self, observations: Tensor) -> Tensor:
        """Normalise observations [S, B, *shape]: floats become float32, bytes stay."""
        if self.moments is None:
            return observations if observations.dtype == torch.uint8 else observations.float()
        numbers = self._floats(observations) - self.moments.moments["mean"][:, None]
        scaled = (numbers * self.moments.scale[:, None]).clamp(-self.host.clip, self.host.clip).float()
        if self.host.floats is None:
            return scaled
        rows = observations.clone()
        self._floats(rows)[...] = scaled
        return rows

    def _floats(self, rows: Tensor) -> Tensor:
        """The numbers that may be normalised, as a view where observations are rows of bytes."""
        return rows if self.host.floats is None else rows[..., : 4 * self.host.floats].view(torch.float32)

    def report(self) -> None:
        if self.moments is not None:
            self.moments.report()


class TensorScaler:
    """The tensors' side of a `RewardScaler`."""

    def __init__(self, host: RewardScaler, device: torch.device) -> None:
        self.host = host
        self.returns = torch.tensor(host.returns, device=device)
        self.moments = TensorMoments(host.moments, device) if host.enabled else None

    def __call__(self, rewards: Tensor, ended: Tensor, mask: Tensor) -> Tensor:
        """Scale rewards [S, B], after updating the statistics. `ended` [S, B] marks steps that end an episode."""
        if self.moments is None:
            return rewards
        self.returns = self.host.gamma * self.returns + rewards
        self.moments.update(self.returns, mask)
        self.returns = self.returns.masked_fill(ended, 0.0)
        return (rewards * self.moments.scale[:, None]).clamp(-self.host.clip, self.host.clip)

    def report(self) -> None:
        if self.moments is not None:
            self.moments.report()
            self.host.returns = self.returns.cpu().numpy().copy()

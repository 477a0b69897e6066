"""What a policy does in a state, for means over its actions: one sample, or each discrete action by its probability.

Leaves out how actions become outputs of a network and numbers of an environment (`distributions.py`, `actions.py`).
"""

# M samples, A components of an action or number of actions, K 1 or A
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope.control.agents.distributions import (
    Distribution,
    categorical,
    log_probabilities,
    squashed_gaussian,
    squashed_sample,
)
from telescope.control.environments.spaces import PackedActions


def soft_head(action_space: gym.Space) -> Distribution:
    """tanh of a Gaussian in a Box, softmax in a Discrete space; a ValueError for any other."""
    if isinstance(action_space, gym.spaces.Discrete):
        return categorical(int(action_space.n))
    if not isinstance(action_space, gym.spaces.Box) or isinstance(action_space, PackedActions):
        raise ValueError(f"action_space is {action_space}; sac expects Box or Discrete (try ppo)")
    return squashed_gaussian(action_space.shape)


class Choice(NamedTuple):
    """One action of weight 1 in each state (K = 1), or all actions, each of its probability (K = A)."""

    actions: Tensor | None  # [M, A] in −1 … 1; None: all of them
    probabilities: Tensor  # [M, K]
    log_probs: Tensor  # [M, K]

    def mean(self, values: Tensor) -> Tensor:
        """Σ_a π(a|s) x(a) [M] of values [M, K]; of a sample the value itself, which estimates it without bias."""
        return (self.probabilities * values).sum(-1)

    @property
    def entropy(self) -> Tensor:
        """−Σ_a π(a|s) log π(a|s) [M], without gradient; of a sample −log π, which estimates it without bias."""
        return -self.mean(self.log_probs).detach()


def chosen(outputs: Tensor, noise: Tensor | None, masks: Tensor | None) -> Choice:
    """The choice of a policy with these outputs [M, …]: a squashed Gaussian with `noise` [M, A], softmax without it."""
    if noise is not None:
        actions, log_probs = squashed_sample(outputs, noise)
        return Choice(actions, torch.ones_like(log_probs)[:, None], log_probs[:, None])
    log_probs = log_probabilities(outputs, masks)
    return Choice(None, log_probs.exp(), log_probs)


def sampling_noise(
    distribution: Distribution, samplers: Sequence[np.random.Generator], minibatch_size: int
) -> Tensor | None:
    """Noise [S, 2, M, A] of actions in the states of minibatches and in those that follow; None for discrete ones."""
    if not distribution.continuous:
        return None
    noise = [distribution.noise(rng, (2, minibatch_size)) for rng in samplers]
    return torch.from_numpy(np.stack(noise)).clone()  # in torch's alignment, so that sums round alike everywhere


def usual_entropy(distribution: Distribution, share: float, masks: Tensor | None) -> Tensor | float:
    """−dim(A) of actions in −1 … 1; `share` of the largest entropy log |A| of discrete ones, [M] of those allowed."""
    if distribution.continuous:
        return -distribution.outputs / 2
    if masks is None:
        return share * math.log(distribution.outputs)
    return share * masks.sum(-1).log()

"""An actor–critic: a network and an action distribution, as functions of one agent's flat parameter vector.

Everything here is written for one agent; `population.lift` makes it run for all seeds at once.
"""

# N observations, D observation size, P parameters
from __future__ import annotations

from typing import NamedTuple

import gymnasium as gym
from torch import Tensor

from telescope.control.config import OnPolicyConfig
from telescope.control.distributions import Distribution, distribution
from telescope.control.networks import Network, mlp
from telescope.control.population import Layout


class ActorCritic(NamedTuple):
    """π(a|s) and V(s) of one agent, whose parameters `layout` finds in a vector [P]."""

    network: Network
    distribution: Distribution
    layout: Layout

    def act(self, vector: Tensor, observations: Tensor, noise: Tensor, masks: Tensor | None) -> Tensor:
        """Actions sampled with `noise`."""
        return self.distribution.sample(self._policy(vector, observations), noise, masks)

    def mode(self, vector: Tensor, observations: Tensor, masks: Tensor | None) -> Tensor:
        """The most probable actions."""
        return self.distribution.mode(self._policy(vector, observations), masks)

    def evaluate(
        self, vector: Tensor, observations: Tensor, actions: Tensor, masks: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log π(a|s) [N], entropy [N] and V(s) [N]."""
        outputs, values = self.network.apply(self.layout.unflatten(vector), observations)
        log_probs = self.distribution.log_prob(outputs, actions, masks)
        return log_probs, self.distribution.entropy(outputs, masks), values

    def value(self, vector: Tensor, observations: Tensor) -> Tensor:
        """V(s) [N]."""
        return self.network.apply(self.layout.unflatten(vector), observations)[1]

    def _policy(self, vector: Tensor, observations: Tensor) -> Tensor:
        parameters = self.layout.unflatten(vector)
        if self.network.policy is not None:
            return self.network.policy(parameters, observations)
        return self.network.apply(parameters, observations)[0]


def default_network(config: OnPolicyConfig, observation_size: int, action_space: gym.Space) -> Network:
    """The perceptrons that the config describes, for this action space."""
    actions = distribution(action_space)
    return mlp(
        observation_size,
        actions.outputs,
        hidden=config.hidden,
        activation=config.activation,
        log_std=config.log_std if actions.continuous else None,
        shared=config.shared_network,
    )

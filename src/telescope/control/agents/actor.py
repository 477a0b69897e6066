"""An actor–critic: a network and an action distribution, as functions of one agent's flat parameter vector.

Everything in `ActorCritic` is written for one agent; `Agents` makes it run for all seeds at once.
"""

# S seeds, N observations, D observation size, P parameters
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope.arrays import Array
from telescope.checks import fits_memory
from telescope.control.agents.distributions import Distribution, distribution
from telescope.control.agents.layout import Layout
from telescope.control.agents.lifting import lift
from telescope.control.agents.networks import Network, mlp
from telescope.control.config import OnPolicyConfig

Act = Callable[..., np.ndarray]
"""act(observations [S, N, D], noise [S, N, …], masks) → actions [S, N, …], all of them NumPy arrays"""


BLOCK = 2048
"""Samples, of all seeds together, that are evaluated at a time: 64 numbers of each are half a megabyte."""


class ActorCritic(NamedTuple):
    """π(a|s) and V(s) of one agent, whose parameters `layout` finds in a vector [P].

    Where the network broadcasts, the same functions take all agents at once: [S, P] and [S, N, D], NumPy too.
    """

    network: Network
    distribution: Distribution
    layout: Layout

    def act(self, vector: Array, observations: Array, noise: Array | None, masks: Array | None) -> Array:
        """Actions sampled with `noise`; without it the most probable ones."""
        return self.choose(self.policy(self.layout.unflatten(vector), observations), noise, masks)

    def choose(self, outputs: Array, noise: Array | None, masks: Array | None) -> Array:
        """The same from the policy outputs."""
        if noise is None:
            return self.distribution.mode(outputs, masks)
        return self.distribution.sample(outputs, noise, masks)

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

    def policy(self, parameters: dict[str, Array], observations: Array) -> Array:
        """The policy outputs [N, K]."""
        if self.network.policy is not None:
            return self.network.policy(parameters, observations)
        return self.network.apply(parameters, observations)[0]


class Agents:
    """An `ActorCritic` for the whole population: directly where its network broadcasts, else lifted by vmap."""

    def __init__(self, agent: ActorCritic, *, compiled: bool = False) -> None:
        self.agent = agent
        self._broadcasts = agent.network.broadcasts
        self._evaluate = self._for_all(agent.evaluate, (0, 0, 0, 0))
        self._value = self._for_all(agent.value, (0, 0))
        self._act = self._for_all(agent.act, (0, 0, 0, 0), compiled)

    def _for_all(self, function: Any, in_dims: tuple[int, ...], compiled: bool = False) -> Any:
        return function if self._broadcasts else lift(function, in_dims, compiled=compiled)

    @torch.no_grad()
    def evaluate(
        self, parameters: Tensor, observations: Tensor, actions: Tensor, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """log π(a|s) and V(s) [S, N], without gradient."""
        blocks = [self._evaluate(parameters, *block)[::2] for block in self._blocks(observations, actions, masks)]
        log_probs, values = (torch.cat(parts, dim=1) for parts in zip(*blocks, strict=True))
        return log_probs, values

    @torch.no_grad()
    def value(self, parameters: Tensor, observations: Tensor) -> Tensor:
        """V(s) [S, N], without gradient."""
        return torch.cat([self._value(parameters, *block) for block in self._blocks(observations)], dim=1)

    def _blocks(self, *samples: Tensor | None) -> Iterator[list[Tensor | None]]:
        """The samples [S, N, …] in pieces whose activations fit a CPU's cache; whole where a call costs more."""
        first: Any = samples[0]
        seeds, count = first.shape[:2]
        rows = max(64, BLOCK // seeds) if self._broadcasts and not first.is_cuda else max(count, 1)
        for start in range(0, max(count, 1), rows):
            yield [None if x is None else x[:, start : start + rows] for x in samples]

    def actor(self, parameters: Tensor) -> Act:
        """The policies with these parameters [S, P], read once, as a function of NumPy arrays.

        A perceptron's arithmetic takes a few microseconds, so where the network broadcasts it is NumPy's on the CPU,
        wherever the parameters live: a tensor library spends several times as long on finding its kernels.
        """
        if self._broadcasts:
            named = self.agent.layout.unflatten(parameters.cpu().numpy())
            return lambda observations, noise, masks: self.agent.choose(
                self.agent.policy(named, observations), noise, masks
            )

        @torch.no_grad()
        def act(*inputs: np.ndarray | None) -> np.ndarray:
            tensors = [None if x is None else torch.tensor(x).to(parameters.device) for x in inputs]
            return self._act(parameters, *tensors).cpu().numpy()  # type: ignore[no-any-return]

        return act


def default_network(config: OnPolicyConfig, observation_size: int, action_space: gym.Space) -> Network:
    """The perceptrons that the config describes, for this action space."""
    actions = distribution(action_space)
    widths = (observation_size, *config.hidden, actions.outputs)
    weights = (1 if config.shared_network else 2) * sum(a * b for a, b in itertools.pairwise(widths))
    # weights, their gradient, and Adam's two moments
    fits_memory(4 * config.seeds * weights, f"hidden is {config.hidden}, so the networks of {config.seeds} seeds need")
    return mlp(
        observation_size,
        actions.outputs,
        hidden=config.hidden,
        activation=config.activation,
        log_std=config.log_std if actions.continuous else None,
        shared=config.shared_network,
    )

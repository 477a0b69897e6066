"""An actor–critic: a network and an action distribution, as functions of one agent's flat parameter vector.

Everything in `ActorCritic` is written for one agent; `Agents` makes it run for all seeds at once.
"""

# S seeds, N observations, D observation size, P parameters
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
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
from telescope.control.agents.memory import unroll
from telescope.control.agents.networks import Network, mlp
from telescope.control.agents.stacking import stacked
from telescope.control.config import PolicyConfig

Act = Callable[..., tuple[np.ndarray, np.ndarray | None]]
"""act(observations [S, N, D], memory [S, N, H] or None, noise [S, N, …], masks) → actions [S, N, …] and the new memory,
all of them NumPy arrays"""


BLOCK = 2048
"""Samples of all seeds per evaluation call. 64 numbers of each are half a megabyte, which fits a cache."""
PICTURES = 512
"""The same of pictures, of which a convolution makes more numbers."""


class ActorCritic(NamedTuple):
    """π(a|s) and V(s) of one agent. `layout` finds its parameters in a vector [P].

    If the network broadcasts, the same functions take all agents at once: [S, P] and [S, N, D], also as NumPy arrays.
    `seen` is the result of `see`: the observations, or the new memory of a network with a memory.
    """

    network: Network
    distribution: Distribution
    layout: Layout

    def see(self, vector: Array, observations: Array, memory: Array | None) -> Array:
        """The inputs of the heads: the observations [N, D], or the new memory [N, H]."""
        if self.network.remember is None:
            return observations
        return self.network.remember(self.layout.unflatten(vector), observations, memory)  # type: ignore[arg-type]

    def unroll(self, vector: Tensor, observations: Tensor, memory: Tensor, begins: Tensor) -> Tensor:
        """The same for sequences, [T, M, H]; see `telescope.control.agents.memory.unroll`."""
        assert self.network.remember is not None
        named = self.layout.unflatten(vector)
        if self.network.unroll is not None:
            return self.network.unroll(named, observations, memory, begins)  # type: ignore[arg-type]
        return unroll(partial(self.network.remember, named), observations, memory, begins)

    def step(
        self, vector: Tensor, observations: Tensor, memory: Tensor | None, begins: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """From observations [N, D] to policy outputs, values and the new memory [N, W] (None without a memory).

        Episodes begin, with a memory of zeros, where begins [N] is True.
        """
        if memory is not None and begins is not None:
            memory = torch.where(begins[:, None], 0.0, memory)
        seen = self.see(vector, observations, memory)
        outputs, values = self.network.apply(self.layout.unflatten(vector), seen)  # type: ignore[arg-type]
        return outputs, values, None if memory is None else seen  # type: ignore[return-value]

    def act(self, vector: Array, seen: Array, noise: Array | None, masks: Array | None) -> Array:
        """Actions [N, …] sampled with `noise`; the most probable ones without it."""
        return self.choose(self.policy(self.layout.unflatten(vector), seen), noise, masks)

    def choose(self, outputs: Array, noise: Array | None, masks: Array | None) -> Array:
        """The same from policy outputs [N, K]."""
        if noise is None:
            return self.distribution.mode(outputs, masks)
        return self.distribution.sample(outputs, noise, masks)

    def evaluate(
        self, vector: Tensor, seen: Tensor, actions: Tensor, masks: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log π(a|s) [N], entropy [N] and the critic's outputs: V(s) [N], or its quantiles [N, Q]."""
        outputs, values = self.network.apply(self.layout.unflatten(vector), seen)
        log_probs = self.distribution.log_prob(outputs, actions, masks)
        return log_probs, self.distribution.entropy(outputs, masks), values

    def value(self, vector: Tensor, seen: Tensor) -> Tensor:
        """The critic's outputs: V(s) [N], or its quantiles [N, Q]."""
        parameters = self.layout.unflatten(vector)
        if self.network.value is not None:
            return self.network.value(parameters, seen)
        return self.network.apply(parameters, seen)[1]

    def policy(self, parameters: dict[str, Array], seen: Array) -> Array:
        """The policy outputs [N, K]."""
        if self.network.policy is not None:
            return self.network.policy(parameters, seen)
        return self.network.apply(parameters, seen)[0]


class Agents:
    """An `ActorCritic` for the whole population. It is lifted by vmap unless its network broadcasts."""

    def __init__(
        self,
        agent: ActorCritic,
        *,
        compiled: bool = False,
        cuda_graph: bool = False,
        notes: list[str] | None = None,
    ) -> None:
        self.agent, self._notes = agent, notes
        self._mode = {"compiled": compiled, "cuda_graph": cuda_graph}
        self._broadcasts = agent.network.broadcasts
        self._see = self._for_all(agent.see, (0, 0, 0), compiled)
        self._evaluate = self._for_all(agent.evaluate, (0, 0, 0, 0))
        self._value = self._for_all(agent.value, (0, 0))
        self._act = self._for_all(agent.act, (0, 0, 0, 0), compiled)
        self._latest: tuple[Tensor, Act] | None = None
        self._lifted: Any = None

    def _for_all(self, function: Any, in_dims: tuple[int, ...], compiled: bool = False) -> Any:
        return function if self._broadcasts else lift(function, in_dims, compiled=compiled, notes=self._notes)

    @torch.no_grad()
    def evaluate(
        self,
        parameters: Tensor,
        observations: Tensor,
        actions: Tensor,
        masks: Tensor | None,
        memory: Tensor | None = None,
        frames: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """log π(a|s) [S, N] and the critic's outputs [S, N, …], without gradient. `memory` [S, N, H] precedes each.

        With `frames` [S, F, …] observations are the places [S, N, K] of stacks.
        """
        blocks = [
            self._evaluate(parameters, self.see(parameters, stacked(frames, seen), before), *rest)[::2]
            for seen, before, *rest in self._blocks(observations, memory, actions, masks)
        ]
        log_probs, values = (torch.cat(parts, dim=1) for parts in zip(*blocks, strict=True))
        return log_probs, values

    @torch.no_grad()
    def value(
        self, parameters: Tensor, observations: Tensor, memory: Tensor | None = None, frames: Tensor | None = None
    ) -> Tensor:
        """The critic's outputs [S, N, …], without gradient. `memory` [S, N, H] precedes each observation."""
        blocks = [
            self._value(parameters, self.see(parameters, stacked(frames, seen), before))
            for seen, before in self._blocks(observations, memory)
        ]
        return torch.cat(blocks, dim=1)

    def see(self, parameters: Tensor, observations: Tensor, memory: Tensor | None) -> Tensor:
        """The inputs of the heads: the observations [S, N, D], or the new memory [S, N, H]."""
        return observations if memory is None else self._see(parameters, observations, memory)  # type: ignore[no-any-return]

    @torch.no_grad()
    def unroll(self, parameters: Tensor, observations: Tensor, memory: Tensor, begins: Tensor) -> Tensor:
        """The memory after each step [T, S, N, W] of sequences that begin with `memory` [S, N, W], without gradient."""
        return unroll(partial(self.see, parameters), observations, memory, begins)

    def _blocks(self, *samples: Tensor | None) -> Iterator[list[Any]]:
        """The samples [S, N, …] in pieces whose activations fit a CPU's cache; in one piece where calls are slow."""
        first: Any = samples[0]
        seeds, count = first.shape[:2]
        rows = max(count, 1)
        if not first.is_cuda and (self._broadcasts or self.agent.network.pictures):
            rows = max(64, (PICTURES if self.agent.network.pictures else BLOCK) // seeds)
        for start in range(0, max(count, 1), rows):
            yield [None if x is None else x[:, start : start + rows] for x in samples]

    def actor(self, parameters: Tensor) -> Act:
        """Return the policies with these parameters [S, P] as a function of NumPy arrays. Reads the parameters once.

        The same tensor again gives the same function: no update changes a tensor in place.

        A perceptron's arithmetic takes a few microseconds; torch spends several times as long on finding its kernels.
        So a network that broadcasts runs in NumPy on the CPU, wherever the parameters are.
        """
        if self._latest is None or self._latest[0] is not parameters:
            self._latest = parameters, self._actor(parameters)
        return self._latest[1]

    def tensor_actor(self, parameters: Tensor) -> Callable[..., tuple[Tensor, Tensor | None]]:
        """The same as a function of tensors on the parameters' device, which it never leaves."""
        if self._lifted is None:

            def act(vector: Tensor, observations: Tensor, memory: Tensor | None, noise: Tensor, masks: Any) -> Any:
                seen = self.agent.see(vector, observations, memory)
                actions = self.agent.act(vector, seen, noise, masks)
                return (actions,) if memory is None else (actions, seen)

            self._lifted = lift(act, (0, 0, 0, 0, 0), **self._mode, notes=self._notes)  # type: ignore[arg-type]

        @torch.no_grad()
        def act_with_tensors(*inputs: Tensor | None) -> tuple[Tensor, Tensor | None]:
            actions, *memory = self._lifted(parameters, *inputs)
            return actions, memory[0] if memory else None

        return act_with_tensors

    def _actor(self, parameters: Tensor) -> Act:
        if self._broadcasts:
            named = self.agent.layout.unflatten(parameters.cpu().numpy())
            remember = self.agent.network.remember

            def act_in_numpy(observations: Any, memory: Any, noise: Any, masks: Any) -> tuple[Any, Any]:
                seen = observations if remember is None else remember(named, observations, memory)
                return self.agent.choose(self.agent.policy(named, seen), noise, masks), remember and seen

            return act_in_numpy

        @torch.no_grad()
        def act(*inputs: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
            tensors = [None if x is None else torch.tensor(x).to(parameters.device) for x in inputs]
            observations, memory, *rest = tensors
            assert observations is not None
            seen = self.see(parameters, observations, memory)
            return self._act(parameters, seen, *rest).cpu().numpy(), None if memory is None else seen.cpu().numpy()

        return act


def default_network(
    config: PolicyConfig, observation_size: int, action_space: gym.Space, *, critic_outputs: int = 0
) -> Network:
    """The perceptrons that the config describes, for this action space.

    With `critic_outputs` the critic returns that many numbers for each state, and not one.
    """
    actions = distribution(action_space)
    widths = (observation_size, *config.hidden, actions.outputs)
    correction = getattr(config, "critic", None) == "gradient"
    trunks = (1 if config.shared_network else 2) + correction
    weights = trunks * sum(a * b for a, b in itertools.pairwise(widths))
    # weights, their gradient, and Adam's two moments
    fits_memory(4 * config.seeds * weights, f"hidden is {config.hidden}, so the networks of {config.seeds} seeds need")
    return mlp(
        observation_size,
        actions.outputs,
        hidden=config.hidden,
        activation=config.activation,
        log_std=config.log_std if actions.scales else None,
        scales=actions.scales,
        shared=config.shared_network,
        critic_outputs=critic_outputs or config.critic_outputs,
        correction=correction,
    )

"""A memory of the episode so far: a GRU in front of any network, and its unrolling over a rollout.

A network with a memory takes one more array, memory [N, H], and its heads read the new memory instead of the
observation. An episode begins with a memory of zeros. Leaves out carrying the memory from step to step, which a
rollout, an evaluation and `telescope.policy.Player` do.
"""

# N observations, D observation size, H memory size, T time
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from telescope.arrays import Array
from telescope.control.agents.networks import ACTIVATIONS, Network, Parameters, affine, linear


def with_memory(network: Network, observation_size: int, size: int) -> Network:
    """Put a GRU of `size` units in front of `network`, which then reads the memory instead of the observation.

    h' = (1 − z) n + z h, with z and r = σ(W x + U h + b) and n = tanh(W x + b + r (U h + c)) (Cho et al. 2014, arXiv
    1406.1078, with the reset gate after the product, as in cuDNN). Weights are orthogonal with gain 1, biases are zero.
    """
    tanh = ACTIVATIONS["tanh"]

    def init(rng: np.random.Generator) -> Parameters:
        parameters: Parameters = {}
        linear(parameters, "memory.input", observation_size, 3 * size, 1.0, rng)
        linear(parameters, "memory.hidden", size, 3 * size, 1.0, rng)
        return parameters | network.init(rng)

    def remember(parameters: Parameters, observations: Array, memory: Array) -> Array:
        x = affine(parameters, "memory.input", observations)  # [N, 3H]: reset gate, update gate, new memory
        h = affine(parameters, "memory.hidden", memory)  # [N, 3H]
        gates = 0.5 + 0.5 * tanh(0.5 * (x[..., : 2 * size] + h[..., : 2 * size]))  # σ(y) = ½ + ½ tanh(½ y)
        reset, update = gates[..., :size], gates[..., size:]
        new = tanh(x[..., 2 * size :] + reset * h[..., 2 * size :])
        return new + update * (memory - new)

    return network._replace(init=init, remember=remember, memory=size)


def unroll(
    remember: Callable[[Tensor, Tensor], Tensor], observations: Tensor, memory: Tensor, begins: Tensor
) -> Tensor:
    """The memory after each step [T, M, H], from observations [T, M, D] and the memory [M, H] before the first step.

    `remember(observations [M, D], memory [M, H])` returns the next memory. An episode begins, with a memory of zeros,
    where begins [T, M] is True. Gradients flow through time within an episode, not into the memory before the first
    step.
    """
    after = []
    for seen, begin in zip(observations.unbind(0), begins.unbind(0), strict=True):
        memory = remember(seen, torch.where(begin[:, None], 0.0, memory))
        after.append(memory)
    return torch.stack(after)

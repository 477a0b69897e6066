"""A memory of the episode so far: a GRU or an LSTM in front of any network, and its unrolling over a rollout.

A network with a memory takes one more array, memory [N, W], and its heads read the new memory instead of the
observation. An episode begins with a memory of zeros. Leaves out carrying the memory from step to step, which a
rollout, an evaluation and `telescope.policy.Player` do.
"""

# N observations, D observation size, H units, C cells, W numbers of the memory of all cells, T time
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from telescope import arrays
from telescope.arrays import Array
from telescope.control.agents.networks import Network, Parameters, linear


class Cell(NamedTuple):
    """A recurrent cell: `step(x W + b, h U + c, state)` → the next state [N, states · H], whose first H numbers are h.

    Both sums have `gates` · H numbers.
    """

    step: Callable[[Array, Array, Array], Array]
    gates: int
    states: int
    keep: int
    """The place of the gate that keeps the state, among the gates."""


def gru_step(x: Array, u: Array, h: Array) -> Array:
    """h' = (1 − z) n + z h, with r and z = σ(x + u) and n = tanh(x + r u), each by its own third of x and u.

    Cho et al. 2014 (arXiv 1406.1078), with the reset gate r after the product, as in cuDNN.
    """
    size = h.shape[-1]
    (x_gates, x_new), (u_gates, u_new) = _split(x, 2 * size), _split(u, 2 * size)
    reset, update = _split(_sigmoid(x_gates + u_gates), size)
    new = _tanh(x_new + reset * u_new)
    return new + update * (h - new)


def lstm_step(x: Array, u: Array, state: Array) -> Array:
    """c' = σ(f) c + σ(i) tanh(g) and h' = σ(o) tanh(c'), with i, f, o, g the quarters of x + u. The state is h, then c.

    Hochreiter & Schmidhuber 1997, with the forget gate f of Gers et al. 2000 and without peepholes.
    """
    size = state.shape[-1] // 2
    gates, new = _split(x + u, 3 * size)
    entry, rest = _split(_sigmoid(gates), size)
    keep, out = _split(rest, size)
    c = keep * _split(state, size)[1] + entry * _tanh(new)
    return arrays.library("state", c).concatenate([out * _tanh(c), c], -1)


CELLS = {"gru": Cell(gru_step, gates=3, states=1, keep=1), "lstm": Cell(lstm_step, gates=4, states=2, keep=1)}
"""By the name that the setting `memory` has."""
SCALE = 50
"""The longest time scale of a new memory, in steps."""


def _split(x: Array, first: int) -> tuple[Array, Array]:
    """The first numbers of the last axis, and the others."""
    if isinstance(x, Tensor):  # no slices: the gradient of a split is one concatenation
        return torch.split(x, [first, x.shape[-1] - first], -1)  # type: ignore[return-value]
    return x[..., :first], x[..., first:]


def _tanh(x: Array) -> Array:
    return torch.tanh(x) if isinstance(x, Tensor) else np.tanh(x)


def _sigmoid(x: Array) -> Array:
    return torch.sigmoid(x) if isinstance(x, Tensor) else 0.5 + 0.5 * np.tanh(0.5 * x)  # which never overflows


def _affine(parameters: Parameters, name: str, x: Array) -> Array:
    """x W + b. Of tensors always by a batched product, as over time, because the other kind may round differently."""
    weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
    if isinstance(x, Tensor) and x.ndim == 2:
        return torch.bmm(x[None], weight[None])[0] + bias
    return x @ weight + bias


def with_memory(
    network: Network, inputs: int | Sequence[int], size: int, kind: str = "gru", *, shared: bool = True
) -> Network:
    """Put a cell of `size` units in front of `network`, which then reads its h [N, H] instead of the observation.

    With `shared` False policy and value have a cell each, and the memory is that of the policy, then that of the value.
    `inputs` is the observation size D, or two of them: policy and value then read so many of the first numbers. Weights
    are orthogonal with gain 1. Biases are zero, but those of the gate that keeps the state are log τ for time scales τ
    from 1 to `SCALE` steps, log-uniform: a unit then forgets one half to 1/(1 + τ) of its state in a step. With zeros
    all units would forget half of it (Tallec & Ollivier 2018, arXiv 1804.11188, section 2, draw τ uniformly).
    """
    cell = CELLS[kind]
    names = ("memory",) if shared else ("policy.memory", "value.memory")
    sizes = (inputs, inputs) if isinstance(inputs, int) else inputs
    width = cell.states * size  # of one cell's state
    cells = list(zip(names, sizes, range(0, len(names) * width, width), strict=False))  # name, D, place in the memory

    def init(rng: np.random.Generator) -> Parameters:
        parameters: Parameters = {}
        for name, read, _ in cells:
            linear(parameters, f"{name}.input", read, cell.gates * size, 1.0, rng)
            linear(parameters, f"{name}.hidden", size, cell.gates * size, 1.0, rng)
            kept = slice(cell.keep * size, (cell.keep + 1) * size)
            scales = rng.uniform(0.0, math.log(SCALE), size)
            parameters[f"{name}.input.bias"][kept] = torch.from_numpy(scales.astype(np.float32))
        return parameters | network.init(rng)

    def remember(parameters: Parameters, observations: Array, memory: Array) -> Array:
        new = []
        for name, read, start in cells:
            state = memory[..., start : start + width]
            x = _affine(parameters, f"{name}.input", observations[..., :read])
            new.append(cell.step(x, _affine(parameters, f"{name}.hidden", state[..., :size]), state))
        return arrays.library("memory", memory).concatenate(new, -1)

    def unrolled(parameters: Parameters, observations: Tensor, memory: Tensor, begins: Tensor) -> Tensor:
        """`remember` over time with the same bits and fewer operations: all cells at once, their inputs first."""
        steps = len(observations)
        weights = [parameters[f"{name}.input.weight"].expand(steps, -1, -1) for name, *_ in cells]
        # a product for each step, because one product of all steps may round differently
        products = [torch.bmm(observations[..., :read], w) for w, (_, read, _) in zip(weights, cells, strict=True)]
        biases = [parameters[f"{name}.input.bias"] for name, *_ in cells]
        x = torch.stack([p + bias for p, bias in zip(products, biases, strict=True)], 1)  # [T, C, M, gates · H]
        hidden = torch.stack([parameters[f"{name}.hidden.weight"] for name, *_ in cells])  # [C, H, gates · H]
        bias = torch.stack([parameters[f"{name}.hidden.bias"] for name, *_ in cells])[:, None]  # [C, 1, gates · H]

        def advance(inputs: Tensor, state: Tensor) -> Tensor:  # [C, M, gates · H], [C, M, width]
            h = _split(state, size)[0] if cell.states > 1 else state
            return cell.step(inputs, torch.bmm(h, hidden) + bias, state)

        state = memory.unflatten(-1, (len(cells), width)).transpose(0, 1)  # [C, M, width]
        after = unroll(advance, x, state, begins[:, None].expand(-1, len(cells), -1))  # [T, C, M, width]
        return after.transpose(1, 2).flatten(2)

    def policy(parameters: Parameters, memory: Array) -> Array:
        assert network.policy is not None
        return network.policy(parameters, memory[..., :size])

    def value(parameters: Parameters, memory: Array) -> Array:
        assert network.value is not None
        start = cells[-1][2]
        return network.value(parameters, memory[..., start : start + size])

    def apply(parameters: Parameters, memory: Array) -> tuple[Array, Array]:
        if shared:
            return network.apply(parameters, memory[..., :size])
        return policy(parameters, memory), value(parameters, memory)

    aligned = cell.gates * size % 16 == 0  # products whose rows don't fill cache lines round by their place in memory
    return network._replace(
        init=init,
        apply=apply,
        policy=policy,
        value=value,
        remember=remember,
        unroll=unrolled if aligned else None,
        memory=len(cells) * width,
    )


def unroll(
    remember: Callable[[Tensor, Tensor], Tensor], observations: Tensor, memory: Tensor, begins: Tensor
) -> Tensor:
    """The memory after each step [T, M, W], from observations [T, M, D] and the memory [M, W] before the first step.

    `remember(observations [M, D], memory [M, W])` returns the next memory. An episode begins, with a memory of zeros,
    where begins [T, M] is True. M may be several axes. Gradients flow through time within an episode, not into the
    memory before the first step.
    """
    after = []
    for seen, begin in zip(observations.unbind(0), begins.unbind(0), strict=True):
        memory = remember(seen, torch.where(begin[..., None], 0.0, memory))
        after.append(memory)
    return torch.stack(after)

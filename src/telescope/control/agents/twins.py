"""Twin critics Q(s, a) beside a policy: two perceptrons as one, with an axis of 2 in front of each weight.

Both critics run in one batched product. With discrete actions a critic reads the observation and returns Q(s, ·).
Layers may be normalised, by batch renormalisation (Ioffe 2017, arXiv 1702.03275) or layer normalisation (Ba et al.
2016, arXiv 1607.06450). Leaves out what critics learn (the algorithm).
"""

# N samples, D observation size, A components of an action or number of actions, n width, K outputs of a critic
from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from telescope import arrays
from telescope.arrays import Array
from telescope.checks import fits_memory
from telescope.control.agents.distributions import Distribution
from telescope.control.agents.networks import ACTIVATIONS, Network, Parameters, affine, linear, orthogonal

Norm = Literal["none", "layer", "batch"]
SECTIONS = ("policy.", "value.", "statistics.")
"""The parameters of a network with twin critics, in their order: what two optimisers learn, and running statistics."""
LAYER_EPS, BATCH_EPS = 1e-5, 1e-3
"""Added to a variance: PyTorch's number for layers; for batches that of CrossQ."""
MOMENTUM = 0.01
"""Share of a batch in the running statistics."""
MOST_RATIO, MOST_SHIFT = 3.0, 5.0
"""Bounds of r and |d| in batch renormalisation."""

Normalise = Callable[[int, Array], Array]


class Twins(NamedTuple):
    """Twin critics as pure functions of one agent's parameters. `q` also takes all agents at once, and NumPy arrays."""

    q: Callable[[Parameters, Array, Array | None], Array]
    """`q(parameters, observations [N, D], actions [N, A])` → [2, N, K], normalised by running statistics. K is 1. With
    discrete actions `actions` is None and K is A."""
    learn: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    """`learn(parameters, observations, actions, weights [N], renormalise)` → the same, normalised by the batch, and the
    new running statistics. `weights` of the batch's mean sum to 1; `renormalise` is a bool without axes."""
    judged: Callable[[Parameters, Array, Array], Array] | None = None
    """`judged(parameters, observations, policy outputs [N, K])` → min Q(s, a) [N] of the policy's mode."""


def policy_network(observation_size: int, outputs: int, *, hidden: tuple[int, ...], activation: str) -> Network:
    """A perceptron for policy outputs [N, K]: orthogonal weights (gain √2 inside, 0.01 at the end), without values."""
    act = ACTIVATIONS[activation]

    def init(rng: np.random.Generator) -> Parameters:
        parameters: Parameters = {}
        for layer, (rows, columns) in enumerate(itertools.pairwise((observation_size, *hidden))):
            linear(parameters, str(layer), rows, columns, 2**0.5, rng)
        linear(parameters, "out", (observation_size, *hidden)[-1], outputs, 0.01, rng)
        return parameters

    def policy(parameters: Parameters, x: Array) -> Array:
        for layer in range(len(hidden)):
            x = act(affine(parameters, str(layer), x))
        return affine(parameters, "out", x)

    def apply(parameters: Parameters, x: Array) -> tuple[Array, Array]:
        outputs = policy(parameters, x)
        return outputs, arrays.library("outputs", outputs).zeros_like(outputs[..., 0])

    return Network(init, apply, policy, broadcasts=True)


def soft_network(config: Any, head: Distribution, observation_size: int, policy_size: int | None = None) -> Network:
    """A perceptron for the policy with this head, and twin critics, as the config of a soft actor–critic has them."""
    actions, widths = head.outputs // 2 if head.continuous else head.outputs, config.critic_hidden or config.hidden
    weights = sum(a * b for a, b in itertools.pairwise((observation_size, *config.hidden, head.outputs)))
    weights += 2 * sum(a * b for a, b in itertools.pairwise((observation_size + actions, *widths, actions)))
    # weights, target networks, gradient, and Adam's two moments
    sizes = f"hidden is {config.hidden} and critic_hidden {widths}"
    fits_memory(5 * config.seeds * weights, f"{sizes}, so the networks of {config.seeds} seeds need")
    sees = policy_size or observation_size
    policy = policy_network(sees, head.outputs, hidden=config.hidden, activation=config.activation)
    if policy_size is not None:
        policy = seeing(policy, policy_size)
    more: dict[str, Any] = {"hidden": widths, "activation": config.activation, "norm": config.critic_norm}
    return with_twins(policy, observation_size, actions, continuous=head.continuous, **more)


def seeing(policy: Network, size: int) -> Network:
    """The policy of a network that reads the first `size` numbers of an observation only."""
    read = policy.policy
    assert read is not None
    return policy._replace(policy=lambda parameters, observations: read(parameters, observations[..., :size]))


def with_twins(
    policy: Network,
    observation_size: int,
    actions: int,
    *,
    continuous: bool,
    hidden: tuple[int, ...] = (256, 256),
    activation: str = "relu",
    norm: Norm = "none",
) -> Network:
    """A policy's network, and twin critics beside it: `network.critics`. Values are min Q(s, a) of the policy's mode.

    Args:
        policy: any network without a memory and with flat observations. Its values are not used.
        actions: the components of an action, or the number of discrete actions.
        continuous: whether actions are an input of the critics, in −1 … 1; otherwise each has an output of its own.
    """
    if policy.memory or policy.shaped:
        raise ValueError("policy has a memory, or reads observations with a shape; expected flat observations [N, D]")
    critics, begin = twins(observation_size, actions, continuous, hidden, activation, norm)

    def init(rng: np.random.Generator) -> Parameters:
        return {f"policy.{name}": x for name, x in policy.init(rng).items()} | begin(rng)

    def act(parameters: Parameters, observations: Array) -> Array:
        own = {name.removeprefix("policy."): x for name, x in parameters.items() if name.startswith("policy.")}
        return policy.apply(own, observations)[0] if policy.policy is None else policy.policy(own, observations)

    def judged(parameters: Parameters, observations: Array, outputs: Array) -> Array:
        xp: Any = arrays.library("outputs", outputs)
        if continuous:
            q = critics.q(parameters, observations, xp.tanh(outputs[..., :actions]))[..., 0]  # [2, N]
            return xp.minimum(q[..., 0, :], q[..., 1, :])
        q = critics.q(parameters, observations, None)  # [2, N, A]
        best = outputs == xp.amax(outputs, -1)[..., None]
        least = xp.minimum(q[..., 0, :, :], q[..., 1, :, :])
        return xp.where(best, least, 0 * least).sum(-1) / best.sum(-1)

    def apply(parameters: Parameters, observations: Array) -> tuple[Array, Array]:
        outputs = act(parameters, observations)
        return outputs, judged(parameters, observations, outputs)

    more: dict[str, Any] = {"broadcasts": policy.broadcasts, "module": policy.module}
    more["critics"] = critics._replace(judged=judged)
    return Network(init, apply, act, **more)


def twins(
    observation_size: int, actions: int, continuous: bool, hidden: tuple[int, ...], activation: str, norm: Norm
) -> tuple[Twins, Callable[[np.random.Generator], Parameters]]:
    """Twin critics, and the function that makes their first parameters: gain √2 inside, 1 at the end, zero biases.

    Layer normalisation stands before each activation; batch normalisation before each layer, as in CrossQ.
    """
    act = ACTIVATIONS[activation]
    sizes = (observation_size + actions, *hidden, 1) if continuous else (observation_size, *hidden, actions)
    layers = range(len(hidden) + 1)
    normalised = {"none": (), "layer": sizes[1:-1], "batch": sizes[:-1]}[norm]  # widths

    def begin(rng: np.random.Generator) -> Parameters:
        parameters: Parameters = {}
        for layer, (rows, columns) in enumerate(itertools.pairwise(sizes)):
            gain = 2**0.5 if layer < len(hidden) else 1.0
            both = [orthogonal(rows, columns, gain, rng) for _ in range(2)]
            parameters[f"value.{layer}.weight"] = torch.from_numpy(np.stack(both))
            parameters[f"value.{layer}.bias"] = torch.zeros(2, 1, columns)
        for layer, width in enumerate(normalised):
            parameters[f"value.{layer}.scale"] = torch.ones(2, 1, width)
            parameters[f"value.{layer}.shift"] = torch.zeros(2, 1, width)
        for layer, width in enumerate(normalised if norm == "batch" else ()):
            parameters[f"statistics.{layer}.mean"] = torch.zeros(2, 1, width)
            parameters[f"statistics.{layer}.variance"] = torch.ones(2, 1, width)
        return parameters

    def forward(parameters: Parameters, observations: Array, chosen: Array | None, by_batch: Normalise) -> Array:
        x = observations
        if chosen is not None:
            x = arrays.library("observations", x).concatenate([x, chosen], -1)
        x = x[..., None, :, :]  # [1, N, …]
        for layer in layers:
            if norm == "batch":
                x = scaled(parameters, layer, by_batch(layer, x))
            x = affine(parameters, f"value.{layer}", x)  # [2, N, n]
            if layer < len(hidden):
                x = act(scaled(parameters, layer, layer_normalised(x)) if norm == "layer" else x)
        return x

    def q(parameters: Parameters, observations: Array, chosen: Array | None) -> Array:
        def by_statistics(layer: int, x: Array) -> Array:
            mean, variance = statistics(parameters, layer)
            return (x - mean) / (variance + BATCH_EPS) ** 0.5

        return forward(parameters, observations, chosen, by_statistics)

    def learn(
        parameters: Parameters, observations: Tensor, chosen: Tensor | None, weights: Tensor, renormalise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        found: dict[str, Tensor] = {}

        def by_batch(layer: int, x: Array) -> Array:
            y, *new = batch_renormalised(x, *statistics(parameters, layer), weights, renormalise)
            names = (f"statistics.{layer}.mean", f"statistics.{layer}.variance")
            found.update(zip(names, new, strict=True))
            return y

        return forward(parameters, observations, chosen, by_batch), found  # type: ignore[return-value]

    return Twins(q, learn), begin


def scaled(parameters: Parameters, layer: int, x: Array) -> Array:
    return x * parameters[f"value.{layer}.scale"] + parameters[f"value.{layer}.shift"]


def statistics(parameters: Parameters, layer: int) -> tuple[Array, Array]:
    return parameters[f"statistics.{layer}.mean"], parameters[f"statistics.{layer}.variance"]


def layer_normalised(x: Array) -> Array:
    """Each sample [..., n] with mean 0 and variance 1."""
    centred = x - x.mean(-1)[..., None]
    return centred / ((centred**2).mean(-1)[..., None] + LAYER_EPS) ** 0.5


def batch_renormalised(
    x: Tensor, mean: Tensor, variance: Tensor, weights: Tensor, renormalise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(x − μ_B) / σ_B · r + d over the samples of a batch [..., N, n], and new running mean and variance [..., 1, n].

    r = σ_B / σ and d = (μ_B − μ) / σ, clipped and without gradient, correct the batch's statistics to the running ones.
    Without `renormalise`, r = 1 and d = 0: batch normalisation. `weights` [N] say which samples count.
    """
    shares = weights[:, None]
    batch_mean = (shares * x).sum(-2, keepdim=True)
    batch_variance = (shares * (x - batch_mean) ** 2).sum(-2, keepdim=True)
    deviation, running = torch.sqrt(batch_variance + BATCH_EPS), torch.sqrt(variance + BATCH_EPS)
    ratio = (deviation.detach() / running).clamp(1 / MOST_RATIO, MOST_RATIO)
    shift = ((batch_mean.detach() - mean) / running).clamp(-MOST_SHIFT, MOST_SHIFT)
    y = (x - batch_mean) / deviation * torch.where(renormalise, ratio, 1.0) + torch.where(renormalise, shift, 0.0)
    rate = MOMENTUM * weights.sum()  # 0 if no sample counts
    new = (old + rate * (found.detach() - old) for old, found in ((mean, batch_mean), (variance, batch_variance)))
    return (y, *new)  # type: ignore[return-value]

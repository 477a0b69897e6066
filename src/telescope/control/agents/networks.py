"""Policy and value networks as pure functions of one agent's parameters.

A network is two functions, `init` and `apply`. Leaves out seeds, devices and optimisers.
"""

# N observations, D observation size, K policy outputs (see distributions.py for what they mean)
from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from telescope import arrays
from telescope.arrays import Array

if TYPE_CHECKING:
    from telescope.control.agents.twins import Twins

Parameters = dict[str, Array]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    # tanh x = 2σ(2x) − 1 up to rounding: on CPUs torch's tanh takes several times as long, a large part of an update
    "tanh": lambda x: 2 * torch.sigmoid(2 * x) - 1 if isinstance(x, Tensor) else np.tanh(x),
    "relu": lambda x: torch.relu(x) if isinstance(x, Tensor) else np.maximum(x, 0.0),
}


class Network(NamedTuple):
    """A pair of pure functions. All randomness comes from the generator; all learned numbers are in the dictionary."""

    init: Callable[[np.random.Generator], Parameters]
    """`init(rng)` → the parameters of one agent, by name."""
    apply: Callable[[Parameters, Tensor], tuple[Tensor, Tensor]]
    """`apply(parameters, observations [N, D])` → policy outputs [N, K] and the critic's outputs: state values [N];
    quantiles [N, Q] for a quantile critic; values and corrections [N, 2] for a gradient critic."""
    policy: Callable[[Parameters, Tensor], Tensor] | None = None
    """A cheaper function for the policy outputs alone, because acting needs no values."""
    value: Callable[[Parameters, Tensor], Tensor] | None = None
    """A cheaper function for the critic's outputs alone, because advantages need no policy."""
    broadcasts: bool = False
    """Whether `apply`, `policy` and `value` also take all agents at once, and NumPy arrays: parameters with a seed axis
    in front (vectors as [S, 1, n], so that they broadcast) and observations [S, N, D]. A policy call then takes a few
    microseconds of NumPy."""
    remember: Callable[[Parameters, Tensor, Tensor], Tensor] | None = None
    """`remember(parameters, observations [N, D], memory [N, H])` → the new memory [N, H], for a policy with a memory of
    its episode. `apply`, `policy` and `value` then read the memory instead of the observations."""
    unroll: Callable[[Parameters, Tensor, Tensor, Tensor], Tensor] | None = None
    """A cheaper function for `remember` over time: `unroll(parameters, observations [T, M, D], memory [M, H], begins
    [T, M])` → the memory after each step [T, M, H]. Episodes begin, with a memory of zeros, where begins is True."""
    memory: int = 0
    """The size of the memory (H in formulas). It is 0 at the beginning of an episode."""
    shaped: bool = False
    """Whether `apply`, `policy`, `value` and `remember` take observations [N, *shape] with the Box's shape, and uint8
    as uint8, instead of flat [N, D]. For convolutions. Of a Dict or Tuple they get the parts, choices one-hot."""
    pictures: bool = False
    """Whether it has encoders of pictures, whose many numbers between layers want small blocks of observations."""
    module: nn.Module | None = None
    """The name of the module that `from_module` built, for error messages."""
    read: Callable[[Array], Any] | None = None
    """From rows of a composite observation to what `module` reads; `reading.reading` sets it."""
    critics: Twins | None = None
    """Critics of actions, for algorithms that learn Q(s, a) beside a policy; `twins.with_twins` adds them."""


def mlp(
    observation_size: int,
    outputs: int,
    *,
    hidden: tuple[int, ...] = (64, 64),
    activation: str = "tanh",
    log_std: float | None = None,
    shared: bool = False,
    critic_outputs: int = 0,
    correction: bool = False,
    scales: int | None = None,
) -> Network:
    """Perceptrons for actor and critic: orthogonal weights (gain √2 inside, 0.01 policy, 1 value), zero biases.

    With `log_std` the last `scales` policy outputs (by default half of them) are log σ, which does not depend on the
    state and starts at `log_std`. `shared=True` gives both heads one trunk. The critic returns values [N], or [N, Q]
    with Q = `critic_outputs` > 0. With `correction` the second of two outputs comes from a perceptron of its own, and
    begins near 0 (gain 0.01).
    """
    act = ACTIVATIONS[activation]
    log_stds = 0 if log_std is None else outputs // 2 if scales is None else scales
    heads = outputs - log_stds
    trunks = ("shared", "shared") if shared else ("policy", "value")

    def body(parameters: Parameters, trunk: str, rng: np.random.Generator) -> None:
        for layer, (rows, columns) in enumerate(zip((observation_size, *hidden), hidden, strict=False)):
            linear(parameters, f"{trunk}.{layer}", rows, columns, 2**0.5, rng)

    def init(rng: np.random.Generator) -> Parameters:
        parameters: Parameters = {}
        for trunk in dict.fromkeys(trunks):
            body(parameters, trunk, rng)
        width = hidden[-1] if hidden else observation_size
        linear(parameters, "policy.out", width, heads, 0.01, rng)
        linear(parameters, "value.out", width, 1 if correction else critic_outputs or 1, 1.0, rng)
        if log_std is not None:
            parameters["policy.log_std"] = torch.full((log_stds,), log_std)
        if correction:  # last, so that all else begins as without it
            body(parameters, "correction", rng)
            linear(parameters, "correction.out", width, 1, 0.01, rng)
        return parameters

    def features(parameters: Parameters, trunk: str, x: Array) -> Array:
        for layer in range(len(hidden)):
            x = act(affine(parameters, f"{trunk}.{layer}", x))
        return x

    def policy_head(parameters: Parameters, x: Array) -> Array:
        outputs = affine(parameters, "policy.out", x)
        if log_std is None:
            return outputs
        xp = arrays.library("outputs", outputs)
        return xp.concatenate([outputs, xp.zeros_like(outputs[..., :log_stds]) + parameters["policy.log_std"]], -1)

    def policy(parameters: Parameters, observations: Array) -> Array:
        return policy_head(parameters, features(parameters, trunks[0], observations))

    def value_head(parameters: Parameters, x: Array, observations: Array) -> Array:
        values = affine(parameters, "value.out", x)
        if correction:
            h = affine(parameters, "correction.out", features(parameters, "correction", observations))
            values = arrays.library("values", values).concatenate([values, h], -1)
        return values if critic_outputs else values[..., 0]

    def value(parameters: Parameters, observations: Array) -> Array:
        return value_head(parameters, features(parameters, trunks[1], observations), observations)

    def apply(parameters: Parameters, observations: Array) -> tuple[Array, Array]:
        x = features(parameters, trunks[0], observations)
        y = x if shared else features(parameters, trunks[1], observations)
        return policy_head(parameters, x), value_head(parameters, y, observations)

    return Network(init, apply, policy, value, broadcasts=True)


def q_network(
    observation_size: int,
    actions: int,
    *,
    hidden: tuple[int, ...],
    activation: str,
    dueling: bool = False,
    quantiles: int = 0,
    layer_norm: bool = False,
) -> Network:
    """A perceptron for Q(s, ·) [N, A], orthogonal weights (gain √2 inside, 1 at the end); its value is max Q(s, a).

    With `quantiles` K its critic's outputs are the quantiles of all actions [N, A·K], and Q is their mean. With
    `dueling` Q(s, a) = V(s) + D(s, a) − mean D(s, ·) (Wang et al. 2016, equation 9). `layer_norm` normalises each
    hidden layer before its activation.
    """
    act, count = ACTIVATIONS[activation], quantiles or 1

    def init(rng: np.random.Generator) -> Parameters:
        parameters: Parameters = {}
        for layer, (rows, columns) in enumerate(itertools.pairwise((observation_size, *hidden))):
            linear(parameters, f"q.{layer}", rows, columns, 2**0.5, rng)
            if layer_norm:
                parameters[f"q.{layer}.scale"], parameters[f"q.{layer}.shift"] = (
                    torch.ones(columns),
                    torch.zeros(columns),
                )
        linear(parameters, "q.out", (observation_size, *hidden)[-1], actions * count, 1.0, rng)
        if dueling:
            linear(parameters, "q.value", (observation_size, *hidden)[-1], count, 1.0, rng)
        return parameters

    def outputs(parameters: Parameters, x: Array) -> Array:
        """Quantiles [N, A, K]."""
        for layer in range(len(hidden)):
            x = affine(parameters, f"q.{layer}", x)
            x = act(normalised(parameters, f"q.{layer}", x) if layer_norm else x)
        q = affine(parameters, "q.out", x)
        q = q.reshape(*q.shape[:-1], actions, count)
        if not dueling:
            return q
        return affine(parameters, "q.value", x)[..., None, :] + q - q.mean(axis=-2, keepdims=True)

    def policy(parameters: Parameters, x: Array) -> Array:
        q = outputs(parameters, x)
        return q.mean(-1) if quantiles else q[..., 0]

    def apply(parameters: Parameters, observations: Array) -> tuple[Array, Array]:
        q = outputs(parameters, observations)
        if quantiles:
            return q.mean(-1), q.reshape(*q.shape[:-2], actions * quantiles)
        return q[..., 0], arrays.library("q", q).amax(q[..., 0], -1)

    return Network(init, apply, policy, broadcasts=True)


def streaming(observation_size: int, outputs: dict[str, int], *, hidden: tuple[int, ...], sparsity: float) -> Network:
    """Perceptrons for learning from one step at a time (Elsayed et al. 2024, arXiv 2410.14606).

    One perceptron for each name in `outputs`, with that many outputs: "policy" and "value", or one of them. Most
    incoming weights of each unit begin at 0 (`sparse_linear`); each hidden layer is affine, then normalised, then a
    leaky ReLU. Without a policy the value has the place of the policy outputs; without a value it is max Q(s, a).
    """
    layers = range(len(hidden))

    def init(rng: np.random.Generator) -> Parameters:
        parameters: Parameters = {}
        for name, count in outputs.items():
            for layer, (rows, columns) in enumerate(itertools.pairwise((observation_size, *hidden))):
                sparse_linear(parameters, f"{name}.{layer}", rows, columns, sparsity, rng)
            sparse_linear(parameters, f"{name}.out", (observation_size, *hidden)[-1], count, sparsity, rng)
        return parameters

    def part(name: str, parameters: Parameters, x: Array) -> Array:
        for layer in layers:
            x = leaky_relu(layer_norm(affine(parameters, f"{name}.{layer}", x)))
        return affine(parameters, f"{name}.out", x)

    def policy(parameters: Parameters, observations: Array) -> Array:
        return part("policy" if "policy" in outputs else next(iter(outputs)), parameters, observations)

    def apply(parameters: Parameters, observations: Array) -> tuple[Array, Array]:
        chosen = policy(parameters, observations)
        if "value" not in outputs:
            return chosen, arrays.library("q", chosen).amax(chosen, -1)
        return chosen, part("value", parameters, observations)[..., 0]

    return Network(init, apply, policy, broadcasts=True)


def with_softplus(network: Network, scales: int) -> Network:
    """The network whose last `scales` outputs are log σ, from one with x and σ = log(1 + eˣ) for each state."""

    def gaussian(outputs: Array) -> Array:
        xp, size = arrays.library("outputs", outputs), outputs.shape[-1] - scales
        mean, x = outputs[..., :size], xp.clip(outputs[..., size:], -20.0, None)  # further below, log σ would be −∞
        return xp.concatenate([mean, xp.log(xp.logaddexp(xp.zeros_like(x), x))], -1)

    def apply(parameters: Parameters, observations: Array) -> tuple[Array, Array]:
        outputs, values = network.apply(parameters, observations)
        return gaussian(outputs), values

    def policy(parameters: Parameters, observations: Array) -> Array:
        assert network.policy is not None
        return gaussian(network.policy(parameters, observations))

    return network._replace(apply=apply, policy=policy)


def from_module(build: Callable[[], nn.Module], *, shaped: bool = False) -> Network:
    """A network from any nn.Module whose forward maps observations [N, D] to (policy outputs [N, K], values [N]).

    With `shaped` the observations keep the Box's shape [N, *shape], and images stay uint8.
    `build()` is called once per seed, under that seed's random state. Parameters with `requires_grad` False and buffers
    do not change; both belong to the agent and are saved with it. The module must be a pure function: a layer that
    changes a buffer, draws random numbers or remembers earlier observations raises an error that names it.
    """
    template = _built(build)
    for name, module in template.named_modules():
        if complaint := _stateful(module):
            raise ValueError(f"network module {name!r} is a {type(module).__name__} {complaint}")
    fixed = {name for name, tensor in _carried(template).items() if not tensor.requires_grad}

    def init(rng: np.random.Generator) -> Parameters:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            module = _built(build)
        _require_same_constants(module, template)
        return {name: value.detach().clone() for name, value in _carried(module).items()}

    def apply(parameters: Parameters, observations: Tensor) -> tuple[Tensor, Tensor]:
        held = {name: value.detach() if name in fixed else value for name, value in parameters.items()}
        return torch.func.functional_call(template, held, (observations,))  # type: ignore[no-any-return]

    return Network(init, apply, shaped=shaped, module=template)


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module in float32, without changing the caller's random state and default dtype."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]):
            module = build()
    finally:
        torch.set_default_dtype(dtype)
    if not isinstance(module, nn.Module):
        raise ValueError(f"from_module's function returned a {type(module).__name__}; expected a torch.nn.Module")
    return module


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def _stateful(module: nn.Module) -> str:
    """Why a module is not a pure function of parameters and observations; empty if it is."""
    if isinstance(module, BATCH_NORMS) and (module.training or not module.track_running_stats):
        return (
            "in training mode, so its statistics depend on the batch; use LayerNorm, or call .eval() on it to freeze "
            "its running statistics"
        )
    if isinstance(module, DROPOUTS) and module.training and module.p > 0:
        return (
            "in training mode, so the probability of an action would differ from call to call; remove it, or call "
            ".eval() on it"
        )
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return (
            "with a state from step to step, which from_module does not support; set memory to 'gru' or 'lstm', write "
            "a Network with `remember`, or stack the last observations (gymnasium.wrappers.FrameStackObservation)"
        )
    return ""


def _carried(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of an agent: all parameters, and floating-point buffers."""
    floats = {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    found = dict(module.named_parameters()) | floats
    for name, tensor in found.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"network parameter {name!r} is {tensor.dtype}, but agents are float32; call .float()")
    return found


def _require_same_constants(module: nn.Module, template: nn.Module) -> None:
    there = dict(template.named_buffers())
    for name, buffer in module.named_buffers():
        if not buffer.is_floating_point() and not torch.equal(buffer, there[name]):
            raise ValueError(
                f"network buffer {name!r} is {buffer.dtype} and differs from seed to seed; only floating-point buffers "
                "are saved with an agent, so make it the same for all seeds"
            )


def linear(into: Parameters, name: str, rows: int, columns: int, gain: float, rng: np.random.Generator) -> None:
    """Add an orthogonal weight [rows, columns] and a zero bias [columns]."""
    into[f"{name}.weight"] = torch.from_numpy(orthogonal(rows, columns, gain, rng))
    into[f"{name}.bias"] = torch.zeros(columns)


def orthogonal(rows: int, columns: int, gain: float, rng: np.random.Generator) -> np.ndarray:
    """Orthogonal weights (Saxe et al. 2014): the Q factor of a Gaussian matrix, with the signs of R's diagonal."""
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.sign(np.diag(r))
    return np.ascontiguousarray(gain * (q if rows >= columns else q.T), dtype=np.float32)


def sparse_linear(
    into: Parameters, name: str, rows: int, columns: int, sparsity: float, rng: np.random.Generator
) -> None:
    """Add a weight [rows, columns] of which each column has ⌊sparsity · rows⌋ zeros, and a zero bias [columns].

    The other weights are uniform in ±1/√rows (LeCun et al. 1998). Each column is one unit with its incoming weights.
    """
    weight = rng.uniform(-(rows**-0.5), rows**-0.5, (rows, columns))
    order = rng.random((rows, columns)).argsort(axis=0)  # a permutation of the rows for each column
    weight[order < int(sparsity * rows)] = 0.0
    into[f"{name}.weight"] = torch.from_numpy(weight.astype(np.float32))
    into[f"{name}.bias"] = torch.zeros(columns)


def layer_norm(x: Array) -> Array:
    """(x − mean) / √(variance + 1e-5) over the last axis (Ba et al. 2016)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred * ((centred * centred).mean(axis=-1, keepdims=True) + 1e-5) ** -0.5


def leaky_relu(x: Array) -> Array:
    """x where it is positive, x / 100 elsewhere."""
    return arrays.library("x", x).maximum(x, 0.01 * x)


def affine(parameters: Parameters, name: str, x: Array) -> Array:
    """x W + b, [N, rows] → [N, columns]."""
    return x @ parameters[f"{name}.weight"] + parameters[f"{name}.bias"]


def normalised(parameters: Parameters, name: str, x: Array) -> Array:
    """Layer normalisation, times a learned scale, plus a learned shift."""
    return layer_norm(x) * parameters[f"{name}.scale"] + parameters[f"{name}.shift"]

"""Encoders: from pictures to features that any network reads, beside the numbers of the other parts of an observation.

An encoder is the part of a network in front of its hidden layers. Leaves out which observations are pictures
(`pictures.py`), and the convolution (`convolution.py`).
"""

# N observations, H × W pixels, C channels, F features of a picture, D numbers that the network behind reads
from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope.control.agents.convolution import convolve
from telescope.control.agents.networks import Network, Parameters, affine, linear, orthogonal
from telescope.control.agents.pictures import SMALLEST, Picture, picture, pixels
from telescope.control.agents.reading import decoded, entries_of, width_of, within
from telescope.control.environments.spaces import PackedObservations, Part

NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Filters, width and stride of each layer (Mnih et al. 2015)."""
MINATAR = ((16, 3, 1),)
"""For pictures that are too small for the other (Young & Tian 2019, arXiv 1903.03176)."""
NATURE_FROM = 36
"""Pixels along each side from which on NATURE has a pixel left."""
RESIDUAL = (16, 32, 32)
"""Filters of each stage of the residual network (Espeholt et al. 2018, arXiv 1802.01561)."""
GAIN = 2**0.5


class Encoder(NamedTuple):
    """A pair of pure functions of one agent; the names of its parameters begin with a prefix."""

    name: str
    size: int
    """F, the features of a picture."""
    weights: int
    """Numbers in its matrices and filters."""
    products: int
    """Multiplications of numbers for one picture, by which the time of a gradient step is estimated."""
    init: Callable[[str, np.random.Generator], Parameters]
    apply: Callable[[Parameters, str, Tensor], Tensor]
    """`apply(parameters, prefix, pictures [N, H, W, C])` → [N, F]."""


def encoder_of(found: Picture, kind: str) -> Encoder:
    """The encoder of a picture: cnn, impala, or mlp, which reads the pixels as they are."""
    if kind == "mlp":
        size = found.height * found.width * found.channels
        return Encoder("none", size, 0, 0, lambda prefix, rng: {}, lambda parameters, prefix, x: x.flatten(1))
    if kind == "impala":
        return residual(found)
    if min(found.height, found.width) >= NATURE_FROM:
        return convolutional(found, NATURE, 512, "the convolutions of the Nature paper")
    return convolutional(found, MINATAR, 128, "one convolution")


def convolutional(found: Picture, layers: Sequence[tuple[int, int, int]], size: int, name: str) -> Encoder:
    """Convolutions without padding, each with a ReLU, then a layer of `size` features with a ReLU."""
    channels = (found.channels, *(filters for filters, _, _ in layers))
    height, width = found.height, found.width
    weights = products = 0
    for i, (filters, k, stride) in enumerate(layers):
        height, width = (height - k) // stride + 1, (width - k) // stride + 1
        weights += filters * k**2 * channels[i]
        products += height * width * filters * k**2 * channels[i]
    left = height * width * channels[-1]

    def init(prefix: str, rng: np.random.Generator) -> Parameters:
        parameters: Parameters = {}
        for i, (filters, k, _) in enumerate(layers):
            _convolution(parameters, f"{prefix}{i}", filters, k, channels[i], rng)
        linear(parameters, f"{prefix}out", left, size, GAIN, rng)
        return parameters

    def apply(parameters: Parameters, prefix: str, x: Tensor) -> Tensor:
        for i, (_, _, stride) in enumerate(layers):
            x = torch.relu(_convolved(parameters, f"{prefix}{i}", x, stride=stride))
        return torch.relu(affine(parameters, f"{prefix}out", x.flatten(1)))

    return Encoder(name, size, weights + left * size, products + left * size, init, apply)


def residual(found: Picture, filters: tuple[int, ...] = RESIDUAL, size: int = 256) -> Encoder:
    """Stages of a convolution, a maximum over 3 × 3 pixels with stride 2, and two residual blocks each."""
    channels = (found.channels, *filters)
    sides = [found.height, found.width]
    weights = products = 0
    for i, count in enumerate(filters):
        first, others = 9 * count * channels[i], 4 * 9 * count**2  # of filters of 3 × 3 pixels
        weights, products = weights + first + others, products + math.prod(sides) * first
        sides = [(side + 1) // 2 for side in sides]
        products += math.prod(sides) * others
    left = math.prod(sides) * channels[-1]
    inner = list(itertools.product(range(2), range(2)))  # two blocks of two convolutions

    def init(prefix: str, rng: np.random.Generator) -> Parameters:
        parameters: Parameters = {}
        for i, count in enumerate(filters):
            _convolution(parameters, f"{prefix}{i}", count, 3, channels[i], rng)
            for block, layer in inner:
                _convolution(parameters, f"{prefix}{i}.{block}.{layer}", count, 3, count, rng)
        linear(parameters, f"{prefix}out", left, size, GAIN, rng)
        return parameters

    def apply(parameters: Parameters, prefix: str, x: Tensor) -> Tensor:
        for i in range(len(filters)):
            x = _convolved(parameters, f"{prefix}{i}", x, padding=1)
            x = torch.nn.functional.max_pool2d(x.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)
            for block in range(2):
                y = x
                for layer in range(2):
                    y = _convolved(parameters, f"{prefix}{i}.{block}.{layer}", torch.relu(y), padding=1)
                x = x + y
        return torch.relu(affine(parameters, f"{prefix}out", torch.relu(x).flatten(1)))

    name = "the residual network of IMPALA"
    return Encoder(name, size, weights + left * size, products + left * size, init, apply)


def _convolution(into: Parameters, name: str, filters: int, k: int, channels: int, rng: np.random.Generator) -> None:
    """Add orthogonal filters [F, k, k, C] and a zero bias [F]."""
    weight = orthogonal(k * k * channels, filters, GAIN, rng).T.reshape(filters, k, k, channels)
    into[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(weight))
    into[f"{name}.bias"] = torch.zeros(filters)


def _convolved(parameters: Parameters, name: str, x: Tensor, **how: int) -> Tensor:
    return convolve(x.contiguous(), parameters[f"{name}.weight"], parameters[f"{name}.bias"], **how)


class Input(NamedTuple):
    """One part of an observation, in front of a network."""

    part: Part | None
    """Where it lies in a row of a composite observation; None: it is the whole observation."""
    width: int
    """Numbers that the network gets of it."""
    picture: Picture | None = None
    encoder: Encoder | None = None

    @property
    def name(self) -> str:
        """What the names of its encoder's parameters begin with."""
        return f"encoder.{self.part.name}." if self.part is not None and self.part.path else "encoder."

    def hides(self, unseen: Sequence[str]) -> bool:
        """Whether the policy does not see it."""
        return self.part is not None and within(self.part, unseen)

    @property
    def words(self) -> str:
        """What was chosen for the picture, for the user."""
        assert self.picture is not None
        assert self.encoder is not None
        whose = f"observation {self.part.name!r} " if self.part is not None and self.part.path else "observation "
        return f"{whose}{self.picture.words}; its encoder is {self.encoder.name} ({self.width} features)"


def inputs(space: gym.Space, kind: str, unseen: Sequence[str] = ()) -> list[Input]:
    """The parts of an observation in the order in which the network reads them: those under `unseen` come last.

    Empty if there is no picture, so that the observation needs no encoder. A ValueError if `kind` is one of pictures.
    """
    wanted, kind = kind in ("cnn", "impala"), "cnn" if kind == "auto" else kind
    if isinstance(space, PackedObservations):
        parts = sorted(space.parts, key=lambda part: within(part, unseen))  # stable
        found = [_input(part, part.space, kind) for part in parts]
    else:
        found = [_input(None, space, kind)]
    if any(one.picture for one in found):
        return found
    if wanted:
        raise ValueError(
            f"encoder is {kind!r}, but the observation space {space} has no picture; expected a Box of bytes, of "
            f"bools, or of floats 0 … 1, with at least {SMALLEST} × {SMALLEST} pixels; leave encoder at auto"
        )
    return []


def _input(part: Part | None, space: gym.Space, kind: str) -> Input:
    if (seen := picture(space)) is not None:
        encoder = encoder_of(seen, kind)
        return Input(part, encoder.size, seen, encoder)
    return Input(part, 0 if part is None else width_of(part))


def encoded(network: Network, parts: Sequence[Input], *, shared: bool, unseen: Sequence[str] = ()) -> Network:
    """The network behind encoders of these parts, so that it reads observations as they are kept.

    Policy and critic have encoders of their own, unless they share layers, one of them reads a memory, or there is only
    one of them. Parts under `unseen` are the critic's alone.
    """
    own = _Encoders(list(parts))
    if network.remember is not None or (network.critics is None and (shared or network.value is None)):
        return _behind_one(network, own)
    policy, value = (
        _Encoders([one for one in parts if not one.hides(unseen)], "policy."),
        _Encoders(list(parts), "value."),
    )

    def init(rng: np.random.Generator) -> Parameters:
        parameters = network.init(rng)
        for encoders in (policy, value):  # last from the generator, but first among the names of the same part
            first = next(name for name in parameters if name.startswith(encoders.prefix))
            new, at = encoders.init(rng), list(parameters).index(first)
            rows = list(parameters.items())
            parameters = dict(rows[:at]) | new | dict(rows[at:])
        return parameters

    def act(parameters: Parameters, x: Tensor) -> Tensor:
        assert network.policy is not None
        return network.policy(parameters, policy(parameters, x))  # type: ignore[arg-type]

    def judge(parameters: Parameters, x: Tensor) -> Tensor:
        if network.critics is not None:
            assert network.critics.judged is not None
            return network.critics.judged(parameters, value(parameters, x), act(parameters, x))  # type: ignore[return-value]
        assert network.value is not None
        return network.value(parameters, value(parameters, x))  # type: ignore[arg-type]

    critics = network.critics
    if critics is not None:
        q, learn = critics.q, critics.learn
        critics = critics._replace(
            q=lambda parameters, x, *rest: q(parameters, value(parameters, x), *rest),
            learn=lambda parameters, x, *rest: learn(parameters, value(parameters, x), *rest),
        )
    return Network(
        init,
        lambda parameters, x: (act(parameters, x), judge(parameters, x)),
        act,
        judge,
        shaped=True,
        pictures=True,
        critics=critics,
    )


def _behind_one(network: Network, encoders: _Encoders) -> Network:
    def init(rng: np.random.Generator) -> Parameters:
        parameters = network.init(rng)
        return encoders.init(rng) | parameters

    def behind(function: Any) -> Any:
        if function is None:
            return None
        return lambda parameters, x, *rest: function(parameters, encoders(parameters, x), *rest)

    changes: dict[str, Any] = {"init": init, "broadcasts": False, "shaped": True, "pictures": True}
    if network.remember is not None:  # all else reads the memory
        return network._replace(remember=behind(network.remember), unroll=behind(network.unroll), **changes)
    heads = {name: behind(getattr(network, name)) for name in ("apply", "policy", "value")}
    return network._replace(**heads, **changes)


class _Encoders:
    """All parts of an observation, side by side: rows [N, …] → [N, D]."""

    def __init__(self, parts: list[Input], prefix: str = "") -> None:
        self.parts, self.prefix = parts, prefix

    def init(self, rng: np.random.Generator) -> Parameters:
        found: Parameters = {}
        for one in self.parts:
            if one.encoder is not None:
                found |= one.encoder.init(self.prefix + one.name, rng)
        return found

    def __call__(self, parameters: Parameters, rows: Tensor) -> Tensor:
        columns = [self._column(parameters, one, rows) for one in self.parts]
        return columns[0] if len(columns) == 1 else torch.cat(columns, -1)

    def _column(self, parameters: Parameters, one: Input, rows: Tensor) -> Tensor:
        own: Any = rows if one.part is None else entries_of(one.part, rows)
        if one.picture is None or one.encoder is None:
            assert one.part is not None
            return decoded(one.part, own)  # type: ignore[return-value]
        seen = pixels(one.picture, own.reshape(-1, *one.picture.shape))
        lead = own.shape[: own.ndim - (len(one.picture.shape) if one.part is None else 1)]
        return one.encoder.apply(parameters, self.prefix + one.name, seen).reshape(*lead, one.width)

"""One agent as one torch module, from observations of the environment to its actions.

Encoding, normalisation, network, masks, sampling and bounds are inside; noise and memory are inputs. Leaves out the
formats that it is written in (`exporting.py`).
"""

# N observations, D numbers of an encoded one, H memory size, K policy outputs, A entries of a mask, W of noise
from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from telescope.control.agents.reading import TORCH
from telescope.control.environments.spaces import Packed, PackedObservations, Part, choices
from telescope.policy import Policy


class Port(NamedTuple):
    """An input of the module, or an output."""

    name: str
    shape: tuple[int, ...]
    """Without the batch axis."""
    dtype: np.dtype
    default: np.ndarray | None = None
    """[1, *shape], if it may be left out."""


class Acting(nn.Module):
    """`acting((observation, …))` → (action, …, policy outputs), in the order of `inputs` and `outputs`."""

    observation_mean: Tensor
    observation_scale: Tensor

    def __init__(self, policy: Policy, seed: int | None = None) -> None:
        super().__init__()
        s = policy.position(seed)
        self.agent, self.config = policy.agent, policy.config
        self.spaces = policy.rows
        layout = policy.agent.layout
        self.parameter_names = {name.replace(".", "__"): name for name in layout.names}
        for own, name in self.parameter_names.items():
            self.register_buffer(own, layout.unflatten(policy.parameters[s].cpu())[name])
        normaliser = policy.normaliser
        self.clip = normaliser.clip if normaliser.enabled else None
        if self.clip is not None:
            self.register_buffer("observation_mean", torch.from_numpy(normaliser.moments.mean[s].copy()))
            self.register_buffer("observation_scale", torch.from_numpy(normaliser.moments.scale[s].copy()))
        self.encoder = policy.encoder
        self.uniform = bool(still(self.agent.distribution).any())
        self.inputs, self.outputs = self._inputs(), self._outputs()

    @property
    def memory(self) -> int:
        """H, 0 without a memory."""
        return self.agent.network.memory

    def forward(self, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given = dict(zip((port.name for port in self.inputs), values, strict=True))
        parameters = {name: getattr(self, own) for own, name in self.parameter_names.items()}
        seen = self._encoded(given)
        if self.agent.network.remember is not None:
            seen = self.agent.network.remember(parameters, seen, given["memory"])
        outputs = self.agent.policy(parameters, seen)  # type: ignore[arg-type]
        noise = given["noise"]
        if self.uniform:  # actions that depend on the noise alone: one for each observation
            noise = noise + 0 * outputs[..., 0].reshape(-1, *(1 for _ in noise.shape[1:]))
        drawn = self.agent.distribution.sample(outputs, noise, given.get("action_mask"))
        found = (*self._actions(drawn), outputs)
        return (*found, seen) if self.memory else found  # type: ignore[return-value]

    def _encoded(self, given: dict[str, Tensor]) -> Any:
        """What the network reads: numbers [N, D], a picture, or the entries of the parts by their paths."""
        space = self.spaces[0]
        if isinstance(space, PackedObservations):
            return {part.path: self._entries(space, part, given[named("observation", part)]) for part in space.parts}
        observations = given["observation"]
        if isinstance(space, gym.spaces.Discrete):
            return self._normalised((observations[..., None] - space.start == torch.arange(space.n)).float())
        if self.encoder.kept != torch.uint8:
            dtype = np.result_type(space.dtype or np.float32, np.float32)
            observations = observations.reshape(-1, *self.encoder.shape).to(_torch(dtype))
        elif self.clip is None:
            return observations
        return self._normalised(observations)

    def _entries(self, space: PackedObservations, part: Part, values: Tensor) -> Tensor:
        """A part of the observation [N, n] as a row holds it, normalised if it is one of floats."""
        start = np.asarray(getattr(part.space, "start", 0)).ravel()
        entries = values.reshape(-1, part.entries)
        if start.any():
            entries = entries - torch.from_numpy(start)
        entries = entries.to(TORCH[part.dtype])
        first = part.start // 4
        if self.clip is None or first >= space.floats or part.dtype != "f4":
            return entries
        return self._normalised(entries, slice(first, first + part.entries))

    def _normalised(self, observations: Tensor, columns: Any = slice(None)) -> Tensor:
        if self.clip is None:
            return observations.float()
        mean, scale = self.observation_mean[columns], self.observation_scale[columns]
        return torch.clip((observations.double() - mean) * scale, -self.clip, self.clip).float()

    def _actions(self, drawn: Tensor) -> list[Tensor]:
        """The drawn actions within their bounds, part by part, as the environment takes them."""
        space, found = self.spaces[1], []
        for part in parts_of(space):
            own, shape = drawn, part.space.shape or ()
            if isinstance(space, Packed):
                own = drawn[..., part.start : part.start + part.entries].reshape(-1, *shape)
            if isinstance(part.space, gym.spaces.Box):
                own = self.config.bound(part.space, own.device)(own)
            own = own.to(_torch(part.space.dtype))
            start = np.asarray(getattr(part.space, "start", 0))
            found.append(own + torch.from_numpy(start.astype(part.space.dtype)) if start.any() else own)
        return found

    def _inputs(self) -> list[Port]:
        ports = [
            Port(named("observation", part), part.space.shape or (), np.dtype(part.space.dtype))  # type: ignore[arg-type]
            for part in parts_of(self.spaces[0])
        ]
        if self.memory:
            ports.append(Port("memory", (self.memory,), np.dtype(np.float32)))
        if width := sum(sum(choices(part.space)) for part in parts_of(self.spaces[1])):
            ports.append(Port("action_mask", (width,), np.dtype(bool), np.ones((1, width), bool)))
        return [*ports, self._noise()]

    def _noise(self) -> Port:
        noise = still(self.agent.distribution)
        return Port("noise", noise.shape[1:], noise.dtype, noise)

    def _outputs(self) -> list[Port]:
        ports = [
            Port(named("action", part), part.space.shape or (), np.dtype(part.space.dtype))  # type: ignore[arg-type]
            for part in parts_of(self.spaces[1])
        ]
        ports.append(Port("policy_outputs", (self.agent.distribution.outputs,), np.dtype(np.float32)))
        return [*ports, Port("next_memory", (self.memory,), np.dtype(np.float32))] if self.memory else ports


def named(whole: str, part: Part) -> str:
    """The name of a part of the observation or the action."""
    return ".".join((whole, *map(str, part.path)))


def still(distribution: Any) -> np.ndarray:
    """Noise [1, …] with which a sample is the mode: 0, or ½ of a uniform policy."""
    noise = distribution.noise(np.random.default_rng(0), (1,))
    outputs = np.linspace(-1, 1, distribution.outputs, dtype=np.float32)[None]
    most = distribution.mode(outputs)
    for value in (0.0, 0.5):
        if np.array_equal(distribution.sample(outputs, np.full_like(noise, value)), most):
            return np.full_like(noise, value)
    raise ValueError("the policy's distribution has a mode that no constant noise gives, so it has no graph")


def draws(acting: Acting) -> list[tuple[str, int, float]]:
    """What noise consists of: a kind, so many columns of it, and what is subtracted from the first of them."""
    found: list[tuple[str, int, float]] = []
    left = int(np.prod(next(port.shape for port in acting.inputs if port.name == "noise")))
    for part in parts_of(acting.spaces[1]):
        width = sum(choices(part.space)) or part.entries
        if isinstance(part.space, gym.spaces.MultiBinary):
            found.append(("logistic", width, 0.0))
        elif isinstance(part.space, gym.spaces.Box):
            found.append(("uniform" if acting.uniform else "normal", width, 0.0))
        elif left == width + 1:  # ε-greedy: whether it explores, then what
            found.append(("uniform", left, float(getattr(acting.config, "exploration_end", 0.0))))
        else:
            found.append(("gumbel", width, 0.0))
    return found


def parts_of(space: Any) -> tuple[Part, ...]:
    """The parts of a space; of a space without parts, itself."""
    return space.parts if isinstance(space, Packed) else (Part((), space, 0),)


def _torch(dtype: Any) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype

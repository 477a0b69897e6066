"""Many independent agents in one process: an agent is a flat vector, a population is a leading seed axis.

Updates are written for one agent as pure functions and lifted over the population by `lifting.lift`. Which loss is
minimised is the algorithm's business.
"""

# S seeds, P parameters of one agent
from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from telescope.arrays import Array
from telescope.control.agents.networks import Network, Parameters

# Streams of random numbers. With the seed's value (never its position) and the iteration they key a fresh generator
# each time one is needed, so there is no generator state to store, and adding a seed changes no other.
INIT, ACTIONS, MINIBATCHES, TRAINING_ENVIRONMENTS, EVALUATION_ENVIRONMENTS, EVALUATION_ACTIONS = range(6)


def generator(seed: int, stream: int, iteration: int = 0) -> np.random.Generator:
    """The random numbers of one seed for one purpose in one iteration."""
    return np.random.default_rng([seed, stream, iteration])


class Layout(NamedTuple):
    """Where each named parameter of one agent stands in its flat vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.shapes]

    def unflatten(self, vectors: Array) -> Parameters:
        """[P] → the dictionary of parameters, as views; [S, P] → those of all agents, vectors as [S, 1, n]."""
        lead = tuple(vectors.shape[:-1])
        pieces: Any
        if isinstance(vectors, Tensor):
            # not slices: the gradient of this is one concatenation, theirs a sum of vectors filled up with zeros
            pieces = torch.split(vectors, self.sizes, -1)
        else:
            pieces = np.split(vectors, list(itertools.accumulate(self.sizes[:-1])), -1)
        broadcast = [(1,) * (len(lead) * (len(shape) == 1)) for shape in self.shapes]
        rows = zip(self.names, pieces, broadcast, self.shapes, strict=True)
        return {name: piece.reshape(*lead, *extra, *shape) for name, piece, extra, shape in rows}


class Agent(NamedTuple):
    """What an optimiser changes. One agent's fields are [P], [P], [P], [], []; a population's have S in front.

    Adam's step count t is known by β₁ᵗ and β₂ᵗ, which live on the device, so that a seed that stops early keeps its
    own. As powers of a count, a compiled step would take them anew for every few parameters.
    """

    parameters: Tensor
    first_moment: Tensor
    second_moment: Tensor
    first_decay: Tensor
    second_decay: Tensor


def create(network: Network, seeds: Sequence[int], device: str | torch.device = "cpu") -> tuple[Agent, Layout]:
    """The population at birth: each seed's parameters from its own random numbers, moments zero."""
    members = [network.init(generator(seed, INIT)) for seed in seeds]
    layout = Layout(tuple(members[0]), tuple(tuple(p.shape) for p in members[0].values()))
    vectors = [torch.cat([p.reshape(-1).float() for p in member.values()]) for member in members]
    parameters = torch.stack(vectors).to(device)
    zeros, ones = torch.zeros_like(parameters), torch.ones(len(seeds), device=device)
    return Agent(parameters, zeros, zeros.clone(), ones, ones.clone()), layout


def clip_by_norm(gradient: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    """Scale one agent's gradient [P] to at most `max_norm`; returns it and the norm it had."""
    norm = torch.linalg.vector_norm(gradient)
    return gradient * torch.clamp(max_norm / (norm + 1e-6), max=1.0), norm


def adam(
    agent: Agent,
    gradient: Tensor,
    learning_rate: Tensor,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float,
) -> Agent:
    """One Adam step of one agent (Kingma & Ba 2015, algorithm 1): θ ← θ − α m̂ / (√v̂ + ε)."""
    first = betas[0] * agent.first_moment + (1 - betas[0]) * gradient
    second = betas[1] * agent.second_moment + (1 - betas[1]) * gradient**2
    first_decay, second_decay = betas[0] * agent.first_decay, betas[1] * agent.second_decay
    step_size = learning_rate / (1 - first_decay)
    scale = torch.sqrt(second / (1 - second_decay)) + eps
    return Agent(agent.parameters - step_size * first / scale, first, second, first_decay, second_decay)


def where(condition: Tensor, new: Any, old: Any) -> Any:
    """Choose between two NamedTuples of tensors by a 0-d condition, field by field."""
    return type(new)(*(torch.where(condition, a, b) for a, b in zip(new, old, strict=True)))

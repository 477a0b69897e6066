"""The layout of an agent's named parameters in its flat vector, and the vectors of a new population.

An agent is one flat vector [P], a population a matrix [S, P]. Leaves out all else that an algorithm learns (its
Learner).
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
from telescope.randomness import INIT, generator


class Layout(NamedTuple):
    """The position of each named parameter in an agent's flat vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.shapes]

    @property
    def size(self) -> int:
        """The length of the vector."""
        return sum(self.sizes)

    def part(self, prefix: str) -> Tensor:
        """Positions [K] in the vector of the parameters whose names begin with `prefix`, such as "policy."."""
        starts = [0, *itertools.accumulate(self.sizes)]
        found = [
            torch.arange(a, b)
            for name, (a, b) in zip(self.names, itertools.pairwise(starts), strict=True)
            if name.startswith(prefix)
        ]
        if not found:
            raise ValueError(f"no parameter's name begins with {prefix!r}; there are {', '.join(self.names)}")
        return torch.cat(found)

    def sections(self, prefixes: Sequence[str]) -> list[Layout]:
        """The layouts of the parts of the vector whose names begin with these prefixes, which follow each other."""
        parts = [[i for i, name in enumerate(self.names) if name.startswith(one)] for one in prefixes]
        if list(itertools.chain(*parts)) != list(range(len(self.names))):
            raise ValueError(
                f"parameters are {', '.join(self.names)}; expected names that begin with {', '.join(prefixes)}, in "
                "this order"
            )
        return [Layout(tuple(self.names[i] for i in part), tuple(self.shapes[i] for i in part)) for part in parts]

    def unflatten(self, vectors: Array) -> Parameters:
        """[P] → a dictionary of parameters, as views. [S, P] → those of all agents, with vectors as [S, 1, n]."""
        lead = tuple(vectors.shape[:-1])
        pieces: Any
        if isinstance(vectors, Tensor):
            # no slices: the gradient of a split is one concatenation, that of slices a sum of zero-padded vectors
            pieces = torch.split(vectors, self.sizes, -1)
        else:
            pieces = np.split(vectors, list(itertools.accumulate(self.sizes[:-1])), -1)
        broadcast = [(1,) * (len(lead) * (len(shape) == 1)) for shape in self.shapes]
        rows = zip(self.names, pieces, broadcast, self.shapes, strict=True)
        return {name: piece.reshape(*lead, *extra, *shape) for name, piece, extra, shape in rows}


def create(network: Network, seeds: Sequence[int], device: str | torch.device = "cpu") -> tuple[Tensor, Layout]:
    """The initial parameters [S, P] of a population, each seed's from its own random numbers, and their layout."""
    members = [network.init(generator(seed, INIT)) for seed in seeds]
    layout = Layout(tuple(members[0]), tuple(tuple(p.shape) for p in members[0].values()))
    vectors = [torch.cat([p.reshape(-1).float() for p in member.values()]) for member in members]
    return torch.stack(vectors).to(device), layout

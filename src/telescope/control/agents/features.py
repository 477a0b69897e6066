"""Features of an observation for linear values: a table, tile coding, the Fourier basis; and networks that weigh them.

Features are functions of arrays with any axes in front, for NumPy and torch. Leaves out which of them a config
describes (`control/linear.py`).
"""

# N observations of D numbers, F features, A actions, K tilings
from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope import arrays
from telescope.arrays import Array
from telescope.control.agents.networks import Network, Parameters

UNBOUNDED = 1e30
"""A bound of a Box from here on is none."""


class Features(NamedTuple):
    """φ(s) of an encoded observation [..., D]."""

    size: int
    """F."""
    apply: Callable[[Array], Array]
    """`apply(observations [..., D])` → float32 [..., F]."""
    step_sizes: np.ndarray
    """[F], by which a step size α is multiplied: 1 / tilings, or 1 / ‖c‖ of the Fourier basis."""


def tabular(size: int) -> Features:
    """The observation itself, which is one-hot for a Discrete space: one weight for each state."""
    return Features(size, lambda observations: observations, np.ones(size, np.float32))


def tile_coding(low: np.ndarray, high: np.ndarray, *, tilings: int, tiles: int) -> Features:
    """K grids over the box low … high, each displaced by another part of a tile (Sutton & Barto 2018, section 9.5.4).

    A feature is 1 for the tile of each grid that holds the observation, and 0 for all others. A tile has 1/`tiles` of
    the box's width. Grid k is displaced by (1, 3, 5, …) k / K of a tile along the dimensions, so that offsets do not
    lie on a diagonal. Every tile has an index of its own: no hashing, so no collisions, but (tiles + 1)^D · K features.
    One tiling is state aggregation.
    """
    dimensions = len(low)
    offsets = (np.arange(tilings)[:, None] * (2 * np.arange(dimensions) + 1) % tilings / tilings).astype(np.float32)
    sides = (tiles + 1) ** np.arange(dimensions)  # one more tile than fit, because of the displacement
    cells = (tiles + 1) ** dimensions

    def apply(observations: Array) -> Array:
        xp = arrays.library("observations", observations)
        like = _maker(observations)
        places = tiles * _scaled(observations, low, high)[..., None, :] + like(offsets)  # [..., K, D]
        index = (xp.floor(places) * like(sides.astype(np.float32))).sum(-1)  # [..., K] whole numbers
        active = index[..., None] == like(np.arange(cells, dtype=np.float32))  # [..., K, cells]
        return _floats(active.reshape(*active.shape[:-2], tilings * cells))

    return Features(tilings * cells, apply, np.full(tilings * cells, 1 / tilings, np.float32))


def fourier_basis(low: np.ndarray, high: np.ndarray, *, order: int) -> Features:
    """φ_c(s) = cos(π c·s̄) for all c in {0 … order}^D, with s̄ = s scaled from the box to [0, 1] (Konidaris et al. 2011).

    The step size of φ_c is divided by ‖c‖, as there.
    """
    frequencies = np.array(list(itertools.product(range(order + 1), repeat=len(low))), np.float32)  # [F, D]
    norms = np.linalg.norm(frequencies, axis=1)

    def apply(observations: Array) -> Array:
        xp, like = arrays.library("observations", observations), _maker(observations)
        return xp.cos(_scaled(observations, low, high) @ like((np.pi * frequencies.T).astype(np.float32)))

    return Features(len(frequencies), apply, (1 / np.where(norms == 0, 1, norms)).astype(np.float32))


def coordinates(features: Features, count: int) -> Features:
    """Features of the number of a Discrete state, which comes as one-hot."""
    numbers = np.arange(count, dtype=np.float32)[:, None]
    return features._replace(apply=lambda one_hot: features.apply(one_hot @ _maker(one_hot)(numbers)))


def linear_q(features: Features, actions: int) -> Network:
    """Q(s, a) = Σ_f φ_f(s) W[f, a] with weights that begin at 0; its value is max Q(s, a)."""

    def policy(parameters: Parameters, observations: Array) -> Array:
        return features.apply(observations) @ parameters["q.weight"]  # [N, A]

    def apply(parameters: Parameters, observations: Array) -> tuple[Array, Array]:
        q = policy(parameters, observations)
        return q, arrays.library("q", q).amax(q, -1)

    return Network(lambda _: {"q.weight": torch.zeros(features.size, actions)}, apply, policy, broadcasts=True)


def linear_v(features: Features) -> Network:
    """V(s) = Σ_f φ_f(s) w[f] with weights that begin at 0. It has no policy: its policy outputs are V(s) again."""

    def apply(parameters: Parameters, observations: Array) -> tuple[Array, Array]:
        values = features.apply(observations) @ parameters["value.weight"]  # [N, 1]
        return values, values[..., 0]

    return Network(lambda _: {"value.weight": torch.zeros(features.size, 1)}, apply, broadcasts=True)


def of_pair(features: Array, actions: Array) -> Array:
    """φ(s, a) [F · A] in the order of `linear_q`'s weights, from φ(s) [F] and one-hot actions or probabilities [A]."""
    return (features[..., :, None] * actions[..., None, :]).reshape(*features.shape[:-1], -1)


def bounds(space: gym.Space, normalised: float | None) -> tuple[np.ndarray, np.ndarray]:
    """The box that features divide: the space's own bounds, or ±`normalised` if observations are normalised."""
    if isinstance(space, gym.spaces.Discrete):
        return np.zeros(1, np.float32), np.full(1, max(int(space.n) - 1, 1), np.float32)
    size = int(np.prod(space.shape or ()))
    if normalised is not None:
        return np.full(size, -normalised, np.float32), np.full(size, normalised, np.float32)
    low, high = (np.asarray(bound, np.float64).ravel() for bound in (space.low, space.high))  # type: ignore[attr-defined]
    open_ended = np.flatnonzero((np.abs(low) >= UNBOUNDED) | (np.abs(high) >= UNBOUNDED))
    if len(open_ended):
        raise ValueError(
            f"observation_space {space} has no bounds in its entries {', '.join(map(str, open_ended[:8]))}, but tiles "
            "and the Fourier basis divide a box; set normalise_observations (the box is then ±clip_observations)"
        )
    return low.astype(np.float32), np.where(high > low, high, low + 1).astype(np.float32)


def feature_count(dimensions: int, kind: str, *, tilings: int, tiles: int, order: int) -> int:
    """F, before anything of this size is made."""
    sizes = {"tabular": dimensions, "tiles": tilings * (tiles + 1) ** dimensions, "fourier": (order + 1) ** dimensions}
    return sizes[kind]


def _scaled(observations: Array, low: np.ndarray, high: np.ndarray) -> Array:
    """From the box to [0, 1]; what lies outside counts as its border."""
    like = _maker(observations)
    return arrays.library("observations", observations).clip((observations - like(low)) * like(1 / (high - low)), 0, 1)


def _maker(like: Array) -> Callable[[np.ndarray], Any]:
    """Turns a constant into an array beside `like`."""
    if isinstance(like, Tensor):
        return lambda array: torch.as_tensor(array, device=like.device)
    return lambda array: array


def _floats(flags: Array) -> Array:
    return flags.float() if isinstance(flags, Tensor) else flags.astype(np.float32)

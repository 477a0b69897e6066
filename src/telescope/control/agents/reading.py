"""From rows of bytes to inputs of a network: the parts of a composite observation, decoded by their kind.

Numbers stay, bytes of a picture become 0 … 1, choices become one-hot. Leaves out how rows come about
(`environments/spaces.py`).
"""

# [..., W] rows of W bytes, D numbers of a decoded observation
from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope import arrays
from telescope.arrays import Array
from telescope.control.agents.networks import Network, Parameters
from telescope.control.environments.spaces import PackedObservations, Part, assembled

TORCH = {"f4": torch.float32, "i4": torch.int32, "u1": torch.uint8}


def width(space: PackedObservations, keys: Sequence[str] = ()) -> int:
    """D, the numbers of a decoded observation; with `keys` only those of these parts."""
    return sum(width_of(part) for part in space.parts if not keys or within(part, keys))


def width_of(part: Part) -> int:
    """The numbers of a decoded part: one for each entry, or for each value of a choice."""
    return sum(part.sizes) or part.entries


def flat(space: PackedObservations, rows: Array, last: Sequence[str] = ()) -> Array:
    """Rows [..., W] as float32 [..., D], in the order of the space, but the parts under the keys `last` at the end."""
    ordered = sorted(space.parts, key=lambda part: within(part, last))  # stable
    columns = [decoded(part, entries_of(part, rows)) for part in ordered]
    return columns[0] if len(columns) == 1 else arrays.library("rows", columns[0]).concatenate(columns, -1)


def parted(space: PackedObservations, rows: Array) -> Any:
    """Rows [..., W] as the space's own dicts and tuples of arrays [..., *shape]: bytes as uint8, choices one-hot."""
    found = {part.path: _shaped(part, rows) for part in space.parts}
    return assembled(space.original, found)


def within(part: Part, keys: Sequence[str]) -> bool:
    """Whether a part lies under one of these keys."""
    return any(f"{part.name}.".startswith(f"{key}.") for key in keys)


def entries_of(part: Part, rows: Array) -> Array:
    """A part [..., n] in its own dtype, of rows, or of a dictionary of the parts by their paths."""
    if isinstance(rows, dict):
        return rows[part.path]
    size = part.entries * np.dtype(part.dtype).itemsize
    own = rows[..., part.start : part.start + size]
    if part.dtype == "u1":
        return own
    return own.view(TORCH[part.dtype]) if isinstance(own, Tensor) else own.view(part.dtype)


def decoded(part: Part, entries: Array) -> Array:
    """A part's entries [..., n] as float32 numbers [..., width_of(part)]."""
    if part.sizes:
        return _one_hot(part.sizes, entries)
    if part.dtype == "f4":
        return entries
    numbers = entries.float() if isinstance(entries, Tensor) else entries.astype(np.float32)
    return numbers / 255 if is_picture(part.space) else numbers


def _one_hot(sizes: list[int], entries: Array) -> Array:
    """Choices [..., n] as one-hot vectors one after the other [..., Σ sizes]."""
    lead, xp = tuple(entries.shape[:-1]), arrays.library("entries", entries)
    more = {"device": entries.device} if isinstance(entries, Tensor) else {}
    if len(set(sizes)) == 1:
        chosen = entries[..., None] == xp.arange(sizes[0], **more)  # [..., n, size]
        chosen = chosen.reshape(*lead, len(sizes) * sizes[0])
    else:
        each = [entries[..., i : i + 1] == xp.arange(n, **more) for i, n in enumerate(sizes)]
        chosen = xp.concatenate(each, -1)
    return chosen.float() if isinstance(chosen, Tensor) else chosen.astype(np.float32)


def _shaped(part: Part, rows: Array) -> Array:
    entries = entries_of(part, rows)
    if part.sizes:
        return _one_hot(part.sizes, entries)
    numbers = entries if part.dtype == "f4" or part.space.dtype == np.uint8 else decoded(part, entries)
    return numbers.reshape(*entries.shape[:-1], *(part.space.shape or ()))


def is_picture(space: gym.Space) -> bool:
    """Whether it is a Box of bytes 0 … 255."""
    if not isinstance(space, gym.spaces.Box) or space.dtype != np.uint8:
        return False
    return bool((space.low == 0).all() and (space.high == 255).all())


def require_keys(space: gym.Space, unseen: Sequence[str]) -> None:
    """Raise a ValueError unless an observation has parts under all of these keys, and others besides."""
    if not isinstance(space, PackedObservations) or not space.parts[0].path:
        raise ValueError(
            f"critic_observations is {tuple(unseen)}, but the observation space {space} has no keys; expected a "
            "Dict or Tuple"
        )
    for key in unseen:
        if not any(within(part, [key]) for part in space.parts):
            names = ", ".join(part.name for part in space.parts)
            raise ValueError(f"critic_observations has {key!r}, but the observation's parts are {names}")
    if width(space) == width(space, unseen):
        raise ValueError(f"critic_observations is {tuple(unseen)}, which is everything; leave something for the policy")


def decoded_bounds(space: PackedObservations, normalised: float | None) -> tuple[np.ndarray, np.ndarray]:
    """The least and largest value of each decoded number [D]; ±`normalised` for those that are normalised."""
    lows, highs = [], []
    for part in space.parts:
        low, high = np.zeros(width_of(part)), np.ones(width_of(part))
        if isinstance(part.space, gym.spaces.Box) and not is_picture(part.space):
            low, high = (np.asarray(bound, np.float64).ravel() for bound in (part.space.low, part.space.high))
            if normalised is not None and part.start < 4 * space.floats:
                low, high = np.full(part.entries, -normalised), np.full(part.entries, normalised)
        lows.append(low)
        highs.append(high)
    return np.concatenate(lows).astype(np.float32), np.concatenate(highs).astype(np.float32)


def reading(network: Network, space: gym.Space, last: Sequence[str] = ()) -> Network:
    """The network in front of rows of this space; the same network if the space is not composite.

    A network of flat observations reads `flat`, one with `shaped` reads `parted`.
    """
    if not isinstance(space, PackedObservations):
        return network
    read = functools.partial(parted, space) if network.shaped else functools.partial(flat, space, last=tuple(last))

    def reads(function: Any) -> Any:
        """The same function of rows, which are its second argument."""
        if function is None:
            return None
        return lambda parameters, rows, *rest: function(parameters, read(rows), *rest)

    if network.remember is not None:  # all else reads the memory
        own = {"remember": reads(network.remember), "unroll": reads(network.unroll)}
        return network._replace(**own, shaped=True, read=read)
    critics = network.critics
    if critics is not None:
        critics = critics._replace(q=reads(critics.q), learn=reads(critics.learn))
    heads = {name: reads(getattr(network, name)) for name in ("apply", "policy", "value")}
    return network._replace(**heads, critics=critics, shaped=True, read=read)


def own_reading(network: Network, space: gym.Space) -> Network:
    """A user's own network in front of observations of this space as they are kept; bools become numbers for it."""
    if not network.shaped or space.dtype != np.bool_:
        return reading(network, space)

    def floats(function: Any) -> Any:
        return function and (lambda parameters, x, *rest: function(parameters, x.float(), *rest))

    names = ("remember",) if network.remember is not None else ("apply", "policy", "value")
    return network._replace(**{name: floats(getattr(network, name)) for name in names})


def asymmetric(actor: Network, critic: Network, size: int) -> Network:
    """The policy of one network, which reads the first `size` numbers only, beside the critic of another."""

    def init(rng: np.random.Generator) -> Parameters:
        own = {name: x for name, x in actor.init(rng).items() if name.startswith("policy.")}
        return own | {name: x for name, x in critic.init(rng).items() if not name.startswith("policy.")}

    def policy(parameters: Parameters, observations: Array) -> Array:
        assert actor.policy is not None
        return actor.policy(parameters, observations[..., :size])

    def apply(parameters: Parameters, observations: Array) -> tuple[Array, Array]:
        assert critic.value is not None
        return policy(parameters, observations), critic.value(parameters, observations)

    return critic._replace(init=init, apply=apply, policy=policy)


def reads_rows(network: Network, space: gym.Space) -> Network:
    """The network as it is, marked as one that reads rows if the space is composite: its features decode them."""
    return network._replace(shaped=isinstance(space, PackedObservations), read=None)

"""A product of independent action distributions, for Dict and Tuple action spaces.

Log-probabilities, entropies and KL divergences of the parts add. Leaves out the parts (`distributions.py`).
"""

# [..., K] policy outputs, [..., A] actions as numbers, n the sizes of one part
from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telescope import arrays
from telescope.arrays import Array
from telescope.control.agents.distributions import Distribution, Masks


def product(parts: Sequence[Distribution], masked: Sequence[int]) -> Distribution:
    """π(a|s) = Π_p π_p(a_p|s). Actions are rows of float32 [..., A], the entries of the parts one after the other.

    Outputs are the logits and means of all parts in their order, then log σ of those that have one. `masked` has the
    entries of a mask that belong to each part, 0 for a part without.
    """
    heads = [part.outputs - part.scales for part in parts]
    sizes = [math.prod(part.action_shape) for part in parts]
    widths = [part.noise(np.random.default_rng(0), ()).shape[-1] for part in parts]

    def cut(x: Array | None, counts: Sequence[int], start: int = 0) -> list[Any]:
        """The pieces of x by their sizes; None for those of size 0."""
        ends = itertools.accumulate(counts, initial=start)
        return [None if x is None or a == b else x[..., a:b] for a, b in itertools.pairwise(ends)]

    def own(outputs: Array) -> list[Array]:
        log_stds = cut(outputs, [part.scales for part in parts], sum(heads))
        xp: Any = arrays.library("outputs", outputs)
        pairs = zip(cut(outputs, heads), log_stds, strict=True)
        return [x if log_std is None else xp.concatenate([x, log_std], -1) for x, log_std in pairs]

    def joined(chosen: Iterator[Array], outputs: Array) -> Array:
        lead = tuple(outputs.shape[:-1])
        columns = [_floats(x).reshape(*lead, size) for x, size in zip(chosen, sizes, strict=True)]
        return arrays.library("outputs", outputs).concatenate(columns, -1)

    def sample(outputs: Array, noise: Array, masks: Masks = None) -> Array:
        rows = zip(parts, own(outputs), cut(noise, widths), cut(masks, masked), strict=True)
        return joined((part.sample(x, e, m) for part, x, e, m in rows), outputs)

    def mode(outputs: Array, masks: Masks = None) -> Array:
        rows = zip(parts, own(outputs), cut(masks, masked), strict=True)
        return joined((part.mode(x, m) for part, x, m in rows), outputs)

    def log_prob(outputs: Tensor, actions: Tensor, masks: Masks = None) -> Tensor:
        rows = zip(parts, own(outputs), cut(actions, sizes), cut(masks, masked), strict=True)
        each = [part.log_prob(x, a.reshape(*a.shape[:-1], *part.action_shape), m) for part, x, a, m in rows]
        return torch.stack(each).sum(0)

    def entropy(outputs: Tensor, masks: Masks = None) -> Tensor:
        rows = zip(parts, own(outputs), cut(masks, masked), strict=True)
        return torch.stack([part.entropy(x, m) for part, x, m in rows]).sum(0)

    def kl(outputs: Tensor, old_outputs: Tensor, masks: Masks = None) -> Tensor:
        rows = zip(parts, own(outputs), own(old_outputs), cut(masks, masked), strict=True)
        return torch.stack([part.kl(x, old, m) for part, x, old, m in rows]).sum(0)

    return Distribution(
        outputs=sum(part.outputs for part in parts),
        continuous=False,
        action_shape=(sum(sizes),),
        action_dtype=torch.float32,
        noise=lambda rng, shape: np.concatenate([part.noise(rng, shape) for part in parts], -1),
        sample=sample,
        mode=mode,
        log_prob=log_prob,
        entropy=entropy,
        kl=kl,
        scales=sum(part.scales for part in parts),
    )


def _floats(x: Array) -> Array:
    return x.float() if isinstance(x, Tensor) else np.asarray(x, np.float32)

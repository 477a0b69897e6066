"""Trees of tensors: NamedTuples of tensors and of NamedTuples, as an algorithm's learner is.

One learner is one tree, whatever it holds (parameters, targets, optimisers); these functions take it as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def where(condition: Tensor, new: Any, old: Any) -> Any:
    """Choose between two trees of one structure by a 0-d condition, leaf by leaf."""
    if isinstance(new, Tensor):
        return torch.where(condition, new, old)
    return type(new)(*(where(condition, a, b) for a, b in zip(new, old, strict=True)))


def to_dict(tree: Any, *, without: Tensor) -> dict[str, Any]:
    """A tree as nested dictionaries of copies, less the leaf that is `without` itself."""
    return {
        name: part.clone() if isinstance(part, Tensor) else to_dict(part, without=without)
        for name, part in tree._asdict().items()
        if part is not without
    }


def from_dict(like: Any, saved: Mapping[str, Any], *, without: Tensor) -> Any:
    """The tree that `to_dict` took apart, on the devices of `like`; `without` stays what `like` has."""
    parts = (
        part
        if part is without
        else saved[name].to(part.device).clone()
        if isinstance(part, Tensor)
        else from_dict(part, saved[name], without=without)
        for name, part in like._asdict().items()
    )
    return type(like)(*parts)

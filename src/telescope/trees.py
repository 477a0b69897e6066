"""Trees of tensors: NamedTuples of tensors and of NamedTuples, such as an algorithm's Learner.

A Learner is one tree, whatever it holds (parameters, target networks, optimisers). These functions take whole trees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """A tree, or tuples of trees, with `function` applied to each tensor. What is not a tensor (None) stays."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple):
        parts = [mapped(function, part) for part in tree]
        return tuple(parts) if type(tree) is tuple else type(tree)(*parts)
    return tree


def where(condition: Tensor, new: Any, old: Any) -> Any:
    """Choose between two trees of one structure by a condition without axes, leaf by leaf."""
    if isinstance(new, Tensor):
        return torch.where(condition, new, old)
    return type(new)(*(where(condition, a, b) for a, b in zip(new, old, strict=True)))


def to_dict(tree: Any, *, without: Tensor) -> dict[str, Any]:
    """A tree as nested dictionaries of copies, except the leaf `without`."""
    return {
        name: part.clone() if isinstance(part, Tensor) else to_dict(part, without=without)
        for name, part in tree._asdict().items()
        if part is not without
    }


def from_dict(like: Any, saved: Mapping[str, Any], *, without: Tensor) -> Any:
    """The inverse of `to_dict`, on the devices of `like`. The leaf `without` is taken from `like`."""
    parts = (
        part
        if part is without
        else saved[name].to(part.device).clone()
        if isinstance(part, Tensor)
        else from_dict(part, saved[name], without=without)
        for name, part in like._asdict().items()
    )
    return type(like)(*parts)

"""Gradient checkpointing: layers keep only their inputs and run again in the backward pass, to save memory.

transformers has a version of this that drops the cache of keys and values, through which the completions of a group
share their prompt. This one keeps the cache. Leaves out attention without a cache that models of other libraries have.
"""

from __future__ import annotations

import copy
import types
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_layers(model: nn.Module) -> None:
    """Let the layers of a model run again in the backward pass. Values and gradients stay the same, bit for bit."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"gradient_checkpointing is set, but {type(model).__name__} has no layers that could run again; leave it "
            "out, and lower micro_batch instead"
        )
    for layer in layers:
        layer.forward = types.MethodType(_forward, layer)  # a copy of the model gets its own, unlike with a closure


def _forward(layer: Any, *inputs: Any, **named: Any) -> Any:
    plain = type(layer).forward
    if not torch.is_grad_enabled():
        return plain(layer, *inputs, **named)
    before = {name: _snapshot(value) for name, value in named.items() if hasattr(value, "layers")}
    runs = 0

    def run(*inputs: Any, **named: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs > 1:  # the cache as it was before the layer wrote to it
            named |= {name: _snapshot(cache) for name, cache in before.items()}
        return plain(layer, *inputs, **named)

    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False, **named)


def _snapshot(cache: Any) -> Any:
    """A copy of a cache with the same tensors; writing to a cache replaces them."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied

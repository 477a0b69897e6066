"""Log-probabilities of tokens, and the entropy, without an array [tokens × vocabulary].

The logits of a chunk of tokens are computed from hidden states, used, and dropped; the backward pass computes them
again. This costs one more product with the output matrix, but only one chunk of memory instead of several full arrays.
Leaves out the model that computes the hidden states.
"""

# N live tokens, D hidden size, V vocabulary, K size of the largest support
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from telescope import arrays

CHUNK = 2**24  # logits at a time: 64 MiB in float32


class TokenLogProbs(NamedTuple):
    """Results per token, in float32 unless the hidden states are float64; 0 where masked."""

    log_probs: Tensor
    entropy: Tensor


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float = 1.0,
    soft_cap: float | None = None,
    temperature: float = 1.0,
    support: Tensor | None = None,
    entropy_gradient: bool = False,
    chunk: int | None = None,
) -> TokenLogProbs:
    """log p(token) and entropy H = −Σ p log p of p = softmax(logits / temperature).

    logits = scale · (hidden · weightᵀ + bias); a soft cap c makes them c tanh(logits / c). Values and gradients are
    those of the plain formula, up to rounding. Products use the dtype of `hidden`, also under autocast; everything
    after them uses float32.

    Args:
        hidden: [..., D], the state that predicts each token: the one before it. float32, float64 or half precision.
        weight: [V, D], the output matrix (`lm_head.weight`), of the same dtype. bias: [V] or None. tokens: [...]
        integers. mask: [...], True counts. Masked places cost nothing and have no effect, even if NaN. None: all count.
        temperature: that of sampling; otherwise the ratio to the sampler would be wrong from the first step. support:
        [..., K] token ids that the sampler could have drawn (`sampling_support`), padded with −1. Probabilities
            are then over these tokens only. None: the whole vocabulary.
        scale, soft_cap: the model's own (`states.head_of` finds them).
        entropy_gradient: let gradients through the entropy, for an entropy bonus.
        chunk: tokens per chunk. None: as many as have 64 MiB of logits.
    """
    _check(hidden, weight, tokens, mask, bias, temperature, support)
    for name, number in (("scale", scale), ("soft_cap", 1.0 if soft_cap is None else soft_cap)):
        if not number > 0:
            raise ValueError(f"{name} is {number}; expected more than 0, as the model's config has it")
    rule = _Rule(float(scale), soft_cap, float(temperature))
    shape = tokens.shape
    live: Any = arrays.to_bool("mask", mask)
    live = torch.ones(shape, dtype=torch.bool, device=tokens.device) if live is None else live
    if arrays.any_true(live & ((tokens < 0) | (tokens >= weight.shape[0]))):
        raise ValueError(f"tokens holds ids outside [0, {weight.shape[0]}), the rows of weight")
    chosen = None if support is None else support[live]
    size = max(1, CHUNK // weight.shape[0]) if chunk is None else chunk
    log_probs, entropy = _LogProbs.apply(
        hidden[live], weight, bias, tokens[live].long(), chosen, rule, size, entropy_gradient
    )
    if mask is None:
        return TokenLogProbs(log_probs.reshape(shape), entropy.reshape(shape))
    empty = torch.zeros(shape, dtype=log_probs.dtype, device=log_probs.device)
    return TokenLogProbs(empty.masked_scatter(live, log_probs), empty.masked_scatter(live, entropy))


def sampling_support(logits: Tensor, *, temperature: float = 1.0, top_k: int | None, top_p: float | None) -> Tensor:
    """Ids [..., K] of the tokens that top-k and then top-p sampling may draw, most likely first, padded with −1.

    top_p keeps the smallest set of most likely tokens whose probabilities, among the top k, sum to top_p or more
    (Holtzman et al. 2020, arXiv 1904.09751). logits: [..., V]. None switches a rule off.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; expected at least 1, or None for the whole vocabulary")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; expected a probability above 0, or None")
    _check_numbers(logits=logits)
    arrays.check_float("logits", logits)
    if logits.ndim == 0:
        raise ValueError("logits has shape (); expected [..., V]")
    k = logits.shape[-1] if top_k is None else min(top_k, logits.shape[-1])
    values, ids = (logits.detach().float() / temperature).topk(k)
    if top_p is None or top_p == 1:  # rounding would make it a little less
        return ids
    probabilities = values.softmax(-1)
    kept = probabilities.cumsum(-1) - probabilities < top_p
    kept[..., 0] = True  # the most likely token stays, even if top_p is 0 in single precision
    ids = torch.where(kept, ids, -1)
    return ids[..., : max(1, int(kept.sum(-1).amax())) if kept.numel() else k]


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Forward and backward use the same precision for products, wherever they are called."""

    @functools.wraps(function)
    def plain(ctx: Any, first: Tensor, *others: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return function(ctx, first, *others)

    return plain


class _Rule(NamedTuple):
    """What stands between the output matrix and the softmax."""

    scale: float
    soft_cap: float | None
    temperature: float


class _LogProbs(torch.autograd.Function):
    """Processes rows in chunks, so that no array over the vocabulary outlives its chunk."""

    @staticmethod
    @_without_autocast
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        support: Tensor | None,
        rule: _Rule,
        size: int,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = arrays.working_dtype(hidden)
        log_probs, entropy, norms = hidden.new_empty(3, len(hidden), dtype=dtype).unbind()
        for rows in _chunks(len(hidden), size):
            z = _logits(hidden[rows], weight, bias, _part(support, rows), rule)
            norms[rows] = z.logsumexp(-1)
            log_probs[rows] = z.gather(-1, tokens[rows, None])[:, 0] - norms[rows]
            z -= norms[rows, None]
            # p log p with finite factors: outside the support p is 0 and log p is −∞
            entropy[rows] = -(z.exp() * z.clamp_(min=torch.finfo(dtype).min)).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, tokens, support, norms, entropy)
        ctx.settings = rule, size
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        ctx.entropy_gradient = entropy_gradient
        return log_probs, entropy

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, d_log_probs: Tensor, d_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, support, norms, entropy = ctx.saved_tensors
        rule, size = ctx.settings
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight, dtype=norms.dtype) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias, dtype=norms.dtype) if bias is not None and ctx.needs_input_grad[2] else None
        for rows in _chunks(len(hidden), size):
            z = _logits(hidden[rows], weight, bias, _part(support, rows), rule)
            slope = None if rule.soft_cap is None else _slope(z, rule.temperature, rule.soft_cap)
            z -= norms[rows, None]
            d_z = z.exp()
            if ctx.entropy_gradient:  # ∂H/∂z = −p (log p + H)
                surprise = z.clamp_(min=torch.finfo(z.dtype).min).add_(entropy[rows, None])
                d_z *= surprise.mul_(d_entropy[rows, None]).add_(d_log_probs[rows, None]).neg_()
            else:
                d_z *= -d_log_probs[rows, None]
            d_z.scatter_add_(-1, tokens[rows, None], d_log_probs[rows, None])
            if slope is not None:
                d_z *= slope
            d_z = d_z.mul_(rule.scale / rule.temperature).to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[rows] = d_z @ weight
            if d_weight is not None:
                d_weight += d_z.T @ hidden[rows]
            if d_bias is not None:
                d_bias += d_z.sum(0)
        cast = [None if d is None else d.to(weight.dtype) for d in (d_weight, d_bias)]
        return d_hidden, *cast, None, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, support: Tensor | None, rule: _Rule) -> Tensor:
    """[n, V] in working precision, scaled, capped and divided by the temperature; −∞ outside the support."""
    z = torch.nn.functional.linear(hidden, weight, bias).to(arrays.working_dtype(hidden))
    if rule.soft_cap is None:
        z *= rule.scale / rule.temperature
    else:
        z = z.mul_(rule.scale / rule.soft_cap).tanh_().mul_(rule.soft_cap / rule.temperature)
    if support is None:
        return z
    kept = torch.zeros(len(z), z.shape[1] + 1, dtype=torch.bool, device=z.device)
    kept.scatter_(1, torch.where(support < 0, z.shape[1], support), True)
    return z.masked_fill_(~kept[:, :-1], -torch.inf)


def _slope(z: Tensor, temperature: float, soft_cap: float) -> Tensor:
    """The derivative of the cap c tanh(x / c), which is 1 − tanh², from `_logits`; 0 outside the support."""
    return 1 - (z * (temperature / soft_cap)).clamp_(min=-1.0).square_()


def _chunks(n: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, n, size)]


def _part(support: Tensor | None, rows: slice) -> Tensor | None:
    return None if support is None else support[rows]


def _check_numbers(**named: Any) -> None:
    """Check that all tensors are on one device and hold numbers."""
    (reference, first), *others = named.items()
    if arrays.library(reference, first) is not torch or first.is_meta:
        raise ValueError(
            f"{reference} is a {type(first).__name__} without numbers; expected a torch tensor with numbers"
        )
    for name, x in others:
        if x is not None or name in ("weight", "tokens"):
            arrays.check_neighbour(reference, first, name, x)


def _check(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    temperature: float,
    support: Tensor | None,
) -> None:
    _check_numbers(hidden=hidden, weight=weight, tokens=tokens, mask=mask, bias=bias, support=support)
    if hidden.ndim < 2 or weight.ndim != 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}; expected [..., D] and [V, D]"
        )
    arrays.check_float("hidden", hidden)
    for name, matrix in (("weight", weight), ("bias", weight if bias is None else bias)):
        if hidden.dtype != matrix.dtype:
            arrays.refuse_dtype(name, matrix, "hidden", hidden)
    for name, ids in (("tokens", tokens), ("support", tokens if support is None else support)):
        if str(ids.dtype).removeprefix("torch.") not in ("int64", "int32", "int16", "int8", "uint8"):
            raise ValueError(f"{name} has dtype {ids.dtype}; expected integers, ids of tokens")
    arrays.check_shape("tokens", tokens, tuple(hidden.shape[:-1]), "one per state of hidden is")
    if mask is not None:
        arrays.check_shape("mask", mask, tuple(tokens.shape), "tokens has")
    if bias is not None:
        arrays.check_shape("bias", bias, tuple(weight.shape[:1]), "one per row of weight is")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected more than 0 (greedy sampling has no probabilities)")
    if support is not None:
        arrays.check_shape("support", support[..., 0], tuple(tokens.shape), "but for its last axis tokens has")
        drawn = (support == tokens[..., None]).any(-1)
        if arrays.any_true(~drawn if mask is None else ~drawn & mask):
            raise ValueError("support lacks tokens that were drawn; is it the support at the state before each token?")

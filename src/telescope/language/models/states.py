"""Hidden states of texts and of completions, and the matrix from them to logits, of any causal LM.

Tokens that the completions of a group share are computed once. Leaves out loading (`causal.py`) and log-probabilities
(`language/log_probs.py`).
"""

# N prompts, B = N · group completions, P and T tokens, C kinds of completions, D hidden size, V vocabulary
from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


def trunk_of(model: Any) -> nn.Module:
    """The part of a model that computes hidden states, without the output matrix."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return plain.base_model if plain.base_model is not plain else plain.model  # type: ignore[no-any-return]


def cache_argument(model: nn.Module, cache: Any) -> dict[str, Any]:
    """The cache by the name that the model's `forward` has for it; transformers renames it in 5.24.

    Of a wrapper that passes on whatever it gets, such as an adapter, it is the name of the first part that has one.
    """
    kinds: Iterator[Any] = map(type, model.modules())
    return {next(filter(None, map(_cache_name, kinds)), "past_key_values"): cache}


@functools.cache
def _cache_name(kind: type) -> str | None:
    parameters = inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]
    return next((name for name in ("past_key_values", "cache") if name in parameters), None)


def output_of(model: Any) -> Tensor:
    """The output matrix [V, D] from hidden states to logits."""
    return model.get_output_embeddings().weight  # type: ignore[no-any-return]


FACTORS = {"logit_scale": 1, "lm_head_multiplier": 1, "logits_scaling": -1}
"""Config entries that scale logits, and the power in which they do: Cohere, Falcon-H1, Granite (which divides)."""
ODD = {"hyperclovax": {"logits_scaling": 1}, "mpt": {"logit_scale": 0}}
"""Kinds of models that use such an entry otherwise, or not at all."""
CAP = "final_logit_softcapping"
"""The config entry of a soft cap on logits: Gemma 2 and its successors."""


def head_of(model: Any) -> dict[str, Any]:
    """From hidden states to logits: weight [V, D], bias [V] or None, scale, soft cap; arguments of `token_log_probs`.

    The probe compares them with the model's own logits.
    """
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    scale = 1.0
    for name, power in (FACTORS | ODD.get(config.model_type, {})).items():
        value = getattr(config, name, None)
        scale *= float(value) ** power if isinstance(value, int | float) else 1.0
    cap = getattr(config, CAP, None)
    return {"weight": layer.weight, "bias": getattr(layer, "bias", None), "scale": scale, "soft_cap": cap}


def embeddings_of(model: Any) -> int:
    """The number of rows of its embedding, if it can be found."""
    try:
        return len(model.get_input_embeddings().weight)
    except (NotImplementedError, AttributeError):  # some trunks have none; the probe checks them
        return sys.maxsize


def require_tokens(model: Any, tokens: Tensor) -> None:
    """Raise a ValueError if a text has tokens that the model has no embedding for."""
    if tokens.numel() and int(tokens.max()) >= embeddings_of(model):
        raise ValueError(
            f"a text has the token {int(tokens.max())}, but the embedding of {type(model).__name__} has "
            f"{embeddings_of(model)} rows; is its tokenizer another model's? Added tokens need resize_token_embeddings"
        )


def require_positions(model: Any, length: int) -> None:
    """Raise a ValueError if texts are longer than a model's fixed number of positions."""
    known = None if hasattr(model.config, "rope_parameters") else getattr(model.config, "max_position_embeddings", None)
    if known is not None and length > known:
        raise ValueError(
            f"a text of {length} tokens, including its prompt, is too long for {type(model).__name__}, which has "
            f"{known} positions; lower max_tokens or shorten the texts"
        )


def hidden_states(trunk: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """The last hidden states [B, T, D] of left- or right-padded tokens. Positions count live tokens."""
    return _run(trunk, tokens, mask, tokens.shape[1])


def completion_states(
    trunk: nn.Module,
    prompts: tuple[Tensor, Tensor],
    completions: tuple[Tensor, Tensor],
    *,
    group: int = 1,
    after: bool = False,
    packed: bool | None = False,
) -> Tensor:
    """The states that predict each token of the completions [B, T, D]; with `after` also the last one [B, T + 1, D].

    With `group` > 1, a prompt that several completions share runs through the model once. Its keys and values are
    repeated, and only the completions' own tokens follow, once for equal completions of a prompt. Values and gradients
    are the same, up to rounding. Layers with a recurrent state (linear attention, convolutions) overwrite it, which
    breaks gradients, so models with such layers read every text whole. With `packed`, texts stand in rows without
    padding (`packing.py`); None: where a row is wider than the texts, so that attention in it is cheap.

    Args:
        prompts: tokens and mask [N, P], padded on the left. completions: tokens and mask [N · group, T], on the right.
    """
    (asked, asked_mask), (tokens, mask) = prompts, completions
    if len(tokens) == 0:  # most models fail on no rows, but with FSDP every rank must call the model
        asked, tokens = asked.new_zeros(1, max(1, asked.shape[1])), tokens.new_zeros(group, tokens.shape[1])
        prompts, completions = (asked, asked.eq(0)), (tokens, tokens.eq(0))
        return completion_states(trunk, prompts, completions, group=group, after=after, packed=packed)[:0]
    from telescope.language.models.packing import packed_states, width_of

    if packed or (packed is None and asked.shape[1] + tokens.shape[1] <= width_of(trunk)):
        rows = (trunk, (asked, asked_mask), (tokens, mask), group)
        if (states := packed_states(*rows, after=after, saving=packed is None and group == 1)) is not None:
            return states
    if not after:
        tokens, mask = tokens[:, :-1], mask[:, :-1]
    wide = tokens.shape[1]
    empty = int(asked_mask.any(0).long().argmax())  # columns that are padding in all rows, as of a micro-batch
    used = max(int(mask.sum(1).max()), min(1, wide))  # at least one, so that all ranks call the model equally often
    states = _padded_states(trunk, asked[:, empty:], asked_mask[:, empty:], tokens[:, :used], mask[:, :used], group)
    return pad(states, (0, 0, 0, wide - used))


def _padded_states(
    trunk: nn.Module, asked: Tensor, asked_mask: Tensor, tokens: Tensor, mask: Tensor, group: int
) -> Tensor:
    from transformers import DynamicCache

    cache = DynamicCache(config=trunk.config)  # type: ignore[arg-type]
    if group == 1 or any(hasattr(layer, "conv_states") for layer in cache.layers):
        both = torch.cat([asked.repeat_interleave(group, 0), tokens], 1)
        both_mask = torch.cat([asked_mask.repeat_interleave(group, 0), mask], 1)
        return _run(trunk, both, both_mask, tokens.shape[1] + 1)
    distinct, owner = alike(asked, asked_mask, torch.zeros(len(asked), dtype=torch.long, device=asked.device))
    first = _run(trunk, asked[distinct], asked_mask[distinct], 1, cache)
    first = (first if len(distinct) == len(asked) else rows_of(first, owner)).repeat_interleave(group, 0)
    if tokens.shape[1] == 0:
        return first
    owner = owner.repeat_interleave(group)  # [N · group]
    rows, copies = alike(tokens, mask, owner)
    if len(rows) == len(tokens) == len(distinct) * group:
        cache.batch_repeat_interleave(group)
    else:
        select_rows(cache, owner[rows])
    both_mask = torch.cat([asked_mask[rows // group], mask[rows]], 1)
    rest = _run(trunk, tokens[rows], both_mask, tokens.shape[1], cache)
    rest = rest if len(rows) == len(tokens) else rows_of(rest, copies)
    return torch.cat([first, rest], 1)


def rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows] with repeated rows, whose gradient sums the copies in a fixed order.

    On the CPU the gradient of `x[rows]` sums them as its threads reach them, so equal commands would give different
    bits. On CUDA that of `index_select` does so.
    """
    return x[rows] if x.is_cuda else x.index_select(0, rows)


def select_rows(cache: Any, rows: Tensor) -> None:
    """Select these texts of the cache, some of them several times."""
    from transformers.cache_utils import DynamicLayer

    for layer in cache.layers:
        if type(layer).batch_select_indices is DynamicLayer.batch_select_indices and layer.get_seq_length() > 0:
            layer.keys, layer.values = rows_of(layer.keys, rows), rows_of(layer.values, rows)
        else:  # such a layer holds more than keys and values
            layer.batch_select_indices(rows)


def alike(tokens: Tensor, mask: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """The first of each set of equal rows with the same owner [C], and for each row the one that it equals [B].

    Args:
        tokens, mask: [B, T]. Masked tokens do not count. owner: [B], a number of what the row follows.
    """
    live = torch.cat([owner[:, None], torch.where(mask, tokens, -1)], 1)
    kind = torch.unique(live, dim=0, return_inverse=True)[1]
    every = torch.arange(len(tokens), device=tokens.device)
    first = every.new_zeros(int(kind.max()) + 1).scatter_reduce(0, kind, every, "amin", include_self=False)
    return torch.unique(first[kind], return_inverse=True)


def _run(trunk: nn.Module, tokens: Tensor, mask: Tensor, last: int, cache: Any = None) -> Tensor:
    """Hidden states of the new tokens. mask: of all tokens, including those in the cache."""
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    require_tokens(trunk, tokens)
    if positions.numel():
        require_positions(trunk, int(positions.max()) + 1)
    out = trunk(
        input_ids=tokens,
        attention_mask=None if bool(mask.all()) else mask.long(),
        position_ids=positions,
        use_cache=cache is not None,
        **cache_argument(trunk, cache),
    )
    return out.last_hidden_state[:, -last:]  # type: ignore[no-any-return]

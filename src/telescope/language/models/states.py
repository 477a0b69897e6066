"""Hidden states of texts and of completions, and the matrix from them to logits, of any causal LM.

What a group of completions shares is read once. It leaves out loading (`causal.py`) and log-probabilities
(`language/log_probs.py`).
"""

# N prompts, B = N · group completions, P and T tokens, C kinds of completions, D hidden size, V vocabulary
from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn


def trunk_of(model: Any) -> nn.Module:
    """The part that makes hidden states, without the output matrix."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return plain.base_model if plain.base_model is not plain else plain.model  # type: ignore[no-any-return]


def output_of(model: Any) -> Tensor:
    """The output matrix [V, D] from hidden states to logits."""
    return model.get_output_embeddings().weight  # type: ignore[no-any-return]


def bias_of(model: Any) -> Tensor | None:
    """What is added to their product [V], where a model has it."""
    return getattr(model.get_output_embeddings(), "bias", None)


def embeddings_of(model: Any) -> int:
    """How many tokens it has an embedding for, as far as it tells."""
    try:
        return len(model.get_input_embeddings().weight)
    except (NotImplementedError, AttributeError):  # of some trunks; the probe judges them
        return sys.maxsize


def require_tokens(model: Any, tokens: Tensor) -> None:
    """ValueError where a text has tokens that the model has no embedding for."""
    if tokens.numel() and int(tokens.max()) >= embeddings_of(model):
        raise ValueError(
            f"a text has the token {int(tokens.max())}, but the embedding of {type(model).__name__} has "
            f"{embeddings_of(model)} rows; is its tokenizer another model's? Added tokens need resize_token_embeddings"
        )


def require_positions(model: Any, length: int) -> None:
    """ValueError where a model that knows a fixed number of positions would have to read longer texts."""
    known = None if hasattr(model.config, "rope_parameters") else getattr(model.config, "max_position_embeddings", None)
    if known is not None and length > known:
        raise ValueError(
            f"a text of {length} tokens, its prompt included, is too long for {type(model).__name__}, which knows "
            f"{known} positions; a smaller max_tokens or shorter texts are needed"
        )


def hidden_states(trunk: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """The last hidden states [B, T, D] of left- or right-padded tokens; positions count live tokens."""
    return _run(trunk, tokens, mask, tokens.shape[1])


def completion_states(
    trunk: nn.Module,
    prompts: tuple[Tensor, Tensor],
    completions: tuple[Tensor, Tensor],
    *,
    group: int = 1,
    after: bool = False,
) -> Tensor:
    """The states that predict each token of the completions [B, T, D]; with `after` also those behind it [B, T + 1, D].

    With `group` > 1 a prompt that several completions share is read once: its keys and values are repeated, and only
    the completions' own tokens run through the model, once for those of a group that are alike. Values and gradients
    are the same, to rounding. Layers with a recurrent state (linear attention, convolutions) overwrite it, which no
    gradient survives: with them every text is read whole.

    Args:
        prompts: tokens and mask [N, P], padded on the left. completions: tokens and mask [N · group, T], on the right.
    """
    (asked, asked_mask), (tokens, mask) = prompts, completions
    if len(tokens) == 0:  # most models refuse; with FSDP a rank that has no rows must run along all the same
        asked, tokens = asked.new_zeros(1, max(1, asked.shape[1])), tokens.new_zeros(group, tokens.shape[1])
        prompts, completions = (asked, asked.eq(0)), (tokens, tokens.eq(0))
        return completion_states(trunk, prompts, completions, group=group, after=after)[:0]
    if not after:
        tokens, mask = tokens[:, :-1], mask[:, :-1]
    from transformers import DynamicCache

    cache = DynamicCache(config=trunk.config)  # type: ignore[arg-type]
    if group == 1 or any(hasattr(layer, "conv_states") for layer in cache.layers):
        both = torch.cat([asked.repeat_interleave(group, 0), tokens], 1)
        both_mask = torch.cat([asked_mask.repeat_interleave(group, 0), mask], 1)
        return _run(trunk, both, both_mask, tokens.shape[1] + 1)
    first = _run(trunk, asked, asked_mask, 1, cache)
    if tokens.shape[1] == 0:
        return first.repeat_interleave(group, 0)
    rows, copies = alike(tokens, mask, group)
    if len(rows) == len(tokens):
        cache.batch_repeat_interleave(group)
    else:
        select_rows(cache, rows // group)
    both_mask = torch.cat([asked_mask[rows // group], mask[rows]], 1)
    rest = _run(trunk, tokens[rows], both_mask, tokens.shape[1], cache)
    rest = rest if len(rows) == len(tokens) else rows_of(rest, copies)
    return torch.cat([first.repeat_interleave(group, 0), rest], 1)


def rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows], where some rows are taken several times over, with a gradient that adds the copies in their order.

    On the CPU that of `x[rows]` adds them as its threads reach them, so that equal commands would give different bits;
    on CUDA that of `index_select` does.
    """
    return x[rows] if x.is_cuda else x.index_select(0, rows)


def select_rows(cache: Any, rows: Tensor) -> None:
    """Keep the cache's texts with these numbers, some of them several times over."""
    from transformers.cache_utils import DynamicLayer

    for layer in cache.layers:
        if type(layer).batch_select_indices is DynamicLayer.batch_select_indices and layer.get_seq_length() > 0:
            layer.keys, layer.values = rows_of(layer.keys, rows), rows_of(layer.values, rows)
        else:  # it holds more than keys and values
            layer.batch_select_indices(rows)


def alike(tokens: Tensor, mask: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """The first of each kind of row within its group [C], and which of those each row equals [N · group]."""
    live = torch.where(mask, tokens, -1).unflatten(0, (-1, group))
    index = torch.arange(len(tokens), device=tokens.device).view(-1, group)
    first = index
    for member in reversed(range(group - 1)):
        first = torch.where((live == live[:, member, None]).all(-1), index[:, member, None], first)
    rows, copies = torch.unique(first, return_inverse=True)
    return rows, copies.flatten()


def _run(trunk: nn.Module, tokens: Tensor, mask: Tensor, last: int, cache: Any = None) -> Tensor:
    """Hidden states of the last tokens. mask: of all tokens, those already in the cache too."""
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    require_tokens(trunk, tokens)
    if positions.numel():
        require_positions(trunk, int(positions.max()) + 1)
    out = trunk(
        input_ids=tokens,
        attention_mask=None if bool(mask.all()) else mask.long(),
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return out.last_hidden_state[:, -last:]  # type: ignore[no-any-return]

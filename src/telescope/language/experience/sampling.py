"""Batched sampling with a key–value cache. Completions of a prompt share a row of the cache until they differ.

Random numbers are an argument, so a completion's tokens depend on nothing else in the batch. Rows that have ended leave
the batch. Leaves out scores.
"""

# N prompts, B = N · group completions, P prompt width, T completion width, K size of the sampling support, V vocabulary
# C texts in the cache, at most B: completions that are equal so far share one
from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from telescope.language.data.text import following_texts, prompt_ids
from telescope.language.log_probs import sampling_support
from telescope.language.models.states import cache_argument, require_positions, require_tokens

COLDEST = 1e-6
"""The lowest temperature. Logits divided by less may overflow in single precision."""


class Prompts(NamedTuple):
    """N prompts, padded on the left."""

    tokens: Tensor  # [N, P]
    mask: Tensor  # [N, P], True on tokens of the prompt

    def rows(self, index: Tensor | slice) -> Prompts:
        """The prompts with these indices."""
        return Prompts(self.tokens[index], self.mask[index])


class Completions(NamedTuple):
    """B completions, padded on the right. Masked entries are 0."""

    tokens: Tensor  # [B, T]
    mask: Tensor  # [B, T], True on tokens that the policy produced, including the end token
    log_probs: Tensor  # [B, T], of the distribution sampled from
    entropy: Tensor  # [B, T], of the distribution sampled from
    terminated: Tensor  # [B], True where the end token was produced; the length limit cut the others
    support: Tensor | None  # [B, T, K] ids that could have been drawn; None without top-k and top-p
    # of conversations of several turns
    read: Tensor | None = None  # [B, T], True on all tokens, those of the environment too; None: as mask
    rewards: Tensor | None = None  # [B, T], of the environment, at the last token of each turn
    turn_ends: Tensor | None = None  # [B, T], True at the last token of each turn

    @property
    def present(self) -> Tensor:
        """True on all tokens that the model reads [B, T]."""
        return self.mask if self.read is None else self.read

    def rows(self, index: Tensor) -> Completions:
        """The completions with these indices."""
        return Completions(*(None if x is None else x[index] for x in self))  # type: ignore[arg-type]

    def to(self, device: str | torch.device) -> Completions:
        """A copy on another device."""
        return Completions(*(None if x is None else x.to(device) for x in self))  # type: ignore[arg-type]


def joined(one: Completions, two: Completions) -> Completions:
    """Concatenate the rows of both, padded to the width of the wider one. Both have a support, or neither."""
    columns = {
        name: None if x is None or y is None else stacked(x, y, fill=-1 if name == "support" else 0)
        for name, x, y in zip(Completions._fields, one, two, strict=True)
    }
    return Completions(**columns)  # type: ignore[arg-type]


def stacked(one: Tensor, two: Tensor, *, fill: int = 0, left: bool = False) -> Tensor:
    """Concatenate the rows of both, with all other axes padded to the larger size."""
    wide = [max(sizes) for sizes in zip(one.shape[1:], two.shape[1:], strict=True)]

    def padded(x: Tensor) -> Tensor:
        gaps = [n - size for n, size in zip(wide, x.shape[1:], strict=True)]
        return pad(x, [n for gap in reversed(gaps) for n in ((gap, 0) if left else (0, gap))], value=fill)

    return torch.cat([padded(one), padded(two)])


def encode(tokenizer: Any, texts: Sequence[str], device: str | torch.device = "cpu") -> Prompts:
    """Texts as left-padded tokens. The mask comes from lengths, so PAD may be a token of the text."""
    ids = prompt_ids(tokenizer, texts)
    empty = [i for i, one in enumerate(ids) if not one]
    if empty:
        raise ValueError(f"prompt {empty[0]} ({texts[empty[0]]!r}) has no tokens; expected a text that is not empty")
    return Prompts(*padded(ids, device, left=True))


def padded(ids: Sequence[Sequence[int]], device: str | torch.device, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Lists of numbers as one tensor with 0 behind them, or before them, and the mask of what they hold."""
    lengths = np.array([len(one) for one in ids], dtype=np.int64)
    width = int(lengths.max(initial=0))
    place = np.arange(width)
    mask = place >= width - lengths[:, None] if left else place < lengths[:, None]
    tokens = np.zeros(mask.shape, dtype=np.int64)
    tokens[mask] = np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int64, count=int(lengths.sum()))
    return torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)


def decode(tokenizer: Any, completions: Completions, ends: Sequence[int]) -> list[str]:
    """The texts of completions, without their end token."""
    ids = []
    for tokens, mask in zip(completions.tokens.tolist(), completions.mask.tolist(), strict=True):
        live = tuple(token for token, here in zip(tokens, mask, strict=True) if here)
        ids.append(live[:-1] if live and live[-1] in ends else live)
    distinct = list(dict.fromkeys(ids))  # most completions of a group are equal, and tokenizers are slow
    texts = dict(zip(distinct, following_texts(tokenizer, distinct), strict=True))
    return [texts[one] for one in ids]


@torch.no_grad()
def sample(
    model: Any,
    prompts: Prompts,
    *,
    ends: Sequence[int],
    max_tokens: int,
    uniforms: Tensor | None = None,
    group: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    at_once: int | None = None,
) -> Completions:
    """Sample `group` completions of each prompt, from any transformers causal LM. Those of a prompt are adjacent.

    Args:
        model: returns logits and a cache, as transformers models do.
        ends: ids of tokens that end a completion.
        max_tokens: the length limit.
        uniforms: [B, max_tokens] in [0, 1), the random number of each token. None: greedy, the most likely token.
        temperature, top_k, top_p: the distribution to draw from. `support` then has the tokens that could be drawn.
        at_once: completions per forward pass. None: all.
    """
    if not temperature >= COLDEST:
        raise ValueError(f"temperature is {temperature}; expected {COLDEST} or more (uniforms=None samples greedily)")
    n = len(prompts.tokens) * group
    if at_once is not None and at_once < n:
        settings: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        parts = cut(prompts, uniforms, group, at_once)
        found = [
            sample(model, some, ends=ends, max_tokens=max_tokens, uniforms=noise, group=size, **settings)
            for some, noise, size in parts
        ]
        return functools.reduce(joined, found)
    completions = _Growing(n, max_tokens, prompts.tokens.device)
    if n == 0:
        return completions.finish()
    require_tokens(model, prompts.tokens)
    require_positions(model, prompts.tokens.shape[1] + max_tokens - 1)
    from telescope.language.models.cache import roomy_cache

    cache = roomy_cache(model.config)
    mask = prompts.mask  # [C, P + t] of the texts in the cache; they begin as the prompts, C = N
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)  # [C, P]
    logits = stepped(model, prompts.tokens, mask, positions, cache)  # [C, V]
    position = mask.sum(1)  # [C] of the first generated token
    rows = torch.arange(n, device=mask.device)  # the completions that have not ended
    texts = rows // group  # the text in the cache that each of them continues
    endings = torch.tensor(list(ends), device=mask.device)
    for t in range(max_tokens):
        noise = None if uniforms is None else uniforms[rows, t]  # [rows]
        tokens = completions.add(t, rows, logits, texts, noise, temperature, top_k, top_p)
        ended = torch.isin(tokens, endings)
        completions.terminated[rows[ended]] = True
        if t + 1 == max_tokens or bool(ended.all()):
            break
        rows = rows[~ended]
        source, tokens, texts = _parted(texts[~ended], tokens[~ended])
        if not torch.equal(source, torch.arange(len(mask), device=mask.device)):
            cache.reorder_cache(source)  # type: ignore[arg-type]
            mask, position = mask[source], position[source]  # [C, …] of the new texts
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        logits = stepped(model, tokens[:, None], mask, (position + t)[:, None], cache)
    return completions.finish()


def cut(
    prompts: Prompts, uniforms: Tensor | None, group: int, at_once: int
) -> Iterator[tuple[Prompts, Tensor | None, int]]:
    """Split a batch into pieces of `at_once` completions, whole groups or parts of one.

    Yields prompts, their random numbers, and the number of completions of each.
    """
    count, width = max(1, at_once // group), min(group, at_once)
    noise = None if uniforms is None else uniforms.unflatten(0, (-1, group))
    for first in range(0, len(prompts.tokens), count):
        some = slice(first, first + count)
        for start in range(0, group, width):
            drawn = None if noise is None else noise[some, start : start + width].flatten(0, 1)
            yield prompts.rows(some), drawn, min(width, group - start)


def _parted(texts: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The texts in the cache after one more token: the text that each continues [C], its token [C], and its owner [B].

    texts, tokens: [B], the current text of each completion, and the token that was drawn for it.
    """
    stride = int(tokens.max()) + 1
    distinct, owner = torch.unique(texts * stride + tokens, return_inverse=True)
    return distinct // stride, distinct % stride, owner


def stepped(model: Any, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
    """Logits [C, V] after the last token, in float32."""
    out = model(
        input_ids=tokens,
        attention_mask=None if bool(mask.all()) else mask.long(),
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        **cache_argument(model, cache),
    )
    return out.logits[:, -1].float()  # type: ignore[no-any-return]


class _Growing:
    """Completions during sampling."""

    def __init__(self, n: int, max_tokens: int, device: torch.device) -> None:
        # all [B, max_tokens]; `finish` cuts them to the longest completion
        self.tokens = torch.zeros(n, max_tokens, dtype=torch.long, device=device)
        self.mask = torch.zeros(n, max_tokens, dtype=torch.bool, device=device)
        self.log_probs, self.entropy = (torch.zeros(n, max_tokens, device=device) for _ in range(2))
        self.terminated = torch.zeros(n, dtype=torch.bool, device=device)
        self.supports: list[tuple[Tensor, Tensor]] = []  # per step: rows, and their ids [rows, K]

    def add(
        self,
        t: int,
        rows: Tensor,
        logits: Tensor,
        texts: Tensor,
        noise: Tensor | None,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
    ) -> Tensor:
        """Draw the t-th token of the rows that have not ended, each from the logits [C, V] of its text."""
        found = draw(logits, texts, noise, temperature, top_k, top_p)
        if found.support is not None:
            self.supports.append((rows, found.support))
        self.entropy[rows, t], self.log_probs[rows, t] = found.entropy, found.log_probs
        self.tokens[rows, t], self.mask[rows, t] = found.tokens, True
        return found.tokens

    def finish(self) -> Completions:
        width = int(self.mask.any(0).sum())
        support = None
        if self.supports:
            size = max(ids.shape[-1] for _, ids in self.supports)
            support = self.tokens.new_full((*self.tokens.shape, size), -1)
            for t, (rows, ids) in enumerate(self.supports):
                support[rows, t, : ids.shape[-1]] = ids
            support = support[:, :width]
        tokens, mask, log_probs, entropy = (
            x[:, :width] for x in (self.tokens, self.mask, self.log_probs, self.entropy)
        )
        return Completions(tokens, mask, log_probs, entropy, self.terminated, support)


class Drawn(NamedTuple):
    """One token for each of some rows."""

    tokens: Tensor  # [rows]
    log_probs: Tensor  # [rows]
    entropy: Tensor  # [rows], of the distribution
    support: Tensor | None  # [rows, K] ids that could have been drawn; None without top-k and top-p


def draw(
    logits: Tensor, texts: Tensor, noise: Tensor | None, temperature: float, top_k: int | None, top_p: float | None
) -> Drawn:
    """Draw a token for each row from the logits [C, V] of its text. noise: [rows] in [0, 1); None: the likeliest."""
    support = None
    if (top_k is not None or top_p is not None) and noise is not None:
        support = sampling_support(logits, temperature=temperature, top_k=top_k, top_p=top_p)  # [C, K]
        logits = logits.gather(-1, support.clamp(min=0)).masked_fill(support < 0, -torch.inf)
    log_probs = (logits / temperature).log_softmax(-1)  # [C, V], or [C, K] over the support
    finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
    entropy = -(log_probs.exp() * finite).sum(-1)[texts]
    index = log_probs.argmax(-1)[texts] if noise is None else _draw(log_probs, texts, noise)  # [rows]
    tokens = index if support is None else support[texts, index]
    return Drawn(tokens, log_probs[texts, index], entropy, None if support is None else support[texts])


def _draw(log_probs: Tensor, texts: Tensor, noise: Tensor) -> Tensor:
    """The first index [rows] at which the cumulative probability of a row's text exceeds its uniform number."""
    cumulative = log_probs.exp().cumsum(-1)  # [C, V]
    # slightly below the total, so that rounding never chooses a token of probability 0
    threshold = noise * cumulative[texts, -1] * (1 - 1e-6)
    return (cumulative[texts] <= threshold[:, None]).sum(-1).clamp(max=log_probs.shape[-1] - 1)

"""Conversations of several turns with an environment of text, sampled in one batch whose cache is kept between turns.

A turn ends with an end token; the environment answers, and its tokens are read but not learned. No sampled token is
tokenised again. Leaves out environments (`data/games.py`) and completions of one turn (`sampling.py`).
"""

# B conversations, N prompts, P prompt width, T own and read tokens of a conversation, W columns of the cache
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from telescope.language.data.games import Answer, Hall
from telescope.language.data.tasks import Row
from telescope.language.data.text import following_texts
from telescope.language.experience.sampling import Completions, Prompts, _draw, _step, encode
from telescope.language.models.states import require_positions, require_tokens


class _Talk:
    """One conversation while it is sampled."""

    def __init__(self) -> None:
        self.tokens, self.own, self.last = list[int](), list[bool](), list[bool]()
        self.rewards, self.log_probs, self.entropy = list[float](), list[float](), list[float]()
        self.turn = list[int]()
        self.over = self.terminated = False

    def say(self, token: int, log_prob: float, entropy: float) -> None:
        self.turn.append(token)
        self._add(token, True, log_prob, entropy)

    def read(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._add(token, False, 0.0, 0.0)

    def _add(self, token: int, own: bool, log_prob: float, entropy: float) -> None:
        values = (token, own, False, 0.0, log_prob, entropy)
        columns = (self.tokens, self.own, self.last, self.rewards, self.log_probs, self.entropy)
        for column, value in zip(columns, values, strict=True):
            column.append(value)  # type: ignore[attr-defined]


@torch.no_grad()
def converse(
    model: Any,
    prompts: Prompts,
    answer: Callable[[int, list[int]], Answer],
    *,
    ends: Sequence[int],
    turns: int,
    max_tokens: int,
    uniforms: Tensor | None = None,
    group: int = 1,
    temperature: float = 1.0,
) -> Completions:
    """Sample `group` conversations from each prompt, of at most `turns` turns and `max_tokens` own tokens each.

    Args:
        answer: (conversation, tokens of its turn) → the environment's answer.
        uniforms: [B, max_tokens] in [0, 1), the random number of each own token. None: the most likely token.
        temperature: of sampling.

    Returns:
        Completions with `read`, `rewards` and `turn_ends`. Those cut by turns or tokens are not terminated.
    """
    from transformers import DynamicCache

    talks = [_Talk() for _ in range(len(prompts.tokens) * group)]
    device, cache = prompts.tokens.device, DynamicCache(config=model.config)
    require_tokens(model, prompts.tokens)
    mask, endings = prompts.mask, set(ends)
    logits = _step(model, prompts.tokens, mask, (mask.long().cumsum(1) - 1).clamp(min=0), cache)  # [N, V]
    cache.batch_repeat_interleave(group)
    mask, logits = mask.repeat_interleave(group, 0), logits.repeat_interleave(group, 0)  # [B, …]
    every = torch.arange(len(talks), device=device)
    for turn in range(turns):
        speaking = torch.tensor([not talk.over for talk in talks], device=device)
        while bool(speaking.any()):
            counts = torch.tensor([sum(talk.own) for talk in talks], device=device).clamp(max=max_tokens - 1)
            noise = None if uniforms is None else uniforms.gather(1, counts[:, None])[:, 0]
            scores = (logits / temperature).log_softmax(-1)  # [B, V]
            tokens = scores.argmax(-1) if noise is None else _draw(scores, every, noise)
            log_probs = scores.gather(1, tokens[:, None])[:, 0]
            entropy = -(scores.exp() * scores.clamp(min=torch.finfo(scores.dtype).min)).sum(-1)
            for i in speaking.nonzero()[:, 0].tolist():
                talks[i].say(int(tokens[i]), float(log_probs[i]), float(entropy[i]))
            fresh = speaking
            ended = torch.tensor([int(token) in endings for token in tokens.tolist()], device=device)
            full = torch.tensor([sum(talk.own) >= max_tokens for talk in talks], device=device)
            for i in (speaking & full & ~ended).nonzero()[:, 0].tolist():
                talks[i].over = True
            speaking = speaking & ~ended & ~full
            mask = torch.cat([mask, fresh[:, None]], 1)  # columns of silent conversations are masked
            logits = _kept(logits, _forward(model, tokens[:, None], mask, cache), fresh)
        block = [list[int]() for _ in talks]
        for i, talk in enumerate(talks):
            if talk.over or not talk.turn:
                continue
            found = answer(i, talk.turn)
            talk.last[-1], talk.rewards[-1] = True, found.reward
            talk.terminated = found.terminated
            talk.over = found.terminated or turn + 1 == turns or sum(talk.own) >= max_tokens
            talk.turn = []
            if not talk.over:
                talk.read(found.tokens)
                block[i] = found.tokens
        if all(talk.over for talk in talks):
            break
        width = max(map(len, block))
        if width:
            padded = torch.tensor([[0] * (width - len(ids)) + ids for ids in block], device=device)  # on the left
            fresh = torch.arange(width, device=device) >= torch.tensor(
                [[width - len(ids)] for ids in block], device=device
            )
            mask = torch.cat([mask, fresh], 1)
            logits = _kept(logits, _forward(model, padded, mask, cache), fresh.any(1))
    return _finished(talks, device)


def _forward(model: Any, tokens: Tensor, mask: Tensor, cache: Any) -> Tensor:
    """Logits [B, V] after new columns of the cache, some of them masked."""
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    require_positions(model, int(positions.max()) + 1)
    return _step(model, tokens, mask, positions, cache)


def _kept(old: Tensor, new: Tensor, fresh: Tensor) -> Tensor:
    """The new logits of conversations that went on."""
    return torch.where(fresh[:, None], new, old)


def _finished(talks: Sequence[_Talk], device: torch.device) -> Completions:
    width = max((len(talk.tokens) for talk in talks), default=0)

    def column(values: Sequence[Sequence[Any]], dtype: torch.dtype) -> Tensor:
        return torch.tensor([[*row, *[0] * (width - len(row))] for row in values], dtype=dtype, device=device)

    return Completions(
        tokens=column([talk.tokens for talk in talks], torch.long),
        mask=column([talk.own for talk in talks], torch.bool),
        log_probs=column([talk.log_probs for talk in talks], torch.float32),
        entropy=column([talk.entropy for talk in talks], torch.float32),
        terminated=torch.tensor([talk.terminated for talk in talks], dtype=torch.bool, device=device),
        support=None,
        read=column([[True] * len(talk.tokens) for talk in talks], torch.bool),
        rewards=column([talk.rewards for talk in talks], torch.float32),
        turn_ends=column([talk.last for talk in talks], torch.bool),
    )


def transcript(tokenizer: Any, completions: Completions) -> list[str]:
    """The texts of whole conversations after their prompts, with what the environment said."""
    present = completions.present
    ids = [row[live].tolist() for row, live in zip(completions.tokens, present, strict=True)]
    return following_texts(tokenizer, ids)


def play(
    policy: Any, hall: Hall, rows: Sequence[Row], *, group: int = 1, **settings: Any
) -> tuple[Prompts, Completions]:
    """Hold `group` conversations for each row in its environment. settings: of `converse`."""
    device = next(policy.parameters()).device
    prompts = encode(hall.tokenizer, hall.open(rows, group), device)
    return prompts, converse(policy, prompts, hall.answer, group=group, **settings)


def held(
    policy: Any, hall: Hall, rows: Sequence[Row], uniforms: Tensor, config: Any, **limits: int
) -> tuple[list[str], Prompts, Completions, Tensor]:
    """Conversations of a rollout: their texts, prompts, tokens, and scores [B], the sums of their rewards."""
    noise = uniforms.to(config.device)
    settings = {"group": config.group, "temperature": config.temperature, "ends": hall.ends}
    prompts, found = play(policy, hall, rows, uniforms=noise, **settings, **limits)
    assert found.rewards is not None
    return transcript(hall.tokenizer, found), prompts, found, found.rewards.sum(1)

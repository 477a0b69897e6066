"""Conversations of several turns with an environment of text, sampled in one batch whose cache is kept between turns.

A turn ends with an end token; the environment answers, and its tokens are read but not learned. No sampled token is
tokenised again. Conversations that are equal so far share a row of the cache, also those of equal prompts. Leaves out
environments (`data/games.py`) and completions of one turn (`sampling.py`).
"""

# B conversations, N prompts, P prompt width, T own and read tokens of a conversation
# C texts in the cache: conversations that are equal so far share one. W columns of the cache, some of them masked
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from telescope.language.data.games import Answer, Hall
from telescope.language.data.tasks import Row
from telescope.language.data.text import following_texts
from telescope.language.experience.sampling import Completions, Drawn, Prompts, cut, draw, encode, joined, stepped
from telescope.language.models.states import require_positions, require_tokens


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
    top_k: int | None = None,
    top_p: float | None = None,
    at_once: int | None = None,
) -> Completions:
    """Sample `group` conversations from each prompt, of at most `turns` turns and `max_tokens` own tokens each.

    Args:
        answer: (conversation, tokens of its turn) → the environment's answer.
        uniforms: [B, max_tokens] in [0, 1), the random number of each own token. None: the most likely token.
        temperature, top_k, top_p: the distribution to draw from. `support` then has the tokens that could be drawn.
        at_once: conversations per forward pass. None: all.

    Returns:
        Completions with `read`, `rewards` and `turn_ends`. Those cut by turns or tokens are not terminated.
    """
    if at_once is not None and at_once < len(prompts.tokens) * group:
        settings: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "ends": ends}
        settings |= {"turns": turns, "max_tokens": max_tokens}
        parts, first = list[Completions](), 0
        for some, noise, size in cut(prompts, uniforms, group, at_once):
            heard = functools.partial(_answer_from, answer, first)
            parts.append(converse(model, some, heard, uniforms=noise, group=size, **settings))
            first += len(parts[-1].tokens)
        return functools.reduce(joined, parts)
    texts = _Texts(model, prompts, group)
    talks = _Talks(len(prompts.tokens) * group, prompts.tokens.device)
    endings = torch.tensor(list(ends), device=prompts.tokens.device)
    for turn in range(turns):
        speaking = talks.going
        while len(speaking):
            noise = None if uniforms is None else uniforms[speaking, talks.counts[speaking]]
            drawn = draw(texts.logits, texts.owner[speaking], noise, temperature, top_k, top_p)
            talks.say(speaking, drawn)
            ended, full = torch.isin(drawn.tokens, endings), talks.counts[speaking] >= max_tokens
            talks.over[speaking[full & ~ended]] = True  # cut within a turn, which the environment does not see
            more = ~ended & ~full
            speaking = speaking[more]
            if len(speaking):
                texts.read(talks.going, speaking, drawn.tokens[more][:, None])
        rows = talks.going
        if not len(rows):
            break
        answers = [answer(i, talks.turns[i]) for i in rows.tolist()]
        ends_of_turns = [[talks.turns[i][-1]] for i in rows.tolist()]  # not read yet
        talks.hear(rows, answers, last=turn + 1 == turns, max_tokens=max_tokens)
        if not len(talks.going):
            break
        block = _padded([[*end, *said.tokens] for end, said in zip(ends_of_turns, answers, strict=True)], rows.device)
        more = ~talks.over[rows]
        texts.read(rows[more], rows[more], block[more])
    return talks.finish()


def _answer_from(answer: Callable[[int, list[int]], Answer], first: int, i: int, turn: list[int]) -> Answer:
    """The answer to a conversation of a part of the batch."""
    return answer(first + i, turn)


class _Texts:
    """What the model has read."""

    def __init__(self, model: Any, prompts: Prompts, group: int) -> None:
        from telescope.language.models.cache import roomy_cache

        require_tokens(model, prompts.tokens)
        self.model, self.cache = model, roomy_cache(model.config)
        whole = torch.where(prompts.mask, prompts.tokens, -1)  # [N, P]
        distinct, owner = torch.unique(whole, dim=0, return_inverse=True)
        self.mask = distinct >= 0  # [C, P], later [C, W]
        self.owner = owner.repeat_interleave(group)  # [B], the text of each conversation
        self.logits = self._forward(distinct.clamp(min=0))  # [C, V] after each text

    def read(self, going: Tensor, rows: Tensor, tokens: Tensor) -> None:
        """Read tokens [rows, W], padded with −1 on the left. Logits of other conversations are not valid after it.

        going: all conversations whose texts are still needed, `rows` among them.
        """
        block = tokens.new_full((len(self.owner), tokens.shape[1]), -1)
        block[rows] = tokens
        block, owner = block[going], self.owner[going]
        key, stride = owner, int(block.max()) + 2
        for column in block.T:  # equal texts that read the same stay equal
            key = torch.unique(key * stride + column + 1, return_inverse=True)[1]
        every = torch.arange(len(key), device=key.device)
        first = every.new_zeros(int(key.max()) + 1).scatter_reduce(0, key, every, "amin", include_self=False)  # [C]
        source, block = owner[first], block[first]
        if not torch.equal(source, torch.arange(len(self.mask), device=source.device)):
            self.cache.reorder_cache(source)  # type: ignore[arg-type]
        self.mask = torch.cat([self.mask[source], block >= 0], 1)
        self.owner[going] = key
        self.logits = self._forward(block.clamp(min=0))

    def _forward(self, tokens: Tensor) -> Tensor:
        """Logits [C, V] after new columns of the cache, some of them masked."""
        positions = (self.mask.long().cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        require_positions(self.model, int(positions.max()) + 1)
        return stepped(self.model, tokens, self.mask, positions, self.cache)


class _Talks:
    """Conversations while they are sampled."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.turns = [list[int]() for _ in range(count)]  # own tokens of the turn so far
        self.counts = torch.zeros(count, dtype=torch.long, device=device)  # [B] own tokens
        self.over, self.terminated = (torch.zeros(count, dtype=torch.bool, device=device) for _ in range(2))
        self._width = 0  # columns so far
        self._said = list[tuple[int, Tensor, Drawn]]()  # column, conversations, their tokens
        self._heard = list[tuple[int, Tensor, Tensor]]()
        self._last = torch.zeros_like(self.counts)  # the column of the last own token
        self._ends = list[tuple[Tensor, Tensor, Tensor]]()  # conversations, columns and rewards of turns

    @property
    def going(self) -> Tensor:
        """Indices of the conversations that are not over."""
        return (~self.over).nonzero()[:, 0]

    def say(self, rows: Tensor, drawn: Drawn) -> None:
        """Add an own token of some conversations."""
        for i, token in zip(rows.tolist(), drawn.tokens.tolist(), strict=True):
            self.turns[i].append(token)
        self.counts[rows] += 1
        self._last[rows] = self._width
        self._said.append((self._width, rows, drawn))
        self._width += 1

    def hear(self, rows: Tensor, answers: Sequence[Answer], *, last: bool, max_tokens: int) -> None:
        """End the turn of some conversations. Those that go on hear what the environment says."""
        rewards = torch.tensor([found.reward for found in answers], device=rows.device)
        self._ends.append((rows, self._last[rows], rewards))
        self.terminated[rows] = torch.tensor([found.terminated for found in answers], dtype=torch.bool).to(rows.device)
        self.over[rows] = self.terminated[rows] | last | (self.counts[rows] >= max_tokens)
        self.turns = [[] for _ in self.turns]
        block = _padded([found.tokens for found in answers], rows.device)
        for column in block.T:
            here = (column >= 0) & ~self.over[rows]
            self._heard.append((self._width, rows[here], column[here]))
            self._width += 1

    def finish(self) -> Completions:
        shape = (len(self.counts), self._width)
        tokens = torch.zeros(shape, dtype=torch.long, device=self.counts.device)
        log_probs, entropy, rewards = (torch.zeros(shape, device=tokens.device) for _ in range(3))
        own, read, turn_ends = (torch.zeros_like(tokens, dtype=torch.bool) for _ in range(3))
        for column, rows, drawn in self._said:
            tokens[rows, column], own[rows, column] = drawn.tokens, True
            log_probs[rows, column], entropy[rows, column] = drawn.log_probs, drawn.entropy
        for column, rows, ids in self._heard:
            tokens[rows, column], read[rows, column] = ids, True
        for rows, columns, earned in self._ends:
            turn_ends[rows, columns], rewards[rows, columns] = True, earned
        support = self._support(tokens)
        found = Completions(tokens, own, log_probs, entropy, self.terminated, support, own | read, rewards, turn_ends)
        return _without_gaps(found)

    def _support(self, tokens: Tensor) -> Tensor | None:
        """The ids that could have been drawn at each place [B, W, K]."""
        if not self._said or self._said[0][2].support is None:
            return None
        supports = [(column, rows, drawn.support) for column, rows, drawn in self._said if drawn.support is not None]
        found = tokens.new_full((*tokens.shape, max(ids.shape[-1] for *_, ids in supports)), -1)
        for column, rows, ids in supports:
            found[rows, column, : ids.shape[-1]] = ids
        return found


def _without_gaps(found: Completions) -> Completions:
    """The same, with the tokens of each conversation one after another."""
    order = found.present.long().argsort(dim=1, descending=True, stable=True)[:, : int(found.present.sum(1).max())]

    def moved(x: Tensor | None) -> Tensor | None:
        if x is None or x.ndim == 1:
            return x
        return x.take_along_dim(order.view(*order.shape, *[1] * (x.ndim - 2)), 1)

    return Completions(*map(moved, found))  # type: ignore[arg-type]


def _padded(texts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Tokens [B, W], padded with −1 on the left."""
    width = max(map(len, texts), default=0)
    return torch.tensor([[-1] * (width - len(ids)) + list(ids) for ids in texts], dtype=torch.long, device=device)


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
    try:
        prompts = encode(hall.tokenizer, hall.open(rows, group), device)
        return prompts, converse(policy, prompts, hall.answer, group=group, **settings)
    finally:
        hall.close()


def held(
    policy: Any, hall: Hall, rows: Sequence[Row], uniforms: Tensor, config: Any, **limits: int
) -> tuple[list[str], Prompts, Completions, Tensor]:
    """Conversations of a rollout: their texts, prompts, tokens, and scores [B], the sums of their rewards."""
    noise = uniforms.to(config.device)
    settings = {name: getattr(config, name) for name in ("group", "temperature", "top_k", "top_p")}
    prompts, found = play(policy, hall, rows, uniforms=noise, ends=hall.ends, **settings, **limits)
    assert found.rewards is not None
    return transcript(hall.tokenizer, found), prompts, found, found.rewards.sum(1)

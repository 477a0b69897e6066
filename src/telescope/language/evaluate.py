"""How well a model answers held-out prompts, how long, and how far it has moved from its reference.

It leaves out training; evaluating changes nothing in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from telescope.language import parallel
from telescope.language.log_probs import token_log_probs
from telescope.language.models import completion_states, output_of, trunk_of
from telescope.language.rewards import score
from telescope.language.sampling import decode, encode, sample
from telescope.language.tasks import Reward, Row
from telescope.language.training import EVALUATION, Session, generator
from telescope.losses import kl_k3


def held_out(session: Session) -> dict[str, float]:
    """The model of a session on its task's held-out prompts, greedily; nothing where the task has no reward."""
    if session.task.reward is None:
        return {}
    rows = session.task.held_out[: session.config.eval_prompts]
    with parallel.gathered(session.policy):
        found = greedy(
            session.policy,
            session.tokenizer,
            rows,
            session.task.reward,
            ends=session.ends,
            max_tokens=session.max_tokens,
            name=f"of {session.task.name}",
        )
    return {session.task.metric: found["reward"]}


def greedy(
    policy: Any, tokenizer: Any, rows: Sequence[Row], reward: Reward, *, ends: Sequence[int], max_tokens: int, name: str
) -> dict[str, float]:
    """Answer the rows by the likeliest tokens: mean `reward`, mean `length`, and the share `truncated`.

    Each rank answers its share of them.
    """
    device = next(policy.parameters()).device
    rows = rows[parallel.share(len(rows))]
    scores, lengths, cut = [], [], []
    for start in range(0, len(rows), 1024):
        part = rows[start : start + 1024]
        prompts = encode(tokenizer, [row["prompt"] for row in part], device)
        completions = sample(policy, prompts, ends=ends, max_tokens=max_tokens)
        scores += score(reward, part, decode(tokenizer, completions, ends), name=name).tolist()
        lengths += completions.mask.sum(1).tolist()
        cut += (~completions.terminated).tolist()
    found = zip(*parallel.gather((scores, lengths, cut)), strict=True)
    scores, lengths, cut = ([x for part in parts for x in part] for parts in found)
    return {
        "reward": float(np.nanmean(scores)),
        "length": float(np.mean(lengths)),
        "truncated": float(np.mean(cut)),
    }


@torch.no_grad()
def distance(
    policy: Any, reference: Any, tokenizer: Any, rows: Sequence[Row], *, ends: Sequence[int], max_tokens: int
) -> float:
    """KL(π ‖ π_ref) of a completion in nats, estimated by k3 summed over the tokens of one sample for each row."""
    device = next(policy.parameters()).device
    noise = generator(0, EVALUATION).random((len(rows), max_tokens), dtype=np.float32)
    found = []
    for start in range(0, len(rows), 1024):
        part = slice(start, start + 1024)
        prompts = encode(tokenizer, [row["prompt"] for row in rows[part]], device)
        uniforms = torch.from_numpy(noise[part]).to(device)
        completions = sample(policy, prompts, ends=ends, max_tokens=max_tokens, uniforms=uniforms)
        tokens, mask = completions.tokens, completions.mask
        own, other = (
            token_log_probs(
                completion_states(trunk_of(model), prompts, (tokens, mask)), output_of(model), tokens, mask=mask
            ).log_probs
            for model in (policy, reference)
        )
        found.append(kl_k3(other, own).sum(1))
    return float(torch.cat(found).mean())

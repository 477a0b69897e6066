"""How well a model answers held-out prompts, how long, and how far it has moved from its reference.

It leaves out training; evaluating changes nothing in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telescope.language import parallel
from telescope.language.log_probs import token_log_probs
from telescope.language.models import bias_of, completion_states, output_of, trunk_of
from telescope.language.rewards import score
from telescope.language.sampling import decode, encode, sample
from telescope.language.tasks import Reward, Row
from telescope.language.training import EVALUATION, Session, generator
from telescope.losses import kl_k3


def held_out(session: Session) -> dict[str, float]:
    """The model of a session on its task's held-out prompts, by the task's own reward or else the run's.

    Nothing where there is neither, or nothing could be scored.
    """
    scoring = session.scoring()
    if scoring is None:
        return {}
    rows = session.task.held_out[: session.config.eval_prompts]
    with parallel.gathered(session.policy):
        found = answered(
            session.policy,
            session.tokenizer,
            rows,
            scoring,
            ends=session.ends,
            max_tokens=session.max_tokens,
            name=f"of {session.task.name}" if session.task.reward else str(getattr(session.config, "reward", None)),
            greedy=is_greedy(session.task.metric),
        )
    return {} if np.isnan(found["reward"]) else {session.task.metric: found["reward"]}


def is_greedy(metric: str) -> bool:
    """Is it measured on the likeliest answers? Right ones are; for what is liked all that a policy may say counts."""
    return metric == "exact_match"


def answered(
    policy: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    reward: Reward,
    *,
    ends: Sequence[int],
    max_tokens: int,
    name: str,
    greedy: bool,
) -> dict[str, float]:
    """Answer the rows, greedily or by one sample each: mean `reward`, mean `length`, and the share `truncated`.

    Each rank answers its share of them; the first one scores all.
    """
    device = next(policy.parameters()).device
    share = parallel.share(len(rows))
    noise = None if greedy else draws(len(rows), max_tokens, device)[share]
    mine = rows[share]
    texts, lengths, cut = [], [], []
    for start in range(0, len(mine), 1024):
        part = mine[start : start + 1024]
        prompts = encode(tokenizer, [row["prompt"] for row in part], device)
        uniforms = None if noise is None else noise[start : start + 1024]
        completions = sample(policy, prompts, ends=ends, max_tokens=max_tokens, uniforms=uniforms)
        texts += decode(tokenizer, completions, ends)
        lengths += completions.mask.sum(1).tolist()
        cut += (~completions.terminated).tolist()
    found = zip(*parallel.gather((texts, lengths, cut)), strict=True)
    texts, lengths, cut = ([x for part in parts for x in part] for parts in found)
    scores = parallel.from_first(lambda: score(reward, rows, texts, name=name))
    return {
        "reward": float(scores.double().nanmean()),
        "length": float(np.mean(lengths)),
        "truncated": float(np.mean(cut)),
    }


def draws(rows: int, max_tokens: int, device: torch.device) -> Tensor:
    """The random numbers of all evaluations, [rows, max_tokens]: two models differ by what they are, not by luck."""
    return torch.from_numpy(generator(0, EVALUATION).random((rows, max_tokens), dtype=np.float32)).to(device)


@torch.no_grad()
def distance(
    policy: Any, reference: Any, tokenizer: Any, rows: Sequence[Row], *, ends: Sequence[int], max_tokens: int
) -> float:
    """KL(π ‖ π_ref) of a completion in nats, estimated by k3 summed over the tokens of one sample for each row."""
    device = next(policy.parameters()).device
    noise = draws(len(rows), max_tokens, device)
    found = []
    for start in range(0, len(rows), 1024):
        part = slice(start, start + 1024)
        prompts = encode(tokenizer, [row["prompt"] for row in rows[part]], device)
        completions = sample(policy, prompts, ends=ends, max_tokens=max_tokens, uniforms=noise[part])
        tokens, mask = completions.tokens, completions.mask
        own, other = (
            token_log_probs(
                completion_states(trunk_of(model), prompts, (tokens, mask)),
                output_of(model),
                tokens,
                mask=mask,
                bias=bias_of(model),
            ).log_probs
            for model in (policy, reference)
        )
        found.append(kl_k3(other, own).sum(1))
    return float(torch.cat(found).mean())

"""Evaluation on held-out prompts: scores, lengths, and the KL to the reference.

Leaves out training, which an evaluation does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from telescope.language import parallel
from telescope.language.data.games import Hall
from telescope.language.data.tasks import Row
from telescope.language.experience.conversations import play
from telescope.language.experience.sampling import decode, encode, sample
from telescope.language.log_probs import token_log_probs
from telescope.language.models.states import completion_states, head_of, trunk_of
from telescope.language.randomness import EVALUATION, generator
from telescope.language.run import Scoring, Session
from telescope.losses import kl_k3
from telescope.metrics import pass_at_k


class Sampling(NamedTuple):
    """How completions are drawn in an evaluation."""

    temperature: float = 1.0
    """0 is greedy: the most likely token each time."""
    top_k: int | None = None
    top_p: float | None = None
    samples: int = 1
    """Completions of each prompt."""


class Passing(NamedTuple):
    """Which pass@k to measure."""

    at: tuple[int, ...] = ()
    """The numbers k."""
    score: float = 1.0
    """A completion passes from this score on."""

    def of(self, scores: Tensor) -> dict[str, float]:
        """pass@k of samples [N, samples], the mean over rows. A sample that was not scored has not passed."""
        passed = (scores >= self.score).sum(1).cpu().numpy()
        return {f"pass@{k}": float(np.mean(pass_at_k(passed, scores.shape[1], k))) for k in self.at}


GREEDY = Sampling(temperature=0.0)


def usual(metric: str, config: Any) -> Sampling:
    """The default sampling of a metric: correct answers greedily, rewards as the run samples."""
    if metric == "exact_match":
        return GREEDY
    return Sampling(*(getattr(config, name, getattr(Sampling(), name)) for name in ("temperature", "top_k", "top_p")))


def held_out(session: Session) -> dict[str, float]:
    """Evaluate a session's model on held-out prompts, with the task's own reward and the run's.

    Empty if there is neither, or nothing could be scored.
    """
    rows, measured = session.task.held_out[: session.config.eval_prompts], dict[str, float]()
    if session.task.game is not None:
        hall = Hall(session.task.game, session.tokenizer, session.config.model, session.ends)
        limits: dict[str, Any] = {"turns": session.task.turns, "max_tokens": session.max_tokens}
        limits["at_once"] = session.config.at_once
        sampling = usual("reward", session.config)
        return {"reward": played(session.policy, hall, rows, sampling=sampling, **limits)["reward"]}
    for metric, scoring in session.scorings().items():
        with parallel.gathered(session.policy):
            found = answered(
                session.policy,
                session.tokenizer,
                rows,
                scoring,
                ends=session.ends,
                max_tokens=session.max_tokens,
                sampling=usual(metric, session.config),
                at_once=session.config.at_once,
            )
        if not np.isnan(found["reward"]):
            measured[metric] = found["reward"]
    return measured


def answered(
    policy: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    scoring: Scoring,
    *,
    ends: Sequence[int],
    max_tokens: int,
    sampling: Sampling,
    at_once: int | None = None,
    passing: Passing = Passing(),  # noqa: B008
) -> dict[str, float]:
    """Complete the rows: mean `reward` over all completions, mean `length`, the share `truncated`, and pass@k.

    Each rank completes its share of the rows; the first rank scores all.
    """
    device = next(policy.parameters()).device
    share, (temperature, top_k, top_p, samples) = parallel.share(len(rows)), sampling
    greedy = temperature == 0
    noise = None if greedy else draws(len(rows) * samples, max_tokens, device).unflatten(0, (-1, samples))[share]
    settings: dict[str, Any] = {} if greedy else {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    settings["at_once"] = at_once
    mine = rows[share]
    texts, lengths, cut = [], [], []
    for start in range(0, len(mine), 1024):
        part = mine[start : start + 1024]
        prompts = encode(tokenizer, [row["prompt"] for row in part], device)
        uniforms = None if noise is None else noise[start : start + 1024].flatten(0, 1)
        completions = sample(
            policy, prompts, ends=ends, max_tokens=max_tokens, uniforms=uniforms, group=samples, **settings
        )
        texts += decode(tokenizer, completions, ends)
        lengths += completions.mask.sum(1).tolist()
        cut += (~completions.terminated).tolist()
    found = zip(*parallel.gather((texts, lengths, cut)), strict=True)
    texts, lengths, cut = ([x for part in parts for x in part] for parts in found)
    every = [row for row in rows for _ in range(samples)]
    scores = parallel.from_first(lambda: scoring.scores(every, texts))
    return {
        "reward": float(scores.double().nanmean()),
        "length": float(np.mean(lengths)),
        "truncated": float(np.mean(cut)),
        **passing.of(scores.view(len(rows), samples)),
    }


def played(
    policy: Any,
    hall: Hall,
    rows: Sequence[Row],
    *,
    turns: int,
    sampling: Sampling,
    max_tokens: int,
    at_once: int | None = None,
    passing: Passing = Passing(),  # noqa: B008
) -> dict[str, float]:
    """Hold conversations: mean `reward`, `length` and `turns` of a whole one, the share `truncated`, and pass@k."""
    device, greedy = next(policy.parameters()).device, sampling.temperature == 0
    noise = None if greedy else draws(len(rows) * sampling.samples, max_tokens, device)
    settings: dict[str, Any] = {}
    if not greedy:
        settings = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    limits = {"ends": hall.ends, "turns": turns, "max_tokens": max_tokens, "uniforms": noise, "at_once": at_once}
    _, found = play(policy, hall, rows, group=sampling.samples, **limits, **settings)
    assert found.rewards is not None
    assert found.turn_ends is not None
    return {
        "reward": float(found.rewards.sum(1).double().mean()),
        "length": float(found.mask.sum(1).double().mean()),
        "truncated": float((~found.terminated).double().mean()),
        "turns": float(found.turn_ends.sum(1).double().mean()),
        **passing.of(found.rewards.sum(1).view(len(rows), sampling.samples)),
    }


def draws(rows: int, max_tokens: int, device: torch.device) -> Tensor:
    """Random numbers [rows, max_tokens], the same in all evaluations, so that only the models' weights differ."""
    return torch.from_numpy(generator(0, EVALUATION).random((rows, max_tokens), dtype=np.float32)).to(device)


@torch.no_grad()
def distance(
    policy: Any,
    reference: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    ends: Sequence[int],
    max_tokens: int,
    at_once: int | None = None,
) -> float:
    """KL(π ‖ π_ref) of a completion in nats. The estimate sums k3 over the tokens of one sample per row."""
    device = next(policy.parameters()).device
    noise = draws(len(rows), max_tokens, device)
    found, length = [], min(1024, at_once or 1024)
    for start in range(0, len(rows), length):
        part = slice(start, start + length)
        prompts = encode(tokenizer, [row["prompt"] for row in rows[part]], device)
        completions = sample(policy, prompts, ends=ends, max_tokens=max_tokens, uniforms=noise[part])
        tokens, mask = completions.tokens, completions.mask
        own, other = (
            token_log_probs(
                completion_states(trunk_of(model), prompts, (tokens, mask)),
                tokens=tokens,
                mask=mask,
                **head_of(model),
            ).log_probs
            for model in (policy, reference)
        )
        found.append(kl_k3(other, own).sum(1))
    return float(torch.cat(found).mean())

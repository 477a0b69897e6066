"""Turn one score per completion into an advantage per token, as a row of the table in `rows.py` says.

Completions are [B, T], batch first as in transformers; groups of P prompts with G completions are [P, G]. Everything is
computed on a whole rollout, before it is split into batches. Leaves out scoring.
"""

# P prompts, G completions each, B = P·G completions of T tokens
from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from telescope import arrays
from telescope.estimators import (
    conventions,
    discounted_return,
    end_corrected,
    gae,
    group_relative,
    leave_one_out,
    length_adaptive,
    next_values,
    per_segment,
    per_turn,
    whiten,
)
from telescope.estimators.normalisation import moments
from telescope.objectives.rows import Objective


class Credit(NamedTuple):
    """Advantages, and the targets of a critic."""

    advantages: Tensor  # [B, T]
    returns: Tensor  # [B, T]
    live: Tensor  # [B, T] bool, where values count: the mask, and with `score_at` "after" the place after it


def sample_advantages(objective: Objective, scores: Tensor, scored: Tensor | None = None) -> Tensor:
    """A[i] = (r[i] − baseline) / (std + eps) with the row's `baseline` and `scale`, over groups [P, G].

    With `baseline` and `scale` "group" it is `group_relative`, with "others" and "none" `leave_one_out`.

    Args:
        scores: [P, G] in a floating point dtype.
        scored: of the same shape, True counts. None: all that are not NaN. A completion without a score enters no
            baseline and has advantage 0.

    Returns:
        [P, G]. A group of equal scores gives 0, and so does a group of one (unless `singleton` is "score").
    """
    arrays.check_alike(scores=scores, scored=scored)
    if scores.ndim != 2:
        raise ValueError(f"scores has shape {tuple(scores.shape)}; expected [prompts, completions per prompt]")
    scores = _tensor("scores", scores)
    live: Any = ~scores.isnan() if scored is None else arrays.to_bool("scored", scored)
    numbers = torch.where(live, scores, 0.0)
    if objective.baseline == "none":
        advantages = numbers
    elif objective.baseline == "others":
        advantages = leave_one_out(numbers, mask=live)
    else:
        advantages = group_relative(numbers, mask=live, scale=False)
    if objective.scale != "none":
        half = _half_deviation(objective, numbers, live)
        # if the others have no spread, an advantage stays unscaled
        advantages = torch.where(live & (half > 0), advantages / 2 / (half + objective.eps / 2), advantages)
    if objective.singleton == "score":
        advantages = torch.where(live & (live.sum(1, keepdim=True) == 1), numbers, advantages)
    return advantages


def weighted_scores(scores: Tensor, weights: Tensor) -> Tensor:
    """Σ_k w[k] r[k], the score of several rewards. A reward that is NaN (not scored) is left out; NaN if all are.

    Args:
        scores: [R, …] of R rewards. weights: [R].
    """
    scores = _tensor("scores", scores)
    if weights.shape != scores.shape[:1]:
        raise ValueError(f"weights has shape {tuple(weights.shape)}, but there are {len(scores)} rewards")
    parts = weights.to(scores).view(-1, *[1] * (scores.ndim - 1)) * scores  # [R, …]
    return torch.where(parts.isnan().all(0), torch.nan, parts.nansum(0))


def apart_advantages(objective: Objective, scores: Tensor, weights: Tensor) -> Tensor:
    """GDPO (Liu et al. 2026, arXiv 2601.05242): each reward is compared within its group by itself.

    A = (S − mean S) / (std S + eps) over the batch, for S = Σ_k w[k] A[k] and the row's own `sample_advantages` A[k] of
    reward k. So a reward of small spread counts as much as one of large spread, and none hides behind another.

    Args:
        scores: [R, P, G] of R rewards; NaN (not scored) counts in no baseline. weights: [R].

    Returns:
        [P, G]; 0 for a completion without any score. Of one reward: `sample_advantages`, whitened over the batch.
    """
    if scores.ndim != 3:
        raise ValueError(f"scores has shape {tuple(scores.shape)}; expected [rewards, prompts, completions per prompt]")
    each = torch.stack([sample_advantages(objective, one) for one in scores])  # [R, P, G]
    scored = ~scores.isnan().all(0)  # [P, G]
    total = weighted_scores(each, weights)
    known = total[scored]
    if len(known) < 2:
        return torch.zeros_like(total)
    spread = known.std(correction=int(objective.unbiased))
    return torch.where(scored, (total - known.mean()) / (spread + objective.eps), 0.0)


def penalised_scores(
    objective: Objective, scores: Tensor, kl: Tensor | None, mask: Tensor, beta: float | None = None
) -> Tensor:
    """r − β Σ_t KL_t if the row has its KL in the reward and its credit per sequence (RLOO); otherwise r.

    Args:
        scores: [B]. kl, mask: [B, T], True counts. kl may be None if β is 0. beta: replaces the row's.
    """
    beta = objective.beta if beta is None else beta
    scores = _tensor("scores", scores)
    if objective.kl_place != "reward" or objective.credit != "sequence" or beta == 0:
        return scores
    return scores - beta * _penalty(scores, mask, kl).sum(-1)


def token_rewards(
    objective: Objective, scores: Tensor, mask: Tensor, kl: Tensor | None = None, beta: float | None = None
) -> Tensor:
    """r[t] = −β KL[t] + (score, at the last live token): the reward of each token (Ouyang et al. 2022, equation 2).

    Args:
        scores: [B]. NaN (not scored) counts as 0.
        mask: [B, T], True counts. A completion without a live token gets no score.
        kl: [B, T], from the sampler's log-probabilities. None if β is 0 or the KL is in the loss.
        beta: replaces the row's, for a controller.

    Returns:
        [B, T], 0 where masked. With `score_at` "after" the score is one place after the last live token, if there is
        such a place.
    """
    beta = objective.beta if beta is None else beta
    scores, mask = _completions("scores", scores, mask)
    scores = torch.where(scores.isnan(), 0.0, scores)
    rewards = torch.where(_score_places(objective, mask), scores[:, None], 0.0)
    if objective.kl_place != "reward" or beta == 0:
        return rewards
    return rewards - beta * _penalty(scores, mask, kl)


def token_advantages(
    objective: Objective,
    advantages: Tensor,
    mask: Tensor,
    kl: Tensor | None = None,
    *,
    beta: float | None = None,
    usable: Tensor | None = None,
) -> Tensor:
    """A row's advantages per token [B, T], without a critic, whitened if the row says so.

    With `credit` "sequence" each token has its completion's advantage. With "returns" it has Σ_{s≥t} γ^{s−t} r[s] of
    `token_rewards` (REINFORCE++, Hu 2025, arXiv 2501.03262).

    Args:
        advantages: [B], of `sample_advantages`. mask: [B, T], True counts. The result is 0 where masked.
        kl, beta: as in `token_rewards`.
        usable: [B], True for completions to learn from. Others (not scored) do not enter the whitening and have
            advantage 0. None: all.
    """
    advantages, mask = _completions("advantages", advantages, mask)
    live = mask
    if usable is not None:
        arrays.check_alike(advantages=advantages, usable=usable)
        rows: Any = arrays.to_bool("usable", usable)
        live = mask & rows[:, None]
    if objective.credit == "gae":
        raise ValueError(f'credit of "{objective.name}" is "gae"; call critic_advantages(…) for its advantages')
    if objective.credit == "sequence":
        spread = torch.where(live, advantages[:, None], 0.0)
    else:
        rewards = token_rewards(objective, advantages, mask, kl, beta)
        complete = torch.ones_like(advantages, dtype=torch.bool)  # without a critic there is no bootstrap
        no_values = torch.zeros_like(rewards)
        ends = conventions.from_response_mask(rewards, no_values, mask, terminated=complete, masked=objective.masked)
        del ends["values"]
        spread = discounted_return(**ends, gamma=objective.gamma)
    return whitened(objective, spread, live)


def critic_advantages(
    objective: Objective,
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    terminated: Tensor | None,
    final_values: Tensor | None = None,
    log_probs: Tensor | None = None,
    turn_ends: Tensor | None = None,
) -> Credit:
    """`gae` over each completion's live tokens, with the row's γ and rule for λ, without whitening.

    Args:
        rewards, values, mask: [B, T]. values[t] is that of the state before token t. Masked tokens are left out (or are
            steps with reward and value 0, if `masked` is "decayed").
        terminated: [B], True where the completion ended by itself. All True treats a cut like an end.
        final_values: [B], of the state after the last token, needed where not terminated.
        log_probs: [B, T], of the tokens when they were sampled. Only `lam_rule` "per_segment" needs them.
        turn_ends: [B, T], True at the last token of each turn. A turn is then one step of GAE (`per_turn`), with the
            constant `lam`; all of its tokens share its advantage and its return.
    """
    arrays.library("mask", mask)
    arrays.check_alike(rewards=rewards, values=values, mask=mask)
    mask = _live(mask)
    live = mask | _score_places(objective, mask)
    ends = conventions.from_response_mask(
        rewards, values, live, terminated=terminated, final_values=final_values, masked=objective.masked
    )
    if turn_ends is not None:
        common = {**ends, "turn_ends": _live(turn_ends), "gamma": objective.gamma}
        turns = per_turn(**common, lam=objective.lam)
        other = None if objective.returns_lam is None else per_turn(**common, lam=objective.returns_lam).lam
        flags = {name: ends[name] for name in ("terminated", "truncated", "mask", "axis")}
        advantages, returns = gae(**turns._asdict(), **flags, returns_lam=other)
        return Credit(torch.where(live, advantages, 0.0), torch.where(live, returns, 0.0), live)
    lam = _lam(objective, ends, mask, log_probs)
    advantages, returns = gae(**ends, gamma=objective.gamma, lam=lam, returns_lam=objective.returns_lam)
    return Credit(torch.where(live, advantages, 0.0), torch.where(live, returns, 0.0), live)


def whitened(objective: Objective, advantages: Tensor, mask: Tensor) -> Tensor:
    """(A − mean) / √(variance + 1e-8) over all live tokens of the batch, if the row whitens; 0 where masked."""
    arrays.library("mask", mask)
    arrays.check_alike(advantages=advantages, mask=mask)
    advantages, mask = _tensor("advantages", advantages), _live(mask)
    if objective.whiten == "none":
        return torch.where(mask, advantages, 0.0)
    return whiten(advantages, mask=mask, biased=objective.whiten == "population", eps=1e-8, eps_inside=True)


def _lam(objective: Objective, rollout: dict[str, Any], mask: Tensor, log_probs: Tensor | None) -> float | Tensor:
    """λ as one number, or [B, T] by the row's rule, for these arguments of `gae`."""
    if objective.lam_rule == "constant":
        return objective.lam
    values = rollout["values"]
    ends = {name: rollout[name] for name in ("terminated", "truncated", "mask", "axis")}
    if objective.lam_rule == "end_corrected":
        return end_corrected(values, **ends, lam=objective.lam)  # type: ignore[no-any-return]
    if objective.lam_rule == "length_adaptive":
        return length_adaptive(values, **ends, alpha=objective.lam_alpha)  # type: ignore[no-any-return]
    if log_probs is None:
        raise ValueError('log_probs is None, but lam_rule is "per_segment"; pass those of the sampled tokens')
    arrays.check_alike(mask=mask, log_probs=log_probs)
    certain = torch.zeros_like(values[:, 0])  # behind a completion's last token no segment begins
    likely = log_probs.to(values.dtype)
    following = next_values(likely, certain, terminated=None, truncated=None, mask=mask, axis=1)
    borders = mask & (following < math.log(objective.lam_border))
    common = {"mask": rollout["mask"], "axis": 1}
    return per_segment(values, segment_ends=borders, lam=objective.lam, **common)  # type: ignore[no-any-return]


def _half_deviation(objective: Objective, scores: Tensor, live: Tensor) -> Tensor:
    """Half the standard deviation of the group, of the batch, or of the other samples in each sample's group."""
    axes: tuple[int, ...] = (0, 1) if objective.scale == "batch" else (1,)
    if objective.scale == "others":
        others = live[:, None, :] & ~torch.eye(live.shape[1], dtype=torch.bool, device=live.device)
        found = moments(torch, scores[:, None, :].expand(others.shape), others, (2,))
        return found.deviation(torch, found.n - int(objective.unbiased))[..., 0]
    found = moments(torch, scores, live, axes)
    return found.deviation(torch, found.n - int(objective.unbiased))


def _score_places(objective: Objective, mask: Tensor) -> Tensor:
    """True at the place of each completion's score."""
    last = mask & (mask.cumsum(-1) == mask.sum(-1, keepdim=True))
    if objective.score_at == "last":
        return last
    after = torch.zeros_like(last)
    after[:, 1:] = last[:, :-1]
    return after | (last & ~after.any(-1, keepdim=True))


def _penalty(scores: Tensor, mask: Tensor, kl: Tensor | None) -> Tensor:
    """The KL of each token [B, T], 0 where masked."""
    if kl is None:
        raise ValueError("kl is None, but the objective has a KL penalty in the reward; pass kl, or beta=0")
    _, mask = _completions("scores", scores, mask)
    arrays.check_alike(kl=kl, mask=mask)
    return torch.where(mask, _tensor("kl", kl), 0.0)


def _completions(name: str, numbers: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """One number per completion, in working precision, and the mask [B, T] as booleans."""
    if arrays.library("mask", mask) and mask.ndim != 2:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; expected [completions, tokens]")
    arrays.check_neighbour("mask", mask, name, numbers)
    arrays.check_shape(name, numbers, tuple(mask.shape[:1]), "one per completion of mask is")
    return _tensor(name, numbers), _live(mask)


def _live(mask: Tensor) -> Any:
    return arrays.to_bool("mask", mask)


def _tensor(name: str, numbers: Tensor) -> Any:
    """The tensor in working precision, with its gradient."""
    if arrays.library(name, numbers) is not torch:
        raise ValueError(f"{name} is a {type(numbers).__name__}; expected a torch tensor")
    return arrays.to_dtype(name, numbers, arrays.working_dtype(numbers), True)

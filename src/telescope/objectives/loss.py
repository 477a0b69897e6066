"""The loss of each token and its weight in the batch, as a row of the table in `rows.py` says.

The loss of a batch is Σ weights · loss. Weights are computed once, from the mask of the whole batch of one optimiser
step; losses are computed from any piece of it. So micro-batches, padding and packing change neither value nor gradient.
Leaves out the critic's loss (`telescope.losses`) and log-probabilities (`language/log_probs.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from telescope import arrays, losses
from telescope.objectives.rows import Correction, Level, Objective


class Counts(NamedTuple):
    """The number of live tokens of a batch, and of sequences with a live token."""

    tokens: Tensor
    sequences: Tensor


class PolicyLoss(NamedTuple):
    """Results per token, of the shape of log_probs. Where masked, the ratio is 1 and all else is 0."""

    loss: Tensor
    """The surrogate, plus β KL if the KL is in the loss."""
    ratio: Tensor
    """The row's ratio, per token or sequence, without gradient."""
    clipped: Tensor
    """True where the clip has removed the gradient, or bounded the weight."""
    kl: Tensor
    """The estimate of the KL to the reference in the loss, without gradient."""


def batch_counts(mask: Tensor, owner: Tensor | None = None) -> Counts:
    """The counts that `token_weights` divides by. For a batch in several pieces or on several ranks, add them.

    `owner` identifies sequences that are packed into a row. Each sequence must be whole in one piece.
    """
    mask = live_mask(mask=mask, owner=owner)
    sequences = mask.any(-1).sum() if owner is None else owner[mask].unique().numel() * torch.ones_like(mask.sum())
    return Counts(mask.sum(), sequences)


def token_weights(
    objective: Objective,
    mask: Tensor,
    *,
    max_tokens: int | None = None,
    counts: Counts | None = None,
    owner: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Weights w, of the shape of the mask. The loss of the batch is Σ w · loss.

    The row's `weight` decides: "token_mean" 1/N, "sequence_mean" 1/(S |y|), "sequence_sum" 1/S, "constant" 1/(S L). N
    is the number of live tokens, S that of sequences with a live token, |y| that of the sequence's live tokens, and L
    is max_tokens.

    Args:
        mask: [..., T], True counts, of the whole batch, or of a piece of it together with the `counts` of the whole.
        max_tokens: the length limit of completions. "constant" needs it, because it must not depend on padding.
        counts: the counts of the whole batch, over all pieces and ranks. None: this mask is the whole batch.
        owner: the sequence of each place, if several are packed into one row. None: its row.
    """
    mask = live_mask(mask=mask, owner=owner)
    counts = batch_counts(mask, owner) if counts is None else counts
    tokens, sequences = (count.clamp(min=1).to(dtype) for count in counts)
    live = mask.to(dtype)
    if objective.weight == "token_mean":
        return live / tokens
    if objective.weight == "sequence_mean":
        return live / losses.per_sequence(live, owner).clamp(min=1) / sequences
    if objective.weight == "sequence_sum":
        return live / sequences
    if max_tokens is None:
        raise ValueError(
            f'max_tokens is None, but weight "constant" of "{objective.name}" divides by it; pass the limit'
        )
    return live / (sequences * max_tokens)


def policy_loss(
    objective: Objective,
    log_probs: Tensor,
    old_log_probs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    reference_log_probs: Tensor | None = None,
    correction: Tensor | None = None,
    beta: float | None = None,
    owner: Tensor | None = None,
) -> PolicyLoss:
    """The row's surrogate times the off-policy weight, plus β KL if the KL is in the loss; per token.

    Args:
        log_probs: [..., T], of the tokens under the policy that learns, at the sampling temperature.
        old_log_probs: the same before the update. None: this is the first update, so they are log_probs (ratio 1).
        advantages: of the same shape.
        mask: of the same shape, True counts. The content of masked places, even NaN, has no effect.
        reference_log_probs: of the reference model. Needed if the KL is in the loss and β is not 0.
        correction: the result of `off_policy_weights`. None: 1.
        beta: replaces the row's, for a controller.
        owner: the sequence of each place, if several are packed into one row. None: its row.
    """
    mask = live_mask(mask=mask, owner=owner, log_probs=log_probs)
    old_log_probs = log_probs if old_log_probs is None else old_log_probs
    log_probs, old, advantages = entered(mask, log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    old, advantages = old.detach(), advantages.detach()
    ratio = losses.ratio_of(_log_ratio(objective, log_probs, old, mask, owner))
    surrogate, clipped = _surrogate(objective, ratio, log_probs, advantages)
    if correction is not None:
        (correction,) = entered(mask, correction=correction)
        surrogate = surrogate * correction.detach()
    kl = torch.zeros_like(surrogate)
    beta = objective.beta if beta is None else beta
    if objective.kl_place == "loss" and beta != 0:
        kl = kl_penalty(objective, log_probs, reference_log_probs, mask, old_log_probs=old)
    return PolicyLoss(surrogate + beta * kl, ratio.detach(), clipped & mask, kl.detach())


def kl_penalty(
    objective: Objective,
    log_probs: Tensor,
    reference_log_probs: Tensor | None,
    mask: Tensor,
    *,
    old_log_probs: Tensor | None = None,
) -> Tensor:
    """The row's estimate of KL(π ‖ π_ref) per token, under samples of π; 0 where masked.

    With d = log π − log π_ref: k1 = d, k2 = ½ d², k3 = exp(−d) − 1 + d (Schulman 2020). In a loss only k2 has the
    gradient of the KL in expectation. `kl_gradient` corrects the others: "k2" uses the gradient of k2, "score"
    multiplies by π / sg(π), and "ratio" by π / π_old, which also reweights samples of an older policy.
    """
    if reference_log_probs is None:
        raise ValueError("reference_log_probs is None, but beta is not 0; pass the reference model's, or beta=0")
    mask = live_mask(mask=mask, log_probs=log_probs)
    policy, reference = entered(mask, log_probs=log_probs, reference_log_probs=reference_log_probs)
    reference = reference.detach()
    limit, bound = objective.kl_bounds or (torch.inf, torch.inf)
    distance = losses.clamped(policy - reference, -limit, limit)
    estimates = {"k1": losses.kl_k1, "k2": losses.kl_k2, "k3": losses.kl_k3}
    estimate = losses.clamped(estimates[objective.kl](torch.zeros_like(distance), distance), -bound, bound)
    if objective.kl_gradient == "k2":
        return losses.value_of(estimate, losses.kl_k2(reference, policy))  # a clamped estimate would have no gradient
    if objective.kl_gradient == "own":
        return estimate
    if objective.kl_gradient == "score" or old_log_probs is None:
        old_log_probs = policy
    (old,) = entered(mask, old_log_probs=old_log_probs)
    return estimate * losses.importance_ratio(policy, old.detach())


def adaptive_kl(beta: float, kl: float, *, target: float, samples: int, horizon: int = 10_000) -> float:
    """β (1 + clip(KL/target − 1, −0.2, 0.2) · samples/horizon), the controller of Ziegler et al. 2019, section 2.2."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * samples / horizon)


def off_policy_weights(
    correction: Correction,
    old_log_probs: Tensor,
    sampler_log_probs: Tensor,
    mask: Tensor,
    *,
    owner: Tensor | None = None,
) -> Tensor:
    """w = π_old / π_sampler within bounds, for samples of another engine; without gradient, 0 where masked.

    "clamp" limits w to the bounds (truncated importance sampling, Yao et al. 2025); "drop" gives 0 beyond them. All
    arguments and the result are [..., T].
    """
    mask = live_mask(mask=mask, owner=owner, old_log_probs=old_log_probs)
    old, sampler = entered(mask, old_log_probs=old_log_probs.detach(), sampler_log_probs=sampler_log_probs)
    sampler = sampler.detach()

    def ratio(level: Level) -> Tensor:
        if level == "token":
            return losses.importance_ratio(old, sampler)
        average = level == "geometric"
        return losses.ratio_of(losses.sequence_log_ratio(old, sampler, mask, average=average, owner=owner))

    weight, decision = ratio(correction.weight), ratio(correction.decision)
    if correction.outside == "clamp":
        weight = weight.clamp(correction.low, correction.high)
    else:
        weight = torch.where((decision >= correction.low) & (decision <= correction.high), weight, 0.0)
    return torch.where(mask, weight, 0.0)


def mismatch(log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The difference between the trainer's and the sampler's log-probabilities, over live tokens.

    `ratio_mean` is the mean of π/π_sampler, `k3` an estimate of KL(π_sampler ‖ π), and `max_difference` the largest
    difference of log-probabilities.
    """
    mask = live_mask(mask=mask, log_probs=log_probs)
    old, sampler = entered(mask, log_probs=log_probs.detach(), sampler_log_probs=sampler_log_probs)
    sampler = sampler.detach()
    n = mask.sum().clamp(min=1)
    ratio = torch.where(mask, losses.importance_ratio(old, sampler), 0.0)
    return {
        "ratio_mean": (ratio / n).sum(),
        "k3": losses.kl_k3(old, sampler).sum() / n,
        "max_difference": largest((old - sampler).abs()),
    }


def live_mask(*, mask: Tensor, owner: Tensor | None = None, **others: Any) -> Any:
    """The mask as booleans, after a check that all named arrays are tensors of its shape."""
    arrays.library("mask", mask)
    if arrays.check_alike(**others, mask=mask, owner=owner) is not torch:
        raise ValueError(f"mask is a {type(mask).__name__}; expected a torch tensor")
    if owner is not None:
        losses.check_owner(owner)
    return arrays.to_bool("mask", mask)


def entered(mask: Tensor, **named: Any) -> list[Any]:
    """The tensors in working precision, 0 where masked, after a check that they have the mask's shape."""
    for name, x in named.items():
        arrays.library(name, x)
    arrays.check_alike(**named, mask=mask)
    return [
        torch.where(mask, arrays.to_dtype(name, x, arrays.working_dtype(x), True), 0.0) for name, x in named.items()
    ]


def largest(x: Tensor) -> Tensor:
    """max x, or 0 for an empty tensor."""
    return x.max() if x.numel() else x.new_zeros(())


def _log_ratio(objective: Objective, log_probs: Tensor, old: Tensor, mask: Tensor, owner: Tensor | None) -> Tensor:
    if objective.ratio == "token":
        log_ratio = log_probs - old
    else:
        average = objective.ratio != "sequence_sum"
        log_ratio = losses.sequence_log_ratio(log_probs, old, mask, average=average, owner=owner)
        if objective.ratio == "sequence_token":
            log_ratio = losses.anchored(log_ratio, log_probs)
    return log_ratio if objective.log_ratio_bounds is None else losses.clamped(log_ratio, *objective.log_ratio_bounds)


def _surrogate(objective: Objective, ratio: Tensor, log_probs: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """The loss per token, and whether the clip was active."""
    low, high = objective.clip
    if objective.surrogate == "reinforce":
        return losses.reinforce(log_probs, advantages), torch.zeros_like(ratio, dtype=torch.bool)
    beyond = (ratio.detach() < 1 - low, ratio.detach() > 1 + high)
    if objective.surrogate == "cispo":
        return losses.cispo(ratio, log_probs, advantages, 1 - low, 1 + high), beyond[0] | beyond[1]
    loss = losses.ppo_clip(ratio, advantages, low, high, dual_clip=objective.dual_clip, ratio_cap=objective.ratio_cap)
    return loss, (beyond[0] & (advantages < 0)) | (beyond[1] & (advantages > 0))

"""Losses as pure functions of torch tensors: per element, unreduced, to be minimised.

All arguments have one shape; a number, or a tensor without axes, applies to all elements. Half precision is computed
and returned in float32. Leaves out advantages, the weights of elements (compute them from the whole batch before you
split it), and networks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from telescope import arrays


def importance_ratio(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """ρ = π(a|s) / π_old(a|s) = exp(log π − log π_old), elementwise, and finite: see `ratio_of`."""
    log_probs, old_log_probs = _alike(log_probs=log_probs, old_log_probs=old_log_probs)
    return ratio_of(log_probs - old_log_probs)


def ratio_of(log_ratio: Tensor) -> Tensor:
    """exp(log ρ), bounded by the largest finite number.

    With infinity, a clip's gradient of 0 would become 0 · ∞ = NaN. Beyond the bound the gradient is 0.
    """
    (log_ratio,) = _alike(log_ratio=log_ratio)
    return torch.exp(_bounded(log_ratio))


def sequence_log_ratio(
    log_probs: Tensor, old_log_probs: Tensor, mask: Tensor, *, average: bool = True, owner: Tensor | None = None
) -> Tensor:
    """log s = (1/|y|) Σ_t (log π − log π_old) over the live tokens of a sequence, repeated at each of its tokens.

    GSPO (Zheng et al. 2025, arXiv 2507.18071), equation 7. Without `average` it is the plain sum, whose exponential is
    the likelihood ratio of the whole completion (RLOO). With one live token it is the logarithm of `importance_ratio`.

    Args:
        log_probs, old_log_probs: [..., T].
        mask: of the same shape, True counts. Masked places give 0 and are not read, even if NaN.
        average: divide by the number of live tokens |y|.
        owner: integers of the same shape, the sequence of each place, if several are packed into one row. None: each
            row along the last axis is one sequence.
    """
    arrays.library("mask", mask)
    arrays.check_alike(log_probs=log_probs, old_log_probs=old_log_probs, mask=mask, owner=owner)
    live: Any = arrays.to_bool("mask", mask)
    log_probs, old_log_probs = _alike(log_probs=log_probs, old_log_probs=old_log_probs)
    difference = torch.where(live, log_probs - old_log_probs, 0.0)
    total = per_sequence(difference, owner)
    if average:
        total = total / per_sequence(live.to(difference.dtype), owner).clamp(min=1)
    return torch.where(live, total, 0.0)


def anchored(log_sequence_ratio: Tensor, log_probs: Tensor) -> Tensor:
    """log s_t = sg(log s) + log π_t − sg(log π_t): the sequence's ratio, but each token has a gradient of its own.

    GSPO-token (Zheng et al. 2025), equation 14; sg stops gradients. If the advantage is constant in a sequence and
    tokens weigh 1/|y|, value and gradient are those of `sequence_log_ratio`. Use this one if advantages differ per
    token.
    """
    log_sequence_ratio, log_probs = _alike(log_sequence_ratio=log_sequence_ratio, log_probs=log_probs)
    return value_of(log_sequence_ratio, log_probs)


def ppo_clip(
    ratio: Tensor,
    advantages: Tensor,
    clip: Tensor | float,
    clip_high: Tensor | float | None = None,
    *,
    dual_clip: float | None = None,
    ratio_cap: float | None = None,
) -> Tensor:
    """The clipped surrogate −min(ρ A, clip(ρ, 1−ε, 1+ε) A), PPO (arXiv 1707.06347), equation 7.

    With A > 0 the gain stops growing at ρ = 1+ε, with A < 0 at ρ = 1−ε. The minimum keeps the gradient if the ratio has
    moved in the wrong direction. With clip = inf it is `conservative_surrogate`.

    Args:
        ratio, advantages: of one shape.
        clip: ε; with `clip_high` only for the lower bound.
        clip_high: ε of the upper bound (DAPO's "clip-higher", arXiv 2503.14476). None: `clip`.
        dual_clip: c > 1. Where A < 0 the loss is at most −c A, so that a large ratio of a bad action has no gradient
            (Ye et al. 2020, arXiv 1912.09729).
        ratio_cap: δ. min(ρ, δ) replaces ρ in the unclipped term, for the same reason (INTELLECT-2, arXiv 2505.07291).
    """
    ratio, advantages = _alike(ratio=ratio, advantages=advantages)
    low = _bound("clip", clip, ratio)
    high = low if clip_high is None else _bound("clip_high", clip_high, ratio)
    capped = ratio if ratio_cap is None else clamped(ratio, high=ratio_cap)
    loss = -torch.minimum(capped * advantages, clamped(ratio, 1 - low, 1 + high) * advantages)
    if dual_clip is None:
        return loss
    most = -dual_clip * advantages
    return torch.where((advantages < 0) & (loss > most), most, loss)


def conservative_surrogate(ratio: Tensor, advantages: Tensor) -> Tensor:
    """−ρ A, the linear surrogate of conservative policy iteration and TRPO (arXiv 1502.05477, equation 14).

    Nothing in it bounds the ratio: the step must be short. Its gradient at ρ = 1 is that of `reinforce`.
    """
    ratio, advantages = _alike(ratio=ratio, advantages=advantages)
    return -ratio * advantages


def cispo(ratio: Tensor, log_probs: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """−sg(clip(ρ, low, high)) A log π: the weight of a token is bounded, but it keeps its gradient.

    CISPO (MiniMax-M1, arXiv 2506.13585); sg stops gradients. The bounds are those of the ratio itself: `high` is 5, not
    4, for a ratio of at most 5. With both bounds 1 it is `reinforce`.
    """
    ratio, log_probs, advantages = _alike(ratio=ratio, log_probs=log_probs, advantages=advantages)
    return -ratio.detach().clamp(low, high) * advantages * log_probs


def reinforce(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """−A log π (Williams 1992). Its gradient is that of −ρ A at ρ = 1."""
    log_probs, advantages = _alike(log_probs=log_probs, advantages=advantages)
    return -advantages * log_probs


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """−log σ(r_chosen − r_rejected − margin), the loss of a reward model (Ouyang et al. 2022, equation 1)."""
    chosen, rejected, margin = _alike(chosen=chosen, rejected=rejected, margin=margin)
    return torch.nn.functional.softplus(rejected - chosen + margin)


def squared_value_loss(values: Tensor, targets: Tensor) -> Tensor:
    """½ (V(s) − R̂)², elementwise."""
    values, targets = _alike(values=values, targets=targets)
    return 0.5 * (values - targets) ** 2


def huber_loss(values: Tensor, targets: Tensor, delta: float = 1.0) -> Tensor:
    """½x² for |x| ≤ δ and δ(|x| − ½δ) beyond it, with x = values − targets (Huber 1964); per element."""
    values, targets = _alike(values=values, targets=targets)
    return torch.nn.functional.huber_loss(values, targets, reduction="none", delta=delta)


def quantile_huber_loss(quantiles: Tensor, targets: Tensor, kappa: float = 1.0) -> Tensor:
    """(1/N) Σ_i (1/M) Σ_j |τ_i − 1{u_ij < 0}| L_κ(u_ij) with u_ij = targets_j − quantiles_i; [...] for [..., N].

    QR-DQN (Dabney et al. 2017, arXiv 1710.10044), equation 10, divided by the number N of quantiles, so that neither N
    nor M changes its scale. τ_i = (2i + 1) / 2N are the midpoints; L_κ is `huber_loss`, not divided by κ. For small κ
    it is κ times the loss of quantile regression, for large κ that of expectiles. With N = M = 1 it is ½ `huber_loss`.

    Args:
        quantiles: [..., N], the outputs for the levels τ in rising order.
        targets: [..., M], samples or quantiles of the target distribution, all of one weight.
        kappa: κ > 0, the error up to which the loss is quadratic.
    """
    quantiles, targets = _pairs(quantiles=quantiles, targets=targets)
    count = quantiles.shape[-1]
    levels = (torch.arange(count, dtype=quantiles.dtype, device=quantiles.device)[:, None] + 0.5) / count  # [N, 1]
    quantiles, targets = torch.broadcast_tensors(quantiles[..., :, None], targets[..., None, :])  # [..., N, M]
    huber = huber_loss(quantiles, targets, kappa)
    return (torch.where(targets < quantiles, 1 - levels, levels) * huber).mean((-2, -1))


def gradient_td_loss(values: Tensor, returns: Tensor, corrections: Tensor) -> Tensor:
    """½ δ² with the gradient of −sg(δ) v + sg(h) G + ½ (sg(δ) − h)², where δ = G − v; per element. sg stops gradients.

    The update of TDRC(λ) without its penalty (Elelimy et al. 2025, arXiv 2507.09087; for λ = 0 Ghiassian et al. 2020):
    v ascends δ ∇v − h ∇G, and h learns to predict δ. With h = 0 the gradient of v is that of `squared_value_loss` with
    constant returns (semi-gradient TD); with h = δ it is that of ½ δ², in which the returns learn too.

    Args:
        values: v(s).
        returns: G, λ-returns that carry the gradient of every value in them, as `gae(…, differentiable=True)` makes.
        corrections: h(s), of other parameters than v.
    """
    values, returns, corrections = _alike(values=values, returns=returns, corrections=corrections)
    errors = (returns - values).detach()
    descent = corrections.detach() * returns - errors * values + 0.5 * (errors - corrections) ** 2
    return value_of(0.5 * errors**2, descent)


def soft_value(values: Tensor, log_probs: Tensor, alpha: Tensor | float) -> Tensor:
    """Q(s, a) − α log π(a|s), an action's worth with the entropy that it adds; per element.

    Its mean under π is the soft state value (Haarnoja et al. 2018, arXiv 1801.01290, equation 3), and a policy that
    raises it lowers its KL to the softmax of Q / α (equation 10, up to a constant and the factor α). With α = 0 it is
    Q.
    """
    values, log_probs = _alike(values=values, log_probs=log_probs)
    return values - alpha * log_probs


def temperature_loss(log_alpha: Tensor, entropy: Tensor, target: Tensor | float) -> Tensor:
    """log α (H − H̄), whose gradient raises α while the entropy H is below its target H̄; per element.

    Haarnoja et al. 2018 (arXiv 1812.05905), equation 18, with log α in place of α, as its authors' code has it. The
    entropy has no gradient.
    """
    (entropy,) = _alike(entropy=entropy)
    return log_alpha * (entropy.detach() - target)


def clipped_value_loss(values: Tensor, old_values: Tensor, targets: Tensor, clip: Tensor | float) -> Tensor:
    """½ max((V − R̂)², (V_old + clip(V − V_old, −ε, ε) − R̂)²): the larger of the plain and the clipped error.

    From OpenAI baselines' PPO2 (Engstrom et al. 2020, "Implementation matters", section 3, item 1). ε is in units of
    the values, so use it only with scaled rewards. With clip = inf it is `squared_value_loss`.
    """
    values, old_values, targets = _alike(values=values, old_values=old_values, targets=targets)
    bound = _bound("clip", clip, values)
    moved = clamped(values - old_values, -bound, bound)
    return torch.maximum(squared_value_loss(values, targets), squared_value_loss(old_values + moved, targets))


def kl_k1(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """k1 = log π_old − log π: unbiased for KL(π_old ‖ π) under samples of π_old, of either sign. Schulman 2020."""
    log_probs, old_log_probs = _alike(log_probs=log_probs, old_log_probs=old_log_probs)
    return old_log_probs - log_probs


def kl_k2(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """k2 = ½ (log π_old − log π)²: biased, low variance, never negative. Schulman 2020."""
    log_probs, old_log_probs = _alike(log_probs=log_probs, old_log_probs=old_log_probs)
    return 0.5 * (old_log_probs - log_probs) ** 2


def kl_k3(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """k3 = (ρ − 1) − log ρ: unbiased for KL(π_old ‖ π) under samples of π_old and never negative. Schulman 2020."""
    log_probs, old_log_probs = _alike(log_probs=log_probs, old_log_probs=old_log_probs)
    log_ratio = _bounded(log_probs - old_log_probs)
    return torch.expm1(log_ratio) - log_ratio


def clamped(x: Tensor, low: Tensor | float | None = None, high: Tensor | float | None = None) -> Tensor:
    """x within bounds, which may be tensors (an annealed clip). Its gradient is 1 exactly at a bound, 0 beyond it."""
    # not torch.clamp, whose gradient there is 1, ½ or 0, as torch's version and the kind of bound have it
    within = x if high is None else torch.where(x > high, high, x)
    return within if low is None else torch.where(x < low, low, within)


def value_of(value: Tensor, gradient: Tensor) -> Tensor:
    """The value of the first argument with the gradient of the second: sg(value) + gradient − sg(gradient)."""
    value, gradient = _alike(value=value, gradient=gradient)
    return value.detach() + (gradient - gradient.detach())  # the difference first: it is exactly 0


def per_sequence(x: Tensor, owner: Tensor | None = None) -> Tensor:
    """For each place, the sum of x over its sequence: its row, or the places with the same `owner`."""
    arrays.check_alike(x=x, owner=owner)
    (x,) = _alike(x=x)
    if owner is None:
        return x.sum(-1, keepdim=True).expand_as(x)
    check_owner(owner)
    names, places = owner.unique(return_inverse=True)  # a micro-batch keeps the numbers of the whole batch
    sums = torch.zeros(len(names), dtype=x.dtype, device=x.device)
    return sums.index_add(0, places.flatten(), x.flatten())[places]


def check_owner(owner: Tensor) -> None:
    """Raise a ValueError unless `owner` holds integers."""
    if owner.is_floating_point() or owner.is_complex():
        raise ValueError(f"owner has dtype {owner.dtype}; expected integers, the number of each place's sequence")


def _alike(**named: Any) -> list[Any]:
    """All arguments in working precision, after a check that they have one shape: [4] and [4, 1] would give a matrix.

    Numbers and tensors without axes match any shape.
    """
    first = None
    for name, x in named.items():
        if first is not None and isinstance(x, int | float):
            named[name] = arrays.scalar(x, first)
        elif arrays.library(name, x) is not torch:
            raise ValueError(f"{name} is a {type(x).__name__}; expected a torch tensor (losses support only torch)")
        arrays.check_real(name, named[name])
        named[name] = named[name].to(arrays.working_dtype(named[name]))
        first = named[name] if first is None else first
    if with_axes := {name: x for name, x in named.items() if x.ndim}:
        arrays.check_alike(**with_axes)
    return list(named.values())


def _pairs(**named: Any) -> list[Tensor]:
    """Both arguments in working precision, after a check that all of their axes but the last are alike."""
    found = []
    for name, x in named.items():
        if arrays.library(name, x) is not torch:
            raise ValueError(f"{name} is a {type(x).__name__}; expected a torch tensor (losses support only torch)")
        arrays.check_real(name, x)
        if x.ndim == 0 or x.shape[-1] == 0:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected [..., N] with N > 0 quantiles")
        found.append(x.to(arrays.working_dtype(x)))
    arrays.check_alike(**{name: x[..., 0] for name, x in zip(named, found, strict=True)})
    return found


def _bound(name: str, bound: Tensor | float, x: Tensor) -> Any:
    """A number unchanged, or a tensor in the dtype of x, without axes or of the shape of x."""
    if isinstance(bound, int | float):
        return bound
    arrays.check_neighbour("values", x, name, bound)
    arrays.check_real(name, bound)
    if bound.ndim:
        arrays.check_shape(name, bound, tuple(x.shape), "what it bounds has")
    return bound.to(x.dtype)


def _bounded(log_ratio: Tensor) -> Tensor:
    """A logarithm whose exponential is finite."""
    kind = torch.finfo(log_ratio.dtype)
    return clamped(log_ratio, high=math.log(kind.max) * (1 - kind.eps))  # slightly less, because exp rounds

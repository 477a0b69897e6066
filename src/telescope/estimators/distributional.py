"""GAE for critics that predict a distribution of returns, as N quantiles.

Leaves out the critic's loss, and mixtures of distributions over λ (mixing quantiles does not mix distributions).
"""

from typing import NamedTuple

from telescope import arrays
from telescope.arrays import Array
from telescope.estimators.pairs import bootstrap, residual, trace
from telescope.estimators.steps import Steps, enter
from telescope.quiet import quiet
from telescope.recurrence import linear_recurrence


class DistributionalAdvantages(NamedTuple):
    """The result of `distributional_gae`: advantages [T, *batch], and targets for the quantiles [T, *batch, N]."""

    advantages: Array
    targets: Array


@quiet
def distributional_gae(
    rewards: Array,
    quantiles: Array,
    next_quantiles: Array,
    *,
    terminated: Array | None,
    truncated: Array | None,
    gamma: Array,
    lam: Array,
    weights: Array | None = None,
    mask: Array | None = None,
    axis: int = 0,
    differentiable: bool = False,
) -> DistributionalAdvantages:
    """Distributional GAE: the sum of GAE over differences between return distributions (Shaik et al. 2025).

        δ[t] = Σ_q w_q (r[t] + γ'[t] G'[t, q] − G[t, q])
        A[t] = δ[t] + γ'[t] λ κ[t] A[t+1]          targets[t, q] = r[t] + γ'[t] G'[t, q]

    G are the N quantiles of the return at s[t], and G' those at the state that step t really led to. A positive
    advantage is better than the critic expected, as everywhere here: Σ w (U − V) > 0 if U lies above V. So A grows with
    the reward and can replace `gae` in any loss. The published metric has the opposite sign; with it the policy
    gradient would point downhill.

    Equal weights give `gae` on the mean of the quantiles; N = 1 gives `gae`. Weights on the low quantiles alone (CVaR)
    avoid risk if λ < 1 and the risk lies in the return after the next state. At λ = 1 the sum telescopes to the
    discounted return minus Σ w G[t], a baseline, and is neutral to risk. For every λ it is neutral to the risk of the
    step's own reward and next state, because samples of them are averaged. The targets are the one-step Bellman targets
    of a quantile-Huber loss.

    Args:
        rewards, terminated, truncated, mask: [T, *batch], as in `gae`.
        quantiles, next_quantiles: [T, *batch, N], at the same N levels in every step, in rising order of level.
            `next_quantiles` are not read where terminated.
        weights: [N], w_q, with sum 1. None: 1 / N each.
        gamma, lam, axis, differentiable: as in `gae`, for arrays [T, *batch].

    Returns:
        (advantages, targets), in the dtype of `quantiles` (float32 if that is half precision).
    """
    arrays.check_switch("differentiable", differentiable)
    _check_quantiles(rewards, quantiles, next_quantiles)
    dtype = arrays.working_dtype(quantiles)
    levels = [arrays.to_dtype(name, array, dtype, differentiable) for name, array in _named(quantiles, next_quantiles)]
    means = (_mean(array, weights) for array in levels)
    floats = {"rewards": rewards, **dict(zip(("quantiles", "next_quantiles"), means, strict=True))}
    flags = {"terminated": terminated, "truncated": truncated}
    steps = enter(floats, flags, mask, {"gamma": gamma, "lam": lam}, axis, differentiable)
    a = trace(steps, steps.discounts["lam"])
    advantages = steps.live(linear_recurrence(residual(steps), a, differentiable=differentiable))
    return DistributionalAdvantages(steps.deliver(advantages), steps.deliver(_targets(steps, steps.inside(levels[1]))))


def _targets(steps: Steps, successors: Array) -> Array:
    """r + γ'G' for every quantile; 0 where masked."""
    discount = bootstrap(steps)[..., None]
    targets = steps.floats["rewards"][..., None] + discount * steps.where(discount == 0, 0.0, successors)
    return targets if steps.mask is None else steps.where(steps.mask[..., None], targets, 0.0)


def _mean(quantiles: Array, weights: Array | None) -> Array:
    """Σ_q w_q G_q over the last axis."""
    if weights is None:
        return quantiles.mean(-1)
    arrays.check_neighbour("quantiles", quantiles, "weights", weights)
    arrays.check_shape("weights", weights, tuple(quantiles.shape[-1:]), "one per quantile is")
    weights = arrays.to_dtype("weights", weights, quantiles.dtype)
    total = weights.sum()
    if arrays.any_true(~(abs(total - 1) < 1e-3)):  # room for the rounding of half precision
        raise ValueError(f"weights sum to {float(total):.6g}; expected 1. Divide them by their sum")
    return (quantiles * weights).sum(-1)


def _named(quantiles: Array, next_quantiles: Array) -> tuple[tuple[str, Array], ...]:
    return ("quantiles", quantiles), ("next_quantiles", next_quantiles)


def _check_quantiles(rewards: Array, quantiles: Array, next_quantiles: Array) -> None:
    """Check that both are [T, *batch, N] for rewards [T, *batch], of one dtype, with N > 0."""
    arrays.library("rewards", rewards)
    for name, array in _named(quantiles, next_quantiles):
        arrays.check_neighbour("rewards", rewards, name, array)
        if array.ndim != rewards.ndim + 1 or array.shape[-1] == 0:
            raise ValueError(
                f"{name} has shape {tuple(array.shape)} but rewards has {tuple(rewards.shape)}; "
                f"expected the same and one more axis, with at least one quantile"
            )
        arrays.check_shape(name, array, (*rewards.shape, quantiles.shape[-1]), "rewards and quantiles ask for")
        arrays.check_float(name, array)
    if next_quantiles.dtype != quantiles.dtype:
        arrays.refuse_dtype("next_quantiles", next_quantiles, "quantiles", quantiles)

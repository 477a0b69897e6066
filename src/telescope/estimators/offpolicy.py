"""Credit from data of another policy: V-trace and Retrace(λ), with clipped importance ratios.

Leaves out the ratios' origin: log π(a|s) − log μ(a|s), where π is the policy that learns and μ the one that acted. The
terms γ', κ and v' are those of `pairs.py`.
"""

import math
from typing import NamedTuple

from telescope import arrays
from telescope.arrays import Array
from telescope.estimators.pairs import bootstrap, following, residual, stops, trace, weighted
from telescope.estimators.steps import Steps, enter
from telescope.quiet import quiet
from telescope.recurrence import linear_recurrence


class VTrace(NamedTuple):
    """The result of `vtrace`: targets for the critic, and advantages for the policy gradient."""

    targets: Array
    advantages: Array


@quiet
def vtrace(
    rewards: Array,
    values: Array,
    next_values: Array,
    *,
    log_ratios: Array,
    terminated: Array | None,
    truncated: Array | None,
    gamma: Array,
    lam: Array = 1.0,
    rho_clip: float | None = 1.0,
    c_clip: float | None = 1.0,
    pg_rho_clip: float | None = 1.0,
    mask: Array | None = None,
    axis: int = 0,
    differentiable: bool = False,
) -> VTrace:
    """V-trace targets and advantages (Espeholt et al. 2018, eq. 1 and section 4.2).

        ρ̄ = min(rho_clip, ρ),   c̄ = min(c_clip, ρ),   ρ̂ = min(pg_rho_clip, ρ),   ρ = exp(log_ratios)
        y[t]          = ρ̄[t] (r[t] + γ'[t] v'[t] − v[t]) + γ'[t] λ c̄[t] κ[t] y[t+1]
        targets[t]    = v[t] + y[t]
        advantages[t] = ρ̂[t] (r[t] + γ'[t] (κ[t] targets[t+1] + (1 − κ[t]) v'[t]) − v[t])

    Ends of episodes are treated as in `gae`. On-policy (log_ratios = 0, clips ≥ 1) the targets are `lambda_return`. The
    advantages are those of `gae` only at λ = 1, because λ decays the trace in the targets but not in the advantages.

    Args:
        log_ratios: [T, *batch], log π(a|s) − log μ(a|s) of the action that was taken; the dtype of `values`. rho_clip:
        bound of the ratio at δ. It decides which policy's value the targets estimate: π's only without a clip. c_clip:
        bound of the ratio in the trace. It decides how fast and how noisily the targets converge. pg_rho_clip: bound of
        the ratio at the advantages. None does not clip (also for the other two). lam: as in `gae`, with default 1. All
        else is as in `gae`.

    Returns:
        (targets, advantages), like `values`.
    """
    floats = {"rewards": rewards, "values": values, "next_values": next_values, "log_ratios": log_ratios}
    flags = {"terminated": terminated, "truncated": truncated}
    steps = enter(floats, flags, mask, {"gamma": gamma, "lam": lam}, axis, differentiable)
    targets, advantages = _targets_and_advantages(steps, rho_clip, c_clip, pg_rho_clip)
    return VTrace(steps.deliver(targets), steps.deliver(advantages))


@quiet
def retrace(
    rewards: Array,
    q_values: Array,
    next_values: Array,
    *,
    log_ratios: Array,
    terminated: Array | None,
    truncated: Array | None,
    gamma: Array,
    lam: Array = 1.0,
    c_clip: float | None = 1.0,
    mask: Array | None = None,
    axis: int = 0,
    differentiable: bool = False,
) -> Array:
    """Retrace(λ) targets for Q(s[t], a[t]) (Munos et al. 2016, eq. 3 and 4).

        y[t] = r[t] + γ'[t] (v'[t] + κ[t] c[t+1] (y[t+1] − q[t+1])),   c = λ min(c_clip, ρ)

    The ratio of the action at t + 1 weights the trace from t to t + 1. The first action is given, so its ratio has no
    effect. λ = 0 is the expected-Sarsa target r + γ'v'. On-policy, with next_values[t] = q_values[t+1], it is
    `lambda_return`.

    Args:
        rewards: [T, *batch]. q_values: [T, *batch], Q(s[t], a[t]) of the action that was taken. next_values: [T,
        *batch], Σ_a π(a|s') Q(s', a), the expected Q of the learning policy π at the state s' that step
            t really led to, never at the state after a reset. Not read where terminated.
        log_ratios: [T, *batch], log π(a|s) − log μ(a|s) of the action that was taken.
        lam: a number, or one per step. That of step t + 1 weights the trace from t to t + 1, like its ratio.
        c_clip: bound of the ratio. None does not clip. All else is as in `gae`.

    Returns:
        [T, *batch] like `q_values`.
    """
    floats = {"rewards": rewards, "q_values": q_values, "next_values": next_values, "log_ratios": log_ratios}
    flags = {"terminated": terminated, "truncated": truncated}
    steps = enter(floats, flags, mask, {"gamma": gamma, "lam": lam}, axis, differentiable)
    x, a = _retrace_pair(steps, c_clip)
    return steps.deliver(steps.live(linear_recurrence(x, a, differentiable=differentiable)))


def _targets_and_advantages(
    steps: Steps, rho_clip: float | None, c_clip: float | None, pg_rho_clip: float | None
) -> tuple[Array, Array]:
    """Targets v + y, and advantages ρ̂ (r + γ'(κ·target[t+1] + (1−κ)v') − v)."""
    rewards, values, next_values, _ = steps.floats.values()
    x = _ratios(steps, "rho_clip", rho_clip) * residual(steps)
    a = trace(steps, steps.discounts["lam"] * _ratios(steps, "c_clip", c_clip))
    targets = steps.live(values + linear_recurrence(x, a, differentiable=steps.differentiable))
    successors = steps.where(stops(steps), next_values, following(steps, targets))
    distance = steps.live(rewards + weighted(steps, bootstrap(steps), successors) - values)
    return targets, _ratios(steps, "pg_rho_clip", pg_rho_clip) * distance


def _retrace_pair(steps: Steps, clip: float | None) -> tuple[Array, Array]:
    """x[t] = r[t] + γ'[t] v'[t] − a[t] q[t+1], a[t] = γ'[t] κ[t] c[t+1]."""
    rewards, q_values, next_values, _ = steps.floats.values()
    a = trace(steps, following(steps, steps.discounts["lam"] * _ratios(steps, "c_clip", clip)))
    x = rewards + weighted(steps, bootstrap(steps), next_values) - weighted(steps, a, following(steps, q_values))
    return steps.live(x), a


def _ratios(steps: Steps, name: str, clip: float | None) -> Array:
    """min(clip, exp(log_ratios)), without an exp of clipped ratios, so that their gradient is 0 and not NaN."""
    log_ratios = steps.live(steps.floats["log_ratios"])
    if clip is None:
        return steps.xp.exp(log_ratios)
    arrays.check_not_negative(name, clip, ", or None for no clip")
    over = log_ratios > (math.log(clip) if clip > 0 else -math.inf)
    return steps.where(over, float(clip), steps.xp.exp(steps.where(over, 0.0, log_ratios)))

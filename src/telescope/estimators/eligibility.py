"""One step of TD(λ) and SARSA(λ) with linear values: the trace, and what the step changes in the weights.

Each function takes the arrays of one step, with any number of rows in front (agents, seeds) and the features last, and
works on NumPy arrays and tensors alike. `traces.py` runs the same steps along a time axis. Leaves out features, actions
and the loop.
"""

# [..., F] features, weights and traces; numbers of a row are [..., 1], or one number for all rows
from typing import NamedTuple

from telescope import arrays
from telescope.arrays import Array

KINDS = ("accumulating", "replacing", "dutch")


class TDStep(NamedTuple):
    """What one step of TD(λ) leaves."""

    weights: Array  # [..., F]
    trace: Array  # [..., F]
    delta: Array  # [..., 1] the TD error, before the update


class OnlineStep(NamedTuple):
    """What one step of true online TD(λ) leaves."""

    weights: Array  # [..., F]
    trace: Array  # [..., F]
    delta: Array  # [..., 1] the TD error, before the update
    old_value: Array  # [..., 1] v(s') by the weights before the update


def trace_step(
    trace: Array, features: Array, decay: Array, *, kind: str = "accumulating", step_size: Array = 1.0
) -> Array:
    """The trace e after one more step: e ← d e + φ (Sutton & Barto 2018, eq. 12.5), with d = γλ.

    "replacing" sets a component to φ where φ is not 0 (Singh & Sutton 1996; for features that are 0 or 1). "dutch" is
    e ← d e + (1 − d (α e)ᵀφ) φ (eq. 12.11). Only "dutch" reads `step_size` α, a number or one for each feature
    [F]. With d = 0 all three are φ, whatever the trace was: a decay of 0 begins a new episode.
    """
    arrays.check_word("kind", kind, KINDS)
    decayed = decay * _read(trace, decay)
    if kind == "replacing":
        return arrays.library("features", features).where(features == 0, decayed, features)
    if kind == "dutch":
        return decayed + (1 - linear_value(step_size * decayed, features)) * features
    return decayed + features


def linear_value(weights: Array, features: Array) -> Array:
    """v = wᵀφ [..., 1]."""
    return (weights * features).sum(-1)[..., None]


def linear_delta(weights: Array, features: Array, next_features: Array, rewards: Array, discount: Array) -> Array:
    """δ = r + γ' wᵀφ' − wᵀφ [..., 1]. φ' is not read where γ' = γ (1 − terminated) is 0."""
    return rewards + discount * linear_value(weights, _read(next_features, discount)) - linear_value(weights, features)


def td_lambda_step(
    weights: Array,
    trace: Array,
    features: Array,
    next_features: Array,
    rewards: Array,
    *,
    discount: Array,
    decay: Array,
    step_size: Array,
    kind: str = "accumulating",
) -> TDStep:
    """One step of TD(λ) (Sutton & Barto 2018, section 12.2): e ← d e + φ, then w ← w + α δ e.

    With features of state and action it is SARSA(λ), section 12.7. λ = 0 is TD(0). Offline, where w does not change
    within an episode, the sum of all changes is that of the forward view, Σ_t α (G^λ[t] − v[t]) φ[t].

    Args:
        weights, trace: [..., F]. Not modified.
        features, next_features: [..., F], φ of where the step began and φ' of where it really led to.
        rewards: [..., 1].
        discount: γ' = γ (1 − terminated) of this step. A truncated step bootstraps: its discount is γ.
        decay: d = γλ; 0 in the first step of an episode, after a termination or a truncation.
        step_size: α, a number or one for each feature [F].
        kind: that of `trace_step`.
    """
    trace = trace_step(trace, features, decay, kind=kind, step_size=step_size)
    delta = linear_delta(weights, features, next_features, rewards, discount)
    return TDStep(weights + step_size * delta * trace, trace, delta)


def true_online_step(
    weights: Array,
    trace: Array,
    old_value: Array,
    features: Array,
    next_features: Array,
    rewards: Array,
    *,
    discount: Array,
    decay: Array,
    step_size: Array,
) -> OnlineStep:
    """One step of true online TD(λ) or SARSA(λ) (van Seijen et al. 2016, JMLR 17, algorithms 1 and 2).

        w ← w + α (δ + v − v_old) e − α (v − v_old) φ,   v = wᵀφ,   v_old = v(s') of the step before

    with e the dutch trace. After every step w equals the weights of the online λ-return algorithm, which repeats all
    updates of the episode with the λ-returns of the steps so far. λ = 0 is TD(0). With d = 0 both e = φ and v_old
    cancels, so an episode may begin with any `trace` and `old_value`. Arguments are those of `td_lambda_step`.
    """
    trace = trace_step(trace, features, decay, kind="dutch", step_size=step_size)
    value = linear_value(weights, features)
    next_value = linear_value(weights, _read(next_features, discount))
    delta = rewards + discount * next_value - value
    change = (delta + value - old_value) * trace - (value - old_value) * features
    return OnlineStep(weights + step_size * change, trace, delta, next_value)


def _read(array: Array, weight: Array) -> Array:
    """The array, and 0 where its weight is 0, even for NaN."""
    if isinstance(weight, int | float):
        return array if weight else arrays.library("array", array).zeros_like(array)
    return arrays.library("array", array).where(weight == 0, 0.0, array)

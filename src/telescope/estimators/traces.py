"""Eligibility traces: the backward view of λ, which runs forwards in time and can be computed while acting.

Accumulating and replacing traces are the recurrence of `temporal.py` in the other direction. Dutch traces and
true-online TD(λ) multiply the trace by a matrix, so they have their own loop. Leaves out the features: state features,
one-hot states, ∇v or ∇log π. One step of each, for acting while learning, is in `eligibility.py`.
"""

from telescope import arrays
from telescope.arrays import Array
from telescope.estimators.eligibility import trace_step, true_online_step
from telescope.estimators.pairs import behind, bootstrap, forwards, trace
from telescope.estimators.steps import NUMBERS, Steps, enter
from telescope.quiet import quiet


@quiet
def eligibility_trace(
    features: Array,
    *,
    terminated: Array | None,
    truncated: Array | None,
    gamma: Array,
    lam: Array,
    kind: str = "accumulating",
    mask: Array | None = None,
    axis: int = 0,
    differentiable: bool = False,
) -> Array:
    """Eligibility trace e[t] = γ'[t−1] λ κ[t−1] e[t−1] + φ[t] (Sutton & Barto 2018, eq. 12.5).

    After a termination or a truncation the trace restarts. `kind="replacing"` sets a component to φ[t] where φ[t] is
    not 0, instead of adding (Singh & Sutton 1996; for features that are 0 or 1). λ = 0 gives φ. Offline, backward and
    forward view agree: Σ_t δ[t] e[t] = Σ_t A[t] φ[t] with A from `gae`.

    Args:
        features: [T, *batch, F], with the features on the last axis. Pass one number per step as `x[..., None]`.
        terminated, truncated, mask: [T, *batch].
        gamma, lam: numbers, or arrays that broadcast against [T, *batch]. Those of step t − 1 decay the trace from
            t − 1 to t.
        kind: "accumulating" or "replacing".
        axis: the time axis of [T, *batch]. All else is as in `gae`.

    Returns:
        [T, *batch, F] like `features`. Masked steps give 0.
    """
    arrays.check_word("kind", kind, ("accumulating", "replacing"), " (dutch: telescope.dutch_trace)")
    flags = {"terminated": terminated, "truncated": truncated}
    steps = _enter({"features": features}, flags, mask, {"gamma": gamma, "lam": lam}, axis, differentiable)
    x = steps.live(steps.floats["features"])
    a = behind(steps, trace(steps, steps.discounts["lam"]))
    if kind == "replacing":
        a = steps.where(x == 0, a, 0.0)
    return steps.deliver(steps.live(forwards(steps, x, a)))


@quiet
def dutch_trace(
    features: Array,
    *,
    terminated: Array | None,
    truncated: Array | None,
    gamma: Array,
    lam: Array,
    step_size: float,
    mask: Array | None = None,
    axis: int = 0,
    differentiable: bool = False,
) -> Array:
    """Dutch trace e[t] = γλ e[t−1] + (1 − α γλ e[t−1]ᵀφ[t]) φ[t] (van Seijen et al. 2016; Sutton & Barto 12.11).

    γλ is short for γ'[t−1] λ κ[t−1], so the trace restarts after each end. It is the trace of `true_online_td`. With
    step_size → 0 it is the accumulating trace; for one-hot features and step_size 1 it is the replacing one.

    Args:
        step_size: α, a number >= 0. All else is as in `eligibility_trace`.

    Returns:
        [T, *batch, F] like `features`. Masked steps give 0. It is a loop over T in the caller's library.
    """
    alpha = _step_size(step_size)
    flags = {"terminated": terminated, "truncated": truncated}
    steps = _enter({"features": features}, flags, mask, {"gamma": gamma, "lam": lam}, axis, differentiable)
    x = steps.live(steps.floats["features"])
    a = behind(steps, trace(steps, steps.discounts["lam"]))
    return steps.deliver(steps.live(_dutch_traces(steps, x, a, alpha)))


@quiet
def true_online_td(
    weights: Array,
    rewards: Array,
    features: Array,
    next_features: Array,
    *,
    terminated: Array | None,
    truncated: Array | None,
    gamma: Array,
    lam: Array,
    step_size: float,
    mask: Array | None = None,
    axis: int = 0,
) -> Array:
    """True-online TD(λ) with linear values v(s) = wᵀφ(s) (van Seijen et al. 2016, algorithm 1).

        δ[t] = r[t] + γ'[t] wᵀφ'[t] − wᵀφ[t]
        w   += α (δ[t] + wᵀφ[t] − v_old) e[t] − α (wᵀφ[t] − v_old) φ[t],   v_old = wᵀφ'[t] before that update

    with e the `dutch_trace`. After every step w equals the weights of the online forward view, which repeats all
    updates from the start of the episode with the λ-returns of the steps so far. λ = 0 is TD(0).

    Args:
        weights: [*batch, F], the initial weights of each column's learner. Not modified.
        rewards: [T, *batch].
        features: [T, *batch, F], φ of the state in which step t was taken.
        next_features: [T, *batch, F], φ' of the state it really led to. Not read where terminated.
        step_size: α. All else is as in `eligibility_trace`.

    Returns:
        The weights after the last step, [*batch, F] like `features`.
    """
    alpha = _step_size(step_size)
    floats = {"features": features, "next_features": next_features, "rewards": rewards}
    flags = {"terminated": terminated, "truncated": truncated}
    steps = _enter(floats, flags, mask, {"gamma": gamma, "lam": lam}, axis)
    return steps.outside(_learned(steps, _starting_weights(steps, weights), alpha))


def _dutch_traces(steps: Steps, x: Array, a: Array, alpha: float) -> Array:
    """The traces e[t] of all steps. a[t] decays e[t−1]."""
    e, traces = steps.xp.zeros_like(x[:1].sum(0)), []
    for t in range(len(x)):
        e = trace_step(e, x[t], a[t], kind="dutch", step_size=alpha)
        traces.append(e)
    return steps.xp.stack(traces) if traces else x


def _learned(steps: Steps, w: Array, alpha: float) -> Array:
    """The weights after the last step. Numbers per column are arrays [*batch, 1], or repeated over the features."""
    x, successors, rewards = (steps.live(array) for array in steps.floats.values())
    discount, a = bootstrap(steps), trace(steps, steps.discounts["lam"])
    e = decay = steps.xp.zeros_like(w)
    v_old = steps.xp.zeros_like(w[..., :1])
    for t in range(len(x)):
        state = (x[t], successors[t], rewards[t])
        step = true_online_step(w, e, v_old, *state, discount=discount[t], decay=decay, step_size=alpha)
        learned, v_next = step.weights, step.old_value
        if steps.mask is not None:
            learned, v_next = (steps.where(steps.mask[t], *pair) for pair in ((learned, w), (v_next, v_old)))
        w, e, v_old = learned, step.trace, v_next  # no reset: at the start of an episode e = φ, and v_old cancels
        decay = a[t]
    return w


def _enter(
    floats: dict[str, Array],
    flags: dict[str, Array | None],
    mask: Array | None,
    discounts: dict[str, Array],
    axis: int,
    differentiable: bool = False,
) -> Steps:
    """`steps.enter` for steps with features. All other arrays are repeated over the features, as views."""
    features = floats["features"]
    arrays.library("features", features)
    if features.ndim < 2:
        raise ValueError(
            f"features has shape {tuple(features.shape)}; expected [T, *batch, F]; add [..., None] if F is 1"
        )
    shape = tuple(features.shape)

    def wide(name: str, array: Array | None) -> Array | None:
        if array is None or name.endswith("features"):
            return array
        arrays.check_neighbour("features", features, name, array)
        arrays.check_shape(name, array, shape[:-1], "features without their last axis are")
        return arrays.spread(name, array[..., None], shape)

    def wide_discount(name: str, value: Array) -> Array:
        if isinstance(value, NUMBERS):
            return value
        arrays.check_neighbour("features", features, name, value)
        return arrays.spread(name, value, shape[:-1])[..., None]

    return enter(
        {name: array if name == "rewards" and array is None else wide(name, array) for name, array in floats.items()},
        {name: wide(name, flag) for name, flag in flags.items()},
        wide("mask", mask),
        {name: wide_discount(name, value) for name, value in discounts.items()},
        arrays.checked_axis(axis, len(shape) - 1),
        differentiable,
    )


def _starting_weights(steps: Steps, weights: Array) -> Array:
    """A copy of the weights, in working precision."""
    features = steps.reference
    arrays.check_neighbour("features", features, "weights", weights)
    shape = tuple(steps.like.shape[1:])
    arrays.check_shape("weights", weights, shape, "features without their time axis are")
    if weights.dtype != features.dtype:
        arrays.refuse_dtype("weights", weights, "features", features)
    weights = arrays.to_dtype("weights", weights, arrays.working_dtype(features))
    return (weights.numpy() if steps.caller is not steps.xp else weights) + steps.xp.zeros_like(steps.like[:1].sum(0))


def _step_size(value: float) -> float:
    arrays.check_not_negative("step_size", value)
    return float(value)

"""Rules for λ: which λ each step gets, as an array that `gae`, `lambda_return` and their kin take.

λ weighs the k-step advantages of a step. One number for all steps ignores where the episode ends, where a turn ends,
and how good the critic is. Each function here is one rule that looks at one of these. Leaves out the estimates
themselves, and how a trainer chooses a rule (`control/experience/credit.py`, `objectives/advantages.py`).
"""

from typing import NamedTuple

import numpy as np

from telescope import arrays
from telescope.arrays import Array
from telescope.estimators.pairs import behind, forwards, stops, trace
from telescope.estimators.steps import NUMBERS, enter
from telescope.quiet import quiet
from telescope.recurrence import linear_recurrence

UNDISCOUNTED = {"gamma": 1.0}  # steps are counted, not discounted


@quiet
def end_corrected(
    values: Array,
    *,
    terminated: Array | None,
    truncated: Array | None,
    lam: Array,
    mask: Array | None = None,
    axis: int = 0,
) -> Array:
    """λ with which `gae` is a mixture normalised over the steps that remain (Doering et al. 2026, arXiv 2602.03386).

        y[t] = λ κ'[t] (1 + y[t+1])
        λ'[t] = y[t] / (1 + y[t])

    κ' is 0 where the episode or the buffer ends, and 1 elsewhere. With n steps left, n = 1 at the end, λ' is
    λ(1 − λⁿ⁻¹)/(1 − λⁿ), and `gae` becomes Σ_{k≤n} (1 − λ)λ^{k−1}/(1 − λⁿ) Â⁽ᵏ⁾ with the `k_step_advantage` Â⁽ᵏ⁾. GAE
    itself gives the longest of them the mass of all that do not exist, λⁿ⁻¹; near the end that is nearly everything.
    Both kinds of ends count. λ = 0 gives 0; λ = 1 gives (n − 1)/n, the plain mean of the n advantages. Far from an end
    λ' is λ. λ may differ from step to step; then Â⁽ᵏ⁾ has a weight in proportion to λ[t] ⋯ λ[t+k−2].

    Args:
        values: [T, *batch]. Only its shape, library, dtype and device are read.
        terminated, truncated, lam, mask, axis: as in `gae`.

    Returns:
        λ', [T, *batch] like `values` (float32 if that is half precision), without a gradient. Masked steps give 0.

    Raises:
        ValueError: names the argument, what came and the likely fix.
    """
    flags = {"terminated": terminated, "truncated": truncated}
    steps = enter({"values": values}, flags, mask, UNDISCOUNTED | {"lam": lam}, axis)
    a = trace(steps, steps.discounts["lam"])
    y = linear_recurrence(steps.live(a), a)
    return steps.deliver(steps.live(y / (1 + y)))


@quiet
def length_adaptive(
    values: Array,
    *,
    terminated: Array | None,
    truncated: Array | None,
    alpha: float = 0.05,
    mask: Array | None = None,
    axis: int = 0,
) -> Array:
    """λ[t] = max(0, 1 − 1/(α l)), with l the length of the step's sequence (VAPO; Yue et al. 2025, arXiv 2504.05118).

    The weights of `gae` then sum to α l: the horizon of the estimate is a fixed share α of the sequence. l counts the
    live steps between two ends; the beginning and the end of the buffer are ends too. So λ is constant within a
    sequence, and sequences packed on one axis have their own. Sequences of 1/α steps or fewer give 0, `td_error`;
    α = ∞ gives 1.

    Args:
        alpha: α, a number above 0. VAPO takes 0.05, for answers of thousands of tokens.
        values, terminated, truncated, mask, axis: as in `end_corrected`.

    Returns:
        [T, *batch] like `values`, without a gradient. Masked steps give 0.
    """
    arrays.check_not_negative("alpha", alpha)
    if alpha == 0:
        raise ValueError("alpha is 0; expected a number above 0, the horizon as a share of the length")
    flags = {"terminated": terminated, "truncated": truncated}
    steps = enter({"values": values}, flags, mask, UNDISCOUNTED, axis)
    one, a = steps.live(steps.xp.ones_like(steps.like)), trace(steps, 1.0)
    length = linear_recurrence(one, a) + forwards(steps, one, behind(steps, a)) - 1
    lam = 1 - 1 / (float(alpha) * length)
    return steps.deliver(steps.live(steps.where(lam > 0, lam, 0.0)))


@quiet
def per_segment(
    values: Array, *, segment_ends: Array | None, lam: Array, mask: Array | None = None, axis: int = 0
) -> Array:
    """λ[t] = λ at the last step of a segment, and 1 within it (Gong et al. 2026, arXiv 2601.07320).

    `gae` then bootstraps at the borders between segments only: it mixes the `k_step_advantage`s that reach up to a
    border. The paper begins a segment at each token to which the policy gave a probability below 0.2. Borders after
    every step give λ, none gives 1.

    Args:
        values: [T, *batch]. Only its shape, library, dtype and device are read.
        segment_ends: [T, *batch], True at the last step of each segment. None: each episode is one segment.
        lam, mask, axis: as in `gae`.

    Returns:
        [T, *batch] like `values`, without a gradient. Masked steps give 0.
    """
    steps = enter({"values": values}, {"segment_ends": segment_ends}, mask, {"lam": lam}, axis)
    return steps.deliver(steps.live(steps.where(steps.flag("segment_ends"), steps.discounts["lam"], 1.0)))


class Turns(NamedTuple):
    """The result of `per_turn`: arguments of `gae`, in its order."""

    rewards: Array
    values: Array
    next_values: Array
    gamma: Array
    lam: Array


@quiet
def per_turn(
    rewards: Array,
    values: Array,
    next_values: Array,
    *,
    turn_ends: Array | None,
    terminated: Array | None,
    truncated: Array | None,
    gamma: Array,
    lam: Array,
    mask: Array | None = None,
    axis: int = 0,
    differentiable: bool = False,
) -> Turns:
    """Arguments with which `gae` sees each turn as one step (Turn-PPO; Li et al. 2025, arXiv 2512.17008).

        δ[u] = r[u] + γ v[u+1] − v[u]
        A[u] = δ[u] + γ λ A[u+1]        r[u] = the sum of the turn's rewards, v[u] = v of its first step

    All steps of turn u get the advantage A[u] and the return v[u] + A[u]. λ and γ alone cannot do that: with both 1
    within a turn, each step would still subtract its own value and miss the rewards before it. So the turn's rewards
    move to its last step, and its first value takes the place of the others:

        arguments = per_turn(rewards, values, next_values, turn_ends=turn_ends, **ends, gamma=0.99, lam=0.9)
        advantages, returns = gae(**arguments._asdict(), **ends)

    with `ends` the arguments terminated, truncated, mask and axis. A turn after every step changes nothing. A penalty
    per token (a KL) does not belong into `rewards`, because the turn would share it; subtract it from the advantages.

    Args:
        turn_ends: [T, *batch], True at the last step of each turn. The end of an episode and of the buffer end a turn
            too. None: each episode is one turn.
        gamma, lam: per turn; as arrays, those at its last step count.
        rewards, values, next_values, terminated, truncated, mask, axis, differentiable: as in `gae`. Only the values at
            a turn's first step and the next_values at its last are read.

    Returns:
        (rewards, values, next_values, gamma, lam), each [T, *batch] like `values`. γ and λ are 1 within a turn. Masked
        steps, and next_values where terminated, give 0.
    """
    floats = {"rewards": rewards, "values": values, "next_values": next_values}
    flags = {"terminated": terminated, "truncated": truncated, "turn_ends": turn_ends}
    steps = enter(floats, flags, mask, {"gamma": gamma, "lam": lam}, axis, differentiable)
    rewards, values, next_values = steps.floats.values()
    last = steps.flag("turn_ends") | steps.flag("terminated") | stops(steps)
    one = steps.live(steps.xp.ones_like(steps.like))
    goes_on = behind(steps, steps.live(steps.where(last, 0.0, 1.0), 1.0))  # whether the step before is of this turn
    first = forwards(steps, one, goes_on) == 1  # the step's number within its turn
    total = forwards(steps, steps.live(rewards), goes_on)
    value = forwards(steps, steps.live(steps.where(first, values, 0.0)), goes_on)
    successor = steps.where(steps.flag("terminated"), 0.0, steps.where(last, next_values, value))
    gamma, lam = (steps.where(last, steps.discounts[name], 1.0) for name in ("gamma", "lam"))
    found = steps.where(last, total, 0.0), value, successor, gamma, lam
    return Turns(*(steps.deliver(steps.live(array)) for array in found))


@quiet
def from_explained_variance(explained_variance: Array, *, low: float, high: float) -> Array:
    """λ = high − (high − low) · min(1, max(0, EV)): the better the critic, the more it is trusted.

    A critic that explains all of the returns' variance (EV = 1, `telescope.metrics.explained_variance`) gets `low`; one
    that explains nothing (EV ≤ 0, or NaN: the returns do not vary) gets `high`. One number per seed gives one λ per
    seed. The rule is ours. It has no memory, so a controller that calls it resumes exactly.

    Args:
        explained_variance: a number, or an array of any shape in a floating point dtype.
        low, high: numbers with 0 <= low <= high <= 1. `low` = `high` is a constant λ.

    Returns:
        A number, or an array like `explained_variance` (float32 if that is half precision), without a gradient.
    """
    low, high = arrays.in_unit_interval("low", low), arrays.in_unit_interval("high", high)
    if low > high:
        raise ValueError(f"low is {low} and high is {high}; expected low <= high, the bounds of λ")
    if isinstance(explained_variance, NUMBERS) and not isinstance(explained_variance, bool):
        return float(_between(np.asarray(explained_variance, np.float64), low, high))
    arrays.library("explained_variance", explained_variance)
    arrays.check_float("explained_variance", explained_variance)
    dtype = arrays.working_dtype(explained_variance)
    return _between(arrays.to_dtype("explained_variance", explained_variance, dtype), low, high)


def _between(explained: Array, low: float, high: float) -> Array:
    xp = arrays.library("explained_variance", explained)
    nothing, all_of_it, top, width = (arrays.scalar(x, explained) for x in (0.0, 1.0, high, high - low))
    share = xp.where(explained > 0, explained, nothing)  # NaN is not above 0
    return top - width * xp.where(share < 1, share, all_of_it)

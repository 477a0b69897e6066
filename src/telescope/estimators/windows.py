"""Estimators that look a fixed number of steps ahead: the k-step advantage and the n-step return.

The recurrence of `temporal.py` needs a fixed end, which a moving window does not have. So windows have their own loop,
over the binary digits of the window's length. It takes O(T log n), and never subtracts one sum from another. Leaves out
mixtures of windows; those are λ-returns.
"""

from telescope import arrays
from telescope.arrays import Array
from telescope.estimators.pairs import ahead, bootstrap, residual, stops, trace, weighted
from telescope.estimators.steps import Steps, enter
from telescope.quiet import quiet
from telescope.recurrence import linear_recurrence


@quiet
def k_step_advantage(
    rewards: Array,
    values: Array,
    next_values: Array,
    *,
    terminated: Array | None,
    truncated: Array | None,
    gamma: Array,
    k: int,
    mask: Array | None = None,
    axis: int = 0,
    differentiable: bool = False,
) -> Array:
    """k-step advantage Â⁽ᵏ⁾[t] = Σ_{l<k} γ^l δ[t+l] (Schulman et al. 2016, eq. 14).

        Â⁽ᵏ⁾[t] = δ[t] + γ'[t] κ[t] Â⁽ᵏ⁻¹⁾[t+1],   Â⁽⁰⁾ = 0

    The sum stops where the episode or the buffer ends. If next_values come from v (see `next_values`), it telescopes to
    −v[t] + r[t] + … + γ^k v[t+k], which is `n_step_return` minus v. k = 1 is `td_error`; k ≥ T is `gae` at λ = 1; and
    GAE(γ, λ) is (1−λ) Σ_k λ^{k−1} Â⁽ᵏ⁾.

    Args:
        k: the number of residuals, an integer >= 1. Only live steps count. All else is as in `gae`.
    """
    floats = {"rewards": rewards, "values": values, "next_values": next_values}
    flags = {"terminated": terminated, "truncated": truncated}
    steps = enter(floats, flags, mask, {"gamma": gamma}, axis, differentiable)
    x = residual(steps)
    return steps.deliver(_window(steps, x, steps.xp.zeros_like(x), _length("k", k)))


@quiet
def n_step_return(
    rewards: Array,
    next_values: Array,
    *,
    terminated: Array | None,
    truncated: Array | None,
    gamma: Array,
    n: int,
    mask: Array | None = None,
    axis: int = 0,
    differentiable: bool = False,
) -> Array:
    """n-step return G⁽ⁿ⁾[t] = r[t] + γ r[t+1] + … + γⁿ v(s[t+n]) (Sutton & Barto 2018, eq. 7.1).

        G⁽ⁿ⁾[t] = r[t] + γ'[t] (κ[t] G⁽ⁿ⁻¹⁾[t+1] + (1 − κ[t]) v'[t]),   G⁽¹⁾[t] = r[t] + γ'[t] v'[t]

    A window stops at the end of its episode or of the buffer, and bootstraps from `next_values` there. n = 1 is the TD
    target, n ≥ T is `discounted_return`.

    Args:
        n: the number of rewards, an integer >= 1. Only live steps count. All else, including the dtype of the result,
        is
            as in `lambda_return`.
    """
    floats = {"rewards": rewards, "next_values": next_values}
    flags = {"terminated": terminated, "truncated": truncated}
    steps = enter(floats, flags, mask, {"gamma": gamma}, axis, differentiable)
    inside, outermost = _n_step_pair(steps)
    return steps.deliver(_window(steps, inside, outermost, _length("n", n) - 1))


def _n_step_pair(steps: Steps) -> tuple[Array, Array]:
    """The contribution of a step within a window, r + γ'(1−κ)v', and as its last step, r + γ'v'."""
    rewards, successors = steps.floats.values()
    discount = bootstrap(steps)
    inside = steps.live(rewards + weighted(steps, steps.where(stops(steps), discount, 0.0), successors))
    return inside, steps.live(rewards + weighted(steps, discount, successors))


def _window(steps: Steps, x: Array, y: Array, length: int) -> Array:
    """f[t](f[t+1](… f[t+length−1](y[t+length]))) with f[t](y) = x[t] + a[t] y and a = γ'κ, over the live steps."""
    a = trace(steps, 1.0)
    if length >= len(x):  # κ = 0 at the last step: the window sees the whole column
        return steps.live(linear_recurrence(x, a, differentiable=steps.differentiable))
    if steps.mask is None:
        return _composed(steps, x, a, y, length)
    order, place = _compacted(steps)
    x, a, y = (_picked(steps, array, order) for array in (x, steps.live(a), y))
    return steps.live(_picked(steps, _composed(steps, x, a, y, length), place))


def _composed(steps: Steps, x: Array, a: Array, y: Array, length: int) -> Array:
    """The window on an array without masked steps. (x, a) becomes the composition of 1, 2, 4, … steps."""
    span = 1
    while length:
        if length % 2:
            y = x + weighted(steps, a, ahead(steps, y, span))
        length //= 2
        if length:
            x, a = x + weighted(steps, a, ahead(steps, x, span)), a * ahead(steps, a, span)
            span *= 2
    return y


def _compacted(steps: Steps) -> tuple[Array, Array]:
    """Indices that move the live rows of each column to the front, and the inverse indices."""
    xp, mask = steps.xp, steps.mask
    row = xp.cumsum(xp.ones_like(mask, dtype=int), 0)
    order = xp.argsort(xp.where(mask, row, row + len(row)), 0)
    return order, xp.argsort(order, 0)


def _picked(steps: Steps, array: Array, index: Array) -> Array:
    """array[index[t], …] at each row of each column."""
    take = getattr(steps.xp, "take_along_axis", None) or steps.xp.take_along_dim
    return take(array, index, 0)


def _length(name: str, value: int) -> int:
    return arrays.counted(name, value, "the number of steps in a window")

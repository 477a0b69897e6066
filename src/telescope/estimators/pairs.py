"""The terms in the pairs (x, a) of the temporal estimators, each written once. Here λ becomes weights (`trace`).

    γ'[t] = γ (1 − terminated[t])                      whether to bootstrap
    κ[t]  = 1 − truncated[t], and 0 at the last step   whether the trace continues
    v'[t] = next_values[t]                             the value of the state that step t really led to

A number with weight 0 is not read: a select, never a product, because 0 · NaN is NaN. Leaves out the estimators, and
the checks of their arguments (`steps.py`).
"""

from telescope.arrays import Array
from telescope.estimators.steps import Steps
from telescope.recurrence import linear_recurrence


def residual(steps: Steps) -> Array:
    """δ[t] = r[t] + γ'[t] v'[t] − v[t] from the first three arrays; 0 where masked."""
    rewards, values, successors, *_ = steps.floats.values()
    return steps.live(rewards + weighted(steps, bootstrap(steps), successors) - values)


def bootstrap(steps: Steps) -> Array:
    """γ'[t], the weight of the value of the state that step t led to; 0 where terminated."""
    return steps.where(steps.flag("terminated"), 0.0, steps.discounts["gamma"])


def stops(steps: Steps) -> Array:
    """1 − κ[t]: where the data stop before the episode does."""
    return steps.flag("truncated") | steps.last()


def trace(steps: Steps, weight: Array, *, last: bool = True) -> Array:
    """a[t] = γ'[t] κ[t] times a weight such as λ; 1 where masked, so that the trace passes through undecayed.

    `last` False: the last step here does not end the buffer, because other ranks have later steps.
    """
    ends = steps.flag("terminated") | (stops(steps) if last else steps.flag("truncated"))
    return steps.live(steps.where(ends, 0.0, steps.discounts["gamma"] * weight), 1.0)


def weighted(steps: Steps, weight: Array, array: Array) -> Array:
    """weight · array, and 0 where the weight is 0, even for NaN."""
    return weight * steps.where(weight == 0, 0.0, array)


def following(steps: Steps, array: Array) -> Array:
    """The array at the next live step, 0 if there is none. The recurrence carries it back over masked steps."""
    if steps.mask is not None:
        passes = steps.where(steps.mask, 0.0, 1.0)
        array = linear_recurrence(steps.live(array), passes, differentiable=steps.differentiable)
    return ahead(steps, array, 1)


def ahead(steps: Steps, array: Array, count: int) -> Array:
    """array[t + count], 0 beyond the end."""
    if count == 0:
        return array
    return steps.xp.concatenate([array[count:], steps.xp.zeros_like(array[:count])])


def behind(steps: Steps, array: Array) -> Array:
    """array[t − 1], 0 at the first step."""
    return steps.xp.concatenate([steps.xp.zeros_like(array[:1]), array[:-1]])


def forwards(steps: Steps, x: Array, a: Array) -> Array:
    """y[t] = x[t] + a[t] y[t−1]: the recurrence with time reversed."""
    x, a = (steps.xp.flip(array, (0,)) for array in (x, a))
    y = linear_recurrence(x, a, differentiable=steps.differentiable)
    return steps.xp.concatenate([steps.xp.flip(y, (0,))])  # a copy: torch has no tensors with negative strides

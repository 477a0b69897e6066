"""Credit through time: TD residual, GAE, λ-return, discounted return, and the values that they bootstrap from.

An estimator is a pair (x, a) for the recurrence y[t] = x[t] + a[t] · y[t+1], with the terms of `pairs.py`:

    γ'[t] = γ (1 − terminated[t])                      whether to bootstrap
    κ[t]  = 1 − truncated[t], and 0 at the last step   whether the trace continues
    v'[t] = next_values[t]                             the value of the state that step t really led to

Leaves out the computation of the recurrence (`recurrence/`), checks of arguments (`steps.py`) and normalisation
(`normalisation.py`).
"""

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from telescope import arrays
from telescope.arrays import Array
from telescope.estimators import ordinary
from telescope.estimators.output import check_out, count_as_written
from telescope.estimators.pairs import following, residual, stops, trace, weighted
from telescope.estimators.steps import NUMBERS, Steps, enter
from telescope.quiet import quiet
from telescope.recurrence import cpu, linear_recurrence


class Advantages(NamedTuple):
    """The result of `gae`. The returns are the targets of the value function."""

    advantages: Array
    returns: Array


@quiet
def td_error(
    rewards: Array,
    values: Array,
    next_values: Array,
    *,
    terminated: Array | None,
    gamma: Array,
    mask: Array | None = None,
    differentiable: bool = False,
) -> Array:
    """TD residual δ[t] = r[t] + γ (1 − terminated[t]) v'[t] − v[t] (Schulman et al. 2016, eq. 10).

    It is GAE at λ = 0. With values of 0 it is the one-step target. Arrays are [T, *batch] in any layout; `gae` has the
    rules that all estimators share. `next_values` is not read where terminated.
    """
    floats = {"rewards": rewards, "values": values, "next_values": next_values}
    flags = {"terminated": terminated}
    steps = enter(floats, flags, mask, {"gamma": gamma}, differentiable=differentiable)
    return steps.deliver(residual(steps))


def gae(
    rewards: Array,
    values: Array,
    next_values: Array,
    *,
    terminated: Array | None,
    truncated: Array | None,
    gamma: Array,
    lam: Array,
    returns_lam: Array | None = None,
    mask: Array | None = None,
    axis: int = 0,
    differentiable: bool = False,
    out: tuple[Array, Array] | None = None,
    time_group: Any = None,
) -> Advantages:
    """Generalised advantage estimation GAE(γ, λ), and the returns A + v (Schulman et al. 2016, eq. 16).

        δ[t] = r[t] + γ'[t] v'[t] − v[t]
        A[t] = δ[t] + γ'[t] λ κ[t] A[t+1]        returns[t] = v[t] + A[t], which is the λ-return

    with γ' = γ (1 − terminated) and κ = 1 − truncated. A terminated step does not bootstrap and ends the trace. A
    truncated step bootstraps from `next_values` and ends the trace. A step with both flags is terminated. λ = 0 is
    `td_error`, λ = 1 is `discounted_return` minus v.

    Args:
        rewards, values, next_values: [T, *batch], any strides. `next_values[t]` is the value of the state that step t
            really led to, never of the state after a reset; see `next_values()`. Not read where terminated.
        terminated, truncated: [T, *batch], booleans or exactly 0/1. None says that there are none.
        gamma, lam: discount and trace decay per step, in [0, 1]: numbers, or arrays that broadcast against the other
            arrays, (B,) per environment, (T, 1) per step.
        returns_lam: another λ for the returns, in the same pass.
        mask: [T, *batch], True counts. Live steps get the results of the array without the masked steps. Masked steps
            give 0, and their content is not read.
        axis: the time axis; 1 for batch-major [B, T].
        differentiable: let gradients through (torch, JAX). They are exact, by the adjoint recurrence.
        out: a pair of arrays to write advantages and returns into.
        time_group: a torch.distributed group (group.WORLD for all ranks) that the time axis is split over. Its ranks
            hold consecutive rows, in order, and each gets its own rows of the result. A rank's last step is not the end
            of the buffer: its `next_values` is the first value of the next rank.

    Returns:
        (advantages, returns), in the library, device, shape and dtype of `values`; float32 if `values` are half
        precision. Rewards of any real dtype are converted. Inputs are not modified.

    Raises:
        ValueError: names the argument, what came and the likely fix.
    """
    if differentiable is False and time_group is None:
        three = gamma, lam, lam if returns_lam is None else returns_lam
        results = ordinary.gae((rewards, values, next_values), (terminated, truncated, mask), three, axis, out)
        if results is not None:
            return Advantages(*results)
    discounts = {"gamma": gamma, "lam": lam}
    if returns_lam is not None:
        discounts["returns_lam"] = returns_lam
    floats = {"rewards": rewards, "values": values, "next_values": next_values}
    flags = {"terminated": terminated, "truncated": truncated}
    return _through_the_door(floats, flags, mask, discounts, axis, differentiable, out, time_group)


@quiet
def _through_the_door(
    floats: dict[str, Array],
    flags: dict[str, Array | None],
    mask: Array | None,
    discounts: dict[str, Array],
    axis: int,
    differentiable: bool,
    out: tuple[Array, Array] | None,
    time_group: Any,
) -> Advantages:
    """GAE with full checks."""
    steps = enter(floats, flags, mask, discounts, axis, differentiable)
    inside = None if out is None else check_out(steps, out, differentiable)
    fused = _fused(steps, inside) if time_group is None else None
    advantages, returns = fused or _paired(steps, inside, time_group)
    if out is None:
        return Advantages(steps.deliver(advantages), steps.deliver(returns))
    if steps.caller is not np:
        count_as_written(out)
    return Advantages(*out)


@quiet
def lambda_return(
    rewards: Array,
    next_values: Array,
    *,
    terminated: Array | None,
    truncated: Array | None,
    gamma: Array,
    lam: Array,
    mask: Array | None = None,
    axis: int = 0,
    differentiable: bool = False,
) -> Array:
    """λ-return G[t] = r[t] + γ'[t] ((1 − λκ[t]) v'[t] + λκ[t] G[t+1]) (Sutton & Barto 2018, eq. 12.18).

    It equals v + `gae(...).advantages` if next_values come from v (see `next_values`). λ = 0 is the one-step target
    r + γ'v', λ = 1 is `discounted_return`. The result has the dtype of `next_values`. All else is as in `gae`.
    """
    floats = {"rewards": rewards, "next_values": next_values}
    flags = {"terminated": terminated, "truncated": truncated}
    steps = enter(floats, flags, mask, {"gamma": gamma, "lam": lam}, axis, differentiable)
    x, a = _lambda_return_pair(steps)
    return steps.deliver(steps.live(linear_recurrence(x, a, differentiable=differentiable)))


@quiet
def discounted_return(
    rewards: Array,
    next_values: Array,
    *,
    terminated: Array | None,
    truncated: Array | None,
    gamma: Array,
    mask: Array | None = None,
    axis: int = 0,
    differentiable: bool = False,
) -> Array:
    """Discounted return G[t] = r[t] + γ'[t] (κ[t] G[t+1] + (1 − κ[t]) v'[t]): the λ-return at λ = 1.

    Where the data stop before the episode does (a truncation, the end of the buffer), the value of the state that was
    reached replaces the missing rewards. Arguments, result and errors are as in `gae`.
    """
    ends: dict[str, Any] = {"terminated": terminated, "truncated": truncated, "mask": mask, "axis": axis}
    return lambda_return(rewards, next_values, **ends, gamma=gamma, lam=1.0, differentiable=differentiable)


@quiet
def next_values(
    values: Array,
    last_values: Array,
    *,
    terminated: Array | None,
    truncated: Array | None,
    final_values: Array | None = None,
    mask: Array | None = None,
    axis: int = 0,
) -> Array:
    """v'[t], the value of the state that each step really led to, computed from what a rollout has.

        terminated[t]                       0: there is no successor
        truncated[t]                        final_values[t], the value of the final observation
        the column's last live step         last_values
        else                                values at the column's next live step

    Args:
        values: [T, *batch], v of the state in which step t was taken.
        last_values: [*batch], v of the state after each column's last live step; for [T] a number is enough. Not read
            if that step ended its episode, because after a reset it belongs to the next episode.
        terminated, truncated: [T, *batch], booleans or exactly 0/1. None says that there are none.
        final_values: [T, *batch], read only where truncated and not terminated. NaN says that there is none.
        mask, axis: as in `gae`.

    Returns:
        [T, *batch] in the library, device and dtype of `values`, without a gradient; 0 at masked steps.

    Raises:
        ValueError: a truncated step has no final value. `values[t + 1]` and `last_values` belong to the state after the
            reset, to which step t did not lead.
    """
    floats = {"values": values, "last_values": _spread_last(values, last_values, axis)}
    if final_values is not None:
        floats["final_values"] = final_values
    flags = {"terminated": terminated, "truncated": truncated}
    steps = enter(floats, flags, mask, axis=axis)
    last = steps.last()
    successors = steps.where(last, steps.floats["last_values"], following(steps, steps.floats["values"]))
    missing = steps.flag("truncated") & ~steps.flag("terminated")
    missing = missing if steps.mask is None else missing & steps.mask
    if final_values is not None:
        given = missing & ~steps.xp.isnan(steps.floats["final_values"])
        successors = steps.where(given, steps.floats["final_values"], successors)
        missing = missing & ~given
    _check_none_missing(steps, missing)
    successors = steps.where(missing, math.nan, successors)  # where numbers cannot be read: under jax.jit, on meta
    successors = steps.live(steps.where(steps.flag("terminated"), 0.0, successors))
    return arrays.to_dtype("values", steps.deliver(successors), values.dtype)


def _fused(steps: Steps, out: tuple[Array, Array] | None) -> tuple[Array, Array] | None:
    """GAE in one pass, if library, arrays and discounts allow it; otherwise None."""
    gamma, lam = steps.discounts["gamma"], steps.discounts["lam"]
    returns_lam = steps.discounts.get("returns_lam", lam)
    kernel = _kernel(steps)
    if kernel is None or not (type(gamma) is type(lam) is type(returns_lam) is float):
        return None
    results = (steps.xp.empty_like(steps.like), steps.xp.empty_like(steps.like)) if out is None else out
    flags = (steps.flags["terminated"], steps.flags["truncated"], steps.mask)
    done = kernel(tuple(steps.floats.values()), flags, (gamma, gamma * lam, gamma * returns_lam), results)
    return results if done else None


def _kernel(steps: Steps) -> Callable[..., bool] | None:
    """The one-pass kernel of the library; None if gradients pass."""
    if steps.xp is np:
        return cpu.gae
    if steps.differentiable or steps.xp is not sys.modules.get("torch"):
        return None
    from telescope.recurrence import torch

    return torch.gae


def _paired(steps: Steps, out: tuple[Array, Array] | None, time_group: Any) -> tuple[Array, Array]:
    """GAE as the pair x = δ, a = γ'λκ. Tests compare `_fused` with it."""
    lam = steps.discounts["lam"]
    returns_lam = steps.discounts.get("returns_lam", lam)
    x = residual(steps)

    def summed(decay: Array) -> Array:
        a = trace(steps, decay, last=time_group is None)
        return linear_recurrence(x, a, differentiable=steps.differentiable, group=time_group)

    advantages = ahead = summed(lam)
    if returns_lam is not lam:
        ahead = summed(returns_lam)
    results = steps.live(advantages), steps.live(ahead + steps.floats["values"])
    if out is not None:
        for target, result in zip(out, results, strict=True):
            target[...] = result
    return results


def _lambda_return_pair(steps: Steps) -> tuple[Array, Array]:
    """x[t] = r[t] + γ'[t] (1 − λκ[t]) v'[t], a[t] = γ'[t] λ κ[t]."""
    rewards, successors = steps.floats.values()
    gamma, lam = steps.discounts["gamma"], steps.discounts["lam"]
    weight = steps.where(stops(steps), gamma, gamma * (1 - lam))
    weight = steps.where(steps.flag("terminated"), 0.0, weight)
    return steps.live(rewards + weighted(steps, weight, successors)), trace(steps, lam)


def _spread_last(values: Array, last_values: Array, axis: int) -> Array:
    """last_values [*batch] as a view of the shape of values."""
    axis = arrays.time_axis("values", values, axis)
    if isinstance(last_values, NUMBERS):  # a single column has one last value
        last_values = arrays.scalar(last_values, values)
    arrays.check_neighbour("values", values, "last_values", last_values)
    shape = tuple(values.shape)
    batch = shape[:axis] + shape[axis + 1 :]
    arrays.check_shape("last_values", last_values, batch, "one per column of values is")
    xp = arrays.library("values", values)
    return xp.broadcast_to(last_values[(slice(None),) * axis + (None,)], shape)


def _check_none_missing(steps: Steps, missing: Array) -> None:
    if not arrays.any_true(missing):
        return
    step, *column = steps.xp.argwhere(missing)[0].tolist()
    raise ValueError(
        f"final_values holds no value for {int(missing.sum())} truncated steps "
        f"(the first: step {step}, column {tuple(column)}); the next value in values or last_values is that of the "
        f"state after the reset. Evaluate the critic on the final observation (Gymnasium: infos['final_obs']). "
        f"If nothing was reset, last_values is the value: leave truncated False at the column's last step"
    )

"""The loops of GAE that numba compiles: the terms of the recurrence, its solution and the returns in one pass.

The same layouts and tiles as in `kernels.py`, whose helpers they call. `estimators/pairs.py` has the formulas; tests
compare the two. Leaves out checks and threads (`cpu.py`).
"""

from typing import Any

import numpy as np
from numba import literal_unroll, njit, types

from telescope.recurrence import caching
from telescope.recurrence.cpu import SHORT
from telescope.recurrence.kernels import (
    REGISTER,
    clear,
    cut_of,
    kinds,
    new_tiles,
    place_of,
    rows_at_a_time,
    solve,
    span,
    touch,
)


def gae_rows(  # type: ignore[no-untyped-def]
    rewards,
    values,
    next_values,
    terminated,
    truncated,
    mask,
    gamma,
    decay,
    returns_decay,
    advantages,
    returns,
    lo,
    hi,
):
    """δ, advantages and returns in one pass, row by row. decay is γλ; returns_decay is that of the returns."""
    terminated, truncated, mask = terminated.view(np.uint8), truncated.view(np.uint8), mask.view(np.uint8)
    number = values.dtype.type
    g, d, e = number(gamma), number(decay), number(returns_decay)
    n, zero = hi - lo, number(0)
    trace, returns_trace = np.zeros(n, values.dtype), np.zeros(n, values.dtype)
    bootstraps, goes_on, returns_goes_on = g != 0, d != 0, e != 0
    seen, block = np.uint8(0), rows_at_a_time(values)
    for stop in range(values.shape[0], 0, -block):
        start = max(0, stop - block)
        if block < values.shape[0]:
            seen |= touch(rewards, start, stop) | touch(values, start, stop) | touch(next_values, start, stop)
            seen |= touch(terminated, start, stop) | touch(truncated, start, stop) | touch(mask, start, stop)
            seen |= touch(advantages, start, stop) | touch(returns, start, stop)
        for t in range(stop - 1, start - 1, -1):
            reward, value, next_value = (
                span(rewards, t, lo, n),
                span(values, t, lo, n),
                span(next_values, t, lo, n),
            )
            ends, cut, live = span(terminated, t, lo, n), span(truncated, t, lo, n), span(mask, t, lo, n)
            advantage, target = span(advantages, t, lo, n), span(returns, t, lo, n)
            for j in range(n):
                successor = g * next_value[j] if ends[j] == 0 and bootstraps else zero
                delta = reward[j] + successor - value[j]
                inside = (ends[j] | cut[j]) == 0
                a = delta + (d * trace[j] if inside and goes_on else zero)
                b = delta + (e * returns_trace[j] if inside and returns_goes_on else zero)
                trace[j] = a if live[j] != 0 else trace[j]
                returns_trace[j] = b if live[j] != 0 else returns_trace[j]
                advantage[j] = a if live[j] != 0 else zero
                target[j] = b + value[j] if live[j] != 0 else zero
    return seen


@njit
def _prepare(reward, value, next_value, ends, cut, live, gamma, decay, x, a):  # type: ignore[no-untyped-def]
    # The pair (x, a) of a stretch of a column. A masked step has x = 0, a = 1, which lets the trace through.
    zero, one, bootstraps = x.dtype.type(0), x.dtype.type(1), gamma != 0
    for i in range(value.size):
        successor = gamma * next_value[i] if ends[i] == 0 and bootstraps else zero
        inside = (ends[i] | cut[i]) == 0
        x[i] = reward[i] + successor - value[i] if live[i] != 0 else zero
        a[i] = (decay if inside else zero) if live[i] != 0 else one


@njit
def _deliver(y, value, live, advantage, target):  # type: ignore[no-untyped-def]
    zero = y.dtype.type(0)
    for i in range(value.size):
        advantage[i] = y[i] if live[i] != 0 else zero
        target[i] = y[i] + value[i] if live[i] != 0 else zero


@njit
def _deliver_advantage(y, live, advantage):  # type: ignore[no-untyped-def]
    for i in range(live.size):
        advantage[i] = y[i] if live[i] != 0 else y.dtype.type(0)


@njit
def _gae_tiles(floats, flags, gamma, decay, advantages, returns, lo, hi, both):  # type: ignore[no-untyped-def]
    # All tiles with one λ. Returns are written only if `both`.
    rewards, values, next_values = floats
    terminated, truncated, mask = flags
    lanes = REGISTER // values.itemsize
    cut, height = cut_of(values.shape[0], values.shape[1], lanes)
    joined = not cut and values.shape[0] == height <= SHORT
    for array in literal_unroll((*floats, *flags, advantages, returns)):
        joined &= array.strides[1] == height * array.itemsize
    x, a, y, p, carry, product = new_tiles(lanes, cut, height, 0 if joined else lanes, values.dtype)
    for first in range(lo, hi, 1 if cut else lanes):
        used, later = lanes if cut else min(lanes, hi - first), values.dtype.type(0)
        carry[:] = 0
        for stop in range(values.shape[0], 0, -height * (lanes if cut else 1)):
            together = used if joined else 1
            for k in range(0, used, together):
                c, t, count = place_of(k, lanes, first, stop, cut, height)
                front, n = height - count, count * together
                reward, value, next_value = (
                    span(rewards, t, c, n),
                    span(values, t, c, n),
                    span(next_values, t, c, n),
                )
                ends, stops, live = span(terminated, t, c, n), span(truncated, t, c, n), span(mask, t, c, n)
                x_line, a_line = span(x, k, front, n), span(a, k, front, n)
                clear(x, a, k, front)
                _prepare(reward, value, next_value, ends, stops, live, gamma, decay, x_line, a_line)
            later = solve(x, a, y, p, carry, product, cut, height, min(stop, height), later, True)
            for k in range(0, used, together):
                c, t, count = place_of(k, lanes, first, stop, cut, height)
                front, n = height - count, count * together
                line, live, advantage = span(y, k, front, n), span(mask, t, c, n), span(advantages, t, c, n)
                if both:
                    _deliver(line, span(values, t, c, n), live, advantage, span(returns, t, c, n))
                else:
                    _deliver_advantage(line, live, advantage)


def gae_columns(  # type: ignore[no-untyped-def]
    rewards,
    values,
    next_values,
    terminated,
    truncated,
    mask,
    gamma,
    decay,
    returns_decay,
    advantages,
    returns,
    lo,
    hi,
):
    """GAE in tiles, for neighbouring steps that are adjacent in memory. It runs twice if the two λ differ."""
    number = values.dtype.type
    floats = rewards, values, next_values
    flags = terminated.view(np.uint8), truncated.view(np.uint8), mask.view(np.uint8)
    for both, weight in ((True, returns_decay), (False, decay)):
        if both or decay != returns_decay:
            _gae_tiles(floats, flags, number(gamma), number(weight), advantages, returns, lo, hi, both)


def compiled(function: Any, dtype: np.dtype) -> Any:
    """A loop of GAE, compiled for one dtype and any strides, or loaded from numba's disk cache."""
    read, flag, write = kinds(dtype)
    arrays, discounts = (read,) * 3 + (flag,) * 3, (types.float64,) * 3
    return caching.compiled(function, (*arrays, *discounts, write, write, types.intp, types.intp))

"""The loops that numba compiles: the linear recurrence, and GAE fused into it, each for two memory layouts.

Nothing here checks, allocates results or starts threads: `cpu.py` does, and imports this file (and with it
numba, which takes 0.3 to 0.5 s) only when the first kernel is called.

All arrays are two-dimensional views [T, columns] of any strides; a kernel works on columns lo:hi. What makes
them fast: flags are uint8; a select instead of a product with (1 − flag), which is also what keeps NaN out;
the carry in an array of its own. Where they stop being fast: a single long column is one chain of additions,
and goes no faster than their latency (about 3 ns a step).
"""

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

CHAINS = 4  # columns that the layout "columns" walks side by side, so that their additions overlap
STEPS = 512  # steps it prepares at a time; x and a of the chains then fit the first-level cache


@intrinsic
def _pointer(_context: Any, _address: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), generate


@njit
def _line(array, t, column, count):  # type: ignore[no-untyped-def]
    # `count` numbers from array[t, column] on, along the contiguous axis, whichever that is: the promise that
    # they are neighbours is what lets the compiler vectorise. One row (column) serves all steps (columns).
    down = t * array.strides[0] if array.shape[0] > 1 else 0
    across = column * array.strides[1] if array.shape[1] > 1 else 0
    return carray(_pointer(array.ctypes.data + down + across), count, array.dtype)  # type: ignore[call-arg]


def recurrence_rows(x, a, y, lo, hi):  # type: ignore[no-untyped-def]
    """y[t] = x[t] + a[t] · y[t+1], a row at a time; neighbouring columns are neighbours in memory."""
    carry = np.zeros(hi - lo, y.dtype)
    for t in range(x.shape[0] - 1, -1, -1):
        x_row = _line(x, t, lo, hi - lo)
        a_row = _line(a, t, lo, hi - lo)
        y_row = _line(y, t, lo, hi - lo)
        for j in range(hi - lo):
            tail = a_row[j] * carry[j]
            carry[j] = x_row[j] + tail if a_row[j] != 0 else x_row[j]
            y_row[j] = carry[j]


@njit
def _chains(x, a, carry, count):  # type: ignore[no-untyped-def]
    # The recurrence in place on x[CHAINS, count]: four carries in registers, their latencies overlapping.
    x0, x1, x2, x3 = x[0], x[1], x[2], x[3]
    a0, a1, a2, a3 = a[0], a[1], a[2], a[3]
    c0, c1, c2, c3 = carry[0], carry[1], carry[2], carry[3]
    for i in range(count - 1, -1, -1):
        c0 = x0[i] + a0[i] * c0 if a0[i] != 0 else x0[i]
        c1 = x1[i] + a1[i] * c1 if a1[i] != 0 else x1[i]
        c2 = x2[i] + a2[i] * c2 if a2[i] != 0 else x2[i]
        c3 = x3[i] + a3[i] * c3 if a3[i] != 0 else x3[i]
        x0[i], x1[i], x2[i], x3[i] = c0, c1, c2, c3
    carry[0], carry[1], carry[2], carry[3] = c0, c1, c2, c3


def recurrence_columns(x, a, y, lo, hi):  # type: ignore[no-untyped-def]
    """The same, four columns at a time down the whole of time: batch-major, single columns, odd strides."""
    x_tile, a_tile = np.zeros((CHAINS, STEPS), y.dtype), np.zeros((CHAINS, STEPS), y.dtype)
    carry = np.zeros(CHAINS, y.dtype)
    for first in range(lo, hi, CHAINS):
        chains = min(CHAINS, hi - first)
        carry[:] = 0
        for stop in range(x.shape[0], 0, -STEPS):
            start = max(0, stop - STEPS)
            for k in range(chains):
                for i in range(stop - start):
                    x_tile[k, i] = x[start + i, first + k]
                    a_tile[k, i] = a[start + i, first + k]
            _chains(x_tile, a_tile, carry, stop - start)
            for k in range(chains):
                for i in range(stop - start):
                    y[start + i, first + k] = x_tile[k, i]


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
    """δ, advantages and returns in one pass, a row at a time; decay is γλ, returns_decay the returns' own."""
    terminated, truncated, mask = terminated.view(np.uint8), truncated.view(np.uint8), mask.view(np.uint8)
    number = values.dtype.type
    g, d, e = number(gamma), number(decay), number(returns_decay)
    n, zero = hi - lo, number(0)
    trace, returns_trace = np.zeros(n, values.dtype), np.zeros(n, values.dtype)
    bootstraps, goes_on, returns_goes_on = g != 0, d != 0, e != 0
    for t in range(values.shape[0] - 1, -1, -1):
        reward, value, next_value = (
            _line(rewards, t, lo, n),
            _line(values, t, lo, n),
            _line(next_values, t, lo, n),
        )
        ends, cut, live = _line(terminated, t, lo, n), _line(truncated, t, lo, n), _line(mask, t, lo, n)
        advantage, target = _line(advantages, t, lo, n), _line(returns, t, lo, n)
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


@njit
def _prepare(reward, value, next_value, ends, cut, live, gamma, decay, returns_decay, x, a, returns_a):  # type: ignore[no-untyped-def]
    # One column as pairs (x, a); a masked step is x = 0, a = 1, which lets the trace through.
    zero, one, bootstraps = x.dtype.type(0), x.dtype.type(1), gamma != 0
    for i in range(value.size):
        successor = gamma * next_value[i] if ends[i] == 0 and bootstraps else zero
        inside = (ends[i] | cut[i]) == 0
        x[i] = reward[i] + successor - value[i] if live[i] != 0 else zero
        a[i] = (decay if inside else zero) if live[i] != 0 else one
        returns_a[i] = (returns_decay if inside else zero) if live[i] != 0 else one


@njit
def _deliver(x, returns_x, value, live, advantage, target):  # type: ignore[no-untyped-def]
    zero = x.dtype.type(0)
    for i in range(value.size):
        advantage[i] = x[i] if live[i] != 0 else zero
        target[i] = returns_x[i] + value[i] if live[i] != 0 else zero


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
    """The same, four columns at a time; neighbouring steps are neighbours in memory."""
    terminated, truncated, mask = terminated.view(np.uint8), truncated.view(np.uint8), mask.view(np.uint8)
    number = values.dtype.type
    g, d, e = number(gamma), number(decay), number(returns_decay)
    x, a = np.zeros((CHAINS, STEPS), values.dtype), np.zeros((CHAINS, STEPS), values.dtype)
    returns_x, returns_a = np.zeros((CHAINS, STEPS), values.dtype), np.zeros((CHAINS, STEPS), values.dtype)
    carry, returns_carry = np.zeros(CHAINS, values.dtype), np.zeros(CHAINS, values.dtype)
    for first in range(lo, hi, CHAINS):
        chains = min(CHAINS, hi - first)
        carry[:] = 0
        returns_carry[:] = 0
        for stop in range(values.shape[0], 0, -STEPS):
            t = max(0, stop - STEPS)
            n = stop - t
            for k in range(chains):
                c = first + k
                reward, value, next_value = (
                    _line(rewards, t, c, n),
                    _line(values, t, c, n),
                    _line(next_values, t, c, n),
                )
                ends, cut, live = (
                    _line(terminated, t, c, n),
                    _line(truncated, t, c, n),
                    _line(mask, t, c, n),
                )
                _prepare(reward, value, next_value, ends, cut, live, g, d, e, x[k], a[k], returns_a[k])
            if e != d:
                returns_x[:, :n] = x[:, :n]
                _chains(returns_x, returns_a, returns_carry, n)
            _chains(x, a, carry, n)
            for k in range(chains):
                c = first + k
                value, live = _line(values, t, c, n), _line(mask, t, c, n)
                advantage, target = _line(advantages, t, c, n), _line(returns, t, c, n)
                _deliver(x[k], returns_x[k] if e != d else x[k], value, live, advantage, target)


def compiled(function: Any, dtype: np.dtype) -> Any:
    """`function` compiled for one dtype and any strides, or from numba's cache on disk."""
    number = types.float32 if dtype == np.float32 else types.float64
    read = types.Array(number, 2, "A", readonly=True)
    flag = types.Array(types.boolean, 2, "A", readonly=True)
    write = types.Array(number, 2, "A")
    arguments: list[Any] = [read, read, write]
    if function in (gae_rows, gae_columns):
        arguments = [read] * 3 + [flag] * 3 + [types.float64] * 3 + [write] * 2
    signature = types.void(*arguments, types.intp, types.intp)
    try:
        return njit([signature], nogil=True, cache=True)(function)
    except (OSError, RuntimeError):  # nowhere to write the cache: compile again in each process
        return njit([signature], nogil=True)(function)

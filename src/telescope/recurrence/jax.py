"""The recurrence on JAX arrays: a scan along time, or on an accelerator a tree of segments.

XLA compiles both forms for its device. Leaves out argument checks.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

TREE_STEPS = 64  # below this, an accelerator uses the scan too
UNROLL = 8  # steps per iteration of the scan's loop


@jax.custom_jvp
def linear_recurrence(x: Array, a: Array) -> Array:
    """y[t] = x[t] + a[t] · y[t+1], y[T] = 0, over axis 0 of [T, *batch]; see `naive.py`.

    It works under jit, vmap and grad, forwards and backwards (twice, where a is not 0). Only length and platform choose
    the form: a step of a scan costs nanoseconds on a CPU, but a kernel launch on an accelerator.
    """
    return _form(x)(x, a)


@linear_recurrence.defjvp
def _tangent(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """dy[t] = dx[t] + da[t] · y[t+1] + a[t] · dy[t+1]: the same recurrence, whose transpose is the adjoint one."""
    (x, a), (dx, da) = primals, tangents
    y = linear_recurrence(x, a)
    later = jnp.concatenate([y[1:], jnp.zeros_like(y[:1])])
    later = jnp.where((a == 0) & ~jnp.isfinite(later), 0, later)  # NaN beyond a cut has no slope
    # by jvp, which tells older versions of JAX that the scan is linear in its first argument
    return y, jax.jvp(lambda x: _form(x)(x, a), (jnp.zeros_like(x),), (dx + da * later,))[1]


def _form(x: Array) -> Any:
    return _scan if len(x) < TREE_STEPS else _by_platform


@jax.jit
def _by_platform(x: Array, a: Array) -> Array:
    return jax.lax.platform_dependent(x, a, cpu=_scan, default=_tree)


@jax.jit
def _scan(x: Array, a: Array) -> Array:
    """Step by step from the end, all columns at once."""

    def step(later: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        x, a = row
        y = x + a * jnp.where(a == 0, 0, later)
        return y, y

    return jax.lax.scan(step, jnp.zeros(x.shape[1:], x.dtype), (x, a), reverse=True, unroll=UNROLL)[1]


@jax.jit
def _tree(x: Array, a: Array) -> Array:
    """Segments of time as maps y ↦ x + a·y, joined in pairs: log₂ T rounds, each parallel over time and columns.

    A flag beside the product of a says whether a segment is cut. The product can also be 0 by underflow, and must then
    still let NaN through.
    """
    Segment = tuple[Array, Array, Array]

    def join(later: Segment, earlier: Segment) -> Segment:
        (later_cut, later_a, later_x), (cut, a, x) = later, earlier
        return cut | later_cut, a * later_a, x + a * jnp.where(cut, 0, later_x)

    return jax.lax.associative_scan(join, (a == 0, a, x), reverse=True)[2]

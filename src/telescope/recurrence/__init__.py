"""y[t] = x[t] + a[t] · y[t+1]: the recurrence under every estimator, and the only place that knows hardware.

`naive.py` is the definition; `cpu.py` and `kernels.py` compute it for NumPy, `torch.py` and `jax.py` for the others.
Leaves out x and a, which the `estimators/` define.
"""

import sys
from typing import Any

import numpy as np

from telescope import arrays
from telescope.arrays import Array
from telescope.recurrence import cpu


def linear_recurrence(x: Array, a: Array, *, differentiable: bool = False, group: Any = None) -> Array:
    """y[t] = x[t] + a[t] · y[t+1], y[T] = 0, over axis 0 of [T, *batch]. a[t] = 0 cuts the chain, even before NaN.

    x and a are both float32 or both float64, of one shape, in one library (numpy, torch or jax) and on one device. The
    result is like x. With `differentiable` (torch, jax) it has the exact gradient with respect to x and a, computed by
    the adjoint recurrence, which runs in the other direction with a shifted by one. `group`: a torch.distributed group
    that the time axis is split over; see `sharded.py`.
    """
    if group is not None:
        return _sharded(x, a, differentiable, group)
    if isinstance(x, np.ndarray):
        return cpu.linear_recurrence(x, a)
    if arrays.is_jax(x):
        from telescope.recurrence import jax

        return jax.linear_recurrence(*((x, a) if differentiable else map(arrays.detached, (x, a))))
    if "torch" not in sys.modules or not isinstance(x, sys.modules["torch"].Tensor):
        raise ValueError(f"x is a {type(x).__name__}; supported are numpy.ndarray, torch.Tensor and jax.Array")
    from telescope.recurrence import torch

    return torch.differentiable_recurrence(x, a) if differentiable else torch.linear_recurrence(x, a)


def _sharded(x: Array, a: Array, differentiable: bool, group: Any) -> Array:
    if arrays.is_jax(x):
        raise ValueError("time_group is torch.distributed's, but the arrays are JAX's; gather them first")
    from telescope.recurrence import sharded

    return sharded.linear_recurrence_sharded(x, a, group, differentiable=differentiable)

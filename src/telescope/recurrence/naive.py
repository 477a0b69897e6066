"""The recurrence of every estimator, in ten lines. Read this file first.

It is the oracle that the fast kernels are tested against. Leaves out speed, dtype rules and argument checks.
"""

import numpy as np


def linear_recurrence(x: np.ndarray, a: np.ndarray) -> np.ndarray:
    """y[t] = x[t] + a[t] · y[t+1] with y[T] = 0, over axis 0 of [T, *batch].

    Where a[t] = 0 a select cuts the chain. A product would not, because 0 · NaN is NaN, and values beyond the end of an
    episode must not leak in. GAE is x = δ, a = γλ; the discounted return is x = r, a = γ.
    """
    y = np.zeros_like(x)
    zero = later = np.zeros_like(x[:1].sum(axis=0))
    for t in reversed(range(len(x))):
        later = x[t] + a[t] * np.where(a[t] == 0, zero, later)
        y[t] = later
    return y

"""The recurrence that every estimator here is made of, in ten lines: read this file first.

It is the oracle the fast kernels are tested against, so it leaves out speed, dtype rules and argument checks.
"""

import numpy as np


def linear_recurrence(x: np.ndarray, a: np.ndarray) -> np.ndarray:
    """y[t] = x[t] + a[t] · y[t+1] with y[T] = 0, over axis 0 of [T, *batch].

    Where a[t] = 0 the chain is cut: a select, not a product, because 0 · NaN is NaN and whatever happened
    beyond the end of an episode is none of its business. Read from right to left, GAE is x = δ, a = γλ;
    the discounted return is x = r, a = γ.
    """
    y = np.zeros_like(x)
    later = np.zeros_like(x[:1].sum(axis=0))
    for t in reversed(range(len(x))):
        later = x[t] + a[t] * np.where(a[t] == 0, 0, later)
        y[t] = later
    return y

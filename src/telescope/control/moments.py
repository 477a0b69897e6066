"""The loop under the running statistics, compiled by numba: one pass over a step's small arrays, without NumPy's
microsecond per operation. What is counted, and what the moments are for, is up to `normalisation.py`.
"""

# S seeds, B environments per seed, K numbers per environment
from typing import Any

import numpy as np
from numba import njit


def _absorb(  # type: ignore[no-untyped-def]
    x: np.ndarray,
    live: np.ndarray,
    epsilon: float,
    mean: np.ndarray,
    variance: np.ndarray,
    scale: np.ndarray,
    count: np.ndarray,
):
    """Chan et al.'s parallel update of mean, variance and scale [S, K] by x [S, B, K] where live [S, B]; in place."""
    for s in range(x.shape[0]):
        n = 0.0
        for b in range(x.shape[1]):
            n += live[s, b]
        total = count[s] + n
        for k in range(x.shape[2]):
            batch_mean, batch_variance = 0.0, 0.0
            for b in range(x.shape[1]):
                batch_mean += x[s, b, k] if live[s, b] else 0.0
            batch_mean /= max(n, 1.0)
            for b in range(x.shape[1]):
                batch_variance += (x[s, b, k] - batch_mean) ** 2 if live[s, b] else 0.0
            delta = batch_mean - mean[s, k]
            mean[s, k] += delta * (n / total) if n else 0.0
            spread = delta**2 * (count[s] * n / total) if n else 0.0
            variance[s, k] = (variance[s, k] * count[s] + batch_variance + spread) / total
            scale[s, k] = 1 / np.sqrt(variance[s, k] + epsilon)
        count[s] = total


def _compiled(function: Any) -> Any:
    try:
        return njit(nogil=True, cache=True)(function)
    except (OSError, RuntimeError):  # nowhere to write the cache: compile again in each process
        return njit(nogil=True)(function)


absorb = _compiled(_absorb)

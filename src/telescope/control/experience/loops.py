"""Loops of a rollout, compiled by numba: one pass over small arrays, without NumPy's microsecond per operation.

`normalisation.py` and `environments/cartpole.py` use them. They import this module when they first need it, because
numba takes 0.3 s to load.
"""

# S seeds, B environments per seed, K numbers per environment, N = S·B

import numpy as np

from telescope.recurrence.caching import compiled


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


def _move_carts(  # type: ignore[no-untyped-def]
    state: np.ndarray, action: np.ndarray, cosine: np.ndarray, sine: np.ndarray, physics, outside: np.ndarray
):
    """One Euler step of the carts in state [4, N], in place. Sets `outside` [N] where a cart has left its bounds.

    It does the operations of Gymnasium's CartPoleVectorEnv in the same order, so the result is equal bit for bit. The
    caller computes sines and cosines with NumPy for the same reason.
    """
    gravity, pole_mass, total_mass, length, pole_mass_length, strength, tau, farthest, widest = physics
    for n in range(state.shape[1]):
        x, x_dot, theta, theta_dot = state[0, n], state[1, n], state[2, n], state[3, n]
        force = strength if action[n] > 0 else -strength
        temp = (force + pole_mass_length * (theta_dot * theta_dot) * sine[n]) / total_mass
        theta_acc = (gravity * sine[n] - cosine[n] * temp) / (
            length * (4.0 / 3.0 - pole_mass * (cosine[n] * cosine[n]) / total_mass)
        )
        x_acc = temp - pole_mass_length * theta_acc * cosine[n] / total_mass
        state[0, n] = x = x + tau * x_dot
        state[1, n] = x_dot + tau * x_acc
        state[2, n] = theta = theta + tau * theta_dot
        state[3, n] = theta_dot + tau * theta_acc
        outside[n] = x < -farthest or x > farthest or theta < -widest or theta > widest


absorb = compiled(_absorb)
move_carts = compiled(_move_carts)

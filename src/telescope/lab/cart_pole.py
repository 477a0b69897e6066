"""The cart-pole of Barto, Sutton & Anderson 1983, with their friction, for any number of carts at once.

The force is a number and not a choice of two, as the six parameters of the linear policy in the TRPO paper suggest
(Schulman et al. 2015, section 8.1: four weights, a bias, log σ). Leaves out who pushes (`trajectories.py`).
"""

from __future__ import annotations

import math

import numpy as np

GRAVITY = 9.8  # m/s²
CART, POLE = 1.0, 0.1  # kg
HALF_LENGTH = 0.5  # m, from the hinge to the pole's centre of mass
CART_FRICTION, POLE_FRICTION = 5e-4, 2e-6  # of the cart on its track, and of the hinge
FORCE = 10.0  # N, the largest
STEP = 0.02  # s of Euler's method
TRACK, LEANING = 2.4, math.radians(12)  # m and rad: beyond either the trial has failed
START = 0.05  # a trial begins with four numbers from −START … START


def move(state: np.ndarray, force: np.ndarray, *, friction: bool = True) -> np.ndarray:
    """One step of Euler's method: [4, *batch] position, velocity, angle and angular velocity → the same afterwards.

    Args:
        state: x in m, ẋ, θ in rad from upright, θ̇.
        force: [*batch] in N.
        friction: False leaves it out, as Gymnasium's CartPole does.
    """
    _, speed, angle, turning = state
    sine, cosine, total = np.sin(angle), np.cos(angle), CART + POLE
    moment = POLE * HALF_LENGTH
    push = force + moment * turning**2 * sine - friction * CART_FRICTION * np.sign(speed)
    hinge = friction * POLE_FRICTION * turning / moment
    turned = (GRAVITY * sine - cosine * push / total - hinge) / (HALF_LENGTH * (4 / 3 - POLE * cosine**2 / total))
    moved = (push - moment * turned * cosine) / total
    return state + STEP * np.stack([speed, moved, turning, turned])


def failed(state: np.ndarray) -> np.ndarray:
    """[*batch] whether the cart has left its track or the pole leans too far."""
    return (np.abs(state[0]) > TRACK) | (np.abs(state[2]) > LEANING)

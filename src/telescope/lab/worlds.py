"""Processes to measure estimators on: chain, random walk, grid world, Garnet, CartPole on a grid, two-turn bandit.

Leaves out their truth (`mdp.py`).
"""

# N states, A actions
from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from telescope.lab.mdp import MDP, check

MOVES = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}
"""The actions of a grid world, in order."""


def chain(length: int = 8, slip: float = 0.1, time_limit: int | None = None) -> MDP:
    """A corridor: action 1 goes right, 0 left, with probability `slip` the other way. The right end pays 1 and ends.

    The left end is a wall. One reward at the end of a long way: credit has to travel.
    """

    def move(state: int, action: int) -> list[tuple[float, int, float]]:
        right, left = min(state + 1, length), max(state - 1, 0)
        ahead, back = (right, left) if action else (left, right)
        return [(1 - slip, ahead, float(ahead == length)), (slip, back, float(back == length))]

    return _made(length + 1, 2, move, start=[0], terminal=[length], time_limit=time_limit)


def random_walk(states: int = 19, time_limit: int | None = None) -> MDP:
    """The random walk of Sutton & Barto 2018, example 6.2 and section 12.1: left ends with −1, right with +1.

    With the uniform policy and γ = 1, V grows linearly from left to right.
    """
    left, right = states, states + 1

    def move(state: int, action: int) -> list[tuple[float, int, float]]:
        if action:
            return [(1.0, right, 1.0) if state == states - 1 else (1.0, state + 1, 0.0)]
        return [(1.0, left, -1.0) if state == 0 else (1.0, state - 1, 0.0)]

    return _made(states + 2, 2, move, start=[states // 2], terminal=[left, right], time_limit=time_limit)


def grid_world(
    plan: str = "...G\n.#.X\nS...", slip: float = 0.2, step_reward: float = -0.04, time_limit: int | None = None
) -> MDP:
    """A grid: S begins, G ends with +1, X ends with −1, # is a wall. With probability `slip` a step goes sideways.

    The default is the grid of Russell & Norvig's textbook. States are the cells without walls, row by row.
    """
    rows = plan.strip().split("\n")
    cells = [(r, c) for r, row in enumerate(rows) for c, sign in enumerate(row.strip()) if sign != "#"]
    place = {cell: index for index, cell in enumerate(cells)}
    signs = [rows[r].strip()[c] for r, c in cells]
    prizes = {"G": 1.0, "X": -1.0}

    def reached(state: int, move: tuple[int, int]) -> int:
        r, c = cells[state]
        return place.get((r + move[0], c + move[1]), state)

    def move(state: int, action: int) -> list[tuple[float, int, float]]:
        moves = list(MOVES.values())
        chances = {action: 1 - slip, (action + 1) % 4: slip / 2, (action - 1) % 4: slip / 2}
        outcomes = [(chance, reached(state, moves[direction])) for direction, chance in chances.items()]
        return [(chance, cell, step_reward + prizes.get(signs[cell], 0.0)) for chance, cell in outcomes]

    start = [index for index, sign in enumerate(signs) if sign == "S"]
    terminal = [index for index, sign in enumerate(signs) if sign in prizes]
    return _made(len(cells), 4, move, start=start, terminal=terminal, time_limit=time_limit)


def garnet(
    rng: np.random.Generator,
    states: int = 12,
    actions: int = 3,
    branching: int = 3,
    ending: float = 0.1,
    time_limit: int | None = None,
) -> MDP:
    """A random process (Archibald et al. 1995): each state and action leads to `branching` states, with normal rewards.

    Each step ends the episode with probability `ending`; an episode begins in any state.
    """

    def move(state: int, action: int) -> list[tuple[float, int, float]]:
        followers = rng.choice(states, size=branching, replace=False)
        shares = rng.dirichlet(np.ones(branching)) * (1 - ending)
        rewards = rng.normal(size=branching + 1)
        ways = zip([*shares, ending], [*followers, states], rewards, strict=True)
        return [(float(share), int(follower), float(reward)) for share, follower, reward in ways]

    return _made(states + 1, actions, move, start=list(range(states)), terminal=[states], time_limit=time_limit)


def cart_pole(cells: tuple[int, int, int, int] = (3, 3, 7, 9), pushes: int = 3, time_limit: int | None = 500) -> MDP:
    """CartPole on a grid: 1 for each step, an end when it falls. A step is `pushes` pushes of Gymnasium's simulation.

    The state after them is shared between the corners of the grid cell around it, so that it is right in the mean
    (Munos & Moore 2002, Machine Learning 49). An episode begins in the middle.
    """
    bounds = np.array([2.4, 2.5, 0.2095, 2.5])  # position, velocity, angle, angular velocity
    axes = [np.linspace(-bound, bound, count) for bound, count in zip(bounds, cells, strict=True)]
    end, strides = int(np.prod(cells)), np.array([int(np.prod(cells[i:])) for i in (1, 2, 3, 4)])

    def corners(x: np.ndarray) -> list[tuple[float, int]]:
        places = (np.clip(x, -bounds, bounds) + bounds) / (2 * bounds) * (np.array(cells) - 1)
        low = np.minimum(places.astype(int), np.array(cells) - 2)
        share = places - low
        shared = []
        for corner in itertools.product((0, 1), repeat=4):
            weight = float(np.prod(np.where(corner, share, 1 - share)))
            shared.append((weight, int((low + corner) @ strides)))
        return [(weight, place) for weight, place in shared if weight > 0]

    def move(state: int, action: int) -> list[tuple[float, int, float]]:
        x = np.array([axis[i] for axis, i in zip(axes, np.unravel_index(state, cells), strict=True)])
        for _ in range(pushes):
            x = _pushed(x, action)
            if abs(x[0]) > bounds[0] or abs(x[2]) > bounds[2]:
                return [(1.0, end, 1.0)]
        return [(weight, place, 1.0) for weight, place in corners(x)]

    middle = int(np.array(cells) // 2 @ strides)
    return _made(end + 1, 2, move, start=[middle], terminal=[end], time_limit=time_limit)


def two_turn_bandit(stop: float = 0.5, goes_on: float = 0.0, second: tuple[float, float] = (0.4, 0.6)) -> MDP:
    """Two turns. In the first, action 0 stops with reward `stop` and action 1 goes on; the second pays by its action.

    Some samples stop at the first turn and some at the second: a baseline that depends on where a sample stopped is no
    baseline.
    """

    def move(state: int, action: int) -> list[tuple[float, int, float]]:
        if state == 0:
            return [(1.0, 1, goes_on)] if action else [(1.0, 2, stop)]
        return [(1.0, 2, second[action])]

    return _made(3, 2, move, start=[0], terminal=[2])


def _pushed(x: np.ndarray, action: int) -> np.ndarray:
    """One Euler step of Barto, Sutton & Anderson 1983, with Gymnasium's constants."""
    _, velocity, angle, spin = x
    force = 10.0 if action else -10.0
    sine, cosine = np.sin(angle), np.cos(angle)
    push = (force + 0.05 * spin**2 * sine) / 1.1
    turning = (9.8 * sine - cosine * push) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
    speeding = push - 0.05 * turning * cosine / 1.1
    return x + 0.02 * np.array([velocity, speeding, spin, turning])


def _made(
    states: int,
    actions: int,
    move: Callable[[int, int], list[tuple[float, int, float]]],
    *,
    start: list[int],
    terminal: list[int],
    time_limit: int | None = None,
) -> MDP:
    """A process from `move(state, action)` → (probability, next state, reward) of each way; rewards are averaged."""
    transitions, earned = np.zeros((2, states, actions, states))
    ends = np.isin(np.arange(states), terminal)
    for state, action in itertools.product(np.flatnonzero(~ends).tolist(), range(actions)):
        for chance, reached, reward in move(state, action):
            transitions[state, action, reached] += chance
            earned[state, action, reached] += chance * reward
    rewards = np.divide(earned, transitions, out=np.zeros_like(earned), where=transitions > 0)
    return check(MDP(transitions, rewards, np.isin(np.arange(states), start) / len(start), ends, time_limit))

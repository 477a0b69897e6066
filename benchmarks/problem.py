"""The rollout that all contestants are given, what is right for it, and how near a float32 result must come.

Episodes only terminate, because that is what every rival can express; the values ahead are those of the next step.
"""

from typing import NamedTuple

import numpy as np

GAMMA, LAM = 0.99, 0.95
ENDS = 0.01  # the share of steps that terminate
TOLERANCE = 1e-4  # of the largest number: a wrong formula is off by much more, a float32 sum by much less


class Problem(NamedTuple):
    """A rollout of T steps in B columns, time first; float32 and bool."""

    rewards: np.ndarray  # [T, B]
    values: np.ndarray  # [T, B]
    next_values: np.ndarray  # [T, B], 0 where terminated
    terminated: np.ndarray  # [T, B]
    truncated: np.ndarray  # [T, B], all False
    last_values: np.ndarray  # [B]


class Answer(NamedTuple):
    """Advantages and returns [T, B] in float64."""

    advantages: np.ndarray
    returns: np.ndarray


def problem(columns: int, steps: int, seed: int = 0) -> Problem:
    random = np.random.default_rng([seed, columns, steps])
    rewards, values = random.standard_normal((2, steps, columns), dtype=np.float32)
    last_values = random.standard_normal(columns, dtype=np.float32)
    terminated = random.random((steps, columns)) < ENDS
    ahead = np.concatenate([values[1:], last_values[None]])
    next_values = np.where(terminated, np.float32(0), ahead)
    return Problem(rewards, values, next_values, terminated, np.zeros_like(terminated), last_values)


def answer(given: Problem) -> Answer:
    """The recursion in Python's own floats, a column at a time: none of the code that is judged is in here."""
    advantages = np.empty(given.values.shape)
    for column in range(given.values.shape[1]):
        rows = (array[::-1, column].tolist() for array in given[:4])
        later, found = 0.0, []
        for reward, value, ahead, ended in zip(*rows, strict=True):
            bootstrap, trace = (0.0, 0.0) if ended else (GAMMA * ahead, GAMMA * LAM * later)
            later = reward + bootstrap - value + trace
            found.append(later)
        advantages[:, column] = found[::-1]
    return Answer(advantages, advantages + given.values)


def error(found: tuple[np.ndarray, np.ndarray], right: Answer) -> float:
    """The largest difference of either array, relative to the largest number in it; infinite for wrong shapes."""
    worst = 0.0
    for array, expected in zip(found, right, strict=True):
        if array.shape != expected.shape:
            return float("inf")
        difference = np.abs(array - expected).max() / np.abs(expected).max()
        worst = max(worst, float(difference)) if np.isfinite(difference) else float("inf")
    return worst

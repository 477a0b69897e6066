"""The mistakes that the doctor knows: for each a sentence, and where it stands at an episode's end, what it adds there.

Leaves out how they are looked for (`doctor.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from telescope.lab.evidence import Floats, Rows

SENTENCES = {
    "shapes": "{detail}; all arrays of a rollout have one shape, time first",
    "not_finite": "{detail} holds NaN or infinity in a row that counts; find the step that made it before training "
    "on it",
    "flags": "{detail} holds numbers that are neither 0 nor 1",
    "padding_reward": "a reward stands in a row that does not count, where no step was made; it belongs to the last "
    "row that counts, or it is lost",
    "reset_row": "this row is no transition: the environment only resets here and ignores the action (next-step "
    "autoreset), so the reward is 0 and two episodes are joined; mask it",
    "shifted_flags": "{detail}; a flag belongs to the row of the step that ended the episode",
    "missing_flag": "the next value is not that of the next row, so the episode ended here, but no flag says so",
    "reset_state_value": "the value after {end} is that of the state after the reset, which belongs to the next "
    "episode; use the value of the final observation",
    "truncation_as_termination": "a truncated episode is treated as a terminated one: the value of its final "
    "observation is missing, so all that comes before the time limit looks too bad",
    "end_as_termination": "the end of the buffer is treated as the end of the episode: the value of the last state "
    "is missing",
    "bootstrapped_termination": "a terminated episode bootstraps, but nothing follows a termination: its next value "
    "is 0",
    "trace_over_reset": "the trace runs over {end} into the next episode, so later episodes' rewards count here",
    "double_bootstrap": "the value after {end} is counted twice",
    "own_value": "the value at {end} is that of the state before the last step; use the value of the state that "
    "the step led to",
    "abandoned_step": "the advantage at {end} is 0 whatever its reward is: the step is left out",
    "padding_in_trace": "rows that do not count enter the recursion, or decay it; it has to skip them",
    "padding_whitened": "advantages are whitened over the padding too: mean and deviation include rows that do not "
    "count",
    "permuted_rows": "{detail} stand in other rows than they belong to: the numbers are right, their places are not",
    "other_discounts": "the advantages are GAE of {detail}",
    "time_axis": "time is axis 1 of these arrays; expected axis 0",
    "other_returns": "the returns are neither advantages + values nor λ-returns of these rewards and values",
    "returns_of_whitened": "the returns are whitened advantages + values, but the critic's targets need advantages "
    "as they were before whitening",
    "mixed_groups": "the advantages are relative to groups of other completions: group k has completions k, k + K, "
    "k + 2K, … of these arrays instead of neighbours",
    "not_group_relative": "the advantages are not the scores relative to their group",
    "not_gae": "the advantages are not GAE of these rewards, values and flags for any γ and λ, and no known mistake "
    "explains them; are these the rewards that the trainer used, with all that it adds to them?",
}
"""Name → what is wrong, and what is right."""


class End(NamedTuple):
    """A mistake at the end of an episode or of the buffer: what u = A − r + v is there instead."""

    name: str
    added: Callable[[Rows, float, float], Floats]  # of rows, γ and γλ
    needs_values: bool = True  # nothing can be told where all values are 0
    by_chance: bool = False  # what is added may be right by chance where values are alike
    needs_next: bool = False  # it may be right where the next value is not known


def nothing(rows: Rows, gamma: float, decay: float) -> Floats:
    return np.zeros(rows.live.shape)


def own(rows: Rows, gamma: float, decay: float) -> Floats:
    return gamma * rows.values


def abandoned(rows: Rows, gamma: float, decay: float) -> Floats:
    return rows.values - rows.rewards


def reset_value(rows: Rows, gamma: float, decay: float) -> Floats:
    return gamma * rows.following


def reached_value(rows: Rows, gamma: float, decay: float) -> Floats:
    return gamma * rows.reached


def twice(rows: Rows, gamma: float, decay: float) -> Floats:
    return 2 * gamma * rows.reached


def both_values(rows: Rows, gamma: float, decay: float) -> Floats:
    return gamma * (rows.reached + rows.following)


def both_and_trace(rows: Rows, gamma: float, decay: float) -> Floats:
    return gamma * (rows.reached + rows.following) + decay * rows.later


def only_trace(rows: Rows, gamma: float, decay: float) -> Floats:
    return decay * rows.later


def reached_and_trace(rows: Rows, gamma: float, decay: float) -> Floats:
    return gamma * rows.reached + decay * rows.later


def reset_and_trace(rows: Rows, gamma: float, decay: float) -> Floats:
    return gamma * rows.following + decay * rows.later


def padding(rows: Rows, gamma: float, decay: float) -> Floats:
    """What the next row in time adds, though it does not count."""
    beyond = rows.live & ~np.concatenate([rows.live[1:], np.ones_like(rows.live[:1])])
    values, advantages = (np.concatenate([x[1:], np.zeros_like(x[:1])]) for x in (rows.values, rows.advantages))
    return np.where(beyond, gamma * values + decay * advantages, np.nan)


def decayed(rows: Rows, gamma: float, decay: float) -> Floats:
    """What comes after k rows that do not count, with values and rewards 0 there, but decayed by them."""
    skipped = rows.next_row - np.arange(len(rows.live))[:, None] - 1
    return np.asarray(decay**skipped * (gamma * rows.following + decay * rows.later))


ENDS: dict[str, tuple[End, ...]] = {
    "a termination": (
        End("trace_over_reset", only_trace, needs_values=False),
        End("bootstrapped_termination", reached_value),
        End("reset_state_value", reset_value, by_chance=True),
        End("trace_over_reset", reset_and_trace),
        End("trace_over_reset", reached_and_trace),
        End("padding_in_trace", padding, needs_values=False),
    ),
    "a truncation": (
        End("truncation_as_termination", nothing),
        End("reset_state_value", reset_value, by_chance=True),
        End("own_value", own, by_chance=True),
        End("trace_over_reset", reached_and_trace, needs_values=False),
        End("trace_over_reset", reset_and_trace, needs_values=False),
        End("trace_over_reset", only_trace, needs_values=False),
        End("double_bootstrap", twice),
        End("double_bootstrap", both_values),
        End("double_bootstrap", both_and_trace),
        End("abandoned_step", abandoned, needs_values=False),
        End("padding_in_trace", padding, needs_values=False, needs_next=True),
    ),
    "the end of the buffer": (
        End("end_as_termination", nothing),
        End("own_value", own, by_chance=True),
        End("double_bootstrap", twice),
        End("padding_in_trace", padding, needs_values=False, needs_next=True),
    ),
    "rows that do not count": (
        End("padding_in_trace", padding, needs_values=False),
        End("padding_in_trace", decayed, needs_values=False),
    ),
}
"""Mistakes by where they happen, simplest first."""

"""What a study of λ alone does not show: mistakes at time limits, responses to an action, a false baseline.

Leaves out the estimators (`study.py`) and the pictures (`figures.py`).
"""

# N states, A actions, T time, B rollouts
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import telescope
from telescope.lab.mdp import MDP, Array, sample, truth, uniform
from telescope.lab.study import Case, gae
from telescope.lab.worlds import two_turn_bandit


def limit_as_termination(case: Case, lam: float) -> Array:
    """A time limit is taken as the end: no value of the state that was reached."""
    over = case.samples.terminated | case.samples.truncated
    return np.asarray(telescope.gae(**(case.arguments | {"terminated": over, "truncated": None}), lam=lam).advantages)


def value_of_the_reset(case: Case, lam: float) -> Array:
    """The value after a time limit is that of the next row, where the next episode begins."""
    some = case.arguments
    ahead = np.concatenate([some["values"][1:], some["next_values"][-1:]])
    mistaken = np.where(case.samples.truncated, ahead, some["next_values"])
    return np.asarray(telescope.gae(**(some | {"next_values": mistaken}), lam=lam).advantages)


def trace_over_the_reset(case: Case, lam: float) -> Array:
    """The trace is cut by terminations only, so it runs over time limits."""
    return np.asarray(telescope.gae(**(case.arguments | {"truncated": None}), lam=lam).advantages)


MISTAKES: dict[str, Callable[[Case, float], Array]] = {
    "as it should be": gae,
    "time limit as an end": limit_as_termination,
    "value of the reset state": value_of_the_reset,
    "trace over the reset": trace_over_the_reset,
}
"""GAE, and what it becomes by mistakes at time limits."""


def first(case: Case, rollouts: int) -> Case:
    """The same case with fewer rollouts."""
    samples = case.samples._replace(**{name: x[:, :rollouts] for name, x in case.samples._asdict().items()})
    return case._replace(samples=samples, log_ratios=case.log_ratios[:, :rollouts])


def responses(world: MDP, policy: Array, gamma: float, lags: int = 40) -> tuple[Array, Array]:
    """Mean |γ^l χ(l)| [lags] over states and actions: of the rewards, and of those shaped by Φ = V.

    χ(l) is how an action changes the reward l steps later (Schulman et al. 2016, eq. 26). Shaped by V, only the first
    response is left, and it is the advantage.
    """
    going_on = ~world.terminal
    steps = np.where(going_on[:, None, None] & going_on, world.transitions, 0.0)
    plain = np.where(going_on[:, None], (world.transitions * world.rewards).sum(-1), 0.0)
    values = truth(world, policy, gamma).values
    shaped = np.where(going_on[:, None], plain + gamma * steps @ values - values[:, None], 0.0)
    discounts = gamma ** np.arange(lags)
    found = [telescope.response_function(steps, rewards, policy, lags=lags) for rewards in (plain, shaped)]
    plain_sizes, shaped_sizes = (discounts * np.abs(np.asarray(x))[:, going_on].mean((1, 2)) for x in found)
    return plain_sizes, shaped_sizes


class TwoTurns(NamedTuple):
    """d E[return] / d logit of going on to a second turn, and its estimates with two baselines."""

    right: float
    group: float  # the mean of all samples is the baseline
    per_turn: float  # the mean of the samples that stopped at the same turn is
    noise: float  # standard error of the estimates


def two_turns(rng: np.random.Generator, samples: int = 20_000, stop: float = 1.0) -> TwoTurns:
    """A bandit of two turns whose second turn costs: `stop` is paid for stopping, 0 or 1 for the second turn.

    A baseline that depends on the turn at which a sample stopped is no baseline, because the action decides about it.
    Here it takes away exactly what stopping and going on differ by, so a further turn is never too expensive.
    """
    world = two_turn_bandit(stop=stop, goes_on=0.0, second=(0.0, 1.0))
    policy = uniform(world)
    drawn = sample(world, policy, rng, 2, samples)
    went_on = drawn.actions[0] == 1
    returns = np.where(went_on, drawn.rewards.sum(0), drawn.rewards[0])
    slope = went_on - policy[0, 1]  # d log π(a) / d logit
    own = np.where(went_on, returns[went_on].mean(), returns[~went_on].mean())
    exact = policy[0, 1] * truth(world, policy, 1.0).advantages[0, 1]
    group, per_turn = slope * (returns - returns.mean()), slope * (returns - own)
    noise = max(float(x.std()) for x in (group, per_turn)) / samples**0.5
    return TwoTurns(float(exact), float(group.mean()), float(per_turn.mean()), noise)

"""The mistakes at boundaries that are alive in the field, each in one rollout: `python -m telescope.lab.gallery`.

Prints for each what it does to the policy gradient of a world whose truth is known, what is learned with it, and what
the doctor says. Leaves out how the doctor finds it.
"""

# T time, B rollouts, N states, A actions
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import telescope
from telescope.lab import worlds
from telescope.lab.demonstrations import first
from telescope.lab.doctor import Rollout, examine
from telescope.lab.mdp import MDP, Array, expected_return, optimal_policy, sample, softmax, truth, uniform
from telescope.lab.study import Case, case, gradients, measure

LAM = 0.95
FEW, SHOWN = 200, 8
"""The doctor reads the first 8 of 200 rollouts."""


class Planted(NamedTuple):
    """Advantages with a mistake, and what the file says that is not so."""

    advantages: Array  # [T, B]
    said: dict[str, Any] = {}  # noqa: RUF012 — never changed
    """Arrays of the file that are not those of the rollout."""


class Mistake(NamedTuple):
    """A row of the gallery."""

    name: str
    plant: Callable[[Case], Planted]


def _gae(here: Case, **changed: Any) -> Array:
    return np.asarray(telescope.gae(**(here.arguments | changed), lam=LAM).advantages)


def _following(here: Case) -> Array:
    """The value of the next row, where after an end the next episode begins."""
    some = here.arguments
    return np.concatenate([some["values"][1:], some["next_values"][-1:]])


def right(here: Case) -> Planted:
    return Planted(_gae(here))


def limit_as_end(here: Case) -> Planted:
    over = here.samples.terminated | here.samples.truncated
    return Planted(_gae(here, terminated=over, truncated=None))


def reset_value(here: Case) -> Planted:
    return Planted(_gae(here, next_values=_at_limits(here, _following(here))))


def own_value(here: Case) -> Planted:
    return Planted(_gae(here, next_values=_at_limits(here, here.arguments["values"])))


def trace_over_reset(here: Case) -> Planted:
    return Planted(_gae(here, truncated=None))


def double_bootstrap(here: Case) -> Planted:
    """γV(final observation) is added to the reward, and the value of the next row is bootstrapped on top."""
    both = here.arguments["next_values"] + _following(here)
    return Planted(_gae(here, next_values=_at_limits(here, both)))


def end_twice(here: Case) -> Planted:
    ahead = here.arguments["next_values"].copy()
    ahead[-1] *= 2
    return Planted(_gae(here, next_values=ahead))


def end_as_termination(here: Case) -> Planted:
    ahead, over = here.arguments["next_values"].copy(), here.samples.terminated | here.samples.truncated
    ahead[-1] = np.where(over[-1], ahead[-1], 0.0)
    return Planted(_gae(here, next_values=ahead))


def step_abandoned(here: Case) -> Planted:
    """The reward that makes a truncated step's advantage 0."""
    some, limits = here.arguments, here.samples.truncated
    rewards = np.where(limits, some["values"] - here.gamma * some["next_values"], some["rewards"])
    return Planted(_gae(here, rewards=rewards))


def late_flags(here: Case) -> Planted:
    ends = {name: np.roll(here.arguments[name], 1, 0) for name in ("terminated", "truncated")}
    for x in ends.values():
        x[0] = False
    return Planted(_gae(here, next_values=_following(here), **ends), ends)


def another_rollout(here: Case) -> Planted:
    return Planted(np.roll(_gae(here), 1, 1))


def other_lam(here: Case) -> Planted:
    return Planted(np.asarray(telescope.gae(**here.arguments, lam=0.5).advantages))


def _at_limits(here: Case, values: Array) -> Array:
    return np.where(here.samples.truncated, values, here.arguments["next_values"])


MISTAKES = (
    Mistake("as it should be", right),
    Mistake("a time limit is taken as the end", limit_as_end),
    Mistake("the value of the state after the reset", reset_value),
    Mistake("the value of the state before the last step", own_value),
    Mistake("a trace over the reset", trace_over_reset),
    Mistake("two bootstraps at a time limit", double_bootstrap),
    Mistake("two bootstraps at the end of the buffer", end_twice),
    Mistake("no bootstrap at the end of the buffer", end_as_termination),
    Mistake("the last step is left out", step_abandoned),
    Mistake("flags one row late", late_flags),
    Mistake("another rollout's advantages", another_rollout),
    Mistake("another λ than the file says", other_lam),
)


def world_of_limits(rollouts: int) -> Case:
    """Rollouts of 32 steps in a random process whose episodes are cut after 5 steps, with the exact value function."""
    rng = np.random.default_rng(0)
    world = worlds.garnet(rng, ending=0.05, time_limit=5)
    policy = softmax(rng.normal(size=(world.states, world.actions)))
    return case(world, policy, gamma=0.95, kind="exact", rng=rng, steps=32, rollouts=rollouts)


def rollout_of(here: Case, planted: Planted) -> Rollout:
    """What a file of the first rollouts says."""
    few = first(here, SHOWN)
    said = {name: x[:, :SHOWN] for name, x in planted.said.items()}
    ends = {"terminated": few.samples.terminated, "truncated": few.samples.truncated}
    numbers = {name: few.arguments[name] for name in ("rewards", "values", "next_values")}
    known: dict[str, Any] = numbers | ends | {"gamma": here.gamma, "lam": LAM} | said
    return Rollout(**known, advantages=planted.advantages[:, :SHOWN])


def corridor() -> MDP:
    """Twelve cells whose right end pays. Episodes begin in any of them and are cut after four steps."""
    world = worlds.chain(12, time_limit=4)
    return world._replace(start=~world.terminal / (~world.terminal).sum())


def learned(mistake: Mistake, seed: int, *, updates: int = 100, gamma: float = 0.95) -> float:
    """Tabular actor–critic in the corridor with these advantages: the share of what can be gained that it gains.

    0 is the uniform policy's exact return without a time limit, 1 that of the best policy. The critic's targets are
    A + V, so it learns from the mistake too.
    """
    world, rng = corridor(), np.random.default_rng(seed)
    logits, values = np.zeros((world.states, world.actions)), np.zeros(world.states)
    for _ in range(updates):
        policy = softmax(logits)
        drawn = sample(world, policy, rng, 32, 8)
        here = Case(world, policy, gamma, truth(world, policy, gamma), drawn, values, np.zeros(drawn.rewards.shape))
        advantages = mistake.plant(here).advantages
        off, wanted = gradients(here, advantages)  # [B, N·A]
        visited = np.bincount(drawn.states.ravel(), minlength=world.states)
        residuals = np.bincount(drawn.states.ravel(), advantages.ravel(), world.states) / np.maximum(visited, 1)
        logits = logits + world.states * (off + wanted).mean(0).reshape(logits.shape)
        values = values + 0.3 * residuals
    none, best = (expected_return(world, x, gamma) for x in (uniform(world), optimal_policy(world, gamma)))
    return (expected_return(world, softmax(logits), gamma) - none) / (best - none)


def main(rollouts: int = 20_000, seeds: int = 8) -> None:
    """Print the gallery.

    The bias of the gradient in units of its length with its standard error, what is learned over seeds, the findings.
    """
    here, few = world_of_limits(rollouts), world_of_limits(FEW)
    for mistake in MISTAKES:
        found = measure(here, mistake.plant(here).advantages)
        gradient = f"{found.gradient_bias:.3f} ± {found.gradient_bias_error:.3f}"
        gained = np.array([learned(mistake, seed) for seed in range(seeds)])
        share = f"{gained.mean():.2f} ± {gained.std(ddof=1) / seeds**0.5:.2f}"
        print(f"{mistake.name}: gradient {gradient}, advantage {found.bias:.2f}, learned {share}")
        for finding in examine(rollout_of(few, mistake.plant(few))).findings:
            print(f"    {finding.text}")


if __name__ == "__main__":
    main()

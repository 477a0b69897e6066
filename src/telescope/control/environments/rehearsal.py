"""A rehearsal before a run: it plays a few steps twice to test whether the environments can be seeded and restored.

Findings become notes for the user. Environments that cannot be restored start new episodes on resume. Leaves out the
checks of single steps (`checks.py`).
"""

# S seeds, B environments per seed
from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from telescope.control.agents.actions import bounding
from telescope.control.agents.distributions import distribution
from telescope.control.config import LearnerConfig
from telescope.control.environments.population import Environments, Reset
from telescope.randomness import TRAINING_ENVIRONMENTS

STEPS = 5
"""Steps of each of the five pieces of a rehearsal."""


def rehearse(environments: Environments, make_spare: Callable[[], Environments]) -> list[str]:
    """Return sentences for the user of these environments. Reset the environments afterwards.

    It plays with a spare environment, so that anything an environment counts over its resets stays the same. If there
    is no other (one object for all, a simulator that runs once), it plays with these. It asks three questions: does a
    seed give the same episode again? Does a restored state continue like the original? Are observations within their
    bounds? The first two compare observations, rewards, flags and masks bit for bit.
    """
    if not environments.exact_resume:  # replay is impossible, and its note says so
        return [environments.resume_note, *_statistics(environments)]
    if environments.simulator is not None:
        from telescope.control.simulators.rehearsal import rehearse_simulator

        return rehearse_simulator(environments)
    with _process_generators_kept(), _spare(make_spare, environments) as stage:
        first, _ = _play(stage, stage.reset())
        second, _ = _play(stage, stage.reset())
        reason = _difference(first, second, "with the same seed and actions, they give {} the second time")
        reason = reason or _not_restored(stage)
    notes = [*_statistics(environments), *_beyond_bounds(environments.observation_space, first)]
    if reason:
        fix = "from self.np_random, call super().reset(seed=seed), and reset all state in reset()"
        notes.insert(0, unrepeatable(environments, reason, f"Draw all random numbers {fix}"))
    return notes


def unrepeatable(environments: Environments, reason: str, fix: str) -> str:
    """Say that the environments cannot be repeated; they start new episodes on resume."""
    environments.start_anew_on_resume(
        f"the environments ignore their seed, or some of their state survives a reset: {reason}. So equal commands "
        f"may give different results, and a resume needs --allow-inexact and starts new episodes. {fix}"
    )
    return environments.resume_note


def spare(config: LearnerConfig) -> Environments:
    """One more environment of the run's first seed, in this process."""
    vectorization = "sync" if config.vectorization == "async" else config.vectorization
    first = {"seeds": config.seed_values[:1], "num_envs": 1, "vectorization": vectorization}
    return Environments.of(config, stream=TRAINING_ENVIRONMENTS, **first)


def _not_restored(environments: Environments) -> str:
    """How a later episode differs after it is restored; empty if it does not."""
    for _ in range(2):  # now a counter of episodes, or a position in a data set, differs from a fresh one
        _, here = _play(environments, environments.restart())
    state = environments.state()
    first, _ = _play(environments, here)
    try:
        restored = environments.restore(state)
    except ValueError as error:
        return str(error).partition(". Has the environment")[0]
    return _difference(first, _play(environments, restored)[0], "restored within an episode, they continue with {}")


def _play(environments: Environments, here: Reset) -> tuple[list[tuple[str, Any]], Reset]:
    """Play `STEPS` steps with fixed (allowed) actions. Return their results by name, and the last step."""
    space = environments.action_space
    actions, bound = distribution(space), bounding(space)
    rng, shape = np.random.default_rng(0), (len(environments.seeds), environments.num_envs)
    outputs = np.zeros((*shape, actions.outputs), np.float32)
    seen: list[tuple[str, Any]] = [("another observation", here[0])]
    for _ in range(STEPS):
        chosen = np.asarray(actions.sample(outputs, actions.noise(rng, shape), here[1]))
        step = environments.step(bound(chosen))
        here = step.observations, step.action_masks
        seen += [
            ("another observation", step.observations),
            ("another observation", step.next_observations),
            ("another reward", step.rewards),
            ("another end of the episode", np.stack([step.terminated, step.truncated])),
            ("another action mask", step.action_masks),
        ]
    return seen, here


def _difference(first: list[tuple[str, Any]], second: list[tuple[str, Any]], sentence: str) -> str:
    """The first difference between two pieces, put into the sentence; empty if they are equal bit for bit."""
    for (what, one), (_, other) in zip(first, second, strict=True):
        if (one is None) != (other is None) or (one is not None and one.tobytes() != other.tobytes()):
            return sentence.format(what)
    return ""


def _statistics(environments: Environments) -> list[str]:
    """A sentence about wrappers that normalise with statistics of a single environment; empty if there are none."""
    names = environments.statistics()
    if not names:
        return []
    return [
        f"{' and '.join(names)} inside the environment keeps separate running statistics in every copy: evaluation, "
        "policy.act and a resume begin without them. Remove it and train with normalise_observations or "
        "normalise_rewards (--normalise-observations, --normalise-rewards), whose statistics belong to the agent"
    ]


def _beyond_bounds(space: gym.Space, seen: list[tuple[str, Any]]) -> list[str]:
    """A sentence about observations outside the bounds of a Box of floats; empty if there are none."""
    if not isinstance(space, gym.spaces.Box):
        return []
    for what, x in seen:
        if what == "another observation":
            outside = (x < space.low) | (x > space.high)
            if outside.any():
                return [
                    f"observations lie outside the bounds of {space} (for example {x[outside].flat[0]:.6g}); they are "
                    "used unchanged, because nothing uses the bounds of observations"
                ]
    return []


@contextlib.contextmanager
def _spare(make: Callable[[], Environments], otherwise: Environments) -> Iterator[Environments]:
    try:
        spare = make()
    except Exception:  # an error of the second says nothing about the first
        yield otherwise
        return
    with contextlib.closing(spare):
        yield spare


@contextlib.contextmanager
def _process_generators_kept() -> Iterator[None]:
    """Restore the generators of `random` and `numpy.random` afterwards: a rehearsal must not change the run."""
    numbers, texts = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(numbers)
        random.setstate(texts)

"""A few steps before a run begins, played twice: can these environments be seeded, and brought back on resume?

What is found becomes notes for the run's user; environments that cannot come back start new episodes on resume. What a
single step looks like is checked elsewhere (`checks.py`), at every step.
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
from telescope.control.environments.population import Environments, Reset

STEPS = 5
"""Of each piece; there are five pieces."""


def rehearse(environments: Environments, make_spare: Callable[[], Environments]) -> list[str]:
    """Sentences about what the user of these environments should know; they must be reset afterwards.

    It plays with a spare one, so that what an environment counts over its resets is as without a rehearsal; where no
    other can be had (one object for all, a simulator that runs once) with these themselves. Three questions, each by a
    comparison bit for bit of observations, rewards, flags and masks: does a seed give the same episode again? Does a
    restored state go on as the state went on? Are observations within their bounds?
    """
    if not environments.exact_resume:  # no replay is possible, and it says so already
        return [environments.resume_note, *_statistics(environments)]
    with _process_generators_kept(), _spare(make_spare, environments) as stage:
        first, _ = _play(stage, stage.reset())
        second, _ = _play(stage, stage.reset())
        reason = _difference(first, second, "with the same seed and actions, they give {} the second time")
        reason = reason or _not_restored(stage)
    notes = [*_statistics(environments), *_beyond_bounds(environments.observation_space, first)]
    if reason:
        environments.start_anew_on_resume(
            f"the environments ignore their seed, or something of them survives a reset: {reason}. So equal commands "
            "may give different results, and a resume needs --allow-inexact and starts new episodes. Draw all random "
            "numbers from self.np_random, call super().reset(seed=seed), and set everything anew in reset"
        )
        notes.insert(0, environments.resume_note)
    return notes


def _not_restored(environments: Environments) -> str:
    """How a later episode differs when it is restored and played on; empty if it does not."""
    for _ in range(2):  # what counts episodes, or a place in its data, is now not where a seeded reset puts it
        _, here = _play(environments, environments.restart())
    state = environments.state()
    first, _ = _play(environments, here)
    try:
        restored = environments.restore(state)
    except ValueError as error:
        return str(error).partition(". Has the environment")[0]
    return _difference(first, _play(environments, restored)[0], "restored in mid-episode, they go on with {}")


def _play(environments: Environments, here: Reset) -> tuple[list[tuple[str, Any]], Reset]:
    """What `STEPS` steps with fixed (allowed) actions give, by name, and where they lead."""
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
    """The first thing in which two pieces differ, put into the sentence; empty if they are equal bit for bit."""
    for (what, one), (_, other) in zip(first, second, strict=True):
        if (one is None) != (other is None) or (one is not None and one.tobytes() != other.tobytes()):
            return sentence.format(what)
    return ""


def _statistics(environments: Environments) -> list[str]:
    """A sentence about wrappers that normalise by statistics of their own, which no other environment has."""
    names = environments.statistics()
    if not names:
        return []
    return [
        f"{' and '.join(names)} inside the environment keeps running statistics of its own in every copy: evaluation, "
        "policy.act and a resume begin without them. Remove it and train with normalise_observations or "
        "normalise_rewards (--normalise-observations, --normalise-rewards), whose statistics belong to the agent"
    ]


def _beyond_bounds(space: gym.Space, seen: list[tuple[str, Any]]) -> list[str]:
    """A sentence about observations outside a Box of floats, which are taken as they are."""
    if not isinstance(space, gym.spaces.Box):
        return []
    for what, x in seen:
        if what == "another observation":
            outside = (x < space.low) | (x > space.high)
            if outside.any():
                return [
                    f"observations lie outside the bounds of {space} ({x[outside].flat[0]:.6g}, say); they are taken "
                    "as they are, as the bounds of observations are used nowhere"
                ]
    return []


@contextlib.contextmanager
def _spare(make: Callable[[], Environments], otherwise: Environments) -> Iterator[Environments]:
    try:
        spare = make()
    except Exception:  # whatever hinders a second one says nothing about the first
        yield otherwise
        return
    with contextlib.closing(spare):
        yield spare


@contextlib.contextmanager
def _process_generators_kept() -> Iterator[None]:
    """Leave the generators of `random` and `numpy.random` as they were: a rehearsal must not change the run."""
    numbers, texts = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(numbers)
        random.setstate(texts)

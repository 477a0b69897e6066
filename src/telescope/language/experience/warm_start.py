"""The warm start: the built-in model first learns from correct answers.

An untrained model never gives a correct answer, so rewards alone would teach it nothing. Leaves out RL (`rollout.py`),
which begins with the weights that the warm start returns.
"""

from __future__ import annotations

import dataclasses
import time

from torch import Tensor

from telescope.checks import changed
from telescope.language import parallel
from telescope.language.config import RolloutConfig
from telescope.language.data.tasks import Task
from telescope.language.evaluate import held_out
from telescope.language.experience.supervised import cross_entropy, demonstrations
from telescope.language.models.causal import TINY
from telescope.language.optimiser import Optimiser, trainable
from telescope.language.randomness import DEMONSTRATIONS, generator
from telescope.language.run import Session

FIELDS = ("warm_start", "warm_start_steps", "warm_start_learning_rate")
"""Config fields that only the warm start uses."""
ROWS = 256
"""Correct answers per step."""
EVERY = 50
"""Steps between evaluations."""
RISE = 10
"""Optimiser steps over which the warm start's own learning rate rises from 0."""
UNVERIFIED = 300
"""The maximum number of steps for a task without exact matches, which would say when to stop."""


def warm_start(session: Session, config: RolloutConfig) -> dict[str, Tensor] | None:
    """Train on correct answers until the share `warm_start` of held-out prompts is solved. Return the weights.

    Adds a note to the session. Returns None if the run has no warm start.
    """
    if reason := needless(config, session.task):
        vain = [name for name in FIELDS if changed(config, name) and getattr(config, name)]
        session.notes += [f"{name} has no effect: {reason}, so there is no warm start" for name in vain]
        return None
    began = time.perf_counter()
    settings = dataclasses.replace(config, lr_warmup=RISE)
    optimiser = Optimiser(settings, {"policy": session.policy}, config.warm_start_learning_rate)
    verifiable = session.task.metric == "exact_match"
    most = config.warm_start_steps if verifiable else min(config.warm_start_steps, UNVERIFIED)
    accuracy, step = 0.0, 0
    while step < most and not (verifiable and accuracy >= config.warm_start):
        rows = session.task.draw(generator(config.seed, DEMONSTRATIONS, step), ROWS)
        batch = demonstrations(session.tokenizer, rows, session.ends, config.device)
        mine = batch.part(parallel.share(len(rows)))
        (cross_entropy(session.policy, mine).sum() / batch.mask.sum()).backward()
        optimiser.step(0.0)
        step += 1
        if verifiable and step % EVERY == 0:
            accuracy = held_out(session)["exact_match"]
    seconds = time.perf_counter() - began
    reached = f", to {accuracy:.1%} exact match on held-out prompts" if verifiable else ""
    session.notes.append(
        f"the built-in model is untrained: warm start of {step} steps on correct answers{reached} ({seconds:.0f} s)"
    )
    return trainable(session.policy)


def needless(config: RolloutConfig, task: Task) -> str:
    """Why a run has no warm start; empty if it has one."""
    reasons = {
        "a model was given": config.model != TINY,
        "warm_start is 0": config.warm_start == 0,
        f"{task.name} has no answers": not task.answers,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")

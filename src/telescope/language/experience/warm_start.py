"""The warm start: the built-in model learns from right answers first, as rewards teach nothing that never happens.

It leaves out what comes after it (`rollout.py`), which begins with the weights that it returns.
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
"""What it alone reads of a configuration."""
ROWS = 256
"""Right answers of a step."""
EVERY = 50
"""Steps between two looks at how good the model has become."""
RISE = 10
"""Optimiser steps over which its learning rate rises from 0, whatever that of the run after it does."""
UNVERIFIED = 300
"""Steps at most where no exact match says that it is enough."""


def warm_start(session: Session, config: RolloutConfig) -> dict[str, Tensor] | None:
    """Train on right answers until `warm_start` of the held-out prompts is answered; the weights then.

    The session is told how it went. None where there is none to be made.
    """
    if reason := needless(config, session.task):
        vain = [name for name in FIELDS if changed(config, name) and getattr(config, name)]
        session.notes += [f"{name} is without effect: {reason}, so there is no warm start" for name in vain]
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
        f"the built-in model is untrained: warm start of {step} steps on right answers{reached} ({seconds:.0f} s)"
    )
    return trainable(session.policy)


def needless(config: RolloutConfig, task: Task) -> str:
    """Why a run has no warm start; empty where it has one."""
    reasons = {
        "a model was given": config.model != TINY,
        "warm_start is 0": config.warm_start == 0,
        f"{task.name} has no answers": not task.answers,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")

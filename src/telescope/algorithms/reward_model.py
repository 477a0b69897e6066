"""The reward model of RLHF: it learns a score from pairs of completions, of which a person preferred one.

The loss is that of Bradley & Terry 1952, as in InstructGPT (Ouyang et al. 2022, arXiv 2203.02155, equation 1). The
loop is `train`. Rows need `prompt`, `chosen` and `rejected`.
"""

# B pairs
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import torch

from telescope.checks import positive, unread
from telescope.language import parallel
from telescope.language.config import LanguageConfig
from telescope.language.data.tasks import Task, pairs_of
from telescope.language.experience.preferences import RewardModel, accuracy
from telescope.language.models.causal import with_lora
from telescope.language.randomness import PAIRS, generator
from telescope.language.run import Iteration, Session
from telescope.renamed import takes_former_names
from telescope.seeds import over_seeds
from telescope.threads import own_settings


@takes_former_names
@dataclasses.dataclass(frozen=True)
class RewardModelling(LanguageConfig):
    """A reward model, trained by maximum likelihood of preferences."""

    samples: ClassVar[bool] = False
    learned: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    given: ClassVar[dict[str, float]] = {"learning_rate": 1e-5}

    task: str = "lm/taste"
    """Built-in task with preference pairs (lm/taste), or a data file with `prompt`, `chosen` and `rejected`."""
    total_steps: int = 200
    """Number of iterations, of one update each."""
    batch_size: int = 256
    """Number of preference pairs per step."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "batch_size")
        unread(self, "max_tokens", "it limits the length of completions", "a reward model makes none")

    @property
    def rows(self) -> int:
        return 2 * self.batch_size

    def open_task(self) -> Task:
        return pairs_of(self.task, self.digits)


def preset(task: str, model: str | None = None) -> RewardModelling:
    """The settings for a task and a model."""
    return RewardModelling.on(task, model)


STATISTICS = ("accuracy", "loss", "margin", "gradient_norm", "learning_rate")


@over_seeds
@own_settings
def train(config: RewardModelling, resume: dict[str, Any] | None = None) -> Iterator[Iteration]:
    """Train and yield after every step: `.rows` are its metrics, `.state` continues it bit for bit."""
    session = Session(config, resume, STATISTICS)
    task = session.task
    assert task.pairs is not None
    if config.lora_rank:
        session.policy = with_lora(session.policy, config.lora_rank, seed=config.seed)
    model = RewardModel(session.policy, session.tokenizer, session.ends, config.device)
    session.head, model.packed = model.network, session.packed
    held_out = task.pairs(generator(0, PAIRS, 2**31), config.eval_prompts, held_out=True)
    session.begin({"reward_model": model.network}, resume, lambda: evaluate(model, held_out, config.at_once))
    if resume is None:
        yield session.first()
    for _ in session.iterations():
        rows = task.pairs(session.generator(PAIRS), config.batch_size)
        with session.timed("update"):
            statistics = {"loss": 0.0, "margin": 0.0}
            chosen, rejected = model.pairs(rows)
            sizes = list(map(max, chosen.sizes, rejected.sizes))
            for piece in session.pieces(sizes):
                loss, margin = model.loss_of(chosen.part(piece), rejected.part(piece))
                (loss.sum() / len(rows)).backward()
                statistics["loss"] += float(loss.detach().sum()) / len(rows)
                statistics["margin"] += float(margin.sum()) / len(rows)
            statistics = parallel.combined(statistics)
            statistics["gradient_norm"] = session.optimiser.step(session.progress)
        yield session.finish(statistics | {"learning_rate": session.optimiser.learning_rate})


@torch.no_grad()
def evaluate(model: RewardModel, rows: list[dict[str, Any]], at_once: int | None) -> dict[str, float]:
    """The share of held-out pairs in which the preferred completion gets the higher score."""
    pieces = parallel.pieces(len(rows), at_once or len(rows), even=True)
    margins = [model.pair_loss(rows[piece])[1] for piece in pieces]
    return {"accuracy": accuracy(parallel.rows(torch.cat(margins)))}

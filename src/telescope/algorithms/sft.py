"""Supervised fine-tuning: maximise the likelihood of correct answers, usually before reinforcement learning.

The loop is `train`. Rows need a `prompt` and a `completion` or an `answer`, or `messages`.
"""

# B demonstrations of T tokens
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from telescope.checks import in_unit_interval, positive, unread
from telescope.language import parallel
from telescope.language.config import LanguageConfig
from telescope.language.data.tasks import Task
from telescope.language.evaluate import held_out
from telescope.language.experience.supervised import cross_entropy, demonstrations, require_answers
from telescope.language.models.causal import with_lora
from telescope.language.randomness import DEMONSTRATIONS
from telescope.language.run import Iteration, Session
from telescope.renamed import takes_former_names
from telescope.seeds import over_seeds
from telescope.threads import own_settings


@takes_former_names
@dataclasses.dataclass(frozen=True)
class SFT(LanguageConfig):
    """Maximum likelihood on demonstrations."""

    learned: ClassVar[tuple[str, ...]] = ("completion", "answer")
    given: ClassVar[dict[str, float]] = {"learning_rate": 2e-5}

    batch_size: int = 256
    """Number of demonstrations per step."""
    loss_on: Literal["completion", "assistant"] = "completion"
    """Of conversations, learn the completion alone, or every turn of the assistant, also those within the prompt."""
    stop_at: float | None = None
    """Stop at the first evaluation that solves this share of held-out prompts. none: train all steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "batch_size", "stop_at")
        in_unit_interval(self, "stop_at")
        if self.stop_at is not None and not self.eval_every:
            raise ValueError(f"stop_at is {self.stop_at}, but eval_every is 0 (no evaluations); set eval_every")
        if self.stop_at is not None and self.seeds > 1:
            raise ValueError(f"stop_at is {self.stop_at}, but seeds is {self.seeds}, which end together; leave it out")

    @property
    def rows(self) -> int:
        return self.batch_size

    def open_task(self) -> Task:
        task = super().open_task()
        require_answers(task.rows)
        if self.loss_on == "assistant" and not any(isinstance(row["prompt"], list) for row in task.rows[:1]):
            unread(self, "loss_on", "give rows with messages", f"the rows of {task.name} are not conversations")
        if self.stop_at is not None and task.metric != "exact_match":
            raise ValueError(
                f"stop_at is {self.stop_at}, but {task.name} has no correct answers to compare with; leave it out"
            )
        return task


def preset(task: str, model: str | None = None) -> SFT:
    """The settings for a task and a model."""
    return SFT.on(task, model)


STATISTICS = ("loss", "gradient_norm", "learning_rate")


@over_seeds
@own_settings
def train(config: SFT, resume: dict[str, Any] | None = None) -> Iterator[Iteration]:
    """Train and yield after every step: `.rows` are its metrics, `.state` continues it bit for bit."""
    session = Session(config, resume, STATISTICS)
    session.columns = (session.task.metric, *STATISTICS)
    policy = with_lora(session.policy, config.lora_rank, seed=config.seed) if config.lora_rank else session.policy
    session.policy = policy

    def evaluate() -> dict[str, float]:
        found = held_out(session)
        if session.iteration and config.stop_at is not None and found.get("exact_match", 0.0) >= config.stop_at:
            session.stop()
        return found

    session.begin({"policy": policy}, resume, evaluate)
    if resume is None:
        yield session.first()
    for _ in session.iterations():
        rows = session.task.draw(session.generator(DEMONSTRATIONS), config.batch_size)
        batch = demonstrations(session.tokenizer, rows, session.ends, config.device)
        with session.timed("update"):
            weights, total = batch.learned / batch.learned.sum(), 0.0  # [B, T]
            for piece in session.pieces(batch.sizes):
                loss = (weights[piece] * cross_entropy(policy, batch.part(piece), packed=session.packed)).sum()
                loss.backward()
                total += float(loss.detach())
            total = parallel.combined({"loss": total})["loss"]
            norm = session.optimiser.step(session.progress)
        statistics = {"loss": total, "gradient_norm": norm, "learning_rate": session.optimiser.learning_rate}
        yield session.finish(statistics)

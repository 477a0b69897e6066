"""The bookkeeping of all algorithms on language models: models, optimiser, clock, evaluation, metrics rows.

Leaves out the training loop and the update, which are in the algorithm's own file.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from telescope import iteration
from telescope.checks import fitting
from telescope.language import parallel
from telescope.language.checks import readable, remarks, require_known, require_room
from telescope.language.config import LanguageConfig
from telescope.language.data.rewards import Scorer, scores_by
from telescope.language.data.tasks import Row, Task, without_ends
from telescope.language.data.text import end_texts
from telescope.language.execution import execution
from telescope.language.health import Finding, of_tokens
from telescope.language.micro_batches import Size, by_tokens
from telescope.language.models import adapters
from telescope.language.models import causal as models
from telescope.language.models.checkpointing import checkpoint_layers
from telescope.language.models.critics import save_critic
from telescope.language.models.heads import Scalar, save_head
from telescope.language.models.probe import probe
from telescope.language.models.states import trunk_of
from telescope.language.optimiser import Optimiser, put_back, trainable
from telescope.language.randomness import generator
from telescope.objectives.advantages import weighted_scores
from telescope.threads import settle


class Iteration(iteration.Iteration):
    """An iteration of a language model, which adds completions, findings and weights to save."""

    def __init__(self, session: Session, row: dict[str, Any], table: list[dict[str, Any]]) -> None:
        self.table = table
        """Some completions of this step, with their scores."""
        self.findings = session.take_findings()
        """What looks wrong in this step (`language/health.py`); `warnings` are the same as sentences."""
        self._session = session
        super().__init__(
            session,
            rows=[row],
            total_steps=session.config.total_steps,
            finished=session.stopped or session.iteration == session.config.iterations,
            notes=session.notes,
            warnings=[finding.sentence for finding in self.findings],
        )

    def save_model(self, path: str | os.PathLike[str]) -> None:
        """Write the current model as an ordinary transformers folder."""
        self._require_current()
        self._session.save_model(path)

    @property
    def has_adapter(self) -> bool:
        """True where the run trains an adapter, which `save_adapter` writes."""
        return hasattr(self._session.policy, "merge_and_unload")

    @property
    def has_critic(self) -> bool:
        """True where the run trains a critic, which `save_critic` writes. Not with sharded weights."""
        return self._session.critic is not None and self._session.config.sharding == "ddp"

    def save_critic(self, path: str | os.PathLike[str]) -> None:
        """Write the critic: its head, and its own network if it has one."""
        self._require_current()
        if not self.has_critic:
            raise ValueError("this run has no critic that can be saved")
        self._session.save_critic(path)

    def save_adapter(self, path: str | os.PathLike[str]) -> None:
        """Write the adapter alone, in peft's layout. Base and adapter together are the model, without rounding."""
        self._require_current()
        if not self.has_adapter:
            raise ValueError("lora_rank is 0, so there is no adapter; save_model writes all weights")
        self._session.save_adapter(path)


class Scoring(NamedTuple):
    """The rewards whose weighted sum is measured on held-out prompts."""

    scorers: Sequence[Scorer]
    seconds: float | None = None
    """Time limit of each call."""

    def scores(self, rows: Sequence[Row], texts: Sequence[str]) -> Tensor:
        """One score per completion [B]; NaN where not scored."""
        weights = torch.tensor([scorer.weight for scorer in self.scorers])
        return weighted_scores(scores_by(self.scorers, rows, texts, seconds=self.seconds), weights)


def scorings(task: Task, own: Scoring | None) -> dict[str, Scoring]:
    """Rewards by metric: the task's, and the run's own if it has one."""
    found = {} if task.reward is None else {task.metric: Scoring([Scorer(task.reward, f"of {task.name}")])}
    if own is not None:
        found.setdefault("reward", own)  # lm/taste measures the reward that is hidden from the run
    return found


class Session:
    """The parts of one training run; see `algorithms.sft.train` for their use."""

    def __init__(self, config: LanguageConfig, resume: dict[str, Any] | None, columns: Sequence[str]) -> None:
        self.config, self.columns = config, columns
        self.notes: list[str] = []
        parallel.join(config.device)
        self.execution = parallel.now(resume["execution"]) if resume else execution(config)
        settle(self.execution["threads"], config.device)
        self.task: Task = config.open_task()
        self.max_tokens = config.max_tokens or self.task.max_tokens
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            policy, self.tokenizer = models.load(config.model, seed=config.seed, dtype=getattr(torch, config.dtype))
        self.notes += [str(warning.message) for warning in said]
        self.ends = models.ends_of(policy, self.tokenizer)
        ends = end_texts(self.tokenizer, self.ends)
        self.task = readable(config, self.task, self.tokenizer, ends)
        require_known(config, self.task, policy.config, self.tokenizer)
        require_room(config, self.task, policy.config, self.tokenizer)
        if config.sharding == "fsdp" and parallel.size() == 1:
            self.notes.append(
                "sharding has no effect in one process, which holds all weights; start ranks with torchrun"
            )
        self.notes += remarks(config, self.task, self.tokenizer, ends)
        self.task = without_ends(self.task, ends)
        pad, token = self.tokenizer.pad_token_id, self.tokenizer.pad_token
        self._findings: list[Finding] = [] if resume else of_tokens(pad, self.ends, token)
        self.policy: nn.Module = policy.to(config.device).eval()  # no dropout: ratios would be noise
        self.packed = probe(self.policy, packing=config.packing)
        """Whether updates read rows without padding; None: where texts are short."""
        self.trained: dict[str, nn.Module] = {}
        self.reference: nn.Module | None = None
        self.head: Scalar | None = None
        """A reward model with a head on the policy's trunk."""
        self.critic: Scalar | None = None
        """The critic of PPO."""
        self.iteration, self._elapsed = 0, 0.0
        self._marks: dict[str, float] = {}
        self.stopped = bool(resume and resume["stopped"])

    def begin(
        self,
        trained: dict[str, nn.Module],
        resume: dict[str, Any] | None,
        evaluate: Callable[[], dict[str, float]] = dict,
    ) -> None:
        """Set the models that the optimiser trains, restore them from a state, and say how they are evaluated."""
        self.trained, self.evaluate = trained, evaluate
        if resume:
            with fitting():
                self._restore(resume)
        if self.config.gradient_checkpointing:
            self.notes.append(
                "gradient_checkpointing: layers keep only their inputs and run again in the backward pass"
            )
            for model in (self.policy, *trained.values()):
                if not isinstance(model, Scalar) or model.trunk is not None:  # a head alone has no layers
                    checkpoint_layers(model)
        self._distribute()
        self.optimiser = Optimiser(self.config, trained)
        if resume:
            with fitting():
                self.optimiser.restore(resume["optimiser"])
        self._started = time.perf_counter()

    def _distribute(self) -> None:
        """Give all ranks the same weights, whole or sharded."""
        if parallel.size() == 1:
            return
        for model in (self.policy, self.reference, *self.trained.values()):
            parallel.spread(model)
        if self.config.sharding == "ddp":
            return
        trunk = trunk_of(self.policy)
        for model in (self.policy, self.reference):
            if model is not None:
                parallel.shard(model, trunk_of(model))
        for model in self.trained.values():
            if isinstance(model, Scalar):
                parallel.shard(model.head)
                if model.trunk is not None and model.trunk is not trunk:
                    parallel.shard(model.trunk)

    def iterations(self) -> Iterator[int]:
        """Yield the numbers of the remaining steps, and keep the clock."""
        while self.iteration < self.config.iterations and not self.stopped:
            self._started, self._marks = time.perf_counter(), {}
            yield self.iteration

    def generator(self, stream: int, part: int = 0) -> np.random.Generator:
        """A generator for one purpose in this step."""
        return generator(self.config.seed, stream, self.iteration, part)

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the seconds of a block to a part of the step: sample, reward or update."""
        began = time.perf_counter()
        yield
        self._marks[part] = self._marks.get(part, 0.0) + time.perf_counter() - began

    def warn(self, findings: Sequence[Finding]) -> None:
        """Add findings about this step."""
        self._findings += findings

    def take_findings(self) -> list[Finding]:
        taken, self._findings = self._findings, []
        return taken

    def scorings(self) -> dict[str, Scoring]:
        """The rewards that score held-out prompts, by metric."""
        return scorings(self.task, None)

    @property
    def progress(self) -> float:
        """The share of the run that is done, 0 to 1, for schedules."""
        return self.iteration / self.config.iterations

    def pieces(self, sizes: Sequence[Size], length: int | None = None) -> list[slice]:
        """This rank's share of rows, in micro-batches for one forward pass each."""
        even, n = self.config.sharding == "fsdp" and parallel.size() > 1, len(sizes)
        if budget := self.config.micro_tokens:
            return parallel.pieces(n, lambda mine: by_tokens(sizes, mine, budget), even=even)
        return parallel.pieces(n, length or self.config.micro_batch or max(1, n), even=even)

    @property
    def step(self) -> int:
        """Iterations so far: the clock of a run on a language model."""
        return self.iteration

    def stop(self) -> None:
        """End the run after this step."""
        self.stopped = True

    def due(self) -> bool:
        """Whether to evaluate after the step that ends now."""
        every = self.config.eval_every
        return self.iteration == self.config.iterations or bool(every and self.iteration % every == 0)

    def first(self) -> Iteration:
        """The row of step 0: the model before training."""
        return Iteration(self, self._row(self.evaluate()), [])

    def finish(self, statistics: dict[str, float], table: list[dict[str, Any]] | None = None) -> Iteration:
        """End a step: count it, evaluate if it is due, and make its row."""
        self.iteration += 1
        evaluation = self.evaluate() if self.due() else {}
        return Iteration(self, self._row(statistics | evaluation), (table or []) if self.due() else [])

    def _row(self, numbers: dict[str, float]) -> dict[str, Any]:
        now = time.perf_counter()
        spent = now - self._started if self.iteration else 0.0
        self._elapsed += spent
        self._started = now
        known = {name: self._marks.get(name, 0.0) for name in ("sample", "reward", "update")}
        times = {**known, "other": max(0.0, spent - sum(known.values())), "total": self._elapsed}
        return {
            "step": self.iteration,
            "iteration": self.iteration,
            "seed": self.config.seed,
            **{name: numbers.get(name) for name in self.columns},
            **{f"time_{name}": value for name, value in times.items()},
        }

    def state(self) -> dict[str, Any]:
        """See `Iteration.state`. With sharded weights all ranks must call this."""
        return {
            "iteration": self.iteration,
            "step": self.iteration,
            "elapsed": self._elapsed,
            "stopped": self.stopped,
            "execution": dict(self.execution),
            "models": {name: trainable(model) for name, model in self.trained.items()},
            "optimiser": self.optimiser.state(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        for name, model in self.trained.items():
            put_back(model, state["models"][name])
        self.iteration, self._elapsed = state["iteration"], state["elapsed"]

    def save_model(self, path: str | os.PathLike[str]) -> None:
        policy, weights = self._whole()
        head = None if self.head is None else models.weights_of(self.head.head)
        if parallel.rank() == 0:
            models.save(policy, self.tokenizer, path, weights)
            if head is not None:
                save_head(head, path)

    def save_critic(self, path: str | os.PathLike[str]) -> None:
        assert self.critic is not None
        save_critic(self.policy, self.tokenizer, self.critic, path)

    def save_adapter(self, path: str | os.PathLike[str]) -> None:
        policy, _ = self._whole()
        if parallel.rank() == 0:
            adapters.save(policy, self.tokenizer, path)

    def _whole(self) -> tuple[nn.Module, dict[str, Tensor]]:
        """The policy to save, and its weights where it has only shards of them. All ranks must call this."""
        if not any(map(parallel.is_sharded, self.policy.parameters())):
            return self.policy, {}
        weights = models.weights_of(self.policy)
        if not hasattr(self.policy, "merge_and_unload") or parallel.rank() > 0:
            return self.policy, weights
        policy, _ = models.load(self.config.model, seed=self.config.seed, dtype=getattr(torch, self.config.dtype))
        policy = models.with_lora(policy, self.config.lora_rank, seed=self.config.seed)
        policy.load_state_dict(weights)
        return policy, {}

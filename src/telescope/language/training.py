"""What all algorithms on language models set up and book alike: models, optimiser, clock, evaluation, metrics rows.

The training loop itself stands in each algorithm's own file; nothing here decides what an update is.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from telescope.checks import fitting, require_device
from telescope.language import parallel
from telescope.language.config import LanguageConfig
from telescope.language.data.rewards import given_to, is_folder, load_function, name_of
from telescope.language.data.tasks import Reward, Task, is_held_out, without_ends
from telescope.language.data.text import end_texts, plain_ids, prompt_ids
from telescope.language.health import Finding, of_tokens
from telescope.language.models import adapters, pretrained
from telescope.language.models import causal as models
from telescope.language.models.probe import probe
from telescope.threads import settle

# Streams of random numbers, keyed with the seed and the step: there is no generator state to store.
PROMPTS, TOKENS, MINIBATCHES, DEMONSTRATIONS, PAIRS, EVALUATION = range(6)
BETAS = (0.9, 0.95)


def generator(seed: int, stream: int, iteration: int = 0, part: int = 0) -> np.random.Generator:
    """The random numbers of a run for one purpose in one part of a step."""
    return np.random.default_rng([seed, stream, iteration, part])


class Iteration:
    """What `train` yields: metrics of the step just finished, and everything needed to continue from here."""

    def __init__(self, session: Session, row: dict[str, Any], table: list[dict[str, Any]]) -> None:
        self._session, self._iteration = session, session.iteration
        self.rows = [row]
        """One dictionary; the keys are the columns of metrics.csv."""
        self.table = table
        """Some of the completions of this step, with their scores."""
        self.step = session.iteration
        self.total_steps = session.config.total_steps
        self.finished = session.stopped or session.iteration == session.config.iterations
        self.notes = session.notes
        """Sentences about this run that its user should see."""
        self.findings = session.take_findings()
        """What looks wrong in this step (`language/health.py`)."""
        self.warnings = [finding.sentence for finding in self.findings]
        """The same as sentences."""

    @property
    def state(self) -> dict[str, Any]:
        """A nested dictionary of arrays and plain values; `train(config, resume=state)` continues bit for bit.

        Taken when asked for, so ask before the loop goes on.
        """
        self._require_current()
        return self._session.state()

    def save_model(self, path: str | os.PathLike[str]) -> None:
        """Write the model as it stands as an ordinary transformers folder."""
        self._require_current()
        self._session.save_model(path)

    @property
    def has_adapter(self) -> bool:
        """Is it an adapter that is trained, which `save_adapter` writes?"""
        return hasattr(self._session.policy, "merge_and_unload")

    def save_adapter(self, path: str | os.PathLike[str]) -> None:
        """Write the adapter alone, in peft's layout: the model is it on its base, without any rounding."""
        self._require_current()
        if not self.has_adapter:
            raise ValueError("lora_rank is 0, so there is no adapter; save_model writes all weights")
        self._session.save_adapter(path)

    def _require_current(self) -> None:
        if self._session.iteration != self._iteration:
            raise RuntimeError(
                f"the state after step {self._iteration} is gone: training has reached step "
                f"{self._session.iteration}; read `.state` before asking for the next metrics"
            )


class Scoring(NamedTuple):
    """A reward that is measured on held-out prompts."""

    reward: Reward
    name: str
    """What an error calls it."""


def scorings(task: Task, own: Scoring | None) -> dict[str, Scoring]:
    """By metric: the task's reward, and a run's own, which in a task of right answers is measured besides."""
    found = {} if task.reward is None else {task.metric: Scoring(task.reward, f"of {task.name}")}
    if own is not None:
        found.setdefault("reward", own)  # lm/taste measures what is hidden from the run
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
        require_known(config, self.task, policy.config, self.tokenizer)
        require_room(config, self.task, policy.config, self.tokenizer)
        self.ends = models.ends_of(policy, self.tokenizer)
        ends = end_texts(self.tokenizer, self.ends)
        if config.sharding == "fsdp" and parallel.size() == 1:
            self.notes.append("sharding is without effect: there is one process, which holds everything; see torchrun")
        self.notes += remarks(config, self.task, self.tokenizer, ends)
        self.task = without_ends(self.task, ends)
        pad, token = self.tokenizer.pad_token_id, self.tokenizer.pad_token
        self._findings: list[Finding] = [] if resume else of_tokens(pad, self.ends, token)
        self.policy: nn.Module = policy.to(config.device).eval()  # no dropout: ratios would be noise
        probe(self.policy)
        self.trained: dict[str, nn.Module] = {}
        self.reference: nn.Module | None = None
        self.head: models.Scalar | None = None
        """What a reward model has besides its trunk, the policy's."""
        self.iteration, self._elapsed = 0, 0.0
        self._marks: dict[str, float] = {}
        self.stopped = bool(resume and resume["stopped"])

    def begin(self, trained: dict[str, nn.Module], resume: dict[str, Any] | None) -> None:
        """Name the models that the optimiser changes, and bring them back from a state."""
        self.trained = trained
        if resume:
            with fitting():
                self._restore(resume)
        self._distribute()
        self.optimiser = Optimiser(self.config, trained)
        if resume:
            with fitting():
                self.optimiser.restore(resume["optimiser"])
        self._started = time.perf_counter()

    def _distribute(self) -> None:
        """The same weights on all ranks, whole or sharded."""
        if parallel.size() == 1:
            return
        for model in (self.policy, self.reference, *self.trained.values()):
            parallel.spread(model)
        if self.config.sharding == "ddp":
            return
        trunk = models.trunk_of(self.policy)
        for model in (self.policy, self.reference):
            if model is not None:
                parallel.shard(model, models.trunk_of(model))
        for model in self.trained.values():
            if isinstance(model, models.Scalar):
                parallel.shard(model.head)
                if model.trunk is not None and model.trunk is not trunk:
                    parallel.shard(model.trunk)

    def iterations(self) -> Iterator[int]:
        """The steps still to do, by number; keeps the clock."""
        while self.iteration < self.config.iterations and not self.stopped:
            self._started, self._marks = time.perf_counter(), {}
            yield self.iteration

    def generator(self, stream: int, part: int = 0) -> np.random.Generator:
        """This step's random numbers for one purpose."""
        return generator(self.config.seed, stream, self.iteration, part)

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Book the seconds of a block under a part of the step: sample, reward, update."""
        began = time.perf_counter()
        yield
        self._marks[part] = self._marks.get(part, 0.0) + time.perf_counter() - began

    def warn(self, findings: Sequence[Finding]) -> None:
        """Say something about this step to whoever watches."""
        self._findings += findings

    def take_findings(self) -> list[Finding]:
        taken, self._findings = self._findings, []
        return taken

    def scorings(self) -> dict[str, Scoring]:
        """By metric, what answers to held-out prompts are scored by."""
        return scorings(self.task, None)

    @property
    def progress(self) -> float:
        """How much of the run is done, 0 to 1; what schedules go by."""
        return self.iteration / self.config.iterations

    def pieces(self, n: int, length: int | None = None) -> list[slice]:
        """This rank's share of n rows, in micro-batches that go through the model at a time."""
        even = self.config.sharding == "fsdp" and parallel.size() > 1
        return parallel.pieces(n, length or self.config.micro_batch or max(1, n), even=even)

    def stop(self) -> None:
        """End the run with this step."""
        self.stopped = True

    def due(self) -> bool:
        """Is the step that ends now one to evaluate after?"""
        every = self.config.eval_every
        return self.iteration == self.config.iterations or bool(every and self.iteration % every == 0)

    def first(self, evaluation: dict[str, float]) -> Iteration:
        """The row of step 0: the model before it was trained."""
        return Iteration(self, self._row(evaluation), [])

    def finish(
        self,
        statistics: dict[str, float],
        evaluation: dict[str, float],
        table: list[dict[str, Any]] | None = None,
    ) -> Iteration:
        """Close a step and make its row."""
        return Iteration(self, self._row(statistics | evaluation), table or [])

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
        """See `Iteration.state`; where weights are sharded all ranks must ask."""
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
        weights = {} if self.config.sharding == "ddp" else models.weights_of(self.policy)
        head = None if self.head is None else models.weights_of(self.head.head)
        if parallel.rank() == 0:
            models.save(self.policy, self.tokenizer, path, weights)
            if head is not None:
                models.save_head(head, path)

    def save_adapter(self, path: str | os.PathLike[str]) -> None:
        adapters.save(self.policy, self.tokenizer, path)


class Optimiser:
    """AdamW over several models, each with its own step size and gradient norm.

    Weights of another dtype than float32 are steered by a float32 copy: a step of 1e-6 is lost in a bfloat16 weight,
    whose neighbours are 0.4% apart, but a thousand of them are not lost in the copy.
    """

    def __init__(self, config: LanguageConfig, trained: dict[str, nn.Module], rate: float | None = None) -> None:
        self.config, self.updates = config, 0
        rate = config.learning_rate if rate is None else rate
        rates = {"value": getattr(config, "value_learning_rate", rate)}
        self.weights, groups = list[Tensor](), list[dict[str, Any]]()
        for name, model in trained.items():
            weights = [p for p in model.parameters() if p.requires_grad]
            if weights:
                copies = [p if p.dtype == torch.float32 else p.detach().float().requires_grad_() for p in weights]
                groups.append({"params": copies, "lr": 0.0, "rate": rates.get(name, rate)})
            self.weights += weights
        self.adam = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, weight_decay=config.weight_decay, fused=True)
        self.parameters: list[Tensor] = [p for group in self.adam.param_groups for p in group["params"]]

    def step(self, progress: float) -> float:
        """Clip, move, forget the gradients; returns the first model's gradient norm. progress: of the run, 0 to 1."""
        norms = []
        for weight, parameter in self._copied():
            parameter.grad = None if weight.grad is None else weight.grad.float()
        parallel.sum_gradients(self.parameters)
        factor = min(1.0, (self.updates + 1) / max(1, self.config.lr_warmup))
        factor *= 1 - 0.9 * progress if self.config.anneal_learning_rate else 1.0
        for group in self.adam.param_groups:
            norms.append(parallel.clip_gradients(group["params"], self.config.max_grad_norm))
            group["lr"] = group["rate"] * factor
        if not all(np.isfinite(norms)):
            raise FloatingPointError(
                f"the gradient is no longer finite at optimiser step {self.updates + 1}; a lower learning_rate or "
                "max_grad_norm usually helps"
            )
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            for weight, parameter in self._copied():
                weight.grad = None
                weight.copy_(parameter)
        self.updates += 1
        return norms[0]

    def _copied(self) -> list[tuple[Tensor, Tensor]]:
        """Weights with their float32 copies, where they have one."""
        pairs = zip(self.weights, self.parameters, strict=True)
        return [(weight, parameter) for weight, parameter in pairs if weight is not parameter]

    @property
    def learning_rate(self) -> float:
        return float(self.adam.param_groups[0]["lr"])

    def state(self) -> dict[str, Any]:
        moments = [self.adam.state.get(p, {}) for p in self.parameters]
        return {
            "updates": self.updates,
            "moments": [{name: parallel.whole(x.detach()).clone() for name, x in one.items()} for one in moments],
            "copies": [parallel.whole(parameter.detach()).cpu().clone() for _, parameter in self._copied()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        with torch.no_grad():
            for (_, parameter), saved in zip(self._copied(), state.get("copies", []), strict=True):
                parameter.copy_(parallel.like(saved, parameter))
        for parameter, moments in zip(self.parameters, state["moments"], strict=True):
            if any(x.shape != parameter.shape for name, x in moments.items() if name != "step"):
                raise ValueError(f"resume holds moments of other shapes than {tuple(parameter.shape)} for a parameter")
            # cloned on the parameter's device: torch's allocator also keeps the alignment
            self.adam.state[parameter] = {
                name: tensor.clone() if name == "step" else parallel.like(tensor, parameter)
                for name, tensor in moments.items()
            }


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """What training changes in a model, by name: all of it, or its adapter; copies on the CPU."""
    return {name: parallel.whole(p.detach()).cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


def everything(model: nn.Module) -> dict[str, Tensor]:
    """All parameters of a model by name, trained or not; copies on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters()}


def put_back(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Write saved parameters into a model of the same shape."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                if name not in saved or saved[name].shape != parameter.shape:
                    raise ValueError(f"resume has no parameter {name} of shape {tuple(parameter.shape)}")
                parameter.copy_(saved[name])


WORTH_SHARING = 7e8
"""Parameters times tokens of an optimiser step from which a second thread is worth waking."""


def execution(config: LanguageConfig) -> dict[str, Any]:
    """What must stay the same for a resumed run to be bit-exact; decided once."""
    threads = config.threads
    if not threads:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes that share these cores
        threads = max(1, len(os.sched_getaffinity(0)) // here) if work(config) >= WORTH_SHARING else 1
    return parallel.now({"threads": threads, "device": config.device, "dtype": config.dtype})


def work(config: LanguageConfig) -> float:
    """Parameters of the model's layers times tokens of an optimiser step, about; inf where the model does not say."""
    about, tokenizer = models.require(config.model)
    layers = getattr(about.get_text_config(), "num_hidden_layers", None)
    width = getattr(about.get_text_config(), "hidden_size", None)
    if layers is None or width is None:
        return math.inf
    task = config.open_task()
    text = task.held_out[0]["prompt"] if task.held_out else ""
    tokens = len(prompt_ids(tokenizer, [text])[0]) + (config.max_tokens or task.max_tokens)
    return float(12 * layers * width**2 * tokens * config.rows)


def try_out(config: LanguageConfig) -> None:
    """ValueError if there is no such device, task, reward or model."""
    require_device(config)
    about, tokenizer = models.require(config.model)
    task = config.open_task()
    require_known(config, task, about, tokenizer)
    require_room(config, task, about, tokenizer)
    reward = getattr(config, "reward", None)
    if is_folder(reward):
        models.require_head(reward)
    elif (function := task.reward if reward is None else load_function(reward)) is not None:
        row = task.draw(generator(config.seed, PROMPTS), 1)[0]
        given_to(function, row, name=f"of {task.name}" if reward is None else name_of(reward))


def require_known(config: LanguageConfig, task: Task, about: Any, tokenizer: Any) -> None:
    """ValueError where the tokenizer is not the model's, or a text has tokens that were added to it alone."""
    size = getattr(about.get_text_config(), "vocab_size", None)
    if size is None:  # the model itself tells when it is loaded
        return
    pretrained.require_vocabulary(config.model, tokenizer, size)
    columns = ("prompt", *config.learned)
    texts = (row[name] for row in task.rows or task.held_out for name in columns if name in row)
    pretrained.require_known(config.model, tokenizer, size, texts)


SPECIAL = 8
"""Tokens that a tokenizer may add to a text of its own, at most."""


def require_room(config: LanguageConfig, task: Task, about: Any, tokenizer: Any) -> None:
    """ValueError naming the first prompt that is longer, with what follows it, than the model's context."""
    context = models.context_of(about)
    if context is None:
        return
    limit = (config.max_tokens or task.max_tokens) if config.samples else 0
    for row in task.rows or task.held_out:
        answers = [row[name] for name in config.learned if name in row]
        sizes = [len(text.encode()) for text in (row["prompt"], *answers)]
        if sum(sizes) + limit + SPECIAL <= context:  # a token has a byte at least: most texts need no closer look
            continue
        asked = len(prompt_ids(tokenizer, [row["prompt"]])[0])
        follow = max([limit, *(len(ids) + 1 for ids in plain_ids(tokenizer, answers))])
        if asked + follow > context:
            name = row["prompt"] if len(row["prompt"]) <= 40 else row["prompt"][:37] + "..."
            raise ValueError(
                f"the prompt {name!r} has {asked} tokens, and up to {follow} may follow, but the context of "
                f"{config.model} is {context} tokens; shorten it, or lower max_tokens"
            )


def remarks(config: LanguageConfig, task: Task, tokenizer: Any, ends: tuple[str, ...]) -> list[str]:
    """What the user should know of the prompts of a run. ends: what closes a completion, as text."""
    prompts = [row["prompt"] for row in task.held_out[: config.eval_prompts]]
    found = []
    if task.rows and not any(is_held_out(row["prompt"]) for row in task.rows):
        found.append(
            f"of the {len(task.rows)} rows of {task.name} the hash holds out none: evaluations use training prompts"
        )
    texts = [row["prompt"] for row in task.rows]
    if closed := [text for text in texts if (bare := text.rstrip()).endswith(ends) and bare not in ends]:
        found.append(
            f"{len(closed) / len(texts):.0%} of the prompts of {task.name} end in an end token ({closed[0][-20:]!r}), "
            "so completions begin behind the end of a text; a chat template needs add_generation_prompt=True"
        )
    return found + unknown_characters(tokenizer, prompts, config.model)


def unknown_characters(tokenizer: Any, prompts: Sequence[str], model: str) -> list[str]:
    """A remark where a model, the policy or a reward model, cannot tell characters of the prompts apart."""
    unknown, name = tokenizer.unk_token_id, tokenizer.unk_token
    odd = [] if unknown is None else [text for text in prompts if unknown in plain_ids(tokenizer, [text])[0]]
    if not odd:
        return []
    return [
        f"{len(odd) / len(prompts):.0%} of the held-out prompts have characters that the tokenizer of {model} does not "
        f"know, so that they all read {name} ({odd[0]!r}); take a model that has them"
    ]

"""What every algorithm on language models is told: the task, the model, the amount of work, the machine.

Frozen dataclasses with a docstring under each field; an algorithm's own settings extend `LanguageConfig`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from telescope.checks import at_least_zero, in_unit_interval, positive, typed, unread
from telescope.language.data.tasks import Reward, Task, open_task, require_reward
from telescope.language.models.causal import TINY, is_built_in

if TYPE_CHECKING:
    Source = str | Reward
else:
    Source = str  # what a flag and a TOML file can hold


LIGHTER = 8
"""Texts that need the memory of one that is learned from: per token and layer its activations are 34 bytes for every 4
of keys and values (in 16 bits; Korthikanti et al. 2022, arXiv 2205.05198, equation 1)."""


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """The settings that all algorithms on language models share."""

    samples: ClassVar[bool] = True
    """Does the model complete prompts, if only to be evaluated?"""
    learned: ClassVar[tuple[str, ...]] = ()
    """Columns of the rows whose texts it reads after the prompt."""
    built_in: ClassVar[dict[str, float]] = {"learning_rate": 1e-3}
    """Step sizes for the built-in model, and what a run has made of it."""
    given: ClassVar[dict[str, float]] = {"learning_rate": 1e-6}
    """Step sizes for all other models."""

    task: str = "lm/addition"
    """A built-in task (lm/addition, lm/sort, lm/reverse, lm/taste), or a JSONL file with a row for each prompt."""
    model: str = TINY
    """Where to start: tiny (built in, untrained), a run folder, a transformers folder, or a name on the hub."""
    digits: int | None = None
    """Digits of the built-in tasks' numbers, or the length of their strings; none: the task's own (2 for addition)."""
    seed: int = 0
    """Keys all random numbers."""
    total_steps: int = 600
    """Steps of training."""
    learning_rate: float | None = None
    """AdamW's learning rate; none: 1e-3 for the built-in model, 1e-6 for any other (SFT 2e-5, a reward model 1e-5)."""
    lr_warmup: int = 10
    """Optimiser steps over which it rises from 0."""
    anneal_learning_rate: bool = True
    """Let it fall linearly to a tenth over the run."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Global norm to which a model's gradient is clipped."""
    lora_rank: int = 0
    """Train a LoRA adapter of this rank instead of all weights (needs peft); 0: all weights."""
    max_tokens: int | None = None
    """The length limit of a completion; none: the task's own (64 for files)."""
    micro_batch: int = 0
    """Completions that go through the model at a time while it trains; 8 times as many while it samples or is
    evaluated, which takes less memory; 0: all of a step's."""
    eval_every: int = 20
    """Evaluate on held-out prompts every so many steps; 0: only before the first and after the last."""
    eval_prompts: int = 1000
    """Held-out prompts of such an evaluation, at most."""
    device: str = "cpu"
    """Where the models live: cpu, cuda, cuda:1, …"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and arithmetic; the optimiser keeps a float32 copy of weights in another dtype."""
    threads: int = 0
    """CPU threads of the arithmetic; 0: one for each core, or one where a step is too small to share."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun, what each process holds: all weights (ddp), or its shard of them (fsdp)."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, by name and number."""
        typed(self)
        usual = self.built_in if is_built_in(self.model) else self.given
        for name in usual:
            if getattr(self, name) is None:
                object.__setattr__(self, name, usual[name])
        positive(self, "total_steps", "learning_rate", "max_grad_norm", "eval_prompts")
        at_least_zero(self, "seed", "lr_warmup", "weight_decay", "lora_rank", "micro_batch", "eval_every", "threads")
        for name in ("digits", "max_tokens"):
            if getattr(self, name) is not None:
                positive(self, name)
        if self.sharding == "fsdp" and self.lora_rank:
            raise ValueError(f"sharding is 'fsdp', but lora_rank is {self.lora_rank}; an adapter trains with ddp alone")

    @property
    def iterations(self) -> int:
        """Steps in the whole run."""
        return self.total_steps

    @property
    def rows(self) -> int:
        """Texts that one optimiser step learns from."""
        raise NotImplementedError

    @property
    def at_once(self) -> int | None:
        """Texts that go through the model at a time where nothing is learned from them; None: all."""
        return LIGHTER * self.micro_batch or None

    def open_task(self) -> Task:
        """The task; ValueError where it is none that this algorithm can learn from."""
        return open_task(self.task, self.digits)

    @classmethod
    def on(cls, task: str, model: str | None, **settings: Any) -> Self:
        """The settings for a task and a model; a file whose model is not named yet is for one of the user's own."""
        own = cls.given if model is None and not task.startswith("lm/") else {}
        return cls(task=task, model=model or TINY, **{**own, **settings})


@dataclasses.dataclass(frozen=True)
class RolloutConfig(LanguageConfig):
    """The settings that algorithms on sampled completions share."""

    reward: Source | None = dataclasses.field(default=None, metadata={"callable": True})
    """What scores a completion: FILE.py:FUNCTION (from Python also a function), or the run folder of a reward model;
    none: the task's own reward."""
    overlong_cache: int = 0
    """L_cache of DAPO: over so many tokens before the length limit a completion loses up to 1 of its score; 0: none."""
    prompts: int = 256
    """Prompts of each rollout."""
    group: int = 8
    """G, completions of each prompt."""
    minibatches: int = 2
    """Optimiser steps that a rollout is cut into."""
    epochs: int = 1
    """Passes over each rollout."""
    temperature: float = 1.0
    """Of sampling; log-probabilities are taken at it too."""
    top_k: int | None = None
    """Sample from the k likeliest tokens only; log-probabilities are then over the same."""
    top_p: float | None = None
    """Sample from the likeliest tokens that together have this probability; log-probabilities likewise."""
    off_policy: Literal["none", "truncate", "mask"] = "none"
    """Weigh tokens by π_trainer/π_sampler, bounded (truncate) or 0 beyond the bounds (mask); none: as the row does."""
    off_policy_cap: float = 2.0
    """The upper bound of that weight; for mask also its inverse, the lower one."""
    warm_start: float = 0.2
    """Alone with the built-in model: train on right answers until this share of held-out prompts is answered."""
    warm_start_steps: int = 2000
    """Steps of that warm start, at most."""
    warm_start_learning_rate: float = 1e-3
    """AdamW's step size in it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(
            self,
            "prompts",
            "group",
            "minibatches",
            "epochs",
            "temperature",
            "warm_start_steps",
            "warm_start_learning_rate",
        )
        in_unit_interval(self, "warm_start")
        at_least_zero(self, "overlong_cache")
        if self.off_policy == "none":
            unread(
                self, "off_policy_cap", "it bounds the weights of off_policy truncate or mask", "off_policy is 'none'"
            )
        if not self.off_policy_cap > 1:
            raise ValueError(
                f"off_policy_cap is {self.off_policy_cap}; expected more than 1, the weight where all is well"
            )
        if self.top_k is not None:
            positive(self, "top_k")
        if self.top_p is not None:
            positive(self, "top_p")
            in_unit_interval(self, "top_p")
        if self.prompts % self.minibatches:
            raise ValueError(
                f"prompts is {self.prompts}, which {self.minibatches} minibatches do not divide; groups stay whole"
            )

    def require_company(self, whiten: str) -> None:
        """ValueError where advantages are whitened over one completion, which has nothing to be compared with."""
        if whiten != "none" and self.prompts * self.group == 1:
            raise ValueError(
                "prompts is 1 and group is 1, but advantages are whitened over the rollout, which makes those of one "
                "completion 0; collect more completions, or choose an objective that does not whiten"
            )

    def open_task(self) -> Task:
        task = super().open_task()
        require_reward(task, self.reward)
        if self.overlong_cache > (limit := self.max_tokens or task.max_tokens):
            raise ValueError(
                f"overlong_cache is {self.overlong_cache}, but the length limit is {limit}; it is a part of that"
            )
        return task

    @property
    def updates(self) -> int:
        """Optimiser steps made from one rollout."""
        return self.epochs * self.minibatches

    @property
    def rows(self) -> int:
        return self.prompts * self.group // self.minibatches

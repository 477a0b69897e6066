"""The settings that all algorithms on language models share: the task, the model, the amount of work, the machine.

They are frozen dataclasses with a docstring under each field; an algorithm extends them with its own settings.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from telescope.checks import at_least_zero, in_unit_interval, positive, typed, unread
from telescope.language.data.rewards import every, is_folder, load_function, parsed
from telescope.language.data.tasks import Reward, Task, open_task, require_reward
from telescope.language.models.causal import TINY, is_built_in

if TYPE_CHECKING:
    Source = str | Reward
else:
    Source = str  # as in a flag or a TOML file


LIGHTER = 8
"""Texts in sampling that need as much memory as one in training. Per token and layer, activations take 34 bytes for
every 4 bytes of keys and values (in 16 bits; Korthikanti et al. 2022, arXiv 2205.05198, equation 1)."""


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """The settings that all algorithms on language models share."""

    samples: ClassVar[bool] = True
    """Whether the algorithm samples completions, even if only in evaluations."""
    learned: ClassVar[tuple[str, ...]] = ()
    """Columns of the data that the algorithm learns from, besides the prompt."""
    built_in: ClassVar[dict[str, float]] = {"learning_rate": 1e-3}
    """Learning rates for the built-in model and for models that runs trained from it."""
    given: ClassVar[dict[str, float]] = {"learning_rate": 1e-6}
    """Learning rates for all other models."""

    task: str = "lm/addition"
    """Built-in task (lm/addition, lm/sort, …), a file of rows (JSONL, JSON, CSV, Parquet, …), or verifiers:TASKSET."""
    model: str = TINY
    """Model to start from: tiny (built in, untrained), a run folder, a transformers folder, or a name on the hub."""
    digits: int | None = None
    """Built-in tasks only: digits of each number, or length of each string. none: the task's default (addition: 2)."""
    seed: int = 0
    """Random seed; with seeds, the first one."""
    seeds: int = 1
    """Number of seeds to train side by side, each as if alone with one thread. Meant for the built-in model."""
    total_steps: int = 600
    """Number of iterations: updates of SFT and reward models, rollouts of the others."""
    learning_rate: float | None = None
    """AdamW's learning rate. none: 1e-3 for the built-in model, 1e-6 for others (SFT 2e-5, reward model 1e-5)."""
    lr_warmup: int = 10
    """Number of optimiser steps over which the learning rate rises from 0 to its full value."""
    min_lr_ratio: float = 0.1
    """Decay the learning rate linearly, to this share of it at the end of the run. 1 keeps it constant."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Clip a model's gradient to this global norm."""
    lora_rank: int = 0
    """Train a LoRA adapter of this rank instead of all weights (needs peft). 0 trains all weights."""
    max_tokens: int | None = None
    """Maximum number of tokens in a completion. none: the task's default (64 for files)."""
    micro_batch: int = 0
    """Completions per forward pass in training, and 8 times as many in sampling and evaluation. 0: all of a step's."""
    micro_tokens: int = 0
    """Instead of micro_batch: maximum number of tokens per forward pass, padding included. 0: all of a step's."""
    packing: Literal["auto", "on", "off"] = "auto"
    """Train on rows without padding, in which common beginnings stand once. auto: with texts shorter than rows."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of a model's layers, and run them again in the backward pass: less memory, more time."""
    eval_every: int = 20
    """Evaluate on held-out prompts after every this many iterations. 0: only before the first one and at the end."""
    eval_prompts: int = 1000
    """Maximum number of held-out prompts in each evaluation."""
    device: str = "cpu"
    """Device of the models: cpu, cuda, cuda:1, …"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of weights and arithmetic. With bfloat16 the optimiser keeps a float32 copy of the weights."""
    threads: int = 0
    """CPU threads. 0 chooses: one per core, or a single one for steps too small to share."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """With torchrun: each process holds all weights (ddp) or only its shard of them (fsdp)."""

    def __post_init__(self) -> None:
        """Raise a ValueError for values that cannot work."""
        typed(self)
        usual = self.built_in if is_built_in(self.model) else self.given
        for name in usual:
            if getattr(self, name) is None:
                object.__setattr__(self, name, usual[name])
        positive(self, "seeds", "total_steps", "learning_rate", "max_grad_norm", "eval_prompts", "digits", "max_tokens")
        in_unit_interval(self, "min_lr_ratio")
        at_least_zero(self, "seed", "lr_warmup", "weight_decay", "lora_rank", "micro_batch", "micro_tokens")
        at_least_zero(self, "eval_every", "threads")
        if self.micro_batch and self.micro_tokens:
            raise ValueError(
                f"micro_tokens is {self.micro_tokens}, but micro_batch is {self.micro_batch}; both say how much goes "
                "through the model at a time, so give one of them"
            )

    @property
    def seed_values(self) -> list[int]:
        """The seeds."""
        return list(range(self.seed, self.seed + self.seeds))

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
        """Texts per forward pass in sampling and evaluation. None: all."""
        return LIGHTER * self.micro_batch or None

    def sampled_at_once(self, tokens: int) -> int | None:
        """The same, where each text has at most so many tokens."""
        return max(1, LIGHTER * self.micro_tokens // max(1, tokens)) if self.micro_tokens else self.at_once

    def open_task(self) -> Task:
        """The task. A ValueError if this algorithm cannot learn from it."""
        return open_task(self.task, self.digits)

    @classmethod
    def on(cls, task: str, model: str | None, **settings: Any) -> Self:
        """The settings for a task and a model. A data file without a model gets the settings for a user's own model."""
        own = cls.given if model is None and not task.startswith("lm/") else {}
        return cls(task=task, model=model or TINY, **{**own, **settings})


@dataclasses.dataclass(frozen=True)
class RolloutConfig(LanguageConfig):
    """The settings that algorithms on sampled completions share."""

    reward: Source | tuple[Source, ...] | None = dataclasses.field(default=None, metadata={"callable": True})
    """FILE.py:FUNCTION, a ready-made function, a reward model's folder, or several with weights (f@0.3 g@1)."""
    reward_seconds: float | None = None
    """Time limit of each call of a reward function, in seconds. none: no limit."""
    environment: Source | None = dataclasses.field(default=None, metadata={"callable": True})
    """Conversations: FILE.py:CLASS with reset(row) and step(text) (from Python also a class). none: the task's own."""
    turns: int | None = None
    """Maximum number of turns of a conversation. none: the task's own (8 with environment)."""
    overlong_cache: int = 0
    """Length penalty (DAPO): a completion loses up to 1 of its score in the last N tokens before max_tokens. 0: off."""
    prompts: int = 256
    """Number of prompts per rollout."""
    group: int = 8
    """Number of completions per prompt (G in the papers)."""
    minibatches: int = 2
    """Number of optimiser steps per pass over a rollout. It must divide prompts, since groups stay whole."""
    epochs: int = 1
    """Number of passes over each rollout."""
    temperature: float = 1.0
    """Sampling temperature; log-probabilities are computed at the same temperature."""
    top_k: int | None = None
    """Sample from the k most likely tokens only; log-probabilities are computed over the same tokens. none: all."""
    top_p: float | None = None
    """Sample from the most likely tokens with this total probability; log-probabilities likewise. none: all."""
    sampler: Literal["own", "vllm"] = "own"
    """What samples rollouts: the trainer's model, or vLLM in another process, which sets off_policy to truncate."""
    off_policy: Literal["none", "truncate", "mask"] = "none"
    """Weight tokens by π_trainer/π_sampler: capped (truncate), 0 beyond the cap (mask), or as the objective says."""
    off_policy_cap: float = 2.0
    """Upper cap of the off_policy weight; with mask, its inverse is the lower cap."""
    warm_start: float = 0.2
    """Built-in model only: first train on correct answers until it solves this share of held-out prompts."""
    warm_start_steps: int = 2000
    """Maximum number of steps of the warm start."""
    warm_start_learning_rate: float = 1e-3
    """AdamW's learning rate during the warm start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.reward, tuple) and len(self.reward) < 2:
            object.__setattr__(self, "reward", self.reward[0] if self.reward else None)
        positive(
            self,
            "prompts",
            "group",
            "minibatches",
            "epochs",
            "temperature",
            "top_k",
            "top_p",
            "reward_seconds",
            "turns",
        )
        positive(self, "warm_start_steps", "warm_start_learning_rate")
        in_unit_interval(self, "warm_start", "top_p")
        at_least_zero(self, "overlong_cache")
        if self.sampler == "vllm":
            self._require_engine()
        if self.off_policy == "none":
            unread(self, "off_policy_cap", "only off_policy truncate or mask use it", "off_policy is 'none'")
        if not self.off_policy_cap > 1:
            raise ValueError(
                f"off_policy_cap is {self.off_policy_cap}; expected more than 1, the weight without a mismatch"
            )
        if self.prompts % self.minibatches:
            raise ValueError(
                f"prompts is {self.prompts}, but minibatches is {self.minibatches}, which does not divide it; groups "
                "stay whole, so choose a divisor"
            )

    @classmethod
    def on(cls, task: str, model: str | None, **settings: Any) -> Self:
        if task == "lm/guess":  # few steps show its rules, and a hundred more its strategy
            settings = {"total_steps": 150, "warm_start_steps": 40, **settings}
        return super().on(task, model, **settings)

    def _require_engine(self) -> None:
        """Weigh the log-probabilities of another engine, and refuse what it does not report."""
        if self.off_policy == "none":
            object.__setattr__(self, "off_policy", "truncate")
        for name in ("top_k", "top_p"):
            unread(self, name, "leave it out", "vLLM does not say which tokens could have been drawn")

    def require_company(self, whiten: str) -> None:
        """Raise a ValueError if advantages are whitened over a single completion."""
        if whiten != "none" and self.prompts * self.group == 1:
            raise ValueError(
                "prompts is 1 and group is 1, but advantages are whitened over the rollout, which makes those of one "
                "completion 0; collect more completions, or choose an objective that does not whiten"
            )

    def open_task(self) -> Task:
        task = self._with_environment(super().open_task())
        require_reward(task, self.reward)
        if all(is_folder(parsed(one)[0]) for one in every(self.reward)) and (self.reward or task.reward is None):
            unread(self, "reward_seconds", "it limits calls of reward functions", "the reward is a model")
        if self.overlong_cache > (limit := self.max_tokens or task.max_tokens):
            raise ValueError(
                f"overlong_cache is {self.overlong_cache}, but the length limit is {limit}; expected at most the limit"
            )
        return task

    def _with_environment(self, task: Task) -> Task:
        if self.environment is not None:
            make: Any = load_function(self.environment)
            task = task._replace(game=make, turns=8, reward=None, metric="reward", answers=False)
        if task.game is None:
            unread(self, "turns", "give an environment", f"{task.name} is answered in one turn")
            return task
        for name in ("reward", "reward_seconds", "overlong_cache"):
            unread(self, name, "leave it out", "conversations have the rewards of their environment")
        unread(self, "sampler", "leave it out", "the trainer's own model holds conversations")
        return task._replace(turns=self.turns or task.turns)

    @property
    def updates_per_rollout(self) -> int:
        """Optimiser steps per rollout."""
        return self.epochs * self.minibatches

    @property
    def rows(self) -> int:
        return self.prompts * self.group // self.minibatches

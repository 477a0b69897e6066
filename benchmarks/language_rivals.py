"""One training in a process of its own: `python -m benchmarks.language_rivals JOB.json RESULT.json`.

Both contestants begin from the same folder of weights and see the same prompts in the same order. It leaves out what
the numbers mean together, which is `benchmarks.language`'s business.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Size(NamedTuple):
    """What is trained on, and how much of it at a time; step size, clip and the like are the same for all sizes."""

    task: str
    digits: int
    prompts: int
    group: int
    max_tokens: int
    minibatches: int = 4
    epochs: int = 1
    learning_rate: float = 3e-4
    warmup: int = 10  # optimiser steps over which it rises
    clip: float = 0.2
    max_grad_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    method: str = "grpo"  # or sft, where a step is one update and each prompt has one answer
    least: float = 0.0  # how many times as fast as TRL ours is to be
    lengths: tuple[int, int] | None = None  # SFT learns the rows of a file instead, with digits between these two

    @property
    def batch(self) -> int:
        """Completions of a step."""
        return self.prompts * self.group

    @property
    def updates(self) -> int:
        """Optimiser steps of a step."""
        return self.minibatches * self.epochs

    @property
    def question(self) -> str:
        """What is asked, and so the model to begin from."""
        return f"{self.task}, {self.digits} digits"

    @property
    def source(self) -> tuple[str, int | None]:
        """The task that is learned and its digits, as configurations have them."""
        if self.lengths is None:
            return self.task, self.digits
        return "{}-{}-{}.jsonl".format(self.task.replace("/", "-"), *self.lengths), None

    def __str__(self) -> str:
        if self.method == "sft":
            digits = "{} to {}".format(*self.lengths) if self.lengths else self.digits
            return f"SFT of {self.task}, {digits} digits, {self.prompts} rows"
        size = f"{self.prompts} prompts × {self.group}, at most {self.max_tokens} tokens"
        return f"{self.question}, {size}, {self.minibatches} minibatches × {self.epochs}"


class Job(NamedTuple):
    """One measurement."""

    trainer: str
    size: Size
    model: str  # a transformers folder
    seed: int
    threads: int
    steps: int
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed) of GRPOConfig

    @classmethod
    def read(cls, path: str) -> "Job":
        fields = json.loads(Path(path).read_text())
        size = fields.pop("size")
        pairs = {name: size[name] and tuple(size[name]) for name in ("betas", "lengths")}
        return cls(size=Size(**size | pairs), **fields)


class Step(NamedTuple):
    """One step: a rollout and the updates made from it."""

    seconds: float
    used: float  # seconds of processors
    tokens: int  # of completions, their ends included
    reward: float  # mean over the completions
    sampling: float  # seconds, of scoring too
    rest: float  # seconds, of what is neither that nor the update
    skipped: float = 0.0  # share of the groups that were left out of the update, since their rewards are equal


class Watch:
    """Seconds of the clock and of processors between steps."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.start()

    def start(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def step(self, **known: Any) -> None:
        """A step is over."""
        began = self._began
        self.start()
        self.steps.append(Step(self._began[0] - began[0], self._began[1] - began[1], **known))


def telescope(job: Job, watch: Watch) -> None:
    """Ours; the last step is one that would be evaluated, so there is one more than is taken."""
    from telescope.algorithms.grpo import train

    for metrics in train(config_of(job)):
        row = metrics.rows[0]
        if metrics.step == 0:  # everything is loaded
            watch.start()
            continue
        seconds = {"sampling": row["time_sample"] + row["time_reward"], "rest": row["time_other"]}
        tokens = round(row["length"] * job.size.batch)
        watch.step(tokens=tokens, reward=row["score"], skipped=row["skipped"], **seconds)
        if metrics.step == job.steps:
            break


def config_of(job: Job) -> Any:
    """Our configuration; what it does not name is the preset's."""
    from telescope.algorithms.grpo import GRPO

    size = job.size
    return GRPO(
        task=size.task,
        digits=size.digits,
        model=job.model,
        seed=job.seed,
        threads=job.threads,
        total_steps=job.steps + 1,
        prompts=size.prompts,
        group=size.group,
        max_tokens=size.max_tokens,
        minibatches=size.minibatches,
        epochs=size.epochs,
        learning_rate=size.learning_rate,
        lr_warmup=size.warmup,
        min_lr_ratio=1.0,
        clip=size.clip,
        beta=0.0,
        max_grad_norm=size.max_grad_norm,
        eval_every=0,
        eval_prompts=1,
    )


def trl(job: Job, watch: Watch) -> None:
    """TRL's GRPOTrainer, without logs and checkpoints."""
    trainer = trl_trainer(job, watch)
    trainer.train()


def trl_trainer(job: Job, watch: Watch) -> Any:
    """The trainer on the prompts that ours draws, with a callback that closes the watch's steps."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOTrainer

    from telescope.language.data.tasks import exact_match

    seen: dict[str, Any] = {}

    def reward(prompts: list[str], completions: list[str], completion_ids: list[Any], **columns: Any) -> list[float]:
        found = exact_match(prompts, completions, answer=columns["answer"])
        seen.update(tokens=sum(map(len, completion_ids)), reward=sum(found) / len(found))
        return found

    class Laps(TrainerCallback):  # type: ignore[misc]
        """A rollout is used up after so many optimiser steps."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.start()

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step % job.size.updates == 0:
                watch.step(**seen, sampling=generating.lap(), rest=fetching.lap())

    trainer = GRPOTrainer(
        model=job.model,
        reward_funcs=reward,
        args=trl_config(job),
        train_dataset=Dataset.from_list(rows_of(job)),
        processing_class=AutoTokenizer.from_pretrained(job.model, padding_side="left"),
        callbacks=[Laps()],
    )
    trainer._generate_and_score_completions = generating = Timed(trainer._generate_and_score_completions)
    trainer.get_batch_samples = fetching = Timed(trainer.get_batch_samples)
    return trainer


def trl_config(job: Job) -> Any:
    """Our settings in TRL's words; what `options` has is put in their place."""
    from trl import GRPOConfig

    size = job.size
    settings = trl_settings(job) | {
        "max_steps": job.steps * size.updates,
        "per_device_train_batch_size": size.batch // size.minibatches,
        "steps_per_generation": size.minibatches,
        "num_generations": size.group,
        "num_iterations": size.epochs,
        "max_completion_length": size.max_tokens,
        "shuffle_dataset": False,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "beta": 0.0,
        "epsilon": size.clip,
        "loss_type": "grpo",
        "scale_rewards": "group",
    }
    return GRPOConfig(**settings | job.options)


def trl_settings(job: Job) -> dict[str, Any]:
    """The settings that all of TRL's trainers share."""
    size = job.size
    return {
        "output_dir": "trl",
        "use_cpu": True,
        "bf16": False,
        "seed": job.seed,
        "learning_rate": size.learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": size.warmup,
        "adam_beta1": size.betas[0],
        "adam_beta2": size.betas[1],
        "weight_decay": 0.0,
        "max_grad_norm": size.max_grad_norm,
        "gradient_checkpointing": False,
        "logging_steps": 10**9,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "model_init_kwargs": {"dtype": "float32"},
    }


def rows_of(job: Job) -> list[dict[str, str]]:
    """The prompts of all steps, as ours draws them."""
    from telescope.language.data.tasks import open_task
    from telescope.language.randomness import PROMPTS, generator

    task, size = open_task(job.size.task, job.size.digits), job.size
    return [row for step in range(job.steps) for row in task.draw(generator(job.seed, PROMPTS, step), size.prompts)]


class Timed:
    """A function, and the seconds spent in it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = self.function(*args, **kwargs)
        self.seconds += time.perf_counter() - began
        return result

    def lap(self) -> float:
        """The seconds so far, which begin anew."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


TRAINERS: dict[str, Callable[[Job, Watch], None]] = {"telescope": telescope, "trl": trl}


def trainer_of(job: Job) -> Callable[[Job, Watch], None]:
    """Who trains, by the trainer's name and the size's method."""
    if job.size.method == "sft":
        from benchmarks import sft_rivals

        return {"telescope": sft_rivals.telescope, "trl": sft_rivals.trl}[job.trainer]
    return TRAINERS[job.trainer]


def main(arguments: Sequence[str]) -> None:
    import torch

    job, watch = Job.read(arguments[0]), Watch()
    if job.threads:
        torch.set_num_threads(job.threads)
    trainer_of(job)(job, watch)
    Path(arguments[1]).write_text(json.dumps([step._asdict() for step in watch.steps]))


if __name__ == "__main__":
    main(sys.argv[1:])

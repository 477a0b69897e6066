"""Supervised fine-tuning by ours and by TRL's SFTTrainer, as `benchmarks.language_rivals` runs them.

Both begin from the same folder of weights and learn the same prompts and answers in the same order, the answers alone.
"""

from __future__ import annotations

from typing import Any

from benchmarks.language_rivals import Job, Watch, trl_settings


def telescope(job: Job, watch: Watch) -> None:
    """Ours; the last step is one that would be evaluated, so there is one more than is taken."""
    from telescope.algorithms.sft import train

    sizes = iter(tokens_of(job))
    for metrics in train(config_of(job)):
        row = metrics.rows[0]
        if metrics.step == 0:  # everything is loaded
            watch.start()
            continue
        watch.step(tokens=next(sizes), reward=-row["loss"], sampling=0.0, rest=row["time_other"])
        if metrics.step == job.steps:
            break


def config_of(job: Job) -> Any:
    """Our configuration; what it does not name is the preset's."""
    from telescope.algorithms.sft import SFT

    size = job.size
    return SFT(
        task=size.source[0],
        digits=size.source[1],
        model=job.model,
        seed=job.seed,
        threads=job.threads,
        total_steps=job.steps + 1,
        batch_size=size.batch,
        learning_rate=size.learning_rate,
        lr_warmup=size.warmup,
        min_lr_ratio=1.0,
        max_grad_norm=size.max_grad_norm,
        eval_every=0,
        eval_prompts=1,
    )


def rows_of(job: Job) -> list[list[dict[str, str]]]:
    """The rows of each step, as ours draws them."""
    from telescope.language.data.tasks import open_task
    from telescope.language.randomness import DEMONSTRATIONS, generator

    task, size = open_task(*job.size.source), job.size
    return [task.draw(generator(job.seed, DEMONSTRATIONS, step), size.batch) for step in range(job.steps)]


def tokens_of(job: Job) -> list[int]:
    """The tokens of each step: prompts and answers with their end token, without padding. A character is a token."""
    return [sum(len(row["prompt"]) + len(row["answer"]) + 1 for row in rows) for rows in rows_of(job)]


def trl(job: Job, watch: Watch) -> None:
    """TRL's SFTTrainer, without logs and checkpoints."""
    trl_trainer(job, watch).train()


def trl_trainer(job: Job, watch: Watch) -> Any:
    """The trainer on the rows that ours draws, with a callback that closes the watch's steps."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    losses = list[float]()
    sizes = iter(tokens_of(job))

    class Laps(TrainerCallback):  # type: ignore[misc]
        """A step ends with its optimiser step."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.step(tokens=next(sizes), reward=-losses[-1], sampling=0.0, rest=0.0)

    class Trainer(SFTTrainer):  # type: ignore[misc]
        """It keeps each loss, and takes the rows as they lie."""

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(float((loss[0] if isinstance(loss, tuple) else loss).detach()))
            return loss

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            from torch.utils.data import SequentialSampler

            return SequentialSampler(self.train_dataset)

    rows = [{"prompt": row["prompt"], "completion": row["answer"]} for rows in rows_of(job) for row in rows]
    settings = trl_settings(job) | {"per_device_train_batch_size": job.size.batch, "max_steps": job.steps}
    return Trainer(
        model=job.model,
        args=SFTConfig(**settings, max_length=None, completion_only_loss=True, **job.options),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job.model),
        callbacks=[Laps()],
    )

"""Check before training whether a model's tokenizer, context and tokens suit the texts of a task.

Leaves out checks of the data alone (`data/tasks.py`) and of model files alone (`models/pretrained.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from telescope.language.config import LanguageConfig
from telescope.language.data.tasks import Task, in_words, is_held_out
from telescope.language.data.text import plain_ids, prompt_ids
from telescope.language.models import causal as models
from telescope.language.models import pretrained


def require_known(config: LanguageConfig, task: Task, about: Any, tokenizer: Any) -> None:
    """Raise a ValueError if the tokenizer is not the model's, or a text has tokens that the model does not know."""
    size = getattr(about.get_text_config(), "vocab_size", None)
    if size is None:  # loading the model will check it
        return
    pretrained.require_vocabulary(config.model, tokenizer, size)
    columns = ("prompt", *config.learned)
    texts = (row[name] for row in task.rows or task.held_out for name in columns if isinstance(row.get(name), str))
    pretrained.require_known(config.model, tokenizer, size, texts)


SPECIAL = 8
"""The maximum number of special tokens that a tokenizer adds to a text."""


def require_room(config: LanguageConfig, task: Task, about: Any, tokenizer: Any) -> None:
    """Raise a ValueError that names the first prompt too long for the model's context, completion included."""
    context = models.context_of(about)
    if context is None:
        return
    limit = (config.max_tokens or task.max_tokens) if config.samples else 0
    for row in task.rows or task.held_out:
        answers = [row[name] for name in config.learned if isinstance(row.get(name), str)]
        sizes = [len(text.encode()) for text in (row["prompt"], *answers)]
        if sum(sizes) + limit + SPECIAL <= context:  # a token has at least one byte, so most texts need no closer look
            continue
        asked = len(prompt_ids(tokenizer, [row["prompt"]])[0])
        follow = max([limit, *(len(ids) + 1 for ids in plain_ids(tokenizer, answers))])
        if asked + follow > context:
            name = row["prompt"] if len(row["prompt"]) <= 40 else row["prompt"][:37] + "..."
            raise ValueError(
                f"the prompt {name!r} has {asked} tokens, and up to {follow} may follow, but the context of "
                f"{config.model} is {context} tokens; shorten it, or lower max_tokens"
            )


def readable(config: LanguageConfig, task: Task, tokenizer: Any, ends: tuple[str, ...]) -> Task:
    """The task with conversations as the text that the model reads; see `in_words`."""
    every = getattr(config, "loss_on", "") == "assistant"
    return in_words(task, tokenizer, config.model, config.learned, ends if every else None)


def remarks(config: LanguageConfig, task: Task, tokenizer: Any, ends: tuple[str, ...]) -> list[str]:
    """Sentences for the user about the prompts of a run. ends: the texts that end a completion."""
    prompts = [row["prompt"] for row in task.held_out[: config.eval_prompts]]
    found = []
    if task.rows and not any(is_held_out(row["prompt"]) for row in task.rows):
        found.append(
            f"none of {task.name}'s {len(task.rows)} rows is in the held-out tenth, so evaluations use training prompts"
        )
    texts = [row["prompt"] for row in task.rows]
    if closed := [text for text in texts if (bare := text.rstrip()).endswith(ends) and bare not in ends]:
        found.append(
            f"{len(closed) / len(texts):.0%} of the prompts of {task.name} end in an end token ({closed[0][-20:]!r}), "
            "so completions begin after the end of a text; a chat template needs add_generation_prompt=True"
        )
    return found + unknown_characters(tokenizer, prompts, config.model)


def unknown_characters(tokenizer: Any, prompts: Sequence[str], model: str) -> list[str]:
    """A sentence if the tokenizer of a policy or reward model does not know some characters of the prompts."""
    unknown, name = tokenizer.unk_token_id, tokenizer.unk_token
    odd = [] if unknown is None else [text for text in prompts if unknown in plain_ids(tokenizer, [text])[0]]
    if not odd:
        return []
    return [
        f"{len(odd) / len(prompts):.0%} of the held-out prompts have characters that the tokenizer of {model} does not "
        f"know and replaces by {name} ({odd[0]!r}); use a model that has them"
    ]

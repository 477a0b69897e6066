"""Do the tokenizer, the context and the tokens of a model suit the texts of a task? Asked before anything is trained.

It leaves out what each is asked alone: `data/tasks.py` checks the rows, `models/pretrained.py` the files of a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from telescope.language.config import LanguageConfig
from telescope.language.data.tasks import Task, is_held_out
from telescope.language.data.text import plain_ids, prompt_ids
from telescope.language.models import causal as models
from telescope.language.models import pretrained


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

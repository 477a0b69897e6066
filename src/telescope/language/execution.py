"""The execution mode of a run on a language model: threads, device and ranks, decided once and stored. And a trial.

Leaves out the run itself (`run.py`).
"""

from __future__ import annotations

import math
import os
from typing import Any

from telescope.checks import require_device
from telescope.language import parallel
from telescope.language.checks import readable, require_known, require_room
from telescope.language.config import LanguageConfig
from telescope.language.data.chat import Template, source
from telescope.language.data.rewards import every, given_to, is_folder, load_function, name_of, parsed
from telescope.language.data.text import end_texts, prompt_ids
from telescope.language.experience.engines import require_vllm
from telescope.language.models import causal as models
from telescope.language.models.heads import require_critic, require_head
from telescope.language.randomness import PROMPTS, generator
from telescope.processors import most_threads, processors

WORTH_SHARING = 7e8
"""From this product of parameters and tokens of an optimiser step on, a second thread saves time."""


def execution(config: LanguageConfig) -> dict[str, Any]:
    """The settings that must stay the same for an exact resume, decided once."""
    threads = config.threads or (1 if config.seeds > 1 else 0)  # the seeds have the processors
    if not threads:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes that share these cores
        most = most_threads() if here == 1 else processors() // here  # torchrun sets OMP_NUM_THREADS to 1 unasked
        threads = max(1, most) if work(config) >= WORTH_SHARING else 1
    return parallel.now({"threads": threads, "device": config.device, "dtype": config.dtype})


def work(config: LanguageConfig) -> float:
    """Parameters of the model's layers times tokens of an optimiser step, roughly; inf if the model does not say."""
    about, tokenizer = models.require(config.model)
    layers = getattr(about.get_text_config(), "num_hidden_layers", None)
    width = getattr(about.get_text_config(), "hidden_size", None)
    if layers is None or width is None:
        return math.inf
    task = config.open_task()
    if isinstance(text := task.held_out[0]["prompt"] if task.held_out else "", list):
        text = Template(tokenizer, config.model).asked(task.held_out[0])
    tokens = len(prompt_ids(tokenizer, [text])[0]) + (config.max_tokens or task.max_tokens)
    return float(12 * layers * width**2 * tokens * config.rows)


def try_out(config: LanguageConfig) -> None:
    """Raise a ValueError if the device, task, reward or model does not exist."""
    require_device(config)
    about, tokenizer = models.require(config.model)
    task = readable(config, config.open_task(), tokenizer, end_texts(tokenizer, [tokenizer.eos_token_id]))
    require_known(config, task, about, tokenizer)
    require_room(config, task, about, tokenizer)
    if getattr(config, "sampler", "own") == "vllm":
        require_vllm()
    if (critic := getattr(config, "value_start", None)) is not None:
        require_critic(critic, own=config.value_model == "own")  # type: ignore[attr-defined]
    row = task.draw(generator(config.seed, PROMPTS), 1)[0]
    rewards = every(getattr(config, "reward", None))
    if not rewards and task.reward is not None:
        given_to(task.reward, source(row), name=f"of {task.name}")
    for reward, _ in map(parsed, rewards):
        if is_folder(reward):
            require_head(reward)
        else:
            given_to(load_function(reward), source(row), name=name_of(reward))

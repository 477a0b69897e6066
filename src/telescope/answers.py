"""Trained language models back from a run folder: complete prompts, evaluate on those that were held out.

Training is elsewhere. The model alone is an ordinary transformers folder, `RUN/model`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from telescope import algorithms
from telescope.checks import on_device
from telescope.language import models
from telescope.language.evaluate import answered, distance, is_greedy
from telescope.language.preferences import RewardModel, accuracy
from telescope.language.rewards import load_function
from telescope.language.sampling import decode, encode, sample
from telescope.language.tasks import Reward, without_ends
from telescope.language.text import end_texts
from telescope.language.training import PAIRS, generator, put_back
from telescope.runs.folder import RunFolder


class Answers:
    """The language model of a run as it stands in its folder."""

    def __init__(self, folder: RunFolder, *, trust: bool = False, device: str | None = None) -> None:
        self.folder = folder
        cls = algorithms.config_class(folder.algorithm)
        self.trust = trust
        self.config: Any = on_device(folder.config_to_use(cls, trusted=trust, runs_code=False), device)
        # as it was saved: a run in bfloat16 that trains an adapter saves float32, which holds all of its update
        self.model, self.tokenizer = models.load(str(folder.require_model()), dtype=None)
        self.model = self.model.to(self.config.device).eval()
        self.ends = models.ends_of(self.model, self.tokenizer)

    def complete(
        self, prompts: Sequence[str], *, max_tokens: int = 64, temperature: float = 1.0, rng: Any = None
    ) -> list[str]:
        """A completion of each prompt: the likeliest tokens, or with `rng` (a NumPy generator) a sample."""
        asked = encode(self.tokenizer, prompts, self.config.device)
        noise = None if rng is None else rng.random((len(prompts), max_tokens), dtype=np.float32)
        uniforms = None if noise is None else torch.from_numpy(noise).to(self.config.device)
        found = sample(
            self.model, asked, ends=self.ends, max_tokens=max_tokens, uniforms=uniforms, temperature=temperature
        )
        return decode(self.tokenizer, found, self.ends)

    def evaluate(self, prompts: int = 1000) -> dict[str, Any]:
        """On held-out prompts: `exact_match` of greedy answers or `reward` of sampled ones, their `length`, `kl`."""
        if self.folder.algorithm == "reward_model":
            return self._ordered(prompts)
        task = without_ends(self.config.open_task(), end_texts(self.tokenizer, self.ends))
        rows = task.held_out[:prompts]
        scoring, name = (task.reward, f"of {task.name}") if task.reward else (self._reward(), self.config.reward)
        limits: dict[str, Any] = {"ends": self.ends, "max_tokens": self.config.max_tokens or task.max_tokens}
        greedy = is_greedy(task.metric)
        found = answered(self.model, self.tokenizer, rows, scoring, name=name, greedy=greedy, **limits)
        kl = distance(self.model, self._reference(), self.tokenizer, rows, **limits)
        return {
            task.metric: found["reward"],
            "kl": kl,
            "length": found["length"],
            "truncated": found["truncated"],
            "prompts": len(rows),
        }

    def _reward(self) -> Reward:
        """What the run was rewarded by, a function or a model, as a function."""
        source = self.config.reward
        if not os.path.isdir(source):
            self.folder.require_trust(self.trust)
            return load_function(source)
        return RewardModel.load(source, self.config.device).reward

    def _reference(self) -> Any:
        """The model that training began with, after its warm start where it had one."""
        config = self.config
        dtype = getattr(torch, config.dtype)
        reference = models.load(config.model, seed=config.seed, dtype=dtype)[0].to(config.device).eval()
        state = self.folder.load_checkpoint()
        if state is not None and state.get("start"):
            put_back(reference, state["start"])
        return reference

    def _ordered(self, pairs: int) -> dict[str, Any]:
        model = RewardModel.load(os.fspath(self.folder), self.config.device)
        rows = self.config.open_task().pairs(generator(0, PAIRS, 2**31), pairs, held_out=True)  # type: ignore[misc]
        with torch.no_grad():
            margin = model.pair_loss(rows)[1]
        return {"accuracy": accuracy(margin), "margin": float(margin.mean()), "pairs": len(rows)}


def load(run: str | os.PathLike[str], *, trust: bool = False, device: str | None = None) -> Answers:
    """The language model in a run folder: `telescope.answers.load("runs/grpo").complete(["37+58="])`.

    trust: run the code that the folder names (a reward file), though somebody else began the run; without it that is a
    RunError. device: where the model lives; by default where it was trained, or on the CPU, with a warning, if there is
    no such device here.
    """
    folder = RunFolder.open(run)
    if folder.algorithm not in algorithms.LANGUAGE:
        raise ValueError(f"{os.fspath(run)} is a run of {folder.algorithm}; telescope.load has its agents")
    return Answers(folder, trust=trust, device=device)

"""Load trained language models from a run folder: complete prompts, and evaluate on held-out prompts.

Leaves out training. The model alone is an ordinary transformers folder, `RUN/model`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from telescope import algorithms
from telescope.checks import on_device
from telescope.language.checks import readable
from telescope.language.data.chat import Message, Template
from telescope.language.data.games import Hall
from telescope.language.data.inputs import inputs
from telescope.language.data.rewards import Scorer, every, is_folder, load_function, name_of, parsed
from telescope.language.data.tasks import without_ends
from telescope.language.data.text import end_texts
from telescope.language.evaluate import Passing, Sampling, answered, distance, played, usual
from telescope.language.experience.preferences import RewardModel, accuracy, load_reward_model
from telescope.language.experience.sampling import COLDEST, decode, encode, sample
from telescope.language.models import causal as models
from telescope.language.models import pretrained
from telescope.language.models.memory import memory
from telescope.language.optimiser import put_back
from telescope.language.randomness import PAIRS, generator
from telescope.language.run import Scoring, scorings
from telescope.runs.files import RunError
from telescope.runs.folder import RunFolder
from telescope.seeds import alone, folder_of, of_seed


class Answers:
    """The language model of a run, loaded from its folder."""

    def __init__(
        self, folder: RunFolder, *, trust: bool = False, device: str | None = None, seed: int | None = None
    ) -> None:
        self.folder = folder
        cls = algorithms.config_class(folder.algorithm)
        self.trust = trust
        self.config: Any = on_device(folder.config_to_use(cls, trusted=trust, runs_code=False), device)
        whole, self.seed = self.config, self.config.seed if seed is None else seed
        if self.seed not in whole.seed_values:
            known = ", ".join(map(str, whole.seed_values))
            raise ValueError(f"seed is {self.seed}; this run has the seeds {known}")
        self.config = alone(whole)[self.seed - whole.seed] if whole.seeds > 1 else whole
        # keep the saved dtype: a bfloat16 run with an adapter saves float32, which holds its whole update
        place = folder_of(folder.require_model(), whole, self.seed)
        self.model, self.tokenizer = models.load(str(place), dtype=None, trust=trust)
        self.model = self.model.to(self.config.device).eval()
        self.ends = models.ends_of(self.model, self.tokenizer)
        for changed in folder.changed_inputs(inputs(self.config)):
            warnings.warn(f"{changed} since the run began, so evaluations are not comparable", stacklevel=3)

    @memory()
    def complete(
        self, prompts: Sequence[str | list[Message]], *, max_tokens: int = 64, temperature: float = 1.0, rng: Any = None
    ) -> list[str]:
        """Complete each prompt, a text or a conversation: greedily, or with `rng` (a NumPy generator) by sampling.

        temperature: for sampling. 0 is greedy.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts is the string {prompts[:40]!r}; expected a list of strings: [prompt]")
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}; expected at least 1")
        greedy = rng is None or _checked(temperature, None, None, 1).temperature == 0
        asked = encode(self.tokenizer, list(map(self._text, prompts)), self.config.device)
        noise = None if greedy else rng.random((len(prompts), max_tokens), dtype=np.float32)
        uniforms = None if noise is None else torch.from_numpy(noise).to(self.config.device)
        found = sample(
            self.model,
            asked,
            ends=self.ends,
            max_tokens=max_tokens,
            uniforms=uniforms,
            temperature=1.0 if greedy else temperature,
        )
        return decode(self.tokenizer, found, self.ends)

    def _text(self, prompt: str | list[Message]) -> str:
        if isinstance(prompt, str):
            return prompt
        return Template(self.tokenizer, str(self.folder.path)).asked({"prompt": prompt})

    @memory()
    def evaluate(
        self,
        prompts: int = 1000,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        samples: int | None = None,
        task: str | None = None,
        digits: int | None = None,
        pass_at: Sequence[int] = (),
        passing: float = 1.0,
    ) -> dict[str, Any]:
        """Evaluate on held-out prompts: `exact_match` (greedy), `reward` (samples), `length`, `kl_completion`, …

        task, digits: another task than the run's. Of a file, all rows are used, not only the held-out tenth. A built-in
        one is scored by its own reward alone.
        pass_at: numbers k for `pass@k`, without bias from `samples` completions of a prompt (the largest k if not
        given). passing: a completion passes from this score on.

        Samples use the run's own temperature, top_k and top_p. The four arguments replace these; if any is given,
        exact_match is measured on samples too. temperature 0 is greedy; top_k 0 and top_p 1 mean the whole vocabulary.
        `temperature`, `top_k`, `top_p` and `samples` of the result are those of the first metric. A value that could
        not be measured is None, and a warning says why.
        """
        if prompts < 1:
            raise ValueError(f"prompts is {prompts}; expected at least 1")
        if pass_at and samples is None:
            samples = max(pass_at)
        if odd := [k for k in pass_at if not 1 <= k <= (samples or 0)]:
            raise ValueError(f"pass_at has {odd[0]}; expected 1 to {samples}, the number of samples of each prompt")
        asked = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "samples": samples}
        asked = {name: value for name, value in asked.items() if value is not None}
        if self.folder.algorithm == "reward_model":
            if asked:
                raise ValueError(
                    f"{next(iter(asked))} has no effect on a reward model, which samples nothing; leave it out"
                )
            return self._ordered(prompts, self._config_on(task, digits))
        config, own = self._config_on(task, digits), task is None
        found_task = self._task(config)
        rows = (found_task.held_out if own else found_task.rows or found_task.held_out)[:prompts]
        limits: dict[str, Any] = {"ends": self.ends, "max_tokens": self.config.max_tokens or found_task.max_tokens}
        limits |= {"at_once": self.config.at_once, "passing": Passing(tuple(pass_at), passing)}
        if found_task.game is not None:
            sampling = _checked(**usual("reward", self.config)._asdict() | asked)
            hall = Hall(found_task.game, self.tokenizer, str(self.folder.path), self.ends)
            maximum = {name: limits[name] for name in ("max_tokens", "at_once", "passing")}
            found = played(self.model, hall, rows, sampling=sampling, turns=found_task.turns, **maximum)
            return {**found, "kl_completion": None, **sampling._asdict(), "prompts": len(rows), "kl": None}
        measured, first = dict[str, Any](), dict[str, Any]()
        scores_itself = found_task.reward is not None
        elsewhere = not own and scores_itself and not found_task.rows  # prompts that the run's reward never saw
        for metric, scoring in scorings(found_task, None if elsewhere else self._own(needed=not scores_itself)).items():
            sampling = usual(metric, self.config)
            if asked:
                run = usual("reward", self.config)._asdict()
                sampling = _checked(**run | asked)
            found = answered(self.model, self.tokenizer, rows, scoring, sampling=sampling, **limits)
            measured[metric] = found["reward"]
            passes = {name: value for name, value in found.items() if name.startswith("pass@")}
            first = first or {
                **passes,
                "length": found["length"],
                "truncated": found["truncated"],
                **sampling._asdict(),
            }
        reference = self._reference()
        del limits["passing"]
        kl = None if reference is None else distance(self.model, reference, self.tokenizer, rows, **limits)
        former = {"kl": kl}  # the name of kl_completion until 1.0
        return {**measured, "kl_completion": kl, **first, "prompts": len(rows), **former}

    def _config_on(self, task: str | None, digits: int | None) -> Any:
        """The run's settings, on another task if there is one."""
        if task is None and digits is None:
            return self.config
        return dataclasses.replace(self.config, task=task or self.config.task, digits=digits)

    def _task(self, config: Any) -> Any:
        ends = end_texts(self.tokenizer, self.ends)
        return without_ends(readable(config, config.open_task(), self.tokenizer, ends), ends)

    def _own(self, *, needed: bool) -> Scoring | None:
        """The run's reward as a function. If it is missing and not needed, there is only a warning."""
        rewards = list(map(parsed, every(getattr(self.config, "reward", None))))
        if not rewards:
            return None
        try:
            if not all(is_folder(reward) for reward, _ in rewards):
                self.folder.require_trust(self.trust)
            scorers = [
                Scorer(
                    load_reward_model(reward, self.config.device, self.config.at_once).reward
                    if is_folder(reward)
                    else load_function(reward),
                    name_of(reward),
                    weight=weight,
                )
                for reward, weight in rewards
            ]
            return Scoring(scorers, self.config.reward_seconds)
        except (RunError, ValueError) as error:
            if needed:
                raise
            warnings.warn(f"the run's own reward is not measured: {error}", stacklevel=3)
            return None

    def _reference(self) -> Any:
        """The model that training began with (after a warm start, if any); None if it does not exist any more."""
        config = self.config
        dtype = getattr(torch, config.dtype)
        try:
            reference = models.load(config.model, seed=config.seed, dtype=dtype, trust=self.trust)[0]
        except ValueError as error:
            why = "the initial model cannot be loaded"
            warnings.warn(f"kl_completion is not measured, because {why}: {error}", stacklevel=3)
            return None
        reference = pretrained.cast(reference, next(self.model.parameters()).dtype).to(config.device).eval()
        state = of_seed(self.folder.load_checkpoint(), self.seed)
        if state is not None and state.get("start"):
            put_back(reference, state["start"])
        return reference

    def _ordered(self, pairs: int, config: Any) -> dict[str, Any]:
        model = RewardModel.load(os.fspath(self.folder), self.config.device)
        rows = self._task(config).pairs(generator(0, PAIRS, 2**31), pairs, held_out=True)
        with torch.no_grad():
            margin = torch.cat([model.pair_loss(rows[i : i + 256])[1] for i in range(0, len(rows), 256)])
        return {"accuracy": accuracy(margin), "margin": float(margin.mean()), "pairs": len(rows)}


def _checked(temperature: float, top_k: int | None, top_p: float | None, samples: int) -> Sampling:
    """The settings. A ValueError names one that is not valid."""
    if not 0 <= temperature < math.inf or 0 < temperature < COLDEST:
        raise ValueError(f"temperature is {temperature}; expected 0 (greedy), or {COLDEST} or more")
    if top_k is not None and top_k < 0:
        raise ValueError(f"top_k is {top_k}; expected the number of most likely tokens to draw from, or 0 for all")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; expected a probability above 0")
    if samples < 1 or (samples > 1 and temperature == 0):
        why = "at temperature 0 all completions of a prompt are equal" if samples > 1 else "expected at least 1"
        raise ValueError(f"samples is {samples}; {why}")
    return Sampling(temperature, top_k or None, None if top_p == 1 else top_p, samples)


def load(
    run: str | os.PathLike[str], *, trust: bool = False, device: str | None = None, seed: int | None = None
) -> Answers:
    """The language model in a run folder; see `telescope.load`, which takes agents too.

    seed: of a run of several seeds; None takes the first.
    """
    folder = RunFolder.open(run)
    if folder.algorithm not in algorithms.LANGUAGE:
        raise ValueError(f"{os.fspath(run)} is a run of {folder.algorithm}; telescope.load has its agents")
    return Answers(folder, trust=trust, device=device, seed=seed)

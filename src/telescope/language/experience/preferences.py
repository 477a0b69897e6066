"""The reward model: a score of a completion, learned from pairs of which one was preferred.

The loss is that of Bradley & Terry 1952, as in InstructGPT (Ouyang et al. 2022, equation 1). Leaves out the loop of a
whole run (`algorithms/reward_model.py`).
"""

# B completions
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from telescope.language.checks import unknown_characters
from telescope.language.data.chat import Message, Template, as_completion, source
from telescope.language.data.rewards import (
    Scorer,
    columns_of,
    every,
    is_folder,
    load_function,
    name_of,
    parsed,
)
from telescope.language.data.tasks import Row, Task
from telescope.language.experience.supervised import Texts, texts
from telescope.language.models import causal as models
from telescope.language.models import pretrained
from telescope.language.models.heads import HEAD, Scalar, load_head, require_head
from telescope.language.models.states import output_of, trunk_of
from telescope.language.randomness import PAIRS, generator
from telescope.losses import bradley_terry
from telescope.rewards import text_of

STEPS = 200
"""Steps of the short training of a run's own reward model, with 256 pairs each."""


def accuracy(margins: Tensor) -> float:
    """Share of pairs [B] in which the chosen answer scores higher. A tie counts half, like a guess."""
    return float(torch.where(margins == 0, 0.5, (margins > 0).double()).mean())


class RewardModel:
    """A trunk, a scalar head that is read at the last token, and their tokenizer."""

    def __init__(self, policy: nn.Module, tokenizer: Any, ends: Sequence[int], device: str) -> None:
        """Build on the trunk of a causal LM, with a head of zeros. It takes the trunk over."""
        policy = policy.to(device)
        trunk, width = trunk_of(policy), output_of(policy).shape[1]
        self.network = Scalar(width, trunk).to(device, next(policy.parameters()).dtype)
        self.tokenizer, self.ends, self.device = tokenizer, ends, device
        self.template: Template | None = None
        self.at_once: int | None = None
        """Texts per forward pass in scoring. None: all."""
        self.packed: bool | None = False
        """Whether texts stand in rows without padding."""

    @classmethod
    def load(cls, folder: str, device: str) -> RewardModel:
        """Load from the run folder of `telescope train reward_model`."""
        place = require_head(folder)
        policy, tokenizer = models.load(str(place))
        model = cls(policy.eval(), tokenizer, models.ends_of(policy, tokenizer), device)
        load_head(model.network, place)
        model.network.requires_grad_(False)
        return model

    def last(self, batch: Texts) -> Tensor:
        """The score of each completion [B], read at its last token."""
        values = self.network.along(batch.prompts, (batch.tokens, batch.mask), packed=self.packed)
        return values.gather(1, batch.mask.sum(1, keepdim=True))[:, 0]

    def asked_and_said(self, row: Row, completion: str | list[Message]) -> tuple[str, str]:
        """Prompt and completion as this model reads them: conversations by its own chat template."""
        known = source(row)
        if isinstance(known["prompt"], str):
            return known["prompt"], text_of(completion)
        self.template = self.template or Template(self.tokenizer, "the reward model")
        content, last = text_of(completion), known["prompt"][-1]
        if isinstance(completion, str):
            content = text_of(as_completion(row, completion))
        if last["role"] == "assistant":  # the template joins them
            content = content.removeprefix(self.template.prefill(known))
        found = self.template.render({**known, "chosen": content}, ("chosen",))
        return found["prompt"], found["chosen"]

    @torch.no_grad()
    def scores(self, rows: Sequence[Row], completions: Sequence[str | list[Message]]) -> Tensor:
        """Scores [B] of texts, which are tokenised again because the reward model may have another vocabulary."""
        asked = [self.asked_and_said(row, text) for row, text in zip(rows, completions, strict=True)]
        prompts = [prompt for prompt, _ in asked]
        found = self.read(prompts, [answer for _, answer in asked], [source(row)["prompt"] for row in rows])
        if not bool(found.isfinite().all()):
            wrong = int(found.isfinite().logical_not().nonzero()[0])
            raise FloatingPointError(
                f"the reward model gave {float(found[wrong])} for completion {wrong} ({completions[wrong]!r} to "
                f"{prompts[wrong]!r}); check its training: telescope eval says how many pairs it orders correctly"
            )
        return found

    def read(self, prompts: Sequence[str], answers: Sequence[str], kinds: Sequence[Any]) -> Tensor:
        """Scores [B] of texts. kinds: the prompts as the data has them, texts or conversations."""
        batch = texts(self.tokenizer, prompts, answers, self.ends, self.device)
        size = self.at_once or max(1, len(prompts))
        pieces = [batch.part(slice(start, start + size)) for start in range(0, max(1, len(prompts)), size)]
        return torch.cat([self.last(piece) for piece in pieces]).float()

    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """The scores as a reward function."""
        rows = [
            {"prompt": prompt, **{name: column[i] for name, column in columns.items()}}
            for i, prompt in enumerate(prompts)
        ]
        return self.scores(rows, completions).tolist()  # type: ignore[no-any-return]

    def pair_loss(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """−log σ(r(chosen) − r(rejected)) of each pair [B], and the margin between the scores [B]."""
        return self.loss_of(*self.pairs(rows))

    def pairs(self, rows: Sequence[Row]) -> tuple[Texts, Texts]:
        """The chosen and the rejected answers to the prompts of rows."""
        prompts = [row["prompt"] for row in rows]
        chosen, rejected = (
            texts(self.tokenizer, prompts, [row[name] for row in rows], self.ends, self.device)
            for name in ("chosen", "rejected")
        )
        return chosen, rejected

    def loss_of(self, chosen: Texts, rejected: Texts) -> tuple[Tensor, Tensor]:
        """See `pair_loss`."""
        better, worse = self.last(chosen), self.last(rejected)
        return bradley_terry(better, worse), (better - worse).detach()


class Classifier(RewardModel):
    """A reward model of transformers for sequence classification, with one label, whose logit is the score."""

    def __init__(self, place: str, device: str) -> None:
        network: Any = pretrained.model(place, kind="AutoModelForSequenceClassification")
        if network.config.num_labels != 1:
            raise ValueError(
                f"reward is {place!r}, a classifier with {network.config.num_labels} labels; expected one label, whose "
                "logit is the score"
            )
        self.network = network.to(device).eval().requires_grad_(False)
        self.tokenizer, self.device = pretrained.tokenizer(place), device
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if network.config.pad_token_id is None:
            network.config.pad_token_id = self.tokenizer.pad_token_id
        self.template, self.at_once = None, None

    def read(self, prompts: Sequence[str], answers: Sequence[str], kinds: Sequence[Any]) -> Tensor:
        """Scores [B]. A rendered conversation has all special tokens; other texts get the tokenizer's own."""
        whole = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        ids = [
            self.tokenizer(text, add_special_tokens=isinstance(kind, str))["input_ids"]
            for text, kind in zip(whole, kinds, strict=True)
        ]
        size = self.at_once or max(1, len(ids))
        return torch.cat([self._logits(ids[start : start + size]) for start in range(0, max(1, len(ids)), size)])

    def _logits(self, ids: Sequence[Sequence[int]]) -> Tensor:
        if not ids:
            return torch.zeros(0, device=self.device)
        padded = self.tokenizer.pad({"input_ids": list(ids)}, padding_side="right", return_tensors="pt")
        network: Any = self.network
        return network(**padded.to(self.device)).logits[:, 0].float()  # type: ignore[no-any-return]


def load_reward_model(folder: str, device: str, at_once: int | None = None) -> RewardModel:
    """The reward model that a run trained, or one of transformers for sequence classification."""
    place = require_head(folder)
    model = RewardModel.load(folder, device) if (place / HEAD).is_file() else Classifier(str(place), device)
    model.at_once = at_once
    return model


def scorers_of(config: Any, task: Task, notes: list[str]) -> list[Scorer]:
    """The rewards of a configuration, loaded. Remarks about them are added to the notes."""
    found, sources = list[Scorer](), every(config.reward)
    for one, column in zip(sources, columns_of(sources), strict=True):
        bare, weight = parsed(one)
        if not is_folder(bare):
            found.append(Scorer(load_function(bare), name_of(bare), column, weight))
            continue
        model = load_reward_model(bare, config.device, config.at_once)
        prompts = [row["prompt"] for row in task.held_out[: config.eval_prompts]]
        notes += unknown_characters(model.tokenizer, prompts, bare)
        found.append(Scorer(model.reward, bare, column, weight, model))
    return found


def train_reward_model(model: RewardModel, task: Task, seed: int) -> float:
    """Train briefly on the task's own pairs, for a run without a reward model. Return accuracy on held-out pairs."""
    assert task.pairs is not None
    adam = torch.optim.AdamW(model.network.parameters(), lr=1e-3, weight_decay=0.01)
    for step in range(STEPS):
        loss, _ = model.pair_loss(task.pairs(generator(seed, PAIRS, step), 256))
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.network.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
    model.network.requires_grad_(False)
    with torch.no_grad():
        return accuracy(model.pair_loss(task.pairs(generator(0, PAIRS, STEPS), 1024, held_out=True))[1])

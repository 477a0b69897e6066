"""The reward model: a score for a completion, learned from pairs of which one was preferred.

Bradley & Terry 1952 as in InstructGPT (Ouyang et al. 2022, equation 1). It leaves out the loop of a whole run
(`algorithms/reward_model.py`).
"""

# B completions
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from telescope.language.data.tasks import Row, Task
from telescope.language.experience.supervised import Texts, texts
from telescope.language.models import causal as models
from telescope.language.models.heads import Scalar, load_head, require_head
from telescope.language.models.states import output_of, trunk_of
from telescope.language.randomness import PAIRS, generator
from telescope.losses import bradley_terry

STEPS = 200
"""Of the short training that a run makes for itself, 256 pairs each."""


def accuracy(margins: Tensor) -> float:
    """Share of pairs [B] in which the chosen answer scores higher; a tie counts half, as a guess would be worth."""
    return float(torch.where(margins == 0, 0.5, (margins > 0).double()).mean())


class RewardModel:
    """A trunk, a scalar head read at the last token, and the tokenizer that goes with them."""

    def __init__(self, policy: nn.Module, tokenizer: Any, ends: Sequence[int], device: str) -> None:
        """On the trunk of a causal LM, which it takes over; its head is 0."""
        policy = policy.to(device)
        trunk, width = trunk_of(policy), output_of(policy).shape[1]
        self.network = Scalar(width, trunk).to(device, next(policy.parameters()).dtype)
        self.tokenizer, self.ends, self.device = tokenizer, ends, device
        self.at_once: int | None = None
        """Texts that go through it at a time when it scores; None: all."""

    @classmethod
    def load(cls, folder: str, device: str) -> RewardModel:
        """Back from the run folder of `telescope train reward_model`."""
        place = require_head(folder)
        policy, tokenizer = models.load(str(place))
        model = cls(policy.eval(), tokenizer, models.ends_of(policy, tokenizer), device)
        load_head(model.network, place)
        model.network.requires_grad_(False)
        return model

    def last(self, batch: Texts) -> Tensor:
        """The score of each completion, [B], read at its last token."""
        values = self.network.along(batch.prompts, (batch.tokens, batch.mask))
        return values.gather(1, batch.mask.sum(1, keepdim=True))[:, 0]

    @torch.no_grad()
    def scores(self, rows: Sequence[Row], completions: Sequence[str]) -> Tensor:
        """[B]. Texts are tokenised anew: the reward model need not share the policy's vocabulary."""
        prompts = [row["prompt"] for row in rows]
        batch = texts(self.tokenizer, prompts, completions, self.ends, self.device)
        size = self.at_once or max(1, len(prompts))
        pieces = [batch.part(slice(start, start + size)) for start in range(0, max(1, len(prompts)), size)]
        found = torch.cat([self.last(piece) for piece in pieces]).float()
        if not bool(found.isfinite().all()):
            wrong = int(found.isfinite().logical_not().nonzero()[0])
            raise FloatingPointError(
                f"the reward model gave {float(found[wrong])} for completion {wrong} ({completions[wrong]!r} to "
                f"{prompts[wrong]!r}); was its own training sound? telescope eval says how many pairs it orders right"
            )
        return found

    def reward(self, prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        """The same as a reward function."""
        return self.scores([{"prompt": prompt} for prompt in prompts], completions).tolist()  # type: ignore[no-any-return]

    def pair_loss(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """−log σ(r(chosen) − r(rejected)) of each pair, and the margin between their scores, [B] each."""
        prompts = [row["prompt"] for row in rows]
        chosen, rejected = (
            self.last(texts(self.tokenizer, prompts, [row[name] for row in rows], self.ends, self.device))
            for name in ("chosen", "rejected")
        )
        return bradley_terry(chosen, rejected), (chosen - rejected).detach()


def train_reward_model(model: RewardModel, task: Task, seed: int) -> float:
    """A short training on the task's own pairs, where a run was given no reward model; accuracy on pairs held back."""
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

"""The critic of PPO: values of the states before each token, from a new network or one that another run left.

Leaves out advantages (`objectives/advantages.py`), the update (`algorithms/rlhf.py`) and saving (`models/critics.py`).
"""

# B completions of T tokens
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from telescope.language import parallel
from telescope.language.experience.rollout import Rollout, RolloutSession
from telescope.language.models import causal as models
from telescope.language.models.heads import Scalar, load_head, require_critic


class Critic:
    """A network of its own, or a head on the policy's trunk."""

    def __init__(self, session: RolloutSession) -> None:
        config: Any = session.config
        self.session, self.shared = session, config.value_model == "head"
        self.network = Scalar.on(session.policy) if config.value_start is None else loaded(config, session)
        if self.shared:
            self.network.trunk = None
        session.critic = self.network

    @property
    def warming(self) -> bool:
        """Whether only the critic learns in this step."""
        return self.session.iteration < self.session.config.value_warmup  # type: ignore[attr-defined,no-any-return]

    def values(self, rollout: Rollout, states: Tensor) -> Tensor:
        """Values [B, T] with gradient; [B, T + 1] if the session needs the state after the last token."""
        if self.shared:
            return self.network(states.detach() if self.warming else states)  # type: ignore[no-any-return]
        completions = (rollout.completions.tokens, rollout.completions.present)
        settings: dict[str, Any] = {"after": self.session.after, "packed": self.session.packed}
        return self.network.along(rollout.prompts, completions, rollout.group, **settings)

    @torch.no_grad()
    def values_of(self, rollout: Rollout) -> Tensor:
        """The values of a whole rollout without gradient, computed in micro-batches."""
        parts = [part for _, part in self.session.batches(rollout)]
        found = [self.values(part, self.session.states(part) if self.shared else part.scores) for part in parts]
        width = rollout.completions.tokens.shape[1] + self.session.after
        return parallel.rows(torch.cat([*found, rollout.completions.log_probs.new_zeros(0, width)]))


def grounded(final: Tensor, scores: Tensor, terminated: Tensor) -> Tensor:
    """Values of the states in which completions were cut [B], bounded by the mean score of completions that ended.

    No regression target corrects such a value, so a policy that never ends its completions could exploit an optimistic
    critic. If no completion ended, the mean of all scores is the bound.
    """
    ended = terminated & ~scores.isnan()
    known = scores[ended] if bool(ended.any()) else scores[~scores.isnan()]
    return torch.minimum(final, known.mean()) if len(known) else final.clamp(max=0.0)


def loaded(config: Any, session: RolloutSession) -> Scalar:
    """The critic that the config names: another run's, or a reward model."""
    place, policy = require_critic(config.value_start, own=config.value_model == "own"), session.policy
    network = Scalar.on(policy)
    if config.value_model == "own":
        model, tokenizer = models.load(str(place), dtype=getattr(torch, config.dtype))
        if tokenizer.get_vocab() != session.tokenizer.get_vocab():
            raise ValueError(
                f"value_start is {config.value_start!r}, whose tokens are others than those of {config.model}"
            )
        if config.lora_rank:
            model = models.with_lora(model, config.lora_rank, seed=config.seed)
        weight = next(policy.parameters())
        network = Scalar.on(model.eval()).to(weight.device, weight.dtype)
    load_head(network, place)
    return network

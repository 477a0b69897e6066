"""Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300) and its family on language models.

The loop is `train`; every formula in it is imported. GSPO, Dr. GRPO, DAPO, CISPO, RLOO and REINFORCE use the same loop;
each is a row of `telescope.objectives.rows`.
"""

# N prompts, G completions each, B = N · G completions of T tokens
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from telescope.checks import at_least_zero, unread
from telescope.language import parallel
from telescope.language.config import RolloutConfig
from telescope.language.evaluate import held_out
from telescope.language.experience.dynamic import collect
from telescope.language.experience.off_policy import OFF_POLICY_STATISTICS, corrected, with_correction
from telescope.language.experience.rollout import Rollout, RolloutSession
from telescope.language.experience.statistics import ROLLOUT_STATISTICS, all_equal
from telescope.language.run import Iteration
from telescope.losses import kl_k3
from telescope.objectives.advantages import apart_advantages, penalised_scores, sample_advantages, token_advantages
from telescope.objectives.frameworks import named, with_clip
from telescope.objectives.loss import kl_penalty, largest, mismatch, policy_loss, token_weights
from telescope.objectives.rows import Objective, cautions, describe
from telescope.renamed import takes_former_names
from telescope.seeds import over_seeds
from telescope.threads import own_settings


@takes_former_names
@dataclasses.dataclass(frozen=True)
class GRPO(RolloutConfig):
    """Group-relative policy optimisation: the other completions of the same prompt are the baseline."""

    objective: str = "grpo"
    """Objective: a row of docs/objectives.md (grpo, dapo, gspo, rloo, …), or a framework's version: trl/grpo, …"""
    clip: float | None = None
    """Clip range ε of the policy loss: the probability ratio counts within 1 − ε … 1 + ε. none: the objective's own."""
    clip_high: float | None = None
    """Upper clip range, if it differs: the ratio counts within 1 − clip … 1 + clip_high (DAPO). none: same as clip."""
    beta: float | None = None
    """Coefficient of the KL to the reference model; 0 needs no reference model. none: the objective's own."""
    resample: int = 0
    """Replace groups whose scores are all equal by new prompts, in at most this many rounds (DAPO). 0 keeps them."""
    normalise_each: bool = False
    """With several rewards: compare each within its group by itself, before the weighted sum (GDPO)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_zero(self, "resample", "clip", "clip_high", "beta")
        if row(self).critic:
            raise ValueError(f"objective is {self.objective!r}, which needs a critic: telescope train ppo {self.task}")
        self.require_company(row(self).whiten)
        objective = row(self)
        if not isinstance(self.reward, tuple):
            unread(self, "normalise_each", "give several rewards", "there is at most one reward")
        elif self.normalise_each and (
            objective.baseline == "none" or (objective.beta and objective.kl_place != "loss")
        ):
            raise ValueError(
                f"normalise_each is set, but {self.objective} has no baseline in its group, or its KL in the reward; "
                "choose a row like grpo"
            )
        if self.group < 2 and row(self).baseline != "none":
            raise ValueError(
                f"group is {self.group}, but {self.objective} compares completions of one prompt; expected 2 or more"
            )


ROUNDS = {"dapo": 4}
"""`resample` of the presets whose paper replaces groups of equal scores."""


def preset(task: str, name: str = "grpo", model: str | None = None) -> GRPO:
    """The settings for a task, a row of the table, and a model."""
    return GRPO.on(task, model, objective=name, resample=ROUNDS.get(name, 0))


def row(config: GRPO) -> Objective:
    """The effective objective: the named row, with the columns that the config replaces."""
    objective = with_clip(named(config.objective), config.clip, config.clip_high)
    beta = objective.beta if config.beta is None else config.beta
    return with_correction(dataclasses.replace(objective, beta=beta), config)


STATISTICS = (
    *ROLLOUT_STATISTICS,
    "rounds",
    "kept",
    "policy_loss",
    "kl",
    "kl_reference",
    "clipped",
    "ratio_max",
    "gradient_norm",
    "sampler_mismatch",
    *OFF_POLICY_STATISTICS,
    "skipped",
    "learning_rate",
)


@over_seeds
@own_settings
def train(config: GRPO, resume: dict[str, Any] | None = None) -> Iterator[Iteration]:
    """Train and yield after every step: `.rows` are its metrics, `.state` continues it bit for bit."""
    objective = row(config)
    session = RolloutSession(config, objective, resume, STATISTICS)
    session.notes += [describe(objective), *cautions(objective, updates=config.updates_per_rollout)]
    session.begin({"policy": session.policy}, resume, lambda: held_out(session))
    if resume is None:
        yield session.first()
    for _ in session.iterations():
        rollout, seen = collect(session, config.resample)
        statistics = list[dict[str, float]]()
        with session.timed("update"):
            rollout, apart = corrected(session, rollout)
            advantages = advantages_of(session, rollout)
            for epoch in range(config.epochs):
                for prompts in session.minibatches(epoch):
                    statistics.append(update(session, rollout, advantages, prompts, first=not statistics))
        yield session.finish(summary(session, seen, statistics) | apart, session.table(rollout))


def advantages_of(session: RolloutSession, rollout: Rollout) -> Tensor:
    """Advantages per token [B, T], from the scores of the whole rollout."""
    objective, mask = session.objective, rollout.completions.mask  # [B, T]
    if rollout.apart and rollout.each is not None:
        groups = rollout.each.unflatten(1, (-1, rollout.group))  # [R, N, G]
        advantages = apart_advantages(objective, groups, session.weights).view(-1)  # [B]
        return token_advantages(objective, advantages, mask, usable=~rollout.scores.isnan())
    kl = None
    if rollout.reference is not None and objective.kl_place == "reward":
        kl = kl_penalty(objective, rollout.completions.log_probs, rollout.reference, mask)
    scores = penalised_scores(objective, rollout.scores, kl, mask)
    grouped = scores.view(-1, rollout.group)  # [N, G]
    advantages = sample_advantages(objective, grouped).view(-1)  # [B]
    return token_advantages(objective, advantages, mask, kl, usable=~scores.isnan())


def update(
    session: RolloutSession, rollout: Rollout, advantages: Tensor, prompts: Tensor, *, first: bool
) -> dict[str, float]:
    """One optimiser step on the groups of some prompts, in micro-batches. Weights are those of the whole minibatch."""
    config, objective = session.config, session.objective
    assert isinstance(config, GRPO)
    members = rollout.members(prompts)  # indices [prompts · G]
    some = advantages.view(-1, rollout.group, advantages.shape[1]).ne(0).any(2).any(1)  # [N] has an advantage
    counted = rollout.completions.mask  # [B, T]
    if config.resample:  # groups that could not be replaced count as not sampled
        some = some & ~all_equal(rollout)
        counted = counted & some.repeat_interleave(rollout.group)[:, None]
    weights = torch.zeros_like(advantages)  # [B, T]
    weights[members] = token_weights(objective, counted[members], max_tokens=session.max_tokens)
    learning = prompts
    if config.resample or not (objective.beta and objective.kl_place == "loss"):  # otherwise all groups have a gradient
        learning = prompts[some[prompts]]
    sums: dict[str, Tensor] = {}
    for here, batch in session.batches(rollout, learning) if len(learning) else ():
        mask, old = batch.completions.mask, batch.completions.log_probs
        log_probs = session.log_probs(session.states(batch), batch).log_probs  # [rows of the micro-batch, T]
        reference, correction = batch.reference, batch.correction
        result = policy_loss(
            objective, log_probs, old, advantages[here], mask, reference_log_probs=reference, correction=correction
        )
        loss = (weights[here] * result.loss).sum()
        loss.backward()
        with torch.no_grad():
            found = {
                "policy_loss": loss - objective.beta * (weights[here] * result.kl).sum(),  # without the KL
                "tokens": mask.sum(),
                "kl": (kl_k3(log_probs, old) * mask).sum(),
                "clipped": result.clipped.sum(),
                "ratio_max": largest(result.ratio),
                "sampler_mismatch": mismatch(log_probs, old, mask)["max_difference"],
            }
        for name, value in found.items():
            combine = torch.maximum if name in ("ratio_max", "sampler_mismatch") else torch.add
            sums[name] = combine(sums[name], value.detach()) if name in sums else value.detach()
    norm = session.optimiser.step(session.progress)
    all_sums = parallel.combined(sums, largest=("ratio_max", "sampler_mismatch"))
    tokens = all_sums.pop("tokens", 0.0)
    measured = {name: x / tokens if name in ("kl", "clipped") else x for name, x in all_sums.items() if tokens}
    if not first:
        measured.pop("sampler_mismatch", None)
    return measured | {"gradient_norm": norm, "skipped": 1 - len(learning) / len(prompts)}


def summary(session: RolloutSession, seen: dict[str, float], statistics: list[dict[str, float]]) -> dict[str, float]:
    """The step's metrics by name: those of the rollout, and the mean (of `ratio_max` the maximum) over its updates."""
    found = dict(seen)
    for name in STATISTICS:
        values = [one[name] for one in statistics if name in one]
        if values:
            found[name] = max(values) if name == "ratio_max" else sum(values) / len(values)
    return found | {"learning_rate": session.optimiser.learning_rate}

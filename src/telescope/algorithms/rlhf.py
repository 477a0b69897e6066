"""PPO on language models, with a policy, a value, a reward and a reference model (Ouyang et al. 2022, 2203.02155).

The loop is `train`; every formula in it is imported. A completion is an episode: its end token terminates it, and the
length limit truncates it. The field `truncation` says what a truncated completion is worth.
"""

# N prompts, G completions each, B = N · G completions of T tokens
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from telescope.checks import at_least_zero, in_unit_interval, positive, unread
from telescope.language import parallel
from telescope.language.config import RolloutConfig
from telescope.language.data.tasks import Task
from telescope.language.evaluate import held_out
from telescope.language.experience.critic import Critic, grounded
from telescope.language.experience.off_policy import OFF_POLICY_STATISTICS, corrected, with_correction
from telescope.language.experience.rollout import Rollout, RolloutSession
from telescope.language.experience.statistics import ROLLOUT_STATISTICS, rollout_statistics
from telescope.language.run import Iteration
from telescope.losses import clipped_value_loss, kl_k3, squared_value_loss
from telescope.metrics import explained_variance
from telescope.objectives.advantages import Credit, critic_advantages, token_rewards, whitened
from telescope.objectives.loss import adaptive_kl, kl_penalty, largest, mismatch, policy_loss, token_weights
from telescope.objectives.rows import PPO, Objective, describe
from telescope.renamed import takes_former_names
from telescope.seeds import over_seeds
from telescope.threads import own_settings

KL_AIM = 0.8
"""The controller aims at this share of `kl_limit`, because the KL oscillates around its aim."""

TAKEN = ("gamma", "lam", "lam_rule", "lam_alpha", "lam_border", "returns_lam", "value_clip", "beta")
"""Fields that are columns of the objective."""


@takes_former_names
@dataclasses.dataclass(frozen=True)
class RLHF(RolloutConfig):
    """PPO on completions, with a critic and a penalty on the KL to the reference model."""

    built_in: ClassVar[dict[str, float]] = {"learning_rate": 1e-3, "value_learning_rate": 1e-3}
    given: ClassVar[dict[str, float]] = {"learning_rate": 1e-6, "value_learning_rate": 1e-5}

    gamma: float = 1.0
    """Discount factor γ per token."""
    lam: float = 0.95
    """GAE's λ. 0 trusts one token and the critic; 1 trusts the whole completion."""
    lam_rule: Literal["constant", "end_corrected", "length_adaptive", "per_segment"] = "constant"
    """How λ follows from lam, the completion's length or its improbable tokens. See docs/lambda_rules.md."""
    gae_over: Literal["tokens", "turns"] = "tokens"
    """Whether a step of GAE is a token, or a whole turn of a conversation. With turns, gamma and lam are per turn."""
    lam_alpha: float = 0.05
    """With lam_rule length_adaptive: the horizon of GAE as a share of the completion, λ = 1 − 1/(α length)."""
    lam_border: float = 0.2
    """With lam_rule per_segment: a token that had a lower probability begins a segment. λ is 1 within segments."""
    returns_lam: float | None = None
    """Another λ for the critic's targets, without a rule. 1 gives sampled returns. none: that of the advantages."""
    clip: float = 0.2
    """Clip range ε of PPO's policy loss: the probability ratio counts within 1 − ε … 1 + ε."""
    value_clip: float | None = 0.2
    """Clip range of the value loss around the old values. none: no clipping."""
    value_model: Literal["own", "head"] = "own"
    """Critic: a separate network that starts as a copy of the policy (own), or a value head on the policy (head)."""
    value_learning_rate: float | None = None
    """AdamW's learning rate for the critic. none: 1e-3 for the built-in model, 1e-5 for others."""
    value_coefficient: float = 0.1
    """Weight of the value loss in the total loss. Only with value_model = head."""
    value_warmup: int = 0
    """Number of first steps in which only the critic learns, and the policy stays as it is."""
    value_start: str | None = None
    """Run of PPO whose critic to start from, or a reward model. none: a copy of the policy, with a new value head."""
    whiten: bool = True
    """Whiten advantages over all tokens of the rollout: subtract the mean, divide by the standard deviation."""
    beta: float = 0.01
    """Coefficient of the KL to the reference model in the reward (k1 per token). With kl_limit, the smallest one."""
    kl_limit: float | None = None
    """Upper limit of a completion's KL to the reference model, in nats. A controller raises beta from 0.8 of it on."""
    kl_horizon: int = 10_000
    """Number of completions in which the controller of kl_limit can change beta by a fifth."""
    truncation: Literal["bootstrap", "terminal", "drop", "penalty"] = "terminal"
    """A completion cut at max_tokens counts with its score (terminal), less a penalty, plus V (bootstrap), or not."""
    truncation_penalty: float = 1.0
    """Penalty subtracted from the score of a cut completion. Only with truncation = penalty."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "clip", "value_clip", "value_learning_rate", "kl_limit", "kl_horizon")
        in_unit_interval(self, "gamma", "lam", "returns_lam")
        at_least_zero(self, "value_coefficient", "value_warmup", "beta", "truncation_penalty")
        for name, rule in (("lam_alpha", "length_adaptive"), ("lam_border", "per_segment")):
            if self.lam_rule != rule:
                unread(self, name, f"set lam_rule to {rule!r}", f"lam_rule is {self.lam_rule!r}")
        if self.gae_over == "turns" and self.lam_rule != "constant":
            raise ValueError(f"gae_over is 'turns', but lam_rule is {self.lam_rule!r}, which counts tokens")
        if self.lam_rule == "length_adaptive":
            unread(self, "lam", "set lam_alpha", "lam_rule is 'length_adaptive'")
        self.require_company(row(self).whiten)
        if self.kl_limit is None:
            unread(self, "kl_horizon", "only the controller of kl_limit uses it", "kl_limit is none")
        if self.value_model == "own":
            unread(self, "value_coefficient", "only value_model head uses it", "value_model is 'own'")
        if self.truncation != "penalty":
            unread(self, "truncation_penalty", "take truncation penalty", f"truncation is {self.truncation!r}")
        if self.kl_limit is not None and self.beta == 0:
            raise ValueError("beta is 0, but kl_limit is set; its controller multiplies beta, so set beta above 0")

    def open_task(self) -> Task:
        task = super().open_task()
        if task.game is None:
            unread(self, "gae_over", "give an environment", f"{task.name} is answered in one turn")
        return task


def preset(task: str, model: str | None = None) -> RLHF:
    """The settings for a task and a model."""
    settings: dict[str, Any] = {}
    if task == "lm/taste":
        settings = {"total_steps": 80, "prompts": 128, "group": 4, "beta": 0.1, "kl_limit": 6.0, "kl_horizon": 1000}
    elif task.startswith("lm/"):  # correct answers cannot be exploited, so no KL is needed
        settings = {"beta": 0.0, "value_model": "head"}
    return RLHF.on(task, model, **settings)


def row(config: RLHF) -> Objective:
    """The row of the table that the config describes."""
    taken = {name: getattr(config, name) for name in TAKEN}
    whiten: Literal["none", "unbiased"] = "unbiased" if config.whiten else "none"
    objective = dataclasses.replace(PPO, **taken, clip=(config.clip, config.clip), whiten=whiten)
    return with_correction(objective, config)


class Batch(NamedTuple):
    """What the update learns from."""

    advantages: Tensor  # [B, T]
    returns: Tensor  # [B, T] targets of the critic
    values: Tensor  # [B, T]
    live: Tensor  # [B, T] bool, True on tokens that count
    bootstraps: Tensor  # [B, T] the part of the returns that comes from the values of cut completions


STATISTICS = (
    *ROLLOUT_STATISTICS,
    "policy_loss",
    "value_loss",
    "kl",
    "kl_reference",
    "kl_completion",
    "beta",
    "clipped",
    "ratio_max",
    "explained_variance",
    "bootstrapped",
    "gradient_norm",
    "sampler_mismatch",
    *OFF_POLICY_STATISTICS,
    "learning_rate",
)


@over_seeds
@own_settings
def train(config: RLHF, resume: dict[str, Any] | None = None) -> Iterator[Iteration]:
    """Train and yield after every step: `.rows` are its metrics, `.state` continues it bit for bit."""
    session = RolloutSession(config, row(config), resume, STATISTICS)
    session.notes.append(describe(session.objective) + f"\n  cut off   {config.truncation}")
    session.after = config.truncation == "bootstrap"  # only then the states after the last tokens need a value
    critic = Critic(session)
    session.begin({"policy": session.policy, "value": critic.network}, resume, lambda: held_out(session))
    if resume is None:
        yield session.first()
    for _ in session.iterations():
        rollout = session.collect()
        with session.timed("update"):
            rollout, apart = corrected(session, rollout)
            batch = credit(session, rollout, critic.values_of(rollout))
            statistics = [
                update(session, critic, rollout, batch, prompts)
                for epoch in range(config.epochs)
                for prompts in session.minibatches(epoch)
            ]
        found = summary(session, rollout, batch, statistics) | apart
        if config.kl_limit is not None:
            samples = config.prompts * config.group
            aim, horizon = KL_AIM * config.kl_limit, config.kl_horizon
            beta = adaptive_kl(session.beta, found["kl_completion"], target=aim, samples=samples, horizon=horizon)
            session.beta = max(beta, config.beta)  # never below the config's
        yield session.finish(found, session.table(rollout))


def credit(session: RolloutSession, rollout: Rollout, values: Tensor) -> Batch:
    """Advantages and returns by `gae` on rewards per token."""
    objective, mask = session.objective, rollout.completions.mask
    rewards, usable, cut = priced(session, rollout, values)
    penalty = None
    if session.config.gae_over == "turns":  # type: ignore[attr-defined]
        whole, cut["turn_ends"] = rewards, rollout.completions.turn_ends
        rewards = priced(session, rollout, values, beta=0.0)[0]
        penalty = rewards - whole  # a token's KL is its own, not its turn's
    values = values[:, : mask.shape[1]]
    found = critic_advantages(objective, rewards, values, mask, **cut)
    if penalty is not None:
        found = found._replace(advantages=found.advantages - penalty)
    live = mask & usable[:, None]  # [B, T]
    return Batch(
        whitened(objective, found.advantages, live),
        found.returns,
        values,
        live,
        from_bootstraps(objective, mask, cut).returns,
    )


def priced(
    session: RolloutSession, rollout: Rollout, values: Tensor, *, beta: float | None = None
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Rewards [B, T], which completions count [B], and how they end. This applies `truncation` to cut completions."""
    beta = session.beta if beta is None else beta
    config, objective = session.config, session.objective
    assert isinstance(config, RLHF)
    mask, terminated = rollout.completions.mask, rollout.completions.terminated
    kl = None
    if rollout.reference is not None:
        kl = kl_penalty(objective, rollout.completions.log_probs, rollout.reference, mask)
    scores, usable = rollout.scores, ~rollout.scores.isnan()  # [B]
    if config.truncation == "penalty":
        scores = torch.where(terminated, scores, scores - config.truncation_penalty)
    if config.truncation == "drop":
        usable = usable & terminated
    if (own := rollout.completions.rewards) is not None:  # they come with their turns
        scores = scores - own.sum(1)
    rewards = token_rewards(objective, scores, mask, kl, beta)  # [B, T]
    rewards = rewards if own is None else rewards + own
    ends, final = torch.ones_like(terminated), torch.zeros_like(scores)
    if config.truncation == "bootstrap":
        last = rollout.completions.present.sum(1, keepdim=True)
        ends, final = terminated, grounded(values.gather(1, last)[:, 0], rollout.scores, terminated)
    return rewards, usable, {"terminated": ends, "final_values": final, "log_probs": rollout.completions.log_probs}


def from_bootstraps(objective: Objective, mask: Tensor, cut: dict[str, Any]) -> Credit:
    """The contribution of bootstraps to `gae`. It is linear, so this is `gae` with rewards and values of 0."""
    zeros = torch.zeros_like(mask, dtype=cut["final_values"].dtype)
    return critic_advantages(objective, zeros, zeros, mask, **cut)


def update(
    session: RolloutSession, critic: Critic, rollout: Rollout, batch: Batch, prompts: Tensor
) -> dict[str, float]:
    """One optimiser step of policy and critic, in micro-batches. Weights are those of the whole minibatch."""
    config, objective = session.config, session.objective
    assert isinstance(config, RLHF)
    members = rollout.members(prompts)
    weights = torch.zeros_like(batch.advantages)  # [B, T]
    weights[members] = token_weights(objective, batch.live[members], max_tokens=session.max_tokens)
    found = dict.fromkeys(("policy_loss", "value_loss", "kl", "clipped", "ratio_max", "mismatch"), 0.0)
    for here, part in session.batches(rollout, prompts):
        live, old = batch.live[here], part.completions.log_probs
        states = session.states(part)
        log_probs = session.log_probs(states, part).log_probs  # [rows of the micro-batch, T]
        values = critic.values(part, states)[:, : live.shape[1]]  # [rows of the micro-batch, T]
        result = policy_loss(objective, log_probs, old, batch.advantages[here], live, correction=part.correction)
        policy = (weights[here] * result.loss).sum()
        value = (weights[here] * value_loss(config, values, batch, here)).sum()
        total = (config.value_coefficient if critic.shared else 1.0) * value
        (total if critic.warming else policy + total).backward()
        with torch.no_grad():
            found["policy_loss"] += float(policy)
            found["value_loss"] += float(value)
            found["kl"] += float((weights[here] * kl_k3(log_probs, old)).sum())
            found["clipped"] += float((weights[here] * result.clipped).sum())
            found["ratio_max"] = max(found["ratio_max"], float(largest(result.ratio)))
            found["mismatch"] = max(found["mismatch"], float(mismatch(log_probs, old, live)["max_difference"]))
    measured = found if bool(batch.live[members].any()) else {}  # without a live token there is no loss
    found = parallel.combined(measured, largest=("ratio_max", "mismatch"))
    return found | {"gradient_norm": session.optimiser.step(session.progress)}


def value_loss(config: RLHF, values: Tensor, batch: Batch, rows: Tensor) -> Tensor:
    """The squared error, or with `value_clip` the clipped one; per token."""
    if config.value_clip is None:
        return squared_value_loss(values, batch.returns[rows])
    return clipped_value_loss(values, batch.values[rows], batch.returns[rows], config.value_clip)


def summary(
    session: RolloutSession, rollout: Rollout, batch: Batch, statistics: list[dict[str, float]]
) -> dict[str, float]:
    """The step's metrics by name: those of the rollout, and the mean (of `ratio_max` the maximum) over its updates."""
    found = rollout_statistics(rollout)
    for name in ("policy_loss", "value_loss", "kl", "clipped", "gradient_norm"):
        if measured := [one[name] for one in statistics if name in one]:
            found[name] = sum(measured) / len(measured)
    if ratios := [one["ratio_max"] for one in statistics if "ratio_max" in one]:
        found["ratio_max"] = max(ratios)
    if "mismatch" in statistics[0]:
        found["sampler_mismatch"] = statistics[0]["mismatch"]
    live = batch.live
    other = torch.where(live, batch.returns - batch.bootstraps, 0.0).abs().sum()
    own = torch.where(live, batch.bootstraps, 0.0).abs().sum()
    values, returns = (x.flatten().cpu().numpy() for x in (batch.values, batch.returns))
    explained = float(explained_variance(values, returns, live.flatten().cpu().numpy()))
    if explained == explained:  # NaN if all returns are equal
        found["explained_variance"] = explained
    if rollout.reference is not None:
        distance = (rollout.completions.log_probs - rollout.reference) * rollout.completions.mask
        found["kl_completion"] = float(distance.sum(1).mean())
    if bool(own + other > 0):
        found["bootstrapped"] = float(own / (own + other))
    return found | {"beta": session.beta, "learning_rate": session.optimiser.learning_rate}

"""The policy-gradient family on language models as a table: each named algorithm is a row of `Objective`.

`advantages.py` and `loss.py` compute what the columns say. `frameworks.py` has the rows as other frameworks compute
them, and docs/objectives.md the formulas. Leaves out sampling, and how often samples are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal

from telescope.checks import typed

Level = Literal["token", "sequence", "geometric"]


@dataclass(frozen=True)
class Correction:
    """Weights for samples of another engine than the trainer: w = π_old / π_sampler, within bounds."""

    weight: Level = "token"
    """The weight of a token's loss: its own ratio, the product of its sequence's ratios, or their geometric mean."""
    decision: Level = "token"
    """Which of these is compared with the bounds."""
    outside: Literal["clamp", "drop"] = "clamp"
    """What happens beyond the bounds: the weight is limited to the bound (clamp), or becomes 0 (drop)."""
    low: float = 0.0
    """Lower bound of the ratio."""
    high: float = 2.0
    """Upper bound of the ratio."""

    def __post_init__(self) -> None:
        typed(self)
        if self.outside == "clamp" and self.weight != self.decision:
            raise ValueError(
                f'decision is "{self.decision}" but weight is "{self.weight}"; with outside="clamp" they must be '
                f'equal, only outside="drop" allows another decision'
            )
        if not 0 <= self.low < self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; expected 0 <= low < high, bounds of a ratio")


@dataclass(frozen=True)
class Objective:
    """One row of the table: how scores become advantages, and advantages become losses and weights of tokens."""

    name: str
    # Scores to advantages
    baseline: Literal["none", "group", "others"] = "group"
    """The baseline of a score: 0, the mean of its group, or the mean of the others in its group."""
    scale: Literal["none", "group", "others", "batch"] = "group"
    """The standard deviation that divides a score minus its baseline: of the group, of the others, or of the batch."""
    unbiased: bool = True
    """Compute this standard deviation with n − 1 instead of n."""
    eps: float = 1e-4
    """Added to this standard deviation."""
    singleton: Literal["zero", "score"] = "zero"
    """The advantage of a completion alone in its group: 0, or its raw score."""
    credit: Literal["sequence", "returns", "gae"] = "sequence"
    """The advantage of a token: that of its sequence, the sum of later rewards, or GAE with a critic."""
    whiten: Literal["none", "unbiased", "population"] = "none"
    """Whiten advantages over all live tokens of the batch, with the variance over n − 1 or n."""
    gamma: float = 1.0
    """Discount factor γ per token."""
    lam: float = 1.0
    """GAE's λ."""
    lam_rule: Literal["constant", "end_corrected", "length_adaptive", "per_segment"] = "constant"
    """How the λ of a token follows from `lam`, from the completion's length, or from the tokens' probabilities."""
    lam_alpha: float = 0.05
    """α of `length_adaptive`, which then does not read `lam`."""
    lam_border: float = 0.2
    """A token with a probability below this begins a segment of `per_segment`."""
    returns_lam: float | None = None
    """Another λ for the critic's targets, without a rule. None: that of the advantages."""
    score_at: Literal["last", "after"] = "last"
    """The place that gets the score: the last live token, or the place after it, an extra step of the critic (TRL)."""
    masked: Literal["skipped", "decayed"] = "skipped"
    """Masked tokens between live ones leave the trace unchanged (skipped), or multiply it by γλ each (decayed)."""
    # Advantages to a loss per token
    surrogate: Literal["clip", "cispo", "reinforce"] = "clip"
    """The loss of a token; docs/objectives.md has the formulas."""
    ratio: Literal["token", "sequence", "sequence_token", "sequence_sum"] = "token"
    """The ratio π/π_old: of the token; of the sequence as a geometric mean (GSPO), also with a gradient per token; or
    of the sequence as a product."""
    clip: tuple[float, float] = (0.2, 0.2)
    """The ratio is clipped to 1 − clip[0] … 1 + clip[1]."""
    dual_clip: float | None = None
    """c > 1. Where A < 0 the loss is at most −c A."""
    ratio_cap: float | None = None
    """δ, the upper bound of the ratio in the unclipped term."""
    log_ratio_bounds: tuple[float, float] | None = None
    """Clamp the log-ratio to these bounds before its exponential."""
    weight: Literal["token_mean", "sequence_mean", "sequence_sum", "constant"] = "sequence_mean"
    """The weight of a token: 1/tokens, 1/(sequences · |y|), 1/sequences, or 1/(sequences · the length limit)."""
    # KL to the reference model
    kl: Literal["k1", "k2", "k3"] = "k3"
    """The estimate of the KL per token; docs/objectives.md has the formulas."""
    kl_gradient: Literal["own", "k2", "score", "ratio"] = "own"
    """Gradient of a KL in the loss: its own, that of k2, or the estimate times π/sg(π) or times the ratio."""
    kl_place: Literal["reward", "loss"] = "loss"
    """Where the KL is added."""
    beta: float = 0.0
    """Coefficient of the KL. 0 needs no reference model."""
    kl_bounds: tuple[float, float] | None = None
    """Clamp the log-ratio to ± the first number, and the estimate to ± the second."""
    # Critic, sampler
    value_clip: float | None = 0.2
    """ε of the clipped value loss. None does not clip."""
    correction: Correction | None = None
    """Off-policy weights for samples of another engine. None needs no log-probabilities of the sampler."""

    def __post_init__(self) -> None:
        """Raise a ValueError for columns that contradict each other."""
        typed(self)
        low, high = self.clip
        if not (low >= 0 and high >= 0):
            raise ValueError(f"clip is {self.clip}; expected two numbers that are not negative")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(f"dual_clip is {self.dual_clip}; expected more than 1, because it bounds high ratios")
        if self.credit != "sequence" and self.ratio in ("sequence", "sequence_sum"):
            raise ValueError(
                f'ratio is "{self.ratio}" but credit is "{self.credit}"; one ratio per sequence needs one advantage '
                f'per sequence; use ratio="sequence_token" for advantages per token'
            )
        if self.baseline == "none" and self.scale != "none":
            raise ValueError(
                f'scale is "{self.scale}" but baseline is "none"; scores are scaled only after centring; set a baseline'
            )
        for name, (read, reason) in READ_WHERE.items():
            if not read(self) and getattr(self, name) != _DEFAULTS[name]:
                raise ValueError(f"{name} is {getattr(self, name)}, which {self.name} does not read: {reason}")
        if not self.lam_alpha > 0:
            raise ValueError(f"lam_alpha is {self.lam_alpha}; expected a number above 0, a share of the length")
        if not 0 < self.lam_border <= 1:
            raise ValueError(f"lam_border is {self.lam_border}; expected a probability above 0")
        if self.returns_lam is not None and not 0 <= self.returns_lam <= 1:
            raise ValueError(f"returns_lam is {self.returns_lam}; expected a number in [0, 1]")
        for name in ("eps", "beta", "gamma", "lam"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number that is not negative")

    @property
    def critic(self) -> bool:
        """Whether the objective needs a value model."""
        return self.credit == "gae"


_DEFAULTS = {field.name: field.default for field in fields(Objective)}
_RATIO_ONLY = (lambda row: row.surrogate != "reinforce", 'surrogate "reinforce" has no ratio')
_CLIP_ONLY = (lambda row: row.surrogate == "clip", 'only surrogate "clip" uses it')
_CRITIC_ONLY = (lambda row: row.critic, 'only a critic uses it (credit "gae")')
_STEPS_ONLY = (lambda row: row.credit != "sequence", 'credit "sequence" has no steps')
READ_WHERE: dict[str, tuple[Callable[[Objective], bool], str]] = {
    "clip": _RATIO_ONLY,
    "ratio": _RATIO_ONLY,
    "log_ratio_bounds": _RATIO_ONLY,
    "dual_clip": _CLIP_ONLY,
    "ratio_cap": _CLIP_ONLY,
    "gamma": _STEPS_ONLY,
    "masked": _STEPS_ONLY,
    "score_at": _STEPS_ONLY,
    "lam": _CRITIC_ONLY,
    "lam_rule": _CRITIC_ONLY,
    "lam_alpha": _CRITIC_ONLY,
    "lam_border": _CRITIC_ONLY,
    "returns_lam": _CRITIC_ONLY,
    "value_clip": _CRITIC_ONLY,
    "singleton": (lambda row: row.baseline != "none", 'baseline "none" has no groups'),
    "kl_gradient": (lambda row: row.kl_place == "loss", "in the reward only the value of the KL counts"),
}
"""Columns that some rows do not use. (`eps` and `unbiased` need a `scale`, and those of the KL need a `beta`.)"""

# our rows follow the papers; if a paper does not give a number, it is TRL's
GRPO = Objective("grpo")
DR_GRPO = replace(GRPO, name="dr_grpo", scale="none", weight="constant")
DAPO = replace(GRPO, name="dapo", clip=(0.2, 0.28), weight="token_mean")
GSPO = replace(GRPO, name="gspo", ratio="sequence", clip=(3e-4, 4e-4))
GSPO_TOKEN = replace(GSPO, name="gspo_token", ratio="sequence_token")
CISPO = replace(GRPO, name="cispo", surrogate="cispo", clip=(1.0, 4.0), weight="token_mean")
REINFORCE = Objective("reinforce", scale="none", surrogate="reinforce", weight="sequence_sum")
RLOO = replace(REINFORCE, name="rloo", baseline="others", kl="k1", kl_place="reward", beta=0.05)
REINFORCE_PP = Objective(
    "reinforce++",
    baseline="none",
    scale="none",
    credit="returns",
    whiten="unbiased",
    weight="token_mean",
    kl="k1",
    kl_place="reward",
    beta=0.01,
)
PPO = replace(REINFORCE_PP, name="ppo", credit="gae", lam=0.95, beta=0.05)

ROWS = {row.name: row for row in (REINFORCE, RLOO, REINFORCE_PP, PPO, GRPO, DR_GRPO, DAPO, GSPO, GSPO_TOKEN, CISPO)}
"""Rows by the name that a user types."""


def describe(objective: Objective) -> str:
    """The effective objective in one line per part. A run prints it before it starts."""
    lines = [
        ("score", _score(objective)),
        ("advantage", _CREDIT[objective.credit] + _decay(objective) + _WHITEN[objective.whiten]),
        ("loss", _surrogate(objective)),
        ("weight", _WEIGHT[objective.weight]),
        ("reference", _reference(objective)),
    ]
    if objective.correction:
        lines.append(("sampler", _correction(objective.correction)))
    return "\n".join([objective.name, *(f"  {name:10}{text}".format(**vars(objective)) for name, text in lines)])


def cautions(objective: Objective, *, updates: int, tokens: bool = True) -> list[str]:
    """Warnings about valid but unusual settings. updates: optimiser steps per rollout. tokens: or steps of episodes?"""
    return list(_cautions(objective, updates, tokens))


def _cautions(objective: Objective, updates: int, tokens: bool) -> Iterator[str]:
    if objective.ratio not in ("sequence", "sequence_token"):
        return
    if max(objective.clip) > 0.01 and tokens:
        yield (
            f"clip is {objective.clip}, but a sequence's ratio (a geometric mean over tokens) changes by only about "
            f"0.0005, so nothing will be clipped; GSPO's paper has (0.0003, 0.0004)"
        )
    if updates == 1:
        yield (
            "there is one update per rollout, so the ratio is always 1, and the sequence's ratio and its clip have no "
            "effect; GSPO's paper makes 4 updates"
        )
    if objective.weight != "sequence_mean":
        yield (
            f'weight is "{objective.weight}", so a sequence counts by its length; GSPO takes the mean over sequences, '
            f'"sequence_mean"'
        )


_CREDIT = {
    "sequence": "of a token: its completion's score",
    "returns": "of a token: Σ γ^k r[t+k] of rewards per token, γ = {gamma:g}",
    "gae": "of a token: gae of rewards per token and a critic, γ = {gamma:g}, ",
}
_LAM = {
    "constant": "λ = {lam:g}",
    "end_corrected": "λ = {lam:g}, corrected towards the end",
    "length_adaptive": "λ = 1 − 1 / ({lam_alpha:g} · length)",
    "per_segment": "λ = {lam:g} before tokens of a probability below {lam_border:g}, 1 elsewhere",
}
_WHITEN = {
    "none": "",
    "unbiased": "; whitened over the batch's tokens (variance over n − 1)",
    "population": "; whitened over the batch's tokens (variance over n)",
}
_RATIO = {
    "token": "ρ = π/π_old of the token",
    "sequence": "ρ = (π/π_old of the sequence)^(1/length)",
    "sequence_token": "ρ = (π/π_old of the sequence)^(1/length) with the token's gradient",
    "sequence_sum": "ρ = π/π_old of the sequence",
}
_WEIGHT = {
    "token_mean": "1 / tokens of the batch",
    "sequence_mean": "1 / (sequences of the batch · tokens of its own)",
    "sequence_sum": "1 / sequences of the batch",
    "constant": "1 / (sequences of the batch · the length limit)",
}
_GRADIENT = {"own": "", "k2": ", gradient of k2", "score": ", times π/sg(π)", "ratio": ", times π/π_old"}
_BASELINE = {"none": "r", "group": "r − mean of the group", "others": "r − mean of the others in the group"}


def _decay(objective: Objective) -> str:
    if not objective.critic:
        return ""
    return _LAM[objective.lam_rule] + ("" if objective.returns_lam is None else ", {returns_lam:g} for its targets")


def _score(objective: Objective) -> str:
    text = _BASELINE[objective.baseline]
    if objective.scale != "none":
        whose = {"group": "of the group", "others": "of the others", "batch": "of the batch"}[objective.scale]
        text = f"({text}) / (std {whose}, over n{' − 1' * objective.unbiased}, + {objective.eps:g})"
    return text + ("; alone in its group: r" if objective.singleton == "score" else "")


def _surrogate(objective: Objective) -> str:
    low, high = 1 - objective.clip[0], 1 + objective.clip[1]
    clipped = f"clip(ρ, {low:g}, {high:g})"
    text = {
        "reinforce": "−A log π",
        "cispo": f"−sg({clipped}) A log π",
        "clip": f"−min({'min(ρ, {ratio_cap:g})' if objective.ratio_cap else 'ρ'} A, {clipped} A)",
    }[objective.surrogate]
    if objective.dual_clip:
        text += ", at most −{dual_clip:g} A where A < 0"
    if objective.surrogate != "reinforce":
        text += f"; {_RATIO[objective.ratio]}"
    if objective.log_ratio_bounds:
        text += ", log ρ within [{:g}, {:g}]".format(*objective.log_ratio_bounds)
    return text


def _reference(objective: Objective) -> str:
    if objective.beta == 0:
        return "none (β = 0)"
    bounds = "" if objective.kl_bounds is None else ", of a log-ratio within ±{:g}, within ±{:g}"
    bounds = bounds.format(*objective.kl_bounds or ())
    if objective.kl_place == "reward":
        return "−{beta:g} {kl} in the reward" + bounds
    return "+{beta:g} {kl} in the loss" + _GRADIENT[objective.kl_gradient] + bounds


def _correction(correction: Correction) -> str:
    weight = f"times π_old/π_sampler ({correction.weight})"
    if correction.outside == "clamp":
        return f"{weight}, within [{correction.low:g}, {correction.high:g}]"
    return f"{weight}, 0 where that of the {correction.decision} is not in [{correction.low:g}, {correction.high:g}]"

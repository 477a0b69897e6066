"""The policy-gradient family on language models as a table: each named algorithm is a row of `Objective`.

What the columns do is in `objectives/advantages.py` and `objectives/loss.py`, the rows as other frameworks compute
them in `objectives/frameworks.py`, formulas in docs/objectives.md. It leaves out how often samples are drawn and used.
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
    """Weights for samples of an engine other than the trainer: w = π_old / π_sampler, held within bounds."""

    weight: Level = "token"
    """What multiplies a token's loss: its own ratio, the product over its sequence, or their geometric mean."""
    decision: Level = "token"
    """Which of them must lie within the bounds."""
    outside: Literal["clamp", "drop"] = "clamp"
    """What happens beyond: the weight stops at the bound, or is 0 and the token or sequence drops out."""
    low: float = 0.0
    high: float = 2.0

    def __post_init__(self) -> None:
        typed(self)
        if self.outside == "clamp" and self.weight != self.decision:
            raise ValueError(
                f'decision is "{self.decision}" but weight is "{self.weight}"; with outside="clamp" they are the same '
                f'number, only outside="drop" can judge one by the other'
            )
        if not 0 <= self.low < self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; expected 0 <= low < high, bounds of a ratio")


@dataclass(frozen=True)
class Objective:
    """One row: how scores become advantages, and advantages a loss per token with its weight."""

    name: str
    # Scores to advantages
    baseline: Literal["none", "group", "others"] = "group"
    """What a score is compared with: nothing, the mean of its group, or the mean of the others in it."""
    scale: Literal["none", "group", "others", "batch"] = "group"
    """Whose standard deviation divides it."""
    unbiased: bool = True
    """That deviation with n − 1, not n."""
    eps: float = 1e-4
    """Added to it."""
    singleton: Literal["zero", "score"] = "zero"
    """The advantage of a sample alone in its group: 0, or its raw score."""
    credit: Literal["sequence", "returns", "gae"] = "sequence"
    """Every token has its sequence's advantage, the reward still to come, or the critic's estimate."""
    whiten: Literal["none", "unbiased", "population"] = "none"
    """Whiten advantages over all live tokens of the batch, with the variance over n − 1 or n."""
    gamma: float = 1.0
    lam: float = 1.0
    score_at: Literal["last", "after"] = "last"
    """The token that gets the score: the last live one, or the place after it, an extra step of the critic (TRL)."""
    masked: Literal["skipped", "decayed"] = "skipped"
    """What γλ does over tokens between live ones that are not the policy's own: nothing, or a step each."""
    # Advantages to a loss per token
    surrogate: Literal["clip", "cispo", "reinforce"] = "clip"
    ratio: Literal["token", "sequence", "sequence_token", "sequence_sum"] = "token"
    """Of each token; of the sequence, as a geometric mean (GSPO), with a gradient per token, or as a product."""
    clip: tuple[float, float] = (0.2, 0.2)
    """The ratio counts between 1 − clip[0] and 1 + clip[1]."""
    dual_clip: float | None = None
    """Where A < 0 the loss is at most −c A."""
    ratio_cap: float | None = None
    """δ, the bound of the ratio in the unclipped term."""
    log_ratio_bounds: tuple[float, float] | None = None
    """The log-ratio is clamped to these before its exponential."""
    weight: Literal["token_mean", "sequence_mean", "sequence_sum", "constant"] = "sequence_mean"
    """A token's share: 1/tokens, 1/(sequences · |y|), 1/sequences, or 1/(sequences · the length limit)."""
    # Distance from the reference
    kl: Literal["k1", "k2", "k3"] = "k3"
    kl_gradient: Literal["own", "k2", "score", "ratio"] = "own"
    """In the loss: its own gradient, that of k2, or the estimate times π/sg(π), or times the ratio."""
    kl_place: Literal["reward", "loss"] = "loss"
    beta: float = 0.0
    """Its coefficient. 0: no reference model is needed."""
    kl_bounds: tuple[float, float] | None = None
    """Clamp the log-ratio to ± the first and the estimate to ± the second."""
    # Critic, sampler
    value_clip: float | None = 0.2
    """ε of the clipped value loss; None: not clipped."""
    correction: Correction | None = None
    """For samples of another engine; None: its log-probabilities are not asked for."""

    def __post_init__(self) -> None:
        """Refuse columns that contradict each other."""
        typed(self)
        low, high = self.clip
        if not (low >= 0 and high >= 0):
            raise ValueError(f"clip is {self.clip}; expected two numbers that are not negative")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(f"dual_clip is {self.dual_clip}; expected more than 1, it bounds ratios that are too high")
        if self.credit != "sequence" and self.ratio in ("sequence", "sequence_sum"):
            raise ValueError(
                f'ratio is "{self.ratio}" but credit is "{self.credit}"; one ratio per sequence needs one advantage '
                f'per sequence; take ratio="sequence_token" for advantages per token'
            )
        if self.baseline == "none" and self.scale != "none":
            raise ValueError(
                f'scale is "{self.scale}" but baseline is "none"; scores are scaled after they were centred'
            )
        for name, (read, reason) in READ_WHERE.items():
            if not read(self) and getattr(self, name) != _DEFAULTS[name]:
                raise ValueError(f"{name} is {getattr(self, name)}, which {self.name} does not read: {reason}")
        for name in ("eps", "beta", "gamma", "lam"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number that is not negative")

    @property
    def critic(self) -> bool:
        """Does it need a value model?"""
        return self.credit == "gae"


_DEFAULTS = {field.name: field.default for field in fields(Objective)}
_RATIO_ONLY = (lambda row: row.surrogate != "reinforce", 'surrogate "reinforce" has no ratio')
_CLIP_ONLY = (lambda row: row.surrogate == "clip", 'only surrogate "clip" has a loss that it could bound')
_CRITIC_ONLY = (lambda row: row.critic, 'it belongs to a critic, which is credit "gae"')
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
    "value_clip": _CRITIC_ONLY,
    "singleton": (lambda row: row.baseline != "none", 'baseline "none" compares nothing'),
    "kl_gradient": (lambda row: row.kl_place == "loss", "in the reward only the value of the KL counts"),
}
"""Columns that some rows do not read. `eps` and `unbiased` wait for a `scale`, those of the KL for a `beta`."""

# Our rows follow the papers. Where a paper leaves a number open, TRL's is taken.
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
"""By the name a user types."""


def describe(objective: Objective) -> str:
    """The effective objective, one line for each of its parts: what a run prints before it starts."""
    lines = [
        ("score", _score(objective)),
        ("advantage", _CREDIT[objective.credit] + _WHITEN[objective.whiten]),
        ("loss", _surrogate(objective)),
        ("weight", _WEIGHT[objective.weight]),
        ("reference", _reference(objective)),
    ]
    if objective.correction:
        lines.append(("sampler", _correction(objective.correction)))
    return "\n".join([objective.name, *(f"  {name:10}{text}".format(**vars(objective)) for name, text in lines)])


def cautions(objective: Objective, *, updates: int) -> list[str]:
    """What is allowed but rarely meant, a sentence each. updates: optimiser steps made from one rollout."""
    return list(_cautions(objective, updates))


def _cautions(objective: Objective, updates: int) -> Iterator[str]:
    if objective.ratio not in ("sequence", "sequence_token"):
        return
    if max(objective.clip) > 0.01:
        yield (
            f"clip is {objective.clip}, but the ratio is that of a whole sequence per token, which moves by about "
            f"0.0005: nothing will be clipped; GSPO's paper has (0.0003, 0.0004)"
        )
    if updates == 1:
        yield (
            "there is one update per rollout, so the ratio is always 1 and the sequence's ratio and its clip have no "
            "effect; GSPO's paper makes 4"
        )
    if objective.weight != "sequence_mean":
        yield (
            f'weight is "{objective.weight}", so a sequence counts by its length; the mean over sequences, which '
            f'GSPO is, is "sequence_mean"'
        )


_CREDIT = {
    "sequence": "of a token: its completion's score",
    "returns": "of a token: Σ γ^k r[t+k] of rewards per token, γ = {gamma:g}",
    "gae": "of a token: gae of rewards per token and a critic, γ = {gamma:g}, λ = {lam:g}",
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

"""The policy-gradient family on language models as a table: each named algorithm is a row of `Objective`.

`AS_IN["trl"]["grpo"]` and its kin are the rows as other frameworks compute them. What the columns do is in
`language/advantages.py` and `language/policy_loss.py`; docs/objectives.md has the formulas. It leaves out how often
samples are drawn and used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

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
    """ε of the clipped value loss; None: not clipped. Only read where credit is "gae"."""
    correction: Correction | None = None
    """For samples of another engine; None: its log-probabilities are not asked for."""

    def __post_init__(self) -> None:
        """Refuse columns that contradict each other."""
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
        if self.credit != "sequence" and (self.baseline, self.scale) == ("none", "group"):
            raise ValueError('scale is "group" but baseline is "none"; a group is scaled after it was centred')
        for name in ("eps", "beta", "gamma", "lam"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number that is not negative")

    @property
    def critic(self) -> bool:
        """Does it need a value model?"""
        return self.credit == "gae"


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

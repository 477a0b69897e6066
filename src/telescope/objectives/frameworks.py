"""The rows of the table as other frameworks compute them: `AS_IN["verl"]["grpo"]`.

Each is a row of `rows.py` with some columns replaced, with the framework's default settings. docs/objectives.md shows
the differences side by side, and what each framework was compared with. `--objective verl/grpo` trains with one of
them. Those called `ppo` need a critic and are for your own loops (`critic_advantages`). Leaves out settings beside the
objective, such as learning rates and batch sizes.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

from telescope.objectives.rows import (
    CISPO,
    DAPO,
    DR_GRPO,
    GRPO,
    GSPO,
    GSPO_TOKEN,
    PPO,
    REINFORCE,
    REINFORCE_PP,
    RLOO,
    ROWS,
    Correction,
    Objective,
)

REINFORCE_PP_BASELINE = replace(REINFORCE_PP, name="reinforce++_baseline", baseline="group")


def _all(rows: list[Objective], **shared: Any) -> dict[str, Objective]:
    return {row.name: replace(row, **shared) for row in rows}


# the formulas as printed: no eps, the population's standard deviation
_PAPER = _all(list(ROWS.values()), eps=0.0, unbiased=False) | {
    "grpo": replace(GRPO, eps=0.0, unbiased=False, beta=0.04),
    "ppo": replace(PPO, beta=0.02),  # InstructGPT
}

# one weight per completion: the product of its ratios, or 0 if that exceeds 3
_TRL_SAMPLER = Correction("sequence", "sequence", "drop", high=3.0)
_TRL_GROUP: dict[str, Any] = {"correction": _TRL_SAMPLER, "kl_gradient": "ratio"}
_TRL = _all([DR_GRPO, DAPO, GSPO, CISPO, replace(GRPO, weight="token_mean")], **_TRL_GROUP) | {
    "rloo": replace(RLOO, surrogate="clip", ratio="sequence_sum", weight="sequence_mean"),
    "ppo": replace(PPO, score_at="after", masked="decayed"),
}

_VERL_CLIP: dict[str, Any] = {"dual_clip": 3.0, "log_ratio_bounds": (-20.0, 20.0)}
_VERL_GROUP: dict[str, Any] = {"eps": 1e-6, "singleton": "score", "kl_bounds": (20.0, 10.0)}
_VERL = {
    **_all([DR_GRPO, DAPO, replace(GRPO, weight="token_mean")], **_VERL_GROUP, **_VERL_CLIP),
    **_all([replace(GSPO_TOKEN, name="gspo")], **_VERL_GROUP, log_ratio_bounds=(-inf, 10.0)),
    **_all([replace(CISPO, clip=(0.2, 0.2))], **_VERL_GROUP, log_ratio_bounds=(-20.0, 20.0)),
    **_all([REINFORCE_PP, replace(REINFORCE_PP_BASELINE, credit="sequence")], beta=0.0, **_VERL_CLIP),
    "rloo": replace(RLOO, surrogate="clip", weight="token_mean", beta=0.0, singleton="score", **_VERL_CLIP),
    "ppo": replace(PPO, lam=1.0, beta=0.0, value_clip=0.5, **_VERL_CLIP),
    "reinforce": replace(REINFORCE, weight="token_mean"),
}

# the KL is in the reward of each token, so credit is the sum of later rewards
_OPENRLHF_KL: dict[str, Any] = {"kl": "k1", "kl_place": "reward", "beta": 0.01, "kl_bounds": (inf, 10.0)}
_OPENRLHF_TOKENS: dict[str, Any] = {"masked": "decayed", "weight": "token_mean", "log_ratio_bounds": (-20.0, 20.0)}
_OPENRLHF = {
    **_all([GRPO], eps=1e-9, credit="returns", **_OPENRLHF_KL, **_OPENRLHF_TOKENS),
    **_all([DR_GRPO, replace(RLOO, surrogate="clip")], credit="returns", **_OPENRLHF_KL, **_OPENRLHF_TOKENS),
    **_all([REINFORCE_PP, REINFORCE_PP_BASELINE], whiten="population", **_OPENRLHF_KL, **_OPENRLHF_TOKENS),
    "gspo": replace(GSPO_TOKEN, name="gspo", eps=1e-9, credit="returns", masked="decayed", **_OPENRLHF_KL),
    "ppo": replace(PPO, lam=1.0, whiten="population", value_clip=0.5, **_OPENRLHF_KL, **_OPENRLHF_TOKENS),
}

# mean and standard deviation are those of the other samples of the group
_NEMO_GROUP: dict[str, Any] = {"baseline": "others", "scale": "others", "eps": 1e-6}
_NEMO_KL: dict[str, Any] = {"kl": "k3", "kl_gradient": "score", "beta": 0.01, "kl_bounds": (20.0, 10.0)}
_NEMO = {
    **_all([DAPO, replace(GRPO, weight="token_mean"), GSPO], **_NEMO_GROUP, **_NEMO_KL),
    "reinforce++": replace(
        REINFORCE_PP, baseline="group", credit="sequence", whiten="population", kl_place="loss", **_NEMO_KL
    ),
    "ppo": replace(PPO, clip=(0.2, 0.28), dual_clip=10.0, beta=0.0),
}

# the KL is in the reward of each token
_AREAL: dict[str, Any] = {"eps": 1e-5, "singleton": "score", "credit": "returns", "weight": "token_mean"}
_AREAL_KL: dict[str, Any] = {"kl": "k1", "kl_place": "reward", "beta": 0.1, "kl_bounds": (inf, 10.0)}

AS_IN: dict[str, dict[str, Objective]] = {
    "paper": _PAPER,
    "trl": _TRL,
    "verl": _VERL,
    "openrlhf": _OPENRLHF,
    "nemo": _NEMO,
    "slime": _all([GRPO, GSPO], eps=1e-6),
    "areal": _all([GRPO, replace(GSPO_TOKEN, name="gspo")], **_AREAL, **_AREAL_KL),
    "open_instruct": {
        "grpo": replace(
            DAPO,
            name="grpo",
            scale="none",
            unbiased=False,
            eps=1e-8,
            clip=(0.2, 0.272),
            beta=0.05,
            kl_bounds=(40.0, inf),
            correction=Correction(),
        ),
    },
}
"""Rows by framework and name."""


def named(name: str) -> Objective:
    """The row of this name: that of the table ("dapo"), or a framework's version of it ("trl/dapo").

    Raises:
        ValueError: no row has this name.
    """
    framework, _, row = name.rpartition("/")
    table = AS_IN.get(framework, {}) if framework else ROWS
    if row not in table:
        known = ", ".join(f"{framework}/{one}" if framework else one for one in table)
        frameworks = "" if framework in AS_IN else f"FRAMEWORK/ROW, where FRAMEWORK is one of {', '.join(AS_IN)}"
        raise ValueError(f"objective is {name!r}; expected {' or '.join(filter(None, (known, frameworks)))}")
    return table[row]


def with_clip(objective: Objective, clip: float | None, clip_high: float | None) -> Objective:
    """The row with other clip ranges: `clip` on both sides, `clip_high` above. None keeps the row's own.

    Raises:
        ValueError: the row has no ratio to clip.
    """
    if clip is None and clip_high is None:
        return objective
    if objective.surrogate == "reinforce":
        setting = "clip" if clip_high is None else "clip_high"
        value = clip if clip_high is None else clip_high
        raise ValueError(f"{setting} is {value}, but {objective.name} has no ratio to clip; leave it out")
    low, high = objective.clip if clip is None else (clip, clip)
    return replace(objective, clip=(low, high if clip_high is None else clip_high))

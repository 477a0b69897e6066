"""Statistics of a rollout before the update: scores, lengths, entropy.

Leaves out those of the update, which are in the algorithm's own file.
"""

# N prompts, G completions each, B = N · G completions of T tokens, R rewards
from __future__ import annotations

import torch
from torch import Tensor

from telescope.language.experience.rollout import Rollout
from telescope.losses import kl_k3


def spread(scores: Tensor, group: int) -> Tensor:
    """Scores [B] as [N, G]. The group's mean replaces missing ones."""
    scores = scores.view(-1, group)
    return torch.where(scores.isnan(), scores.nanmean(1, keepdim=True), scores).nan_to_num(0.0)


def all_equal(rollout: Rollout) -> Tensor:
    """[N] bool, True where the scores of a group are all equal; if rewards are compared apart, those of each."""
    several = rollout.each if rollout.apart and rollout.each is not None else rollout.scores[None]  # [R, B]
    groups = torch.stack([spread(scores, rollout.group) for scores in several])  # [R, N, G]
    return (groups.amax(2) == groups.amin(2)).all(0)


def rollout_statistics(rollout: Rollout) -> dict[str, float]:
    """Statistics of a rollout, before the update."""
    mask, scores = rollout.completions.mask, rollout.scores
    scored = scores[~scores.isnan()]
    found = dict[str, Tensor]()
    if len(scored):
        some = (~scores.view(-1, rollout.group).isnan()).any(1)
        found = {"score": scored.mean(), "score_min": scored.min(), "score_max": scored.max()}
        found["score_std"] = spread(scores, rollout.group)[some].std(1, correction=0).mean()
    if rollout.reference is not None:
        found["kl_reference"] = kl_k3(rollout.reference, rollout.completions.log_probs)[mask].mean()
    if rollout.completions.turn_ends is not None:
        found["turns"] = rollout.completions.turn_ends.sum(1).float().mean()
    for name, values in zip(rollout.columns, rollout.each if rollout.each is not None else (), strict=False):
        if bool((known := ~values.isnan()).any()):
            found[name] = values[known].mean()
    return {name: float(value) for name, value in found.items()} | {
        "equal_groups": float(all_equal(rollout).float().mean()),
        "length": float(mask.sum(1).float().mean()),
        "truncated": float((~rollout.completions.terminated).float().mean()),
        "unscored": float(scores.isnan().float().mean()),
        "entropy": float(rollout.completions.entropy.sum() / mask.sum().clamp(min=1)),
    }


ROLLOUT_STATISTICS = (
    "score",
    "score_min",
    "score_max",
    "score_std",
    "equal_groups",
    "length",
    "truncated",
    "unscored",
    "entropy",
)

"""One good call of every public function of losses, the language mathematics and metrics; tensors [B, T]."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from telescope import losses, metrics
from telescope.language import log_probs
from telescope.objectives import advantages
from telescope.objectives import loss as policy_loss
from telescope.objectives import rows as objectives
from telescope.objectives.rows import GRPO, Correction

B, T, V = 3, 4, 7
random = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=random)


MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()
OWNER = torch.arange(B)[:, None].expand(B, T)
BOTH = {"log_probs": normal(B, T), "old_log_probs": normal(B, T)}
WITH_KL = replace(GRPO, beta=0.1)
IN_REWARD = replace(objectives.RLOO, beta=0.1)

CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "importance_ratio": (losses.importance_ratio, BOTH),
    "ratio_of": (losses.ratio_of, {"log_ratio": normal(B, T)}),
    "sequence_log_ratio": (losses.sequence_log_ratio, {**BOTH, "mask": MASK, "owner": OWNER}),
    "anchored": (losses.anchored, {"log_sequence_ratio": normal(B, T), "log_probs": normal(B, T)}),
    "ppo_clip": (
        losses.ppo_clip,
        {"ratio": normal(B, T).exp(), "advantages": normal(B, T), "clip": torch.tensor(0.2), "clip_high": 0.3},
    ),
    "cispo": (
        losses.cispo,
        {"ratio": normal(B, T).exp(), "log_probs": normal(B, T), "advantages": normal(B, T), "low": 0.0, "high": 5.0},
    ),
    "reinforce": (losses.reinforce, {"log_probs": normal(B, T), "advantages": normal(B, T)}),
    "bradley_terry": (losses.bradley_terry, {"chosen": normal(B, T), "rejected": normal(B, T), "margin": normal(B, T)}),
    "squared_value_loss": (losses.squared_value_loss, {"values": normal(B, T), "targets": normal(B, T)}),
    "quantile_huber_loss": (
        losses.quantile_huber_loss,
        {"quantiles": normal(B, T), "targets": normal(B, T), "kappa": 0.5},
    ),
    "gradient_td_loss": (
        losses.gradient_td_loss,
        {"values": normal(B, T), "returns": normal(B, T), "corrections": normal(B, T)},
    ),
    "clipped_value_loss": (
        losses.clipped_value_loss,
        {
            "values": normal(B, T),
            "old_values": normal(B, T),
            "targets": normal(B, T),
            "clip": torch.tensor(0.2),
        },
    ),
    "kl_k1": (losses.kl_k1, BOTH),
    "kl_k2": (losses.kl_k2, BOTH),
    "kl_k3": (losses.kl_k3, BOTH),
    "value_of": (losses.value_of, {"value": normal(B, T), "gradient": normal(B, T)}),
    "per_sequence": (losses.per_sequence, {"x": normal(B, T), "owner": OWNER}),
    "batch_counts": (policy_loss.batch_counts, {"mask": MASK, "owner": OWNER}),
    "token_weights": (policy_loss.token_weights, {"objective": GRPO, "mask": MASK, "owner": OWNER}),
    "policy_loss": (
        policy_loss.policy_loss,
        {
            "objective": WITH_KL,
            **BOTH,
            "advantages": normal(B, T),
            "mask": MASK,
            "reference_log_probs": normal(B, T),
            "correction": normal(B, T).exp(),
            "owner": OWNER,
        },
    ),
    "kl_penalty": (
        policy_loss.kl_penalty,
        {"objective": replace(WITH_KL, kl_gradient="ratio"), **BOTH, "mask": MASK, "reference_log_probs": normal(B, T)},
    ),
    "off_policy_weights": (
        policy_loss.off_policy_weights,
        {
            "correction": Correction(),
            "old_log_probs": normal(B, T),
            "sampler_log_probs": normal(B, T),
            "mask": MASK,
            "owner": OWNER,
        },
    ),
    "mismatch": (
        policy_loss.mismatch,
        {"log_probs": normal(B, T), "sampler_log_probs": normal(B, T), "mask": MASK},
    ),
    "sample_advantages": (
        advantages.sample_advantages,
        {"objective": GRPO, "scores": normal(B, T), "scored": MASK},
    ),
    "penalised_scores": (
        advantages.penalised_scores,
        {"objective": IN_REWARD, "scores": normal(B), "kl": normal(B, T), "mask": MASK},
    ),
    "token_rewards": (
        advantages.token_rewards,
        {"objective": objectives.REINFORCE_PP, "scores": normal(B), "mask": MASK, "kl": normal(B, T)},
    ),
    "token_advantages": (
        advantages.token_advantages,
        {
            "objective": objectives.REINFORCE_PP,
            "advantages": normal(B),
            "mask": MASK,
            "kl": normal(B, T),
            "usable": torch.ones(B).bool(),
        },
    ),
    "critic_advantages": (
        advantages.critic_advantages,
        {
            "objective": objectives.PPO,
            "rewards": normal(B, T),
            "values": normal(B, T),
            "mask": MASK,
            "terminated": torch.tensor([True, False, True]),
            "final_values": normal(B),
        },
    ),
    "whitened": (
        advantages.whitened,
        {"objective": objectives.REINFORCE_PP, "advantages": normal(B, T), "mask": MASK},
    ),
    "token_log_probs": (
        log_probs.token_log_probs,
        {
            "hidden": normal(B, T, 5),
            "weight": normal(V, 5),
            "tokens": torch.randint(V, (B, T), generator=random),
            "mask": MASK,
            "bias": normal(V),
        },
    ),
    "sampling_support": (log_probs.sampling_support, {"logits": normal(B, V), "top_k": 3, "top_p": 0.9}),
    "iqm": (metrics.iqm, {"scores": normal(5)}),
    "bootstrap_ci": (metrics.bootstrap_ci, {"scores": normal(5), "resamples": 10}),
    "intervals": (metrics.intervals, {"scores": normal(6, 3)}),
    "probability_of_improvement": (metrics.probability_of_improvement, {"x": normal(5), "y": normal(4)}),
    "improvement_replicates": (metrics.improvement_replicates, {"x": normal(5), "y": normal(4), "resamples": 10}),
    "performance_profile": (metrics.performance_profile, {"scores": normal(5, 2), "thresholds": normal(3)}),
    "profile_interval": (metrics.profile_interval, {"scores": normal(5, 2), "thresholds": normal(3)}),
    "optimality_gap": (metrics.optimality_gap, {"scores": normal(5)}),
    "pass_at_k": (metrics.pass_at_k, {"passed": [0.0, 1.0, 2.0, 3.0, 4.0], "samples": 8, "k": 2}),
    "explained_variance": (
        metrics.explained_variance,
        {"values": normal(B, T), "returns": normal(B, T), "mask": MASK},
    ),
    "summarise": (metrics.summarise, {"per_seed_episode_returns": normal(B, T)}),
}

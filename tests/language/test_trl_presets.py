"""TRL's presets against TRL's own code: its losses and their gradients, on batches drawn at random.

Kills: a preset that is called TRL's and computes something else. Only the loss functions are run, on log-probabilities
that are given; who sampled, and the trainer around it, are left out.
"""

from collections import defaultdict
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from telescope.objectives.frameworks import AS_IN
from telescope.objectives.loss import Counts, off_policy_weights, policy_loss, token_weights

trl = pytest.importorskip("trl")
LIMIT = 8
TRL = AS_IN["trl"]


def batch(seed: int, *, empty: bool = False) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    new, old, reference = torch.randn(3, 6, 5, generator=random, dtype=torch.float64) * 0.4 - 1
    mask = torch.arange(5) < torch.randint(1, 6, (6, 1), generator=random)
    if empty:
        mask[2] = False
    advantages = torch.randn(6, generator=random, dtype=torch.float64)
    return {"new": new, "old": old, "reference": reference, "mask": mask, "advantages": advantages}


def trainer(config: Any, new: torch.Tensor) -> Any:
    """As much of a trainer as its loss function asks."""
    accelerator = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    return SimpleNamespace(
        **{name: getattr(config, name, None) for name in ("loss_type", "beta", "importance_sampling_level")},
        args=SimpleNamespace(
            delta=None, use_bias_correction_kl=getattr(config, "use_bias_correction_kl", None), steps_per_generation=1
        ),
        epsilon_low=config.epsilon,
        epsilon_high=config.epsilon_high or config.epsilon,
        max_completion_length=LIMIT,
        accelerator=accelerator,
        model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *arguments, **options: (new, torch.zeros_like(new), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
    )


def theirs(config: Any, x: dict[str, torch.Tensor], new: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    from trl.trainer.grpo_trainer import GRPOTrainer

    mask = x["mask"].long()
    inputs = {
        "prompt_ids": mask[:, :1],
        "prompt_mask": mask[:, :1],
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": x["advantages"],
        "old_per_token_logps": x["old"],
        "ref_per_token_logps": x["reference"],
        "importance_sampling_ratio": weights,
        "num_items_in_batch": mask.sum(),
    }
    return GRPOTrainer._compute_loss(trainer(config, new), None, inputs)


CONFIGS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dapo": {"epsilon_high": 0.28},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "gspo": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
    },
}


def setting(name: str, beta: float) -> Any:
    """TRL's defaults, with what the algorithm's own paper or TRL's docs change."""
    defaults = {field.name: field.default for field in fields(trl.GRPOConfig)}
    return SimpleNamespace(**{**defaults, **CONFIGS[name], "beta": beta})


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("name", [name for name in TRL if name not in ("rloo", "ppo")])
def test_the_loss_and_its_gradient_are_trls(name: str, beta: float) -> None:
    if name == "gspo" and beta:
        pytest.skip("TRL multiplies the KL by its sequence's ratio, which no row does")
    objective, config = replace(TRL[name], beta=beta), setting(name, beta)
    assert (config.scale_rewards, config.vllm_importance_sampling_mode) == ("group", "sequence_mask")
    assert objective.correction is not None
    assert objective.correction.high == config.vllm_importance_sampling_clip_max
    for seed in range(20):
        x = batch(seed)
        sampler = x["old"] + 0.3 * torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        correction = off_policy_weights(objective.correction, x["old"], sampler, x["mask"])
        found, wanted = x["new"].clone().requires_grad_(), x["new"].clone().requires_grad_()
        weights = token_weights(objective, x["mask"], max_tokens=LIMIT, dtype=torch.float64)
        loss = policy_loss(
            objective, found, x["old"], x["advantages"][:, None].expand(6, 5), x["mask"],
            reference_log_probs=x["reference"], correction=correction,
        ).loss  # fmt: skip
        right = theirs(config, x, wanted, correction)
        torch.testing.assert_close((weights * loss).sum(), right)
        (weights * loss).sum().backward()
        right.backward()
        torch.testing.assert_close(found.grad, wanted.grad)


def test_the_leave_one_out_loss_is_trls() -> None:
    from trl.trainer.rloo_trainer import RLOOTrainer

    defaults = {field.name: field.default for field in fields(trl.RLOOConfig)}
    objective, config = TRL["rloo"], SimpleNamespace(**defaults)
    assert (objective.beta, objective.clip) == (config.beta, (config.epsilon, config.epsilon))
    for seed in range(20):
        x = batch(seed)
        found, wanted = x["new"].clone().requires_grad_(), x["new"].clone().requires_grad_()
        mask = x["mask"].long()
        inputs = {
            "prompt_ids": mask[:, :1], "prompt_mask": mask[:, :1], "completion_ids": mask, "completion_mask": mask,
            "advantages": x["advantages"], "old_logps": (x["old"] * mask).sum(1),
        }  # fmt: skip
        right = RLOOTrainer._compute_loss(trainer(config, wanted), None, inputs)
        loss = policy_loss(objective, found, x["old"], x["advantages"][:, None].expand(6, 5), x["mask"]).loss
        ours = (token_weights(objective, x["mask"], dtype=torch.float64) * loss).sum()
        torch.testing.assert_close(ours, right)
        ours.backward()
        right.backward()
        torch.testing.assert_close(found.grad, wanted.grad)


@pytest.mark.parametrize("name", ["dr_grpo", "gspo"])
def test_trl_counts_completions_without_live_tokens(name: str) -> None:
    """Ours does not; `counts` makes it TRL's number."""
    x, objective = batch(0, empty=True), TRL[name]
    loss = policy_loss(objective, x["new"], x["old"], x["advantages"][:, None].expand(6, 5), x["mask"]).loss
    right = theirs(setting(name, 0.0), x, x["new"], torch.ones(6, 5))
    counts = Counts(x["mask"].sum(), torch.tensor(len(x["mask"])))
    for given, same in ((None, False), (counts, True)):
        weights = token_weights(objective, x["mask"], max_tokens=LIMIT, counts=given, dtype=torch.float64)
        assert torch.allclose((weights * loss).sum(), right) == same


def test_what_is_compared_with_is_trl_1() -> None:
    assert trl.__version__.split(".")[0] == "1", f"compared with TRL 1, not {trl.__version__}"

"""One update of each language trainer on given data: its statistics, and the gradient of every parameter.

`torchrun tests/updates.py FILE` writes what each of several processes has; the tests compare it with one process's.
It leaves out how sampling ties break: all data is drawn where they are far away.
"""

# N prompts, G completions each
from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from telescope.algorithms import grpo, reward_model, rlhf, sft
from telescope.language import parallel
from telescope.language.experience.off_policy import corrected
from telescope.language.experience.rollout import Rollout, RolloutSession

SHARDINGS = ("ddp", "fsdp")
QUICK = {"threads": 1, "eval_prompts": 3, "eval_every": 0, "max_grad_norm": 1e9, "total_steps": 1}
ROLLOUTS = {"group": 4, "minibatches": 1, "warm_start": 0.0}

GRPO = {  # 5 prompts fall to two ranks as 3 and 2; one group that learns leaves the second without any
    "grpo": {"objective": "grpo", "prompts": 4},
    "grpo, uneven": {"objective": "grpo", "prompts": 5, "micro_batch": 8},
    "grpo, one group learns": {"objective": "grpo", "prompts": 5, "learning": 1},
    "grpo, none learns": {"objective": "grpo", "prompts": 4, "learning": 0},
    "grpo with a KL": {"objective": "grpo", "prompts": 5, "beta": 0.1},
    "dr_grpo": {"objective": "dr_grpo", "prompts": 5},
    "gspo": {"objective": "gspo", "prompts": 5, "micro_batch": 4},
    "dapo": {"objective": "dapo", "prompts": 5, "learning": 3, "resample": 1},
    "off-policy": {"objective": "cispo", "prompts": 5, "off_policy": "truncate"},
    "whitened": {"objective": "reinforce++", "prompts": 5, "beta": 0.1},
    "adapter": {"objective": "grpo", "prompts": 5, "lora_rank": 4, "beta": 0.1},
    "a budget of tokens": {"objective": "grpo", "prompts": 5, "micro_tokens": 40},
    "packed": {"objective": "grpo", "prompts": 5, "packing": "on", "gradient_checkpointing": True},
}
RLHF = {
    "ppo, own critic": {"prompts": 5, "value_model": "own", "beta": 0.05, "micro_batch": 8},
    "ppo, head": {"prompts": 4, "value_model": "head", "beta": 0.0},
    "ppo, off-policy": {"prompts": 5, "value_model": "head", "beta": 0.0, "off_policy": "mask"},
    "ppo, adapters": {"prompts": 5, "value_model": "own", "beta": 0.0, "lora_rank": 4},
    "ppo, bootstrapped": {"prompts": 5, "value_model": "own", "beta": 0.0, "truncation": "bootstrap"},
}
SUPERVISED = {
    "sft": sft.SFT(task="lm/addition", batch_size=7, micro_batch=2),
    "sft, adapter": sft.SFT(task="lm/addition", batch_size=7, lora_rank=4),
    "sft, a budget of tokens": sft.SFT(task="lm/addition", batch_size=7, micro_tokens=25),
    "sft, two rows": sft.SFT(task="lm/addition", batch_size=2),
    "sft, one row": sft.SFT(task="lm/addition", batch_size=1),
    "reward_model": reward_model.RewardModelling(batch_size=7, micro_batch=3),
    "reward_model, one pair": reward_model.RewardModelling(batch_size=1),
}
CASES = (*GRPO, *RLHF, *SUPERVISED)


def run(case: str, sharding: str = "ddp") -> dict[str, Any]:
    """Statistics and gradients of a case, these by the order of the parameters; empty where there was none."""
    gradients = list[torch.Tensor]()

    def remember(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        given = [p.grad for group in optimiser.param_groups for p in group["params"]]
        gradients.extend(parallel.whole(g).clone() for g in given if g is not None)

    hook = register_optimizer_step_pre_hook(remember)
    try:
        statistics = _run(case, QUICK | {"sharding": sharding})
    finally:
        hook.remove()
    return {"statistics": statistics, "gradients": gradients}


def _run(case: str, settings: dict[str, Any]) -> dict[str, float]:
    if case in SUPERVISED:
        module = sft if case.startswith("sft") else reward_model
        *_, last = module.train(dataclasses.replace(SUPERVISED[case], **settings))
        names = [name for name in module.STATISTICS if name in last.rows[0]]
        return {name: last.rows[0][name] for name in names}
    module, presets = (grpo, GRPO) if case in GRPO else (rlhf, RLHF)
    chosen = dict(presets[case])
    learning = chosen.pop("learning", None)
    config = dataclasses.replace(module.preset("lm/addition"), **ROLLOUTS, **settings, **chosen)
    session = RolloutSession(config, module.row(config), None, module.STATISTICS)
    if module is grpo:
        session.begin({"policy": session.policy}, None)
        rollout, _ = corrected(session, altered(session.collect(), learning))
        advantages = grpo.advantages_of(session, rollout)
        return grpo.update(session, rollout, advantages, torch.arange(config.prompts), first=True)
    session.after = config.truncation == "bootstrap"
    critic = rlhf.Critic(session)
    torch.nn.init.normal_(critic.network.head.weight, generator=torch.Generator().manual_seed(3))
    session.begin({"policy": session.policy, "value": critic.network}, None)
    rollout, _ = corrected(session, altered(session.collect(), learning))
    batch = rlhf.credit(session, rollout, critic.values_of(rollout))
    return rlhf.update(session, critic, rollout, batch, torch.arange(config.prompts))


def altered(rollout: Rollout, learning: int | None) -> Rollout:
    """With scores of which some are missing, and log-probabilities of a policy that has moved on; `learning` groups."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(len(rollout.scores), generator=generator)
    scores[1] = torch.nan
    if learning is not None:
        scores[learning * rollout.group :] = 0.5
    completions = rollout.completions
    moved = 0.3 * torch.randn(completions.log_probs.shape, generator=generator)
    log_probs = torch.where(completions.mask, completions.log_probs + moved, 0.0)
    return rollout._replace(scores=scores, completions=completions._replace(log_probs=log_probs))


def refused() -> str:
    """What every rank is told when the first one's work is a ValueError."""

    def wrong() -> None:
        raise ValueError(f"said by rank {parallel.rank()}")

    try:
        parallel.from_first(wrong)
    except ValueError as error:
        return str(error)
    return "nothing"


if __name__ == "__main__":
    torch.set_num_threads(1)
    parallel.join("cpu")
    found = {(case, sharding): run(case, sharding) for sharding in SHARDINGS for case in CASES}
    agreed = [parallel.agree([15] if parallel.rank() == 1 else [], False), parallel.agree([], parallel.rank() == 0)]
    torch.save({"found": found, "agreed": agreed, "refused": refused()}, f"{sys.argv[1]}.{parallel.rank()}")
    parallel.leave(0)

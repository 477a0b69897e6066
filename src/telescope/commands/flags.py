"""What other libraries call our flags, so that a flag typed from memory is answered with the right one.

One table for every algorithm: of the names behind an alias, those count that the command at hand has.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

ALIASES: dict[str, tuple[str, ...]] = {
    # Stable-Baselines3 and its zoo
    "total-timesteps": ("total-steps",),
    "timesteps": ("total-steps",),
    "n-timesteps": ("total-steps",),
    "n-steps": ("num-steps",),
    "n-envs": ("num-envs",),
    "n-epochs": ("epochs",),
    "batch-size": ("minibatch-size", "prompts", "batch-size"),
    "gae-lambda": ("lam",),
    "ent-coef": ("entropy-coefficient",),
    "vf-coef": ("value-coefficient",),
    "clip-range": ("clip",),
    "clip-range-vf": ("value-clip",),
    "normalize-advantage": ("normalise-advantages", "whiten"),
    "normalize": ("normalise-observations",),
    "norm-obs": ("normalise-observations",),
    "norm-reward": ("normalise-rewards",),
    "clip-obs": ("clip-observations",),
    "clip-reward": ("clip-rewards",),
    "net-arch": ("hidden",),
    "activation-fn": ("activation",),
    "log-std-init": ("log-std",),
    "max-steps": ("total-steps",),
    "eval-freq": ("eval-every",),
    "n-eval-episodes": ("eval-episodes", "episodes"),
    "deterministic": ("stochastic",),
    "algo": (),
    "max-episode-steps": ("env-kwargs", "max-steps"),
    # CleanRL
    "num-timesteps": ("total-steps",),
    "env-id": ("env",),
    "anneal-lr": ("anneal-learning-rate",),
    "update-epochs": ("epochs",),
    "num-minibatches": ("minibatch-size", "minibatches"),
    "norm-adv": ("normalise-advantages", "whiten"),
    "clip-coef": ("clip",),
    "clip-vloss": ("clip-value-loss", "value-clip"),
    "cuda": ("device",),
    "gpu": ("device",),
    "exp-name": ("out",),
    "capture-video": ("video",),
    # the paper, and everybody's short names
    "lr": ("learning-rate",),
    "lambda": ("lam",),
    "gae-lam": ("lam",),
    "discount": ("gamma",),
    "epsilon": ("clip",),
    "eps": ("clip", "adam-eps"),
    "entropy-coef": ("entropy-coefficient",),
    "value-coef": ("value-coefficient",),
    "horizon": ("num-steps",),
    "rollout-length": ("num-steps",),
    "steps": ("total-steps",),
    "num-seeds": ("seeds",),
    "n-seeds": ("seeds",),
    "num-workers": ("processes",),
    "num-processes": ("processes",),
    "workers": ("processes",),
    "output": ("out",),
    "output-dir": ("out",),
    "out-dir": ("out",),
    "log-dir": ("out",),
    "save-dir": ("out",),
    "save-path": ("out",),
    "checkpoint": ("resume",),
    "resume-from-checkpoint": ("resume",),
    "n-episodes": ("episodes",),
    "num-episodes": ("episodes",),
    "sample": ("stochastic",),
    # TRL, verl, OpenRLHF
    "num-generations": ("group",),
    "n-samples-per-prompt": ("group",),
    "rollout-n": ("group",),
    "group-size": ("group",),
    "kl-coef": ("beta",),
    "init-kl-coef": ("beta",),
    "kl-coefficient": ("beta",),
    "num-train-epochs": ("epochs", "total-steps"),
    "num-ppo-epochs": ("epochs",),
    "ppo-epochs": ("epochs",),
    "num-mini-batches": ("minibatches",),
    "train-batch-size": ("prompts", "batch-size"),
    "rollout-batch-size": ("prompts",),
    "per-device-train-batch-size": ("micro-batch",),
    "gradient-accumulation-steps": ("micro-batch",),
    "max-completion-length": ("max-tokens",),
    "max-new-tokens": ("max-tokens",),
    "response-length": ("max-tokens",),
    "model-name-or-path": ("model",),
    "pretrain": ("model",),
    "dataset": ("task",),
    "data": ("task",),
    "dataset-name": ("task",),
    "reward-funcs": ("reward",),
    "reward-function": ("reward",),
    "lora-r": ("lora-rank",),
    "warmup-steps": ("lr-warmup",),
    "bf16": ("dtype",),
    "torch-dtype": ("dtype",),
    "loss-type": ("objective",),
}

REMARKS = {
    "vf-coef": "twice Stable-Baselines3's number, because our value loss has a factor ½",
    "deterministic": "evaluation takes the policy's mode unless --stochastic is given",
    "max-episode-steps": "a registered id takes a time limit: --env-kwargs max_episode_steps 500",
    "num-minibatches": "a size or a number, as its help says",
    "num-mini-batches": "a number",
    "gradient-accumulation-steps": "completions per forward pass; their number follows",
    "bf16": "--dtype bfloat16",
    "cuda": "--device cuda",
    "gpu": "--device cuda",
    "algo": "the algorithm is the word after train, without a flag",
    "env-id": "or the word after the algorithm, without a flag",
}


def unknown_flag(name: str, known: Mapping[str, Any], title: str) -> str:
    """The sentence for `--name`, which is none of the `known` ones."""
    bare = name.removeprefix("no-")
    meant = [flag for flag in ALIASES.get(bare, ()) if flag in known][:1]
    meant = meant or difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(bare, known, n=1)
    remark = f" ({REMARKS[bare]})" if bare in REMARKS else ""
    no = "no-" if name != bare and meant and known[meant[0]] is bool else ""
    others = "; a run keeps its settings: one with others begins with --start RUN, of a language model with --model RUN"
    kept = others if "--resume" in title else ""
    listed = f"`{title} --help` lists those it has{remark}{kept}"
    hint = f"did you mean --{no}{meant[0]}?{remark}" if meant else listed
    return f"there is no flag --{name} here; {hint}"

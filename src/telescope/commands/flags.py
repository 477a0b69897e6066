"""Other libraries' names for our flags, so that the error about an unknown flag can name ours.

The table serves all algorithms. If several of our flags share another library's name, the first one that the command
has is suggested.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

ALIASES = {
    # training
    "epochs": "n-epochs update-epochs num-train-epochs num-ppo-epochs ppo-epochs",
    "total-steps": "total-timesteps timesteps n-timesteps num-timesteps max-steps steps num-train-epochs",
    "num-steps": "n-steps horizon rollout-length",
    "num-envs": "n-envs",
    "minibatch-size": "batch-size num-minibatches",
    "minibatches": "num-minibatches num-mini-batches",
    "prompts": "batch-size train-batch-size rollout-batch-size",
    "batch-size": "train-batch-size",
    "micro-batch": "per-device-train-batch-size gradient-accumulation-steps",
    "group": "num-generations n-samples-per-prompt rollout-n group-size",
    "max-tokens": "max-completion-length max-new-tokens response-length",
    "seeds": "num-seeds n-seeds",
    "processes": "num-workers num-processes workers",
    "device": "cuda gpu",
    "dtype": "bf16 torch-dtype",
    # learning
    "learning-rate": "lr",
    "anneal-learning-rate": "anneal-lr",
    "min-lr-ratio": "min-lr-rate min-lr anneal-lr",
    "lr-warmup": "warmup-steps",
    "gamma": "discount",
    "lam": "gae-lambda lambda gae-lam",
    "clip": "clip-range clip-coef epsilon eps clip-ratio clip-ratio-low",
    "clip-high": "epsilon-high clip-ratio-high",
    "kl-limit": "kl-target",
    "adam-eps": "eps",
    "value-clip": "clip-range-vf clip-vloss",
    "entropy-coefficient": "ent-coef entropy-coef",
    "value-coefficient": "vf-coef value-coef",
    "beta": "kl-coef init-kl-coef kl-coefficient",
    "objective": "loss-type",
    "normalise-advantages": "normalize-advantage norm-adv",
    "whiten": "normalize-advantage norm-adv",
    "normalise-observations": "normalize norm-obs",
    "normalise-rewards": "norm-reward",
    "clip-observations": "clip-obs",
    "clip-rewards": "clip-reward",
    "alpha": "ent-coef entropy-coef temperature",
    "entropy-target": "target-entropy",
    "policy-delay": "policy-frequency",
    "tau": "polyak",
    "hidden": "net-arch",
    "activation": "activation-fn",
    "log-std": "log-std-init",
    "memory": "recurrent lstm use-lstm use-rnn",
    "memory-size": "gru lstm-hidden-size rnn-hidden-size",
    "lora-rank": "lora-r",
    # environment and model
    "env": "env-id",
    "time-limit": "max-episode-steps",
    "wrap": "wrapper wrappers env-wrapper",
    "frame-stack": "framestack num-stack n-stack",
    "network-module": "policy-kwargs",
    "task": "dataset data dataset-name",
    "model": "model-name-or-path pretrain",
    "reward": "reward-funcs reward-function reward-weights reward-model",
    "value-warmup": "critic-warmup",
    "normalise-each": "multi-objective-aggregation",
    "loss-on": "assistant-only-loss completion-only-loss train-on-responses-only",
    # evaluation and files
    "eval-every": "eval-freq",
    "eval-episodes": "n-eval-episodes",
    "episodes": "n-eval-episodes n-episodes num-episodes",
    "max-steps": "max-episode-steps",
    "stochastic": "deterministic sample",
    "video": "capture-video",
    "out": "exp-name output output-dir out-dir log-dir save-dir save-path",
    "resume": "checkpoint resume-from-checkpoint",
}
"""Our flag → its names in Stable-Baselines3, CleanRL, TRL, verl, OpenRLHF, and common short names."""

SHORT = {"squash": ("action-bounds", "squash"), "network": ("network-module",), "envs-per-actor": ("num-envs",)}
"""Our own short forms: flag → the flag that it stands for, and its value if the short form takes none."""
REPEATABLE = {"wrap"}
"""Flags that may be given several times; their values follow one another."""
REMARKS = {
    "vf-coef": "twice Stable-Baselines3's number, because our value loss has a factor ½",
    "deterministic": "evaluation takes the policy's mode unless --stochastic is given",
    "max-episode-steps": "each episode is truncated there",
    "num-minibatches": "a size or a number, as its help says",
    "num-mini-batches": "a number",
    "gradient-accumulation-steps": "completions per forward pass; their number follows",
    "bf16": "--dtype bfloat16",
    "cuda": "--device cuda",
    "gpu": "--device cuda",
    "algo": "the algorithm is the word after train, without a flag",
    "reward-weights": "a weight follows its reward: --reward f.py:a f.py:b@0.3",
    "multi-objective-aggregation": "normalize_then_sum is --normalise-each",
    "env-id": "or the word after the algorithm, without a flag",
}


MEMORY = "an algorithm with memory: ppo, a2c, a3c, trpo, npg, impala or appo"
ELSEWHERE = dict.fromkeys(("memory", "memory-size", "shared-memory"), MEMORY)
"""Flags that only some algorithms have: what they need."""


def short_for(flag: str | None, told: list[str], known: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """The flag and values that a short form stands for; others stay."""
    long, *value = SHORT.get(flag or "", ("",))
    return (long, [*value, *told]) if flag not in known and long in known else (flag, told)


def unknown_flag(name: str, known: Mapping[str, Any], title: str) -> str:
    """The error sentence for `--name`, which is not one of the `known` flags."""
    bare = name.removeprefix("no-")
    if bare in ELSEWHERE:
        return f"there is no flag --{name} here; it needs {ELSEWHERE[bare]}"
    meant = [flag for flag, names in ALIASES.items() if bare in names.split() and flag in known][:1]
    meant = meant or difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(bare, known, n=1)
    remark = f" ({REMARKS[bare]})" if bare in REMARKS else ""
    no = "no-" if name != bare and meant and known[meant[0]] is bool else ""
    others = (
        "; a run keeps its settings; to change them, begin a new run with --start RUN (language model: --model RUN)"
    )
    kept = others if "--resume" in title else ""
    listed = f"`{title} --help` lists the flags{remark}{kept}"
    hint = f"did you mean --{no}{meant[0]}?{remark}" if meant else listed
    return f"there is no flag --{name} here; {hint}"

"""What columns of other libraries are called here, and what each column means, in what unit.

Leaves out reading the files (`files.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SHORT = {"return": "return_mean", "eval": "eval_return_mean", "length": "length_mean", "time": "time_total"}
"""Short names of `--columns` → columns."""

THEIRS: dict[str, tuple[str, ...]] = {
    "step": ("step", "global_step", "time/total_timesteps", "total_timesteps", "timesteps", "steps"),
    "seed": ("seed",),
    "return_mean": (
        "return_mean",
        "charts/episodic_return",
        "rollout/ep_rew_mean",
        "episodic_return",
        "episode_return",
        "r",
        "return",
        "reward",
    ),
    "eval_return_mean": ("eval_return_mean", "eval/mean_reward", "eval/episodic_return", "charts/eval_return"),
    "length_mean": ("length_mean", "charts/episodic_length", "rollout/ep_len_mean", "eval/mean_ep_length", "l"),
    "explained_variance": ("explained_variance", "losses/explained_variance", "train/explained_variance"),
    "entropy": ("entropy", "losses/entropy"),
    "kl": ("kl", "losses/approx_kl", "train/approx_kl"),
    "clip_fraction": ("clip_fraction", "losses/clipfrac", "train/clip_fraction"),
    "value_loss": ("value_loss", "losses/value_loss", "train/value_loss", "train/critic_loss", "losses/qf_loss"),
    "policy_loss": (
        "policy_loss",
        "losses/policy_loss",
        "train/policy_gradient_loss",
        "train/policy_loss",
        "train/actor_loss",
        "losses/actor_loss",
    ),
    "loss": ("loss", "losses/td_loss", "train/loss"),
    "q_mean": ("q_mean", "losses/q_values", "losses/qf1_values"),
    "alpha": ("alpha", "losses/alpha", "train/ent_coef"),
    "learning_rate": ("learning_rate", "charts/learning_rate", "train/learning_rate"),
    "exploration": ("exploration", "rollout/exploration_rate"),
    "time_total": ("time_total", "time/time_elapsed", "t"),
}
"""Our column → the names that programs give it, the first one found counts. Others keep their names."""

NEGATIVE = {"train/entropy_loss": "entropy"}
"""Columns that are minus one of ours."""

ENV = ("env", "env_id", "task", "environment", "gym_id")
METHOD = ("exp_name", "algo", "algorithm")
TOTAL = ("total_steps", "total_timesteps")
"""Settings of other programs that name the environment, the method, and the steps of the whole run."""


def renamed(names: list[str], given: Mapping[str, str]) -> dict[str, tuple[str, float]]:
    """Their column → our name and the factor to ours. `given`: our name → theirs, as the user says."""
    found: dict[str, tuple[str, float]] = {theirs: (ours, 1.0) for ours, theirs in given.items() if theirs in names}
    taken = {ours for ours, _ in found.values()} | set(given)
    for ours, candidates in THEIRS.items():
        first = next((name for name in candidates if name in names and name not in found), None)
        if first is not None and ours not in taken:
            found[first] = (ours, 1.0)
            taken.add(ours)
    for theirs, ours in NEGATIVE.items():
        if theirs in names and ours not in taken:
            found[theirs] = (ours, -1.0)
    return {name: found.get(name, (name, 1.0)) for name in names}


class Scale(NamedTuple):
    """Two scores that give an environment's returns a unit."""

    low: float
    """Mean return of uniformly random actions."""
    target: float
    """The return from which on the task counts as solved."""


SCALES = {
    "CartPole-v1": Scale(22.0, 475.0),
    "Acrobot-v1": Scale(-497.0, -100.0),
    "MountainCar-v0": Scale(-200.0, -110.0),
    "MountainCarContinuous-v0": Scale(-33.0, 90.0),
    "LunarLander-v3": Scale(-190.0, 200.0),
    "BipedalWalker-v3": Scale(-106.0, 300.0),
    "InvertedPendulum-v5": Scale(5.0, 950.0),
    "InvertedDoublePendulum-v5": Scale(50.0, 9100.0),
    "Hopper-v5": Scale(17.0, 3800.0),
    "HalfCheetah-v5": Scale(-275.0, 4800.0),
    "Swimmer-v5": Scale(0.0, 360.0),
    "Ant-v5": Scale(-19.0, 6000.0),
    "Reacher-v5": Scale(-43.0, -3.75),
}
"""Environment → its scale: random actions as measured over 30 or 100 episodes, and Gymnasium's `reward_threshold`."""

SHARES = ("exact_match", "accuracy")
"""Columns between 0 and 1, where 1 is right."""


class Quantity(NamedTuple):
    """How a column is shown."""

    title: str
    unit: str
    sentence: str


QUANTITIES = {
    "return_mean": Quantity("Episode return", "sum of rewards", "Mean return of the episodes that ended."),
    "eval_return_mean": Quantity("Evaluation return", "sum of rewards", "Mean return of evaluation episodes."),
    "exact_match": Quantity("Exact match", "share of held-out prompts", "Share of held-out prompts answered right."),
    "accuracy": Quantity("Accuracy", "share of held-out pairs", "Share of pairs whose better answer scores higher."),
    "reward": Quantity("Held-out reward", "reward", "Mean reward over held-out prompts."),
    "score": Quantity("Score of the rollout", "reward", "Mean score of the completions that the policy learns from."),
    "explained_variance": Quantity(
        "Explained variance",
        "share of variance",
        "1 − Var[return − value] / Var[return]: 1 is a perfect critic, 0 no better than a constant.",
    ),
    "entropy": Quantity("Entropy", "nats", "How random the policy is; near 0 it no longer explores."),
    "kl": Quantity("KL of an update", "nats", "How far updates move the policy from the one that collected the data."),
    "clip_fraction": Quantity("Clip fraction", "share", "Share of samples whose ratio left the clip range."),
    "clipped": Quantity("Clipped", "share", "Share of samples whose gradient the clip has taken."),
    "kl_reference": Quantity(
        "KL to the reference", "nats per token", "How far the policy is from the reference model."
    ),
    "kl_completion": Quantity("KL of a completion", "nats per completion", "The same KL, of a whole completion."),
    "length": Quantity("Length", "tokens", "Mean length of a completion."),
    "length_mean": Quantity("Episode length", "steps", "Mean length of the episodes that ended."),
    "truncated": Quantity("Cut completions", "share", "Share of completions that the token limit cut."),
    "equal_groups": Quantity("Groups without signal", "share", "Share of groups whose scores are all equal."),
    "score_std": Quantity("Spread within a group", "reward", "Deviation of the score within a group of completions."),
    "value_loss": Quantity("Value loss", "return²", "The loss of the critic."),
    "policy_loss": Quantity("Policy loss", "", "The surrogate that the policy's updates minimise."),
    "loss": Quantity("Loss", "", "The loss that updates minimise."),
    "gradient_norm": Quantity("Gradient norm", "", "Norm of the gradient before it is clipped."),
    "ratio_max": Quantity("Largest ratio", "π / π_old", "Largest ratio of new to old probability."),
    "alpha": Quantity("Temperature α", "", "What a nat of entropy is worth."),
    "q_mean": Quantity("Mean Q", "return", "Mean Q of the minibatches' steps."),
    "value_mean": Quantity("Mean value", "return", "Mean V(s) of the steps."),
    "td_error": Quantity("TD error", "return", "Mean size of the TD error."),
    "exploration": Quantity("ε", "probability", "Probability of a random action."),
    "lam_mean": Quantity("λ", "", "Mean λ of the advantages, if a rule chooses it."),
    "sampler_mismatch": Quantity(
        "Sampler mismatch", "nats", "Largest difference of a log-probability between sampler and trainer."
    ),
    "learning_rate": Quantity("Learning rate", "", "The optimiser's learning rate."),
}
"""Columns in the order in which the page shows them."""

MAIN = ("eval_return_mean", "return_mean", "exact_match", "reward", "accuracy", "score")
"""What `--metric auto` chooses from."""


def quantity(column: str) -> Quantity:
    """How a column is shown. A column without a row is shown under its own name."""
    return QUANTITIES.get(column) or Quantity(column, "", "")

"""One row for each algorithm: the small configurations by which `test_laws.py` tries it. A new algorithm adds its row.

Leaves out the laws themselves, and the fields of language configurations (`tests/language/test_every_field.py`).
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from narrow import narrow
from telescope.algorithms import (
    a2c,
    a3c,
    actor_critic,
    appo,
    bc,
    dqn,
    group_episodes,
    grpo,
    impala,
    ppo,
    pqn,
    reinforce,
    reward_model,
    rlhf,
    sac,
    sarsa_lambda,
    sft,
    stream_ac,
    stream_q,
    stream_td,
    td_lambda,
    trpo,
)
from telescope.control.config import OnPolicyConfig
from telescope.control.streaming import StreamConfig
from telescope.language.models import causal as models
from worlds import Edge, Masked, Recall


class Row(NamedTuple):
    """What the laws need to know about an algorithm."""

    module: Any
    small: Any
    """A run of two iterations or more, each with several epochs and minibatches where it has them; under a second."""
    learns: dict[str, Any]
    """What to change in `small` so that it learns within seconds."""
    metric: str
    """The column that must move."""
    reaches: float
    """Where it must arrive: above its start for scores and returns, below it for losses."""
    better: str = "higher"
    other: dict[str, Any] = {}  # noqa: RUF012
    """Another legal value for each field of an environment algorithm."""
    inert: dict[str, str] = {}  # noqa: RUF012
    """Fields that change neither rows nor state, with the reason."""
    gradient_steps: bool = True
    """Whether it makes steps with a learning rate, in epochs if it has them."""
    judges: bool = False
    """Whether it learns the values of a policy that does not change, so that evaluations do not either."""
    samplers: tuple[dict[str, Any], ...] = ()
    """Settings under which actions or tokens are drawn; the first update has ratio 1 under each of them."""


@pytest.fixture(autouse=True, scope="module")
def smaller():
    """A built-in model of one narrow layer: the laws are about trainers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "tiny_config", lambda: narrow(32))
        patch.setattr("telescope.language.data.tasks.HELD_OUT", 200)
        yield


PENDULUM = ppo.PPO(
    env="Pendulum-v1",
    env_kwargs={"max_episode_steps": 9},
    seeds=2,
    seed=3,
    total_steps=64,
    num_envs=2,
    num_steps=16,
    minibatch_size=8,
    epochs=2,
    eval_every=32,
    eval_episodes=2,
    eval_max_steps=8,
    hidden=(8,),
    normalise_observations=True,
    normalise_rewards=True,
    value_clip=1e-3,
    clip=0.01,
    learning_rate=1e-2,
    threads=1,
    compile="off",
)
ROLLOUT = a2c.A2C(
    env="Pendulum-v1",
    env_kwargs={"max_episode_steps": 9},
    seeds=2,
    seed=3,
    total_steps=64,
    num_envs=2,
    num_steps=16,
    lam=0.95,
    lam_rule="adaptive",
    lam_low=0.2,
    eval_every=32,
    eval_episodes=2,
    eval_max_steps=8,
    hidden=(8,),
    normalise_observations=True,
    normalise_rewards=True,
    learning_rate=1e-2,
    threads=1,
    compile="off",
)
GRADIENTS = a3c.A3C(**{field.name: getattr(ROLLOUT, field.name) for field in dataclasses.fields(a2c.A2C)})
"""Without a delay: it is then a2c, whose row has the same settings."""
AGED = impala.IMPALA(
    **{
        field.name: getattr(ROLLOUT, field.name)
        for field in dataclasses.fields(impala.IMPALA)
        if hasattr(ROLLOUT, field.name) and field.name != "total_steps"
    },
    total_steps=96,
    delay=1,
)
CLIPPED = appo.APPO(
    **{
        field.name: getattr(PENDULUM, field.name)
        for field in dataclasses.fields(appo.APPO)
        if hasattr(PENDULUM, field.name)
    },
    target_iterations=2,
)
STEPPING = actor_critic.OneStep(
    **{
        field.name: getattr(ROLLOUT, field.name)
        for field in dataclasses.fields(actor_critic.OneStep)
        if field.name not in ("weight", "adam_eps")
    }
)
EPISODES = reinforce.Reinforce(
    env="Pendulum-v1",
    env_kwargs={"max_episode_steps": 9},
    seeds=2,
    seed=3,
    total_steps=100,
    num_envs=2,
    episodes=4,
    num_steps=99,
    weight="baselined",
    baseline="value",
    eval_every=32,
    eval_episodes=2,
    eval_max_steps=8,
    hidden=(8,),
    normalise_observations=True,
    normalise_rewards=True,
    learning_rate=1e-2,
    threads=1,
    compile="off",
)
REGION = trpo.TRPO(
    **{
        field.name: getattr(ROLLOUT, field.name) for field in dataclasses.fields(OnPolicyConfig) if field.name != "seed"
    },
    seed=5,
    minibatch_size=8,
    epochs=2,
    max_kl=0.3,
    cg_iterations=4,
    damping=1e-2,
)
GROUPS = group_episodes.GroupEpisodes(
    env="Pendulum-v1",
    env_kwargs={"max_episode_steps": 9},
    seeds=2,
    seed=3,
    total_steps=220,
    num_envs=8,
    group=4,
    num_steps=99,
    epochs=2,
    minibatches=2,
    eval_every=64,
    eval_episodes=2,
    eval_max_steps=8,
    hidden=(8,),
    normalise_observations=True,
    normalise_rewards=True,
    clip=0.01,
    learning_rate=1e-2,
    threads=1,
    compile="off",
)
CART = dqn.DQN(
    env="CartPole-v1",
    env_kwargs={"max_episode_steps": 30},
    seeds=2,
    seed=3,
    total_steps=64,
    num_envs=2,
    num_steps=16,
    minibatch_size=8,
    updates_per_step=1.0,
    learning_starts=4,
    target_every=7,
    eval_every=32,
    eval_episodes=2,
    eval_max_steps=20,
    hidden=(8,),
    normalise_observations=True,
    learning_rate=1e-2,
    max_grad_norm=0.5,
    exploration_start=0.8,
    exploration_fraction=0.5,
    vectorization="sync",
    threads=1,
    compile="off",
)
SOFT = sac.SAC(
    env="Pendulum-v1",
    env_kwargs={"max_episode_steps": 9},
    seeds=2,
    seed=5,
    total_steps=64,
    num_envs=2,
    num_steps=16,
    minibatch_size=8,
    learning_starts=4,
    replay_capacity=1000,
    tau=0.1,
    eval_every=32,
    eval_episodes=2,
    eval_max_steps=8,
    hidden=(8,),
    normalise_observations=True,
    learning_rate=1e-2,
    max_grad_norm=0.5,
    vectorization="sync",
    threads=1,
    compile="off",
)
FRESH = pqn.PQN(
    **{
        field.name: getattr(CART, field.name)
        for field in dataclasses.fields(pqn.PQN)
        if hasattr(CART, field.name) and field.name not in ("activation", "adam_eps", "anneal_learning_rate")
    },
    lam=0.8,
    epochs=2,
)
TILES = sarsa_lambda.SarsaLambda(
    env="CartPole-v1",
    env_kwargs={"max_episode_steps": 30},
    seeds=2,
    seed=3,
    total_steps=64,
    num_steps=16,
    tilings=2,
    tiles=2,
    trace="dutch",
    learning_rate=0.1,
    eval_every=32,
    eval_episodes=2,
    eval_max_steps=20,
    normalise_observations=True,
    clip_observations=3.0,
    exploration_start=0.8,
    exploration_end=0.3,
    exploration_fraction=0.5,
    vectorization="sync",
    threads=1,
    compile="off",
)
STREAM = stream_ac.StreamAC(
    env="Pendulum-v1",
    env_kwargs={"max_episode_steps": 9},
    seeds=2,
    seed=3,
    total_steps=64,
    num_steps=16,
    hidden=(8,),
    sparsity=0.5,
    policy_kappa=30.0,
    entropy_coefficient=0.1,
    eval_every=32,
    eval_episodes=2,
    eval_max_steps=8,
    threads=1,
    compile="off",
)
CONTROL = {
    "env": "MountainCarContinuous-v0",
    "seeds": 1,
    "seed": 4,
    "total_steps": 32,
    "num_envs": 1,
    "env_kwargs": {"max_episode_steps": 9, "g": 1.0},
    "time_limit": 5,
    "wrap": ("gymnasium.wrappers:ClipReward", "min_reward=-0.1", "max_reward=0.1"),
    "frame_stack": 2,
    "backend": "envpool",
    "vectorization": "vector_entry_point",
    "autoreset": "next_step",
    "device": "nowhere",
    "reward_bound": 1e-3,
    "threads": 2,
    "eval_every": 64,
    "eval_episodes": 3,
    "eval_max_steps": 4,
}
"""Fields of `ControlConfig`, for every algorithm on environments."""
STREAMING = {
    "num_envs": 2,
    "num_steps": 8,
    "gamma": 0.5,
    "learning_rate": 1e-3,
    "anneal_learning_rate": True,
    "normalise_observations": False,
    "clip_observations": 0.01,
    "normalise_rewards": False,
    "clip_rewards": 0.01,
    "lam": 0.5,
    "kappa": 9.0,
    "hidden": (4,),
    "sparsity": 0.0,
}
"""Fields of `StreamConfig`, besides."""
LINEAR = {
    "env": "Acrobot-v1",
    "env_kwargs": {"max_episode_steps": 5},
    "num_envs": 2,
    "num_steps": 8,
    "gamma": 0.5,
    "learning_rate": 1e-3,
    "anneal_learning_rate": True,
    "normalise_observations": False,
    "clip_observations": 0.01,
    "lam": 0.5,
    "trace": "accumulating",
    "true_online": True,
    "features": "tabular",
    "tilings": 3,
    "tiles": 3,
    "fourier_order": 2,
}
"""Fields of `LinearConfig`, besides; with an environment whose actions can be counted."""
UNSEEN = {
    "compile": "the same steps, faster; tests/algorithms/test_ppo.py compiles",
    "processes": "the same seeds elsewhere; tests/control/test_spread.py spreads them",
    "ray_address": "the same seeds on other machines; tests/control/test_cluster.py has a cluster",
}
APART = {"actors": "the same loop with actors in other processes; tests/control/test_actors.py starts them"}
"""A field of `ActorConfig`."""
AGENT = {
    "num_steps": 8,
    "gamma": 0.5,
    "learning_rate": 1e-3,
    "max_grad_norm": 1e-3,
    "hidden": (4,),
    "normalise_observations": False,
    "clip_observations": 0.01,
    "network_module": "nowhere:build",
    "encoder": "cnn",  # of observations without a picture; the rows with pictures have others
}
"""Fields of `AgentConfig`, besides."""
POLICY = {
    "anneal_learning_rate": False,
    "activation": "relu",
    "value_coefficient": 0.1,
    "entropy_coefficient": 0.1,
    "shared_network": True,
    "log_std": -1.0,
    "action_bounds": "squash",
    "normalise_rewards": False,
    "clip_rewards": 0.01,
    "critic_observations": ("nothing",),
}
"""Fields of `PolicyConfig`, besides; with two of `AgentConfig` whose value dqn changes."""
MEMORY = {"memory": "gru", "memory_size": 5, "shared_memory": True}
"""Fields of `MemoryConfig`, besides."""
REMEMBERING = {"memory": "lstm", "memory_size": 4}
"""A small memory."""
RECALL = {
    "env": Recall,
    "env_kwargs": {},
    "total_steps": 1440,
    "num_envs": 8,
    "num_steps": 15,
    "memory_size": 8,
    "eval_every": 0,
    "normalise_observations": False,
    "normalise_rewards": False,
}
"""How a policy with a memory learns."""
ON_POLICY = MEMORY | {
    "lam": 0.5,
    "lam_rule": "end_corrected",
    "lam_low": 0.5,
    "returns_lam": 0.5,
    "normalise_advantages": True,
    "critic": "quantile",
    "quantiles": 5,
    "quantile_huber": 0.1,
    "quantile_weights": "asymmetric:0.5",
}
"""Fields of `OnPolicyConfig`, besides."""

V_TRACE = MEMORY | {"lam": 0.5, "correction": "none", "rho_clip": 0.5, "c_clip": 0.5}
"""Fields of `VTraceConfig`, besides."""

OFF_POLICY = {
    "anneal_learning_rate": True,
    "activation": "tanh",
    "adam_eps": 0.1,
    "replay_capacity": 8,
    "save_replay": False,
    "learning_starts": 16,
    "random_start": True,
    "minibatch_size": 4,
    "updates_per_step": 0.5,
    "train_every": 4,
    "n_step": 3,
}
"""Fields of `OffPolicyConfig`, besides those of `AGENT`."""

SAC_FIELDS = (
    CONTROL
    | AGENT
    | OFF_POLICY
    | {
        "tau": 0.5,
        "policy_delay": 2,
        "alpha": 0.3,
        "entropy_target": 0.1,
        "critic_hidden": (5,),
        "critic_norm": "layer",
        "adam_beta": 0.5,
        "critic_observations": ("nothing",),
    }
)
TEXT = {"threads": 1, "eval_prompts": 8, "lr_warmup": 0, "eval_every": 1, "total_steps": 2, "max_tokens": 4}
DRAWN = {"prompts": 4, "group": 4, "minibatches": 2, "epochs": 2, "warm_start": 0.0}
SAMPLERS = (
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 3},
    {"top_p": 0.5},
    {"temperature": 1.5, "top_k": 5, "top_p": 0.8},
    {"temperature": 1.5, "micro_batch": 3, "lora_rank": 2},
)


def ones(completions: list[str], **_: Any) -> list[float]:
    """A reward that a policy without any knowledge can raise: how many of the first characters are a 1."""
    return [completion[:4].count("1") / 4 for completion in completions]


def write_pairs(path: Path) -> str:
    """Preferences that the first character decides: the prompt says nothing."""
    rows = [{"prompt": f"{i}:", "chosen": f"1{i % 7}", "rejected": f"2{i % 7}"} for i in range(100)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


PAIRS = "PAIRS"
"""Stands for the file of `write_pairs`."""
LEARNS = {"reward": ones, "total_steps": 15, "learning_rate": 2e-2, "prompts": 8, "group": 8, "eval_every": 0}


def varied(completions: list[str], **_: Any) -> list[float]:
    """Scores that differ within every group."""
    return [sum(map(ord, completion)) % 7 / 7 for completion in completions]


PPO_FIELDS = (
    CONTROL
    | AGENT
    | POLICY
    | ON_POLICY
    | {
        "minibatch_size": 16,
        "epochs": 1,
        "clip": 1e-3,
        "anneal_clip": True,
        "adam_eps": 0.1,
        "normalise_advantages": False,
        "value_clip": 0.5,
        "target_kl": 1e-9,
        "recompute_advantages": True,
        "value_learning_rate": 1e-4,
        "sequence_length": 4,
        "correction_penalty": 0.1,
    }
)
REGRESSION = ("epochs", "minibatch_size", "max_grad_norm", "adam_eps", "value_coefficient")
"""Fields of `TRPO` that only the regression of values uses."""
STEPS = {"env": Masked, "env_kwargs": {}, "total_steps": 3200, "max_kl": 0.02, "eval_every": 0}
"""How `TRPO` learns."""
TRPO_FIELDS = (
    CONTROL
    | AGENT
    | POLICY
    | ON_POLICY
    | {
        "sequence_length": 4,
        "max_kl": 1e-3,
        "cg_iterations": 2,
        "cg_tolerance": 0.9,
        "damping": 1.0,
        "line_search_steps": 0,
        "line_search_shrink": 0.1,
        "value_fit": "trust_region",
        "epochs": 1,
        "minibatch_size": 16,
        "adam_eps": 0.1,
        "max_value_change": 1e-3,
    }
)


def demonstrated() -> str:
    """Forty episodes of nine steps by somebody who acts linearly, with some noise: the path of the file."""
    rng = np.random.default_rng(0)
    seen = rng.uniform(-1, 1, (360, 3)).astype(np.float32)
    chosen = (seen @ [[1.0], [-0.5], [0.3]] + 0.1 * rng.standard_normal((360, 1))).astype(np.float32)
    path = Path(tempfile.mkdtemp()) / "demonstrations.npz"
    np.savez(path, observations=seen, actions=chosen, truncated=np.arange(360) % 9 == 8)
    return str(path)


CLONE = bc.BC(
    env="Pendulum-v1",
    env_kwargs={"max_episode_steps": 9},
    data=demonstrated(),
    seeds=2,
    seed=3,
    total_steps=64,
    num_steps=32,
    minibatch_size=8,
    eval_every=32,
    eval_episodes=2,
    eval_max_steps=8,
    hidden=(8,),
    normalise_observations=True,
    learning_rate=1e-2,
    threads=1,
    compile="off",
)
ONLY_EVALUATED = "the environment acts in evaluations only"

ROSTER = {
    "ppo": Row(
        ppo,
        PENDULUM,
        {"env": Masked, "env_kwargs": {}, "total_steps": 1600, "num_steps": 32, "clip": 0.2, "epochs": 4}
        | {"minibatch_size": 64, "value_clip": None, "eval_every": 0},
        "return_mean",
        9.0,
        other=PPO_FIELDS,
        inert=UNSEEN,
        samplers=(
            {},
            {"action_bounds": "squash"},
            {"action_bounds": "rescale", "log_std": -1.0},
            {"env": "CartPole-v1", "autoreset": "next_step"},
        ),
    ),
    "ppo with quantiles": Row(
        ppo,
        dataclasses.replace(PENDULUM, value_clip=None, critic="quantile", quantiles=4, lam_rule="end_corrected"),
        {"env": Masked, "env_kwargs": {}, "total_steps": 1600, "num_steps": 32, "clip": 0.2, "epochs": 4}
        | {"minibatch_size": 64, "eval_every": 0},
        "return_mean",
        9.0,
        other=PPO_FIELDS | {"critic": "value", "lam_rule": "constant"},
        inert=UNSEEN,
    ),
    "ppo with a gradient critic": Row(
        ppo,
        dataclasses.replace(PENDULUM, value_clip=None, critic="gradient", sequence_length=8),
        {"env": Masked, "env_kwargs": {}, "total_steps": 1600, "num_steps": 32, "clip": 0.2, "epochs": 4}
        | {"minibatch_size": 64, "eval_every": 0},
        "return_mean",
        9.0,
        other=PPO_FIELDS | {"critic": "value"},
        inert=UNSEEN,
    ),
    "ppo with a memory": Row(
        ppo,
        dataclasses.replace(PENDULUM, **REMEMBERING, minibatch_size=16),
        RECALL | {"minibatch_size": 60, "epochs": 4, "clip": 0.2, "value_clip": None, "learning_rate": 2e-2},
        "return_mean",
        0.95,
        other=PPO_FIELDS | {"minibatch_size": 32},
        inert=UNSEEN,
        samplers=({}, {"env": "CartPole-v1", "autoreset": "next_step"}),
    ),
    "a2c": Row(
        a2c,
        ROLLOUT,
        {"env": Masked, "env_kwargs": {}, "total_steps": 3200, "eval_every": 0, "learning_rate": 3e-2}
        | {"lam_rule": "constant", "lam_low": 0.8},
        "return_mean",
        9.0,
        other=CONTROL | AGENT | POLICY | ON_POLICY | {"optimiser": "adam", "optimiser_eps": 0.1},
        inert=UNSEEN,
    ),
    "a2c with a memory": Row(
        a2c,
        dataclasses.replace(ROLLOUT, memory="gru", memory_size=4),
        RECALL | {"total_steps": 4800, "lam_rule": "constant", "lam_low": 0.8, "learning_rate": 1e-2},
        "return_mean",
        0.95,
        other=CONTROL | AGENT | POLICY | ON_POLICY | {"memory": "lstm", "optimiser": "adam", "optimiser_eps": 0.1},
        inert=UNSEEN,
    ),
    "a3c": Row(
        a3c,
        GRADIENTS,
        {"env": Masked, "env_kwargs": {}, "total_steps": 3200, "eval_every": 0, "learning_rate": 3e-2}
        | {"lam_rule": "constant", "lam_low": 0.8, "delay": 1},
        "return_mean",
        9.0,
        other=CONTROL | AGENT | POLICY | ON_POLICY | {"optimiser": "adam", "optimiser_eps": 0.1, "delay": 1},
        inert=UNSEEN | APART,
    ),
    "impala": Row(
        impala,
        AGED,
        {"env": Masked, "env_kwargs": {}, "total_steps": 3200, "eval_every": 0, "learning_rate": 3e-2},
        "return_mean",
        9.0,
        other=CONTROL | AGENT | POLICY | V_TRACE | {"optimiser": "adam", "optimiser_eps": 0.1, "delay": 0},
        inert=UNSEEN | APART,
    ),
    "impala with a memory": Row(
        impala,
        dataclasses.replace(AGED, memory="gru", memory_size=4),
        RECALL | {"total_steps": 4800, "learning_rate": 1e-2},
        "return_mean",
        0.95,
        other=CONTROL
        | AGENT
        | POLICY
        | V_TRACE
        | {"memory": "lstm", "optimiser": "adam", "optimiser_eps": 0.1}
        | {"delay": 0},
        inert=UNSEEN | APART,
    ),
    "appo": Row(
        appo,
        CLIPPED,
        {"env": Masked, "env_kwargs": {}, "total_steps": 3200, "eval_every": 0, "clip": 0.2, "delay": 1},
        "return_mean",
        9.0,
        other=CONTROL
        | AGENT
        | POLICY
        | V_TRACE
        | {"minibatch_size": 16, "epochs": 1, "clip": 1e-3, "adam_eps": 0.1, "target_iterations": 1, "delay": 1}
        | {"sequence_length": 4},
        inert=UNSEEN | APART,
        samplers=({}, {"action_bounds": "squash"}, {"env": "CartPole-v1", "autoreset": "next_step"}),
    ),
    "appo with a memory": Row(
        appo,
        dataclasses.replace(CLIPPED, **REMEMBERING, sequence_length=8),
        RECALL | {"minibatch_size": 60, "sequence_length": None, "clip": 0.2, "epochs": 4, "learning_rate": 2e-2},
        "return_mean",
        0.95,
        other=CONTROL
        | AGENT
        | POLICY
        | V_TRACE
        | {"minibatch_size": 16, "epochs": 1, "clip": 1e-3, "adam_eps": 0.1, "target_iterations": 1, "delay": 1}
        | {"sequence_length": 4},
        inert=UNSEEN | APART,
        samplers=({}, {"env": "CartPole-v1", "autoreset": "next_step"}),
    ),
    "actor_critic": Row(
        actor_critic,
        STEPPING,
        {"env": Masked, "env_kwargs": {}, "total_steps": 3200, "eval_every": 0, "learning_rate": 1e-2},
        "return_mean",
        9.0,
        other=CONTROL | AGENT | POLICY | {"weight": "q", "adam_eps": 0.1},
        inert=UNSEEN,
    ),
    "reinforce": Row(
        reinforce,
        EPISODES,
        {"env": Masked, "env_kwargs": {}, "total_steps": 3200, "eval_every": 0, "learning_rate": 3e-2},
        "return_mean",
        9.0,
        other=CONTROL
        | AGENT
        | POLICY
        | {"episodes": 2, "weight": "to_go", "baseline": "mean", "normalise_returns": True, "adam_eps": 0.1},
        inert=UNSEEN,
    ),
    "trpo": Row(
        trpo,
        REGION,
        STEPS,
        "return_mean",
        9.0,
        other=TRPO_FIELDS,
        inert=UNSEEN,
    ),
    "trpo with values in a trust region": Row(
        trpo,
        dataclasses.replace(REGION, value_fit="trust_region"),
        STEPS,
        "return_mean",
        9.0,
        other={k: v for k, v in TRPO_FIELDS.items() if k not in REGRESSION} | {"value_fit": "regression"},
        inert=UNSEEN | dict.fromkeys(REGRESSION, "of the other value fit: the row before has it"),
        gradient_steps=False,
    ),
    "trpo with a memory": Row(
        trpo,
        dataclasses.replace(REGION, memory="gru", memory_size=4, minibatch_size=16, sequence_length=8, max_kl=0.1),
        RECALL
        | {"total_steps": 2400, "max_kl": 0.05, "minibatch_size": 60, "sequence_length": None}
        | {"lam_rule": "constant", "lam_low": 0.8},
        "return_mean",
        0.95,
        other=TRPO_FIELDS | {"memory": "lstm", "minibatch_size": 8},
        inert=UNSEEN,
    ),
    "npg": Row(
        trpo,
        dataclasses.replace(REGION, line_search_steps=0),
        STEPS,
        "return_mean",
        9.0,
        other={k: v for k, v in TRPO_FIELDS.items() if k != "line_search_shrink"} | {"line_search_steps": 10},
        inert=UNSEEN | {"line_search_shrink": "of the line search"},
    ),
    "group_episodes": Row(
        group_episodes,
        GROUPS,
        {"env": Masked, "env_kwargs": {}, "total_steps": 4800, "eval_every": 0, "learning_rate": 3e-2, "clip": 0.2}
        | {"epochs": 4, "minibatches": 1},
        "return_mean",
        9.0,
        other=CONTROL
        | AGENT
        | POLICY
        | {"num_envs": 16, "total_steps": 100, "objective": "gspo", "group": 2, "epochs": 1, "minibatches": 1}
        | {"clip": 0.5, "clip_high": 0.001, "beta": 1.0, "adam_eps": 0.1, "eval_every": 150},
        inert=UNSEEN,
        samplers=({}, {"env": "CartPole-v1", "autoreset": "next_step"}),
    ),
    "dqn": Row(
        dqn,
        CART,
        {"env": Masked, "env_kwargs": {}, "total_steps": 1600, "num_steps": 32, "normalise_observations": False}
        | {"target_every": 10, "eval_every": 0, "gamma": 0.5},
        "return_mean",
        9.0,
        other=CONTROL
        | AGENT
        | OFF_POLICY
        | {
            "env": "Acrobot-v1",
            "env_kwargs": {"max_episode_steps": 5},
            "target_every": 3,
            "double": True,
            "dueling": True,
            "layer_norm": True,
            "quantiles": 5,
            "quantile_huber": 0.1,
            "exploration_start": 0.5,
            "exploration_end": 0.9,
            "exploration_fraction": 0.9,
        },
        inert=UNSEEN,
    ),
    "pqn": Row(
        pqn,
        FRESH,
        {"env": Masked, "env_kwargs": {}, "total_steps": 3200, "num_steps": 32, "normalise_observations": False}
        | {"eval_every": 0, "gamma": 0.5, "epochs": 4},
        "return_mean",
        9.0,
        other=CONTROL
        | AGENT
        | {
            "env": "Acrobot-v1",
            "env_kwargs": {"max_episode_steps": 5},
            "anneal_learning_rate": False,
            "activation": "tanh",
            "lam": 0.2,
            "minibatch_size": 16,
            "epochs": 1,
            "adam_eps": 0.1,
            "exploration_start": 0.5,
            "exploration_end": 0.9,
            "exploration_fraction": 0.9,
        },
        inert=UNSEEN,
    ),
    "bc": Row(
        bc,
        CLONE,
        {"total_steps": 4000, "num_steps": 400, "eval_every": 0},
        "loss",
        0.3,
        better="lower",
        other={
            k: v
            for k, v in (CONTROL | AGENT).items()
            if k not in ("env_kwargs", "vectorization", "autoreset", "time_limit", "wrap", "gamma", "reward_bound")
        }
        | {
            "data": "nowhere.npz",
            "num_envs": 2,
            "minibatch_size": 16,
            "held_out": 0.5,
            "adam_eps": 0.1,
            "anneal_learning_rate": False,
            "activation": "relu",
            "shared_network": True,
            "log_std": -1.0,
            "action_bounds": "squash",
        },
        inert=UNSEEN
        | dict.fromkeys(("env_kwargs", "vectorization", "autoreset", "time_limit", "wrap"), ONLY_EVALUATED)
        | dict.fromkeys(("gamma", "reward_bound"), "no return is learned"),
    ),
    "sac": Row(
        sac,
        SOFT,
        {"env": Edge, "env_kwargs": {}, "total_steps": 960, "num_steps": 32, "normalise_observations": False}
        | {"eval_every": 0, "gamma": 0.5, "minibatch_size": 32, "max_grad_norm": None},
        "return_mean",
        -3.0,
        other=SAC_FIELDS,
        inert=UNSEEN | {"entropy_share": "of discrete actions: the next row has them"},
    ),
    "sac with discrete actions": Row(
        sac,
        dataclasses.replace(SOFT, env="CartPole-v1", env_kwargs={"max_episode_steps": 30}, eval_max_steps=20),
        {"env": Masked, "env_kwargs": {}, "total_steps": 960, "num_steps": 32, "normalise_observations": False}
        | {"eval_every": 0, "gamma": 0.5, "minibatch_size": 32, "entropy_share": 0.1, "max_grad_norm": None},
        "return_mean",
        9.0,
        other={k: v for k, v in SAC_FIELDS.items() if k != "random_start"}
        | {"env": "Acrobot-v1", "env_kwargs": {"max_episode_steps": 5}, "entropy_share": 0.1, "entropy_target": 0.2},
        inert=UNSEEN | {"random_start": "the first logits are nearly 0: tests/algorithms/test_sac.py has others"},
    ),
    "crossq": Row(
        sac,
        dataclasses.replace(SOFT, tau=1.0, critic_norm="batch", policy_delay=2, adam_beta=0.5),
        {"env": Edge, "env_kwargs": {}, "total_steps": 960, "num_steps": 32, "normalise_observations": False}
        | {"eval_every": 0, "gamma": 0.5, "minibatch_size": 32, "max_grad_norm": None, "alpha": 0.05},
        "return_mean",
        -1.5,
        other=SAC_FIELDS | {"policy_delay": 1, "adam_beta": 0.9},
        inert=UNSEEN | {"entropy_share": "of discrete actions: the row before has them"},
    ),
    "td_lambda": Row(
        td_lambda,
        td_lambda.TDLambda(
            **{
                field.name: getattr(TILES, field.name)
                for field in dataclasses.fields(sarsa_lambda.SarsaLambda)
                if not field.name.startswith("exploration")
            },
            policy="random",
        ),
        {"env": "MountainCar-v0", "env_kwargs": {}, "total_steps": 2000, "num_steps": 100, "gamma": 0.8}
        | {"normalise_observations": False, "eval_every": 0},
        "td_error",
        0.1,
        better="lower",
        judges=True,
        other=CONTROL | LINEAR | {"policy": "runs/nowhere"},
        inert=UNSEEN,
    ),
    "sarsa_lambda": Row(
        sarsa_lambda,
        TILES,
        {"env": Masked, "env_kwargs": {}, "total_steps": 1600, "normalise_observations": False, "eval_every": 0}
        | {"gamma": 0.5, "exploration_end": 0.0},
        "return_mean",
        9.0,
        other=CONTROL | LINEAR | {"exploration_start": 0.5, "exploration_end": 0.9, "exploration_fraction": 0.9},
        inert=UNSEEN,
    ),
    "stream_ac": Row(
        stream_ac,
        STREAM,
        {"env": Masked, "env_kwargs": {}, "total_steps": 2400, "num_steps": 100, "hidden": (32,), "eval_every": 0}
        | {"gamma": 0.5, "policy_kappa": 2.0, "entropy_coefficient": 0.01},
        "return_mean",
        9.0,
        gradient_steps=False,  # a bounded step cannot diverge
        other=CONTROL | STREAMING | {"policy_kappa": 9.0, "entropy_coefficient": 0.0, "action_bounds": "squash"},
        inert=UNSEEN,
    ),
    "stream_q": Row(
        stream_q,
        stream_q.StreamQ(
            **{
                field.name: getattr(STREAM, field.name)
                for field in dataclasses.fields(StreamConfig)
                if field.name not in ("env", "env_kwargs", "vectorization", "eval_max_steps", "seed")
            },
            seed=5,
            env="CartPole-v1",
            env_kwargs={"max_episode_steps": 30},
            eval_max_steps=20,
            vectorization="sync",
            exploration_start=0.8,
            exploration_end=0.3,
            exploration_fraction=0.5,
        ),
        {"env": Masked, "env_kwargs": {}, "total_steps": 2400, "num_steps": 100, "hidden": (32,), "eval_every": 0}
        | {"gamma": 0.5, "exploration_end": 0.0},
        "return_mean",
        9.0,
        gradient_steps=False,
        other=CONTROL
        | STREAMING
        | {"env": "Acrobot-v1", "env_kwargs": {"max_episode_steps": 5}}
        | {"exploration_start": 0.5, "exploration_end": 0.9, "exploration_fraction": 0.9},
        inert=UNSEEN,
    ),
    "stream_td": Row(
        stream_td,
        stream_td.StreamTD(
            **{field.name: getattr(STREAM, field.name) for field in dataclasses.fields(StreamConfig)},
            policy="random",
        ),
        {"env": "MountainCar-v0", "env_kwargs": {}, "total_steps": 2000, "num_steps": 100, "gamma": 0.8}
        | {"normalise_rewards": False, "eval_every": 0},
        "td_error",
        0.1,
        better="lower",
        gradient_steps=False,
        judges=True,
        other=CONTROL | STREAMING | {"policy": "runs/nowhere"},
        inert=UNSEEN,
    ),
    "grpo": Row(
        grpo,
        grpo.GRPO(task="lm/reverse", reward=varied, **TEXT, **DRAWN),
        LEARNS,
        "score",
        0.6,
        samplers=SAMPLERS,
    ),
    "rlhf": Row(
        rlhf,
        rlhf.RLHF(task="lm/reverse", reward=varied, **TEXT, **DRAWN),
        LEARNS | {"beta": 0.0, "value_learning_rate": 1e-2},
        "score",
        0.6,
        samplers=SAMPLERS,
    ),
    "sft": Row(
        sft,
        sft.SFT(task="lm/reverse", batch_size=16, **TEXT),
        {"total_steps": 40, "learning_rate": 3e-2, "eval_every": 0},
        "loss",
        2.0,
        better="lower",
    ),
    "reward_model": Row(
        reward_model,
        reward_model.RewardModelling(batch_size=16, **{k: v for k, v in TEXT.items() if k != "max_tokens"}),
        {"task": PAIRS, "total_steps": 20, "learning_rate": 1e-2, "eval_every": 20, "eval_prompts": 200},
        "accuracy",
        0.95,
    ),
}


def learner(name: str, folder: Path) -> Any:
    """The configuration by which an algorithm learns; `folder` takes the files that it needs."""
    row = ROSTER[name]
    found = {"task": write_pairs(folder / "pairs.jsonl")} if row.learns.get("task") == PAIRS else {}
    return dataclasses.replace(row.small, **row.learns | found)

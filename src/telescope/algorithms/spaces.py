"""Search spaces for `telescope tune`: the settings of each algorithm that are worth a search, and where to look.

A space maps names of config fields to a `Choice` or a `Range`. Leaves out the search (`telescope.tuning`).
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Choice(NamedTuple):
    """One of these values."""

    values: tuple[Any, ...]


class Range(NamedTuple):
    """A number between two bounds, which are included."""

    low: float
    high: float
    log: bool = False
    """Search the logarithm."""
    below_one: bool = False
    """Search the distance from 1, on a logarithmic scale: 0.9, 0.99 and 0.999 are equally far apart."""
    whole: bool = False
    """Only integers."""


Space = dict[str, Choice | Range]

DISCOUNT = Range(0.9, 0.9999, below_one=True)
LEARNING_RATE = Range(1e-5, 3e-2, log=True)
ENTROPY = Range(1e-5, 0.1, log=True)
TRACE = Range(0.7, 0.999, below_one=True)

ON_POLICY: Space = {
    "gamma": DISCOUNT,
    "lam": TRACE,
    "num_envs": Choice((4, 8, 16, 32)),
    "normalise_observations": Choice((False, True)),
    "normalise_rewards": Choice((False, True)),
}
EPISODIC: Space = {
    "gamma": DISCOUNT,
    "learning_rate": LEARNING_RATE,
    "episodes": Choice((4, 8, 16, 32)),
    "entropy_coefficient": ENTROPY,
    "normalise_observations": Choice((False, True)),
}
REPLAYED: Space = {
    "gamma": DISCOUNT,
    "learning_rate": LEARNING_RATE,
    "minibatch_size": Choice((32, 64, 128, 256)),
    "train_every": Choice((1, 4, 16, 32)),
    "updates_per_step": Choice((0.25, 0.5, 1.0, 2.0)),
    "learning_starts": Choice((0, 1_000, 10_000)),
}
LINEAR: Space = {"gamma": DISCOUNT, "lam": Range(0.0, 1.0), "learning_rate": Range(1e-3, 2.0, log=True)}
STREAMING: Space = {"gamma": DISCOUNT, "lam": Range(0.0, 0.99), "learning_rate": Range(0.1, 3.0, log=True)}
ONE_STEP = ON_POLICY | {
    "learning_rate": LEARNING_RATE,
    "num_steps": Choice((5, 8, 16, 32, 64)),
    "optimiser": Choice(("rmsprop", "adam")),
    "entropy_coefficient": ENTROPY,
    "value_coefficient": Range(0.1, 1.0),
    "normalise_advantages": Choice((False, True)),
}
"""One gradient step on each rollout: A2C and A3C."""
SPACES: dict[str, Space] = {
    "ppo": ON_POLICY
    | {
        "learning_rate": LEARNING_RATE,
        "num_steps": Choice((128, 256, 512, 1024)),
        "minibatch_size": Choice((64, 128, 256, 512)),
        "epochs": Choice((4, 10, 20)),
        "clip": Choice((0.1, 0.2, 0.3)),
        "entropy_coefficient": ENTROPY,
        "value_coefficient": Range(0.1, 1.0),
        "max_grad_norm": Range(0.3, 5.0, log=True),
    },
    "a2c": ONE_STEP,
    "a3c": ONE_STEP,
    "impala": ON_POLICY
    | {
        "learning_rate": LEARNING_RATE,
        "num_steps": Choice((8, 16, 32, 64)),
        "optimiser": Choice(("rmsprop", "adam")),
        "optimiser_eps": Range(1e-5, 1e-2, log=True),
        "entropy_coefficient": ENTROPY,
        "value_coefficient": Range(0.1, 1.0),
        "rho_clip": Choice((1.0, 2.0, 4.0)),
    },
    "appo": ON_POLICY
    | {
        "learning_rate": LEARNING_RATE,
        "num_steps": Choice((64, 128, 256, 512)),
        "minibatch_size": Choice((64, 128, 256)),
        "epochs": Choice((1, 2, 4, 10)),
        "clip": Choice((0.1, 0.2, 0.3)),
        "target_iterations": Choice((1, 2, 4)),
        "entropy_coefficient": ENTROPY,
        "value_coefficient": Range(0.1, 1.0),
    },
    "trpo": ON_POLICY
    | {
        "num_steps": Choice((64, 256, 512, 1024)),
        "max_kl": Range(0.001, 0.1, log=True),
        "cg_iterations": Choice((5, 10, 20)),
        "damping": Range(0.01, 0.3, log=True),
        "learning_rate": LEARNING_RATE,
        "epochs": Choice((5, 10, 20)),
    },
    "reinforce": EPISODIC,
    "group_episodes": {name: space for name, space in EPISODIC.items() if name != "episodes"}
    | {"group": Choice((4, 8, 16)), "epochs": Choice((1, 4, 10)), "minibatches": Choice((1, 4))},
    "actor_critic": {
        "gamma": DISCOUNT,
        "learning_rate": LEARNING_RATE,
        "num_envs": Choice((1, 8, 16, 32)),
        "entropy_coefficient": ENTROPY,
        "normalise_observations": Choice((False, True)),
        "normalise_rewards": Choice((False, True)),
    },
    "dqn": REPLAYED
    | {
        "target_every": Choice((50, 100, 300, 1_000)),
        "exploration_end": Range(0.01, 0.2),
        "exploration_fraction": Range(0.05, 0.5),
        "n_step": Choice((1, 3, 5)),
        "double": Choice((False, True)),
    },
    "sac": REPLAYED,
    "pqn": {
        "gamma": DISCOUNT,
        "lam": TRACE,
        "learning_rate": LEARNING_RATE,
        "num_envs": Choice((8, 16, 32, 64)),
        "num_steps": Choice((16, 32, 64, 128)),
        "epochs": Choice((1, 2, 4)),
        "exploration_end": Range(0.01, 0.2),
    },
    "sarsa_lambda": LINEAR,
    "stream_ac": STREAMING,
    "stream_q": STREAMING,
}
"""Algorithm → its search space. Without a row, an algorithm has nothing to tune: it does not act."""

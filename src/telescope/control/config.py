"""What every algorithm on environments is told: the environment, the seeds, the amount of work, the machine.

Frozen dataclasses with a docstring under each field; an algorithm's own settings extend `ControlConfig`. Command-line
flags and config files are made from them elsewhere.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from telescope.checks import at_least_zero, finite, in_unit_interval, positive, positive_all, typed

MOST_ENVIRONMENTS = 2**20
"""Of a run, all seeds together: more is a slip of the finger, and would fill the memory before anything is said."""
MUJOCO_FAMILY = (
    "Ant",
    "HalfCheetah",
    "Hopper",
    "Humanoid",
    "HumanoidStandup",
    "InvertedDoublePendulum",
    "InvertedPendulum",
    "Pusher",
    "Reacher",
    "Swimmer",
    "Walker2d",
)
"""The names, without version, of Gymnasium's MuJoCo environments, which share one preset."""


@dataclasses.dataclass(frozen=True)
class ControlConfig:
    """The settings that all algorithms on Gymnasium environments share."""

    env: Any = "CartPole-v1"
    """Gymnasium id, or (from Python) a callable that returns an environment."""
    seeds: int = 1
    """How many independent agents train side by side."""
    seed: int = 0
    """The first of them; the seeds are seed, seed + 1, …"""
    total_steps: int = 1_000_000
    """Environment steps per seed. Whole iterations that fit are run, so it is never exceeded."""
    num_envs: int = 1
    """Environments per seed."""
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keyword arguments for the environment."""
    backend: Literal["gymnasium", "envpool"] = "gymnasium"
    """Who steps the environments. EnvPool is faster, but its episodes start anew on resume."""
    vectorization: Literal["auto", "sync", "async", "vector_entry_point"] = "auto"
    """How environments are batched; auto: the id's own vector implementation where it has one, else sync."""
    autoreset: Literal["next_step", "same_step", "disabled"] = "same_step"
    """When sync and async environments reset (Gymnasium's three modes); advantages do not depend on it."""
    device: str = "cpu"
    """Where networks live: cpu, cuda, cuda:1, …"""
    threads: int = 0
    """CPU threads of a process's arithmetic; 0: one, or up to 4 where a gradient step is worth sharing."""
    processes: int = 1
    """Spread the seeds over so many processes, which pays where environments take most of the time."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile for update and policy; auto compiles when the whole run has enough updates to pay for it."""
    eval_every: int = 0
    """Evaluate every so many steps per seed (0: never) and keep the best agent of each seed."""
    eval_episodes: int = 10
    """Episodes per seed of each such evaluation."""
    eval_max_steps: int = 10_000
    """Cut an evaluation episode after this many steps, with a note: some policies never end one."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, by name and number."""
        typed(self)
        positive(self, "seeds", "total_steps", "num_envs", "eval_episodes", "eval_max_steps", "processes")
        at_least_zero(self, "seed", "eval_every", "threads")
        if self.seed + self.seeds > 2**63:
            raise ValueError(f"seed is {self.seed}; expected seeds below 2**63")
        if self.seeds * self.num_envs > MOST_ENVIRONMENTS:
            raise ValueError(
                f"seeds {self.seeds} × num_envs {self.num_envs} are {self.seeds * self.num_envs} environments; "
                f"expected at most {MOST_ENVIRONMENTS}"
            )
        if self.processes > self.seeds:
            raise ValueError(
                f"processes is {self.processes}, but there are {self.seeds} seeds to spread; ask for fewer"
            )

    @property
    def seed_values(self) -> list[int]:
        """The value of each seed, in the order of the population axis."""
        return list(range(self.seed, self.seed + self.seeds))


@dataclasses.dataclass(frozen=True)
class OnPolicyConfig(ControlConfig):
    """The settings that actor–critic algorithms on fresh rollouts share; codes such as (c5) are explained at `PPO`."""

    num_steps: int = 2048
    """T, steps of each environment per rollout (c1)."""
    gamma: float = 0.99
    """Discount γ."""
    lam: float = 0.95
    """λ of GAE (c5): 0 trusts one step and the value function, 1 the whole episode."""
    learning_rate: float = 3e-4
    """Step size of the optimiser."""
    anneal_learning_rate: bool = True
    """Let the step size fall linearly to 0 over the run (c4)."""
    value_coefficient: float = 0.5
    """Weight of the value loss ½(V − R̂)² in the sum of losses (c10)."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus in the sum of losses (c10)."""
    max_grad_norm: float = 0.5
    """Global norm to which each seed's gradient is clipped (c11)."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers (c2: orthogonal weights, zero biases)."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Nonlinearity of the hidden layers."""
    shared_network: bool = False
    """One trunk for policy and value instead of two (c13, m4)."""
    log_std: float = 0.0
    """Initial log σ of a Gaussian policy, one free parameter per action component (m1–m3)."""
    action_bounds: Literal["clip", "rescale", "squash"] = "clip"
    """How actions meet a Box's bounds: clip them (m5), rescale -1 … 1 onto the bounds and clip, or squash by tanh."""
    normalise_observations: bool = False
    """Subtract the running mean and divide by the running deviation, per seed (m6)."""
    clip_observations: float = 10.0
    """Bound of normalised observations (m7)."""
    normalise_rewards: bool = False
    """Divide rewards by the running deviation of the discounted return, per seed (m8)."""
    clip_rewards: float = 10.0
    """Bound of scaled rewards (m9)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "num_steps", "learning_rate", "max_grad_norm", "clip_observations", "clip_rewards")
        positive_all(self, "hidden")
        in_unit_interval(self, "gamma", "lam")
        at_least_zero(self, "value_coefficient", "entropy_coefficient")
        finite(self, "log_std")
        if self.total_steps < self.batch_size:
            raise ValueError(
                f"total_steps is {self.total_steps}, less than one rollout of {self.batch_size} steps "
                f"(num_steps {self.num_steps} × num_envs {self.num_envs}); raise it or collect less at a time"
            )

    @property
    def batch_size(self) -> int:
        """N, steps per seed and rollout."""
        return self.num_steps * self.num_envs

    @property
    def iterations(self) -> int:
        """Rollouts in the whole run."""
        return self.total_steps // self.batch_size

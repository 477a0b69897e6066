"""What is trained in the training benchmark: each task said once, and said again in every contestant's own words.

It leaves out running them and the clock.
"""

from typing import Any, NamedTuple


class Task(NamedTuple):
    """PPO on one environment. Step size and clip stay as they are; no target KL, no clipped value loss."""

    env: str
    num_envs: int
    num_steps: int
    minibatch_size: int
    epochs: int
    threshold: float  # mean return of an evaluation that counts as solved
    every: int  # steps between evaluations, where time to the threshold is measured
    budget: int  # steps after which a contestant that has not reached it stops
    learning_rate: float = 3e-4
    gamma: float = 0.99
    lam: float = 0.95
    clip: float = 0.2
    squared_error: float = 0.5  # weight of (V − R̂)², which some write as c · ½(V − R̂)²
    entropy: float = 0.0
    max_grad_norm: float = 0.5
    adam_eps: float = 1e-5
    hidden: tuple[int, ...] = (64, 64)  # tanh, a network for the policy and one for the value
    normalise: bool = False  # observations and rewards, by running statistics, clipped at ±10

    @property
    def batch(self) -> int:
        """Steps per iteration."""
        return self.num_envs * self.num_steps

    def __str__(self) -> str:
        size = f"{self.num_envs} × {self.num_steps}, minibatch {self.minibatch_size}, {self.epochs} epochs"
        return f"{self.env}, {size}" + (", normalised" if self.normalise else "")


CARTPOLE = Task("CartPole-v1", 8, 256, 256, 4, threshold=475, every=4096, budget=300_000)
CHEETAH = Task("HalfCheetah-v5", 1, 2048, 64, 10, threshold=1500, every=20_480, budget=1_000_000)
SPEED = (CARTPOLE, CHEETAH)
# What learns well enough for everybody to arrive: larger steps on the one, running normalisation on the other.
THRESHOLD = (CARTPOLE._replace(learning_rate=1e-3), CHEETAH._replace(normalise=True))


class Contestant(NamedTuple):
    """Who trains: a name for the page, which trainer, how many seeds, on whose environments, in how many processes."""

    name: str
    trainer: str
    seeds: int = 1
    backend: str = "gymnasium"
    processes: int = 1

    @property
    def compiles(self) -> bool:
        return self.trainer in ("telescope", "sbx")


REFERENCE = "Stable-Baselines3"
CONTESTANTS = (
    Contestant("telescope, 1 seed", "telescope"),
    Contestant("telescope, 8 seeds", "telescope", 8),
    Contestant("telescope, 8 seeds, 2 processes", "telescope", 8, processes=2),
    Contestant("telescope, 1 seed, EnvPool", "telescope", 1, "envpool"),
    Contestant("telescope, 8 seeds, EnvPool", "telescope", 8, "envpool"),
    Contestant(REFERENCE, "stable_baselines3"),
    Contestant("SBX", "sbx"),
    Contestant("CleanRL's loop", "cleanrl"),
)


def contestants(task: Task, *, plain: bool = False) -> list[Contestant]:
    """Who takes part: EnvPool and processes where physics is simulated; carts roll in a compiled loop already.

    plain: neither of the two.
    """
    plain = plain or task.env == CARTPOLE.env
    return [one for one in CONTESTANTS if not plain or (one.backend == "gymnasium" and one.processes == 1)]


def for_telescope(task: Task, **run: Any) -> dict[str, Any]:
    """The fields of `telescope.algorithms.ppo.PPO`, whose value loss has a factor ½."""
    return {
        "env": task.env,
        "num_envs": task.num_envs,
        "num_steps": task.num_steps,
        "minibatch_size": task.minibatch_size,
        "epochs": task.epochs,
        "learning_rate": task.learning_rate,
        "anneal_learning_rate": False,
        "gamma": task.gamma,
        "lam": task.lam,
        "clip": task.clip,
        "value_coefficient": 2 * task.squared_error,
        "entropy_coefficient": task.entropy,
        "max_grad_norm": task.max_grad_norm,
        "adam_eps": task.adam_eps,
        "hidden": task.hidden,
        "normalise_observations": task.normalise,
        "normalise_rewards": task.normalise,
        **run,
    }


def for_stable_baselines3(task: Task) -> dict[str, Any]:
    """Keyword arguments of Stable-Baselines3's PPO, which are SBX's too; neither halves the value loss."""
    return {
        "n_steps": task.num_steps,
        "batch_size": task.minibatch_size,
        "n_epochs": task.epochs,
        "learning_rate": task.learning_rate,
        "gamma": task.gamma,
        "gae_lambda": task.lam,
        "clip_range": task.clip,
        "vf_coef": task.squared_error,
        "ent_coef": task.entropy,
        "max_grad_norm": task.max_grad_norm,
        "policy_kwargs": {
            "net_arch": {"pi": list(task.hidden), "vf": list(task.hidden)},
            "ortho_init": True,
            "optimizer_kwargs": {"eps": task.adam_eps},
        },
    }


def zoo_cartpole() -> dict[str, Any]:
    """rl-baselines3-zoo's settings for PPO on CartPole-v1, with 8 environments; both schedules fall linearly."""
    return {
        "n_steps": 32,
        "batch_size": 256,
        "n_epochs": 20,
        "learning_rate": lambda remaining: 1e-3 * remaining,
        "clip_range": lambda remaining: 0.2 * remaining,
        "gamma": 0.98,
        "gae_lambda": 0.8,
        "ent_coef": 0.0,
    }

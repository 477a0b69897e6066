"""Deep Q-learning (Mnih et al. 2015, Nature 518) for a population of seeds: replay, target network, ε-greedy acting.

The loop is `train`; every formula in it is imported. A truncated step bootstraps from the state that it reached; a
terminated step does not bootstrap. QR-DQN (Dabney et al. 2017, arXiv 1710.10044) is a preset. Leaves out priorities.
"""

# S seeds, B environments per seed, M minibatch, A actions, K quantiles (1 of them is the mean), P parameters
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope import checks, td_error
from telescope.control.agents.actor import ActorCritic
from telescope.control.agents.distributions import allowed, of_action
from telescope.control.agents.networks import Network, q_network
from telescope.control.config import for_family
from telescope.control.experience.credit import mean_weights
from telescope.control.experience.draws import Batch, Draws
from telescope.control.exploration import ExploringConfig, exploring
from telescope.control.off_policy import OffPolicyConfig
from telescope.control.training import Session, mean_statistics
from telescope.control.workers.shares import over_processes
from telescope.iteration import AgentIteration
from telescope.losses import huber_loss, quantile_huber_loss
from telescope.optimisers import Adam, adam, adam_init, clip_by_norm
from telescope.threads import own_settings


@dataclasses.dataclass(frozen=True)
class DQN(OffPolicyConfig, ExploringConfig):
    """Deep Q-learning for discrete actions, with a replay buffer and a target network."""

    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    max_grad_norm: float | None = 10.0
    """Clip each seed's gradient to this global norm. none: never."""
    target_every: int = 250
    """Copy the Q-network into the target network after every this many gradient steps."""
    double: bool = False
    """Double DQN: the Q-network chooses the next action, the target network evaluates it (van Hasselt et al. 2016)."""
    dueling: bool = False
    """Dueling heads: Q(s, a) is a state value plus an advantage whose mean is 0 (Wang et al. 2016)."""
    layer_norm: bool = False
    """Normalise each hidden layer before its activation."""
    quantiles: int = 0
    """Number of quantiles of the return to learn for each action (QR-DQN). 0: learn its mean."""
    quantile_huber: float = 1.0
    """Error κ up to which the loss of quantiles is quadratic, in units of the return."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self, "target_every", "quantile_huber")
        checks.at_least_zero(self, "quantiles")
        if not self.quantiles:
            checks.unread(self, "quantile_huber", "set quantiles", "quantiles is 0")

    def exploration(self, step: int) -> float:
        """ε at this environment step."""
        if self.random_start and step < self.learning_starts:
            return 1.0
        return super().exploration(step)

    def network(self, observation_size: int, action_space: gym.Space) -> Network:
        """A perceptron that returns Q-values of all actions."""
        return q_network(
            observation_size,
            self.head(action_space).outputs,
            hidden=self.hidden,
            activation=self.activation,
            dueling=self.dueling,
            quantiles=self.quantiles,
            layer_norm=self.layer_norm,
        )

    def state_values(self, outputs: Tensor) -> Tensor:
        """Return max Q(s, ·) [N] for the critic's outputs."""
        return outputs.unflatten(-1, (-1, self.quantiles)).mean(-1).amax(-1) if self.quantiles else outputs


# The settings that flags start from, by environment. Those of CartPole were chosen for the worst of eight seeds
# (docs/dqn.md); the others are those of rl-baselines3-zoo, whose target_update_interval counts environment steps.
CARTPOLE = DQN(
    env="CartPole-v1",
    total_steps=50_000,
    hidden=(128, 128),
    layer_norm=True,
    anneal_learning_rate=True,
    train_every=32,
    updates_per_step=0.5,
    target_every=64,
    n_step=3,
    double=True,
    exploration_end=0.04,
)
MOUNTAIN_CAR = DQN(
    env="MountainCar-v0",
    total_steps=120_000,
    num_steps=1024,
    gamma=0.98,
    hidden=(256, 256),
    learning_rate=4e-3,
    replay_capacity=10_000,
    minibatch_size=128,
    train_every=16,
    updates_per_step=0.5,
    target_every=300,
    exploration_end=0.07,
)
LUNAR_LANDER = DQN(
    env="LunarLander-v3",
    total_steps=300_000,
    num_steps=1024,
    hidden=(256, 256),
    learning_rate=6.3e-4,
    replay_capacity=50_000,
    learning_starts=0,
    minibatch_size=128,
    train_every=4,
    updates_per_step=1.0,
    exploration_fraction=0.12,
    exploration_end=0.1,
)
ACROBOT = dataclasses.replace(LUNAR_LANDER, env="Acrobot-v1", total_steps=100_000)
MINATAR = DQN(  # of the MinAtar paper, with Adam and gradient steps in blocks
    total_steps=5_000_000,
    num_envs=8,
    num_steps=512,
    hidden=(),
    learning_rate=2.5e-4,
    learning_starts=5_000,
    minibatch_size=32,
    train_every=4,
    updates_per_step=0.25,
    target_every=1_000,
    exploration_end=0.1,
    exploration_fraction=0.02,
)
ATARI = dataclasses.replace(
    MINATAR,
    env_kwargs={"preprocessed": True},
    frame_stack=4,
    reward_bound=1.0,
    total_steps=10_000_000,
    learning_rate=1e-4,
    learning_starts=80_000,
    exploration_fraction=0.1,
    exploration_end=0.01,
)
PRESETS = {
    "MinAtar/": MINATAR,
    "ALE/": ATARI,
    "CartPole": CARTPOLE,
    "MountainCar": MOUNTAIN_CAR,
    "LunarLander": LUNAR_LANDER,
    "Acrobot": ACROBOT,
}


def preset(env: str, name: str = "dqn") -> DQN:
    """The settings for an environment id: the preset of its family, or the defaults; with quantiles as `qr_dqn`."""
    config = for_family(PRESETS, env, DQN())
    return dataclasses.replace(config, quantiles=25) if name == "qr_dqn" else config


class Learner(NamedTuple):
    """What learning changes: the Q-network, the target network (an older copy of it), and Adam's state."""

    parameters: Tensor  # [P] of one agent; [S, P] of the population
    target: Tensor  # [P]
    adam: Adam

    @classmethod
    def begin(cls, parameters: Tensor) -> Learner:
        return cls(parameters, parameters.clone(), adam_init(parameters))

    @property
    def acting(self) -> Tensor:
        return self.parameters


STATISTICS = ("loss", "q_mean", "gradient_norm")


@over_processes
@own_settings
def train(
    config: DQN,
    resume: dict[str, Any] | None = None,
    *,
    network: Network | None = None,
    start: dict[str, Any] | None = None,
    allow_inexact: bool = False,
) -> Iterator[AgentIteration]:
    """Train and yield after every `num_steps` steps: `.rows` are its metrics, `.state` continues it bit for bit.

    `network` maps observations to Q-values [N, A] and to [N] numbers that are not used; see
    `telescope.control.agents.networks`. `start` and `allow_inexact` are those of `ppo.train`.
    """
    if network is not None and config.quantiles:
        raise ValueError(f"network is given, but quantiles is {config.quantiles}; set quantiles to 0")
    more: dict[str, Any] = {"network": network, "start": start, "allow_inexact": allow_inexact}
    session = Session(config, resume, Learner, **more)
    update = session.lift(update_agent(config, session.agent), (0, 0, None))
    for _ in session.iterations():
        learning_rate = session.scheduled(config.learning_rate, config.anneal_learning_rate)
        step_size = torch.tensor(learning_rate, device=config.device)
        noise, draws, statistics = exploring(config, session), Draws(session), []
        for t in range(config.num_steps):
            session.play(noise[t], t)
            for number, batch in draws.after(t):
                session.learner, row = update(session.learner, batch, step_size)
                statistics.append(row)
                if (number + 1) % config.target_every == 0:
                    session.learner = session.learner._replace(target=session.learner.parameters.clone())
        yield session.finish(summary(config, statistics, session.step, learning_rate) | {"updates": draws.updates})


def update_agent(config: DQN, agent: ActorCritic) -> Callable[..., tuple[Learner, Tensor]]:
    """Return one gradient step of one agent on one minibatch, as a pure function."""

    def q_values(vector: Tensor, observations: Tensor) -> Tensor:  # [M, A, K]
        if config.quantiles:
            return agent.value(vector, observations).unflatten(-1, (-1, config.quantiles))
        return agent.policy(agent.layout.unflatten(vector), observations)[..., None]

    def taken(q: Tensor, actions: Tensor) -> Tensor:  # [M, K]
        return of_action(q.transpose(-1, -2), actions[:, None])

    def targets(old: Learner, batch: Batch) -> Tensor:
        judging = q_values(old.target, batch.next_observations)  # [M, A, K]
        choosing = q_values(old.parameters, batch.next_observations) if config.double else judging
        ahead = taken(judging, allowed(choosing.mean(-1), batch.next_masks).argmax(-1))  # [M, K]
        step = (batch.rewards, batch.discounts, batch.terminated)
        rewards, gamma, terminated = (x[:, None].expand_as(ahead) for x in step)
        # δ with value 0 is the target R + γ^k (1 − terminated) Q' [M, K]
        return td_error(rewards, torch.zeros_like(ahead), ahead, terminated=terminated, gamma=gamma)

    def loss(vector: Tensor, batch: Batch, wanted: Tensor) -> tuple[Tensor, Tensor]:
        values = taken(q_values(vector, batch.observations), batch.actions)  # [M, K]
        if config.quantiles:
            errors = quantile_huber_loss(values, wanted, config.quantile_huber)  # [M]
        else:
            errors = huber_loss(values, wanted)[:, 0]
        weights = mean_weights(batch.live)  # [M]
        total = (weights * errors).sum()
        return total, torch.stack([total, (weights * values.mean(-1)).sum()]).detach()

    def update(old: Learner, batch: Batch, learning_rate: Tensor) -> tuple[Learner, Tensor]:
        wanted = targets(old, batch).detach()  # [M]
        gradient, statistics = torch.func.grad(loss, has_aux=True)(old.parameters, batch, wanted)
        gradient, norm = clip_by_norm(gradient, config.max_grad_norm)
        parameters, moments = adam(old.parameters, old.adam, gradient, learning_rate, eps=config.adam_eps)
        return Learner(parameters, old.target, moments), torch.cat([statistics, norm[None]])

    return update


def summary(config: DQN, statistics: list[Tensor], step: int, learning_rate: float) -> dict[str, np.ndarray | None]:
    """The iteration's metrics, name → [S]. None for metrics of gradient steps before the first one."""
    means: dict[str, Any] = mean_statistics(STATISTICS, statistics) if statistics else dict.fromkeys(STATISTICS)
    constants = {"exploration": config.exploration(step), "learning_rate": learning_rate}
    return {**means, **{name: np.full(config.seeds, float(value)) for name, value in constants.items()}}

"""PQN, Q-learning on parallel environments (Gallici et al. 2024, arXiv 2407.04811), for a population of seeds.

The loop is `train`; every formula in it is imported. λ-returns of fresh rollouts stand in for the replay buffer, and
layer normalisation for the target network. Leaves out both (`dqn.py`).
"""

# T time, S seeds, B environments per seed, N = T·B samples per seed, M minibatch, A actions
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope import checks, lambda_return, next_values
from telescope.control.agents.actor import ActorCritic
from telescope.control.agents.distributions import FORBIDDEN, of_action
from telescope.control.agents.lifting import lift
from telescope.control.agents.networks import Network, q_network
from telescope.control.config import AgentConfig, for_family
from telescope.control.experience.credit import mean_weights
from telescope.control.experience.minibatches import minibatch_indices, minibatches
from telescope.control.experience.rollout import Rollout
from telescope.control.experience.samples import final_values, live_mask, per_seed, time_major
from telescope.control.exploration import ExploringConfig, exploring
from telescope.control.training import Session, mean_statistics
from telescope.control.workers.shares import over_processes
from telescope.iteration import AgentIteration
from telescope.losses import squared_value_loss
from telescope.optimisers import RAdam, clip_by_norm, radam, radam_init
from telescope.threads import own_settings
from telescope.trees import where


@dataclasses.dataclass(frozen=True)
class PQN(AgentConfig, ExploringConfig):
    """Q-learning from λ-returns of parallel environments, without a replay buffer and a target network."""

    collects_rollouts = True
    num_envs: int = 32
    """Number of environments per seed."""
    num_steps: int = 32
    """Steps of each environment per iteration (T in formulas)."""
    lam: float = 0.95
    """λ of the returns, between 0 and 1. 0 is one-step Q-learning; 1 trusts the whole rollout."""
    learning_rate: float = 1e-3
    """Learning rate of RAdam at the start of the run."""
    max_grad_norm: float = 10.0
    """Clip each seed's gradient to this global norm."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers, each with layer normalisation."""
    activation: Literal["tanh", "relu"] = "relu"
    """Activation function of the hidden layers."""
    minibatch_size: int = 256
    """Samples per gradient step, per seed. Each epoch shuffles the rollout again."""
    epochs: int = 4
    """Number of passes over each rollout."""
    adam_eps: float = 1e-8
    """RAdam's ε."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self, "minibatch_size", "epochs", "adam_eps")
        checks.in_unit_interval(self, "lam")
        if self.minibatch_size > self.batch_size:
            raise ValueError(
                f"minibatch_size is {self.minibatch_size}, more than the {self.batch_size} samples of a rollout "
                f"(num_steps {self.num_steps} × num_envs {self.num_envs}); lower it, or raise num_steps or num_envs"
            )

    @property
    def minibatches(self) -> int:
        """Gradient steps per epoch. The last minibatch is smaller if N is not a multiple of M."""
        return -(-self.batch_size // self.minibatch_size)

    @property
    def updates(self) -> int:
        """Gradient steps in the whole run."""
        return self.iterations * self.epochs * self.minibatches

    def network(self, observation_size: int, action_space: gym.Space) -> Network:
        """A perceptron with layer normalisation that returns Q-values of all actions."""
        outputs = self.head(action_space).outputs
        return q_network(observation_size, outputs, hidden=self.hidden, activation=self.activation, layer_norm=True)


CARTPOLE = PQN(
    env="CartPole-v1", total_steps=200_000, learning_rate=2.5e-4, minibatch_size=64, exploration_fraction=0.5
)
PRESETS = {"CartPole": CARTPOLE}


def preset(env: str) -> PQN:
    """The settings for an environment id: the preset of its family, or the defaults."""
    return for_family(PRESETS, env, PQN())


class Learner(NamedTuple):
    """What learning changes: the Q-network, and RAdam's state."""

    parameters: Tensor  # [P] of one agent; [S, P] of the population
    radam: RAdam

    @classmethod
    def begin(cls, parameters: Tensor) -> Learner:
        return cls(parameters, radam_init(parameters))

    @property
    def acting(self) -> Tensor:
        return self.parameters


class Batch(NamedTuple):
    """Samples of a rollout, of one agent; those of the population have S in front."""

    observations: Tensor  # [N, D]
    actions: Tensor  # [N]
    returns: Tensor  # [N] λ-returns
    live: Tensor  # [N] bool, False on the row that a NEXT_STEP autoreset inserts


STATISTICS = ("loss", "q_mean", "gradient_norm")


@over_processes
@own_settings
def train(
    config: PQN,
    resume: dict[str, Any] | None = None,
    *,
    network: Network | None = None,
    start: dict[str, Any] | None = None,
    allow_inexact: bool = False,
) -> Iterator[AgentIteration]:
    """Train and yield after every iteration: `.rows` are its metrics, `.state` continues it bit for bit.

    `network` maps observations to Q-values [N, A] and to [N] numbers that are not used; see
    `telescope.control.agents.networks`. `start` and `allow_inexact` are those of `ppo.train`.
    """
    more: dict[str, Any] = {"network": network, "start": start, "allow_inexact": allow_inexact}
    session = Session(config, resume, Learner, **more)
    best = lift(best_value(session.agent), (0, 0, 0), compiled=False, notes=session.notes)
    update = session.lift(update_agent(config, session.agent), (0, 0, None))
    for iteration in session.iterations():
        learning_rate = session.scheduled(config.learning_rate, config.anneal_learning_rate)
        step_size, statistics = torch.tensor(learning_rate, device=config.device), []
        rollout = session.collect(exploring(config, session))
        batch = session.to_device(samples(config, session, rollout, best))
        for indices in minibatch_indices(config, iteration):
            for minibatch in minibatches(batch, indices.to(config.device)):
                session.learner, row = update(session.learner, minibatch, step_size)
                statistics.append(row)
        constants = {"exploration": config.exploration(session.step), "learning_rate": learning_rate}
        yield session.finish(
            mean_statistics(STATISTICS, statistics)
            | {name: np.full(config.seeds, float(value)) for name, value in constants.items()}
        )


def samples(config: PQN, session: Session, rollout: Rollout, best: Callable[..., Tensor]) -> Batch:
    """The rollout as samples [S, N, …] with the returns of Peng's Q(λ): they bootstrap from max Q of the networks."""

    def value(observations: Tensor, masks: Tensor | None) -> Tensor:  # [S, N]
        with torch.no_grad():
            return best(session.parameters, *session.to_device((observations, masks))).to(rollout.rewards.device)  # type: ignore[no-any-return]

    masks = None if rollout.action_masks is None else per_seed(rollout.action_masks)
    seen, then = session.rollouts.seen
    ends: dict[str, Any] = {
        "terminated": rollout.terminated,
        "truncated": rollout.truncated,
        "mask": live_mask(rollout),
    }
    values = time_major(value(per_seed(rollout.observations), masks), config.num_envs)  # [T, S, B]
    last = value(torch.as_tensor(seen), None if then is None else torch.as_tensor(then))  # [S, B]
    finals = final_values(rollout, lambda observations, _: value(observations, None))
    reached = next_values(values, last, final_values=finals, **ends)
    returns = lambda_return(rollout.rewards, reached, gamma=config.gamma, lam=config.lam, **ends)
    return Batch(*map(per_seed, (rollout.observations, rollout.actions, returns, rollout.mask)))


def best_value(agent: ActorCritic) -> Callable[..., Tensor]:
    """Return max Q(s, ·) [N] of one agent over the actions that `masks` allow."""

    def best(vector: Tensor, observations: Tensor, masks: Tensor | None) -> Tensor:
        q = agent.policy(agent.layout.unflatten(vector), observations)
        return (q if masks is None else torch.where(masks, q, FORBIDDEN)).amax(-1)  # type: ignore[arg-type]

    return best


def update_agent(config: PQN, agent: ActorCritic) -> Callable[..., tuple[Learner, Tensor]]:
    """Return one gradient step of one agent on one minibatch, as a pure function."""

    def loss(vector: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        q = of_action(agent.policy(agent.layout.unflatten(vector), batch.observations), batch.actions)  # type: ignore[arg-type]
        weights = mean_weights(batch.live)  # [M]
        total = (weights * squared_value_loss(q, batch.returns)).sum()
        return total, torch.stack([total, (weights * q).sum()]).detach()

    def update(old: Learner, batch: Batch, learning_rate: Tensor) -> tuple[Learner, Tensor]:
        gradient, statistics = torch.func.grad(loss, has_aux=True)(old.parameters, batch)
        gradient, norm = clip_by_norm(gradient, config.max_grad_norm)
        new = Learner(*radam(old.parameters, old.radam, gradient, learning_rate, eps=config.adam_eps))
        return where(batch.live.any(), new, old), torch.cat([statistics, norm[None]])

    return update

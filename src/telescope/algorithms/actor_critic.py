"""One-step actor–critic (Sutton & Barto 2018, section 13.5) for a population of seeds: an update after every step.

The loop is `train`; every formula in it is imported. It is GAE at λ = 0 on rollouts of one step. The three weights of
∇log π are the last three of the GAE paper's list (Schulman et al. 2016, section 2): Q, A = Q − V, and the TD residual.
Leaves out λ and longer rollouts (`a2c.py`), and the factor γᵗ of the book, which nobody uses.
"""

# S seeds, B environments per seed, A actions
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope import checks, td_error
from telescope.control.agents.actor import ActorCritic, default_network
from telescope.control.agents.distributions import of_action
from telescope.control.agents.networks import Network
from telescope.control.config import MUJOCO_FAMILY, PolicyConfig, for_family
from telescope.control.experience.credit import mean_weights
from telescope.control.experience.steps import Batch, step_of
from telescope.control.training import Session, mean_statistics
from telescope.control.workers.shares import over_processes
from telescope.iteration import AgentIteration
from telescope.losses import reinforce, squared_value_loss
from telescope.optimisers import Learner, adam, clip_by_norm
from telescope.threads import own_settings
from telescope.trees import where


@dataclasses.dataclass(frozen=True)
class OneStep(PolicyConfig):
    """One-step actor–critic: actor and critic learn from each step as it happens."""

    num_envs: int = 8
    """Number of environments per seed. Each gradient step averages over one step of all of them."""
    num_steps: int = 128
    """Steps of each environment per iteration. Each iteration writes one row of metrics per seed."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    weight: Literal["td", "advantage", "q"] = "td"
    """Weight Ψ of ∇log π: the TD residual, or Q(s, a) − V(s) or Q(s, a) of a critic with a value for each action."""
    adam_eps: float = 1e-5
    """Adam's ε."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self, "adam_eps")

    @property
    def updates(self) -> int:
        """Gradient steps in the whole run: one per step of each environment."""
        return self.iterations * self.num_steps

    def network(self, observation_size: int, action_space: gym.Space) -> Network:
        """Perceptrons for actor and critic; the critic returns V(s), or Q(s, ·) if `weight` needs it."""
        if self.weight == "td":
            return default_network(self, observation_size, action_space)
        if not isinstance(action_space, gym.spaces.Discrete):
            raise ValueError(
                f"weight is {self.weight!r}, whose critic has a value for each action, but action_space is "
                f"{action_space}; expected Discrete (weight td works with all spaces)"
            )
        return default_network(self, observation_size, action_space, critic_outputs=int(action_space.n))


# The settings that flags start from, by environment.
CARTPOLE = OneStep(env="CartPole-v1", total_steps=500_000, normalise_rewards=True)
ACROBOT = OneStep(env="Acrobot-v1", total_steps=500_000, num_envs=16, normalise_observations=True)
MUJOCO = OneStep(num_envs=16, learning_rate=3e-4, log_std=-0.5, normalise_observations=True, normalise_rewards=True)
PRESETS = {
    "CartPole": CARTPOLE,
    "Acrobot": ACROBOT,
    "MountainCar": ACROBOT,
    "Pendulum": dataclasses.replace(MUJOCO, total_steps=500_000, gamma=0.9),
    "LunarLander": dataclasses.replace(ACROBOT, total_steps=1_000_000, normalise_rewards=True),
    **dict.fromkeys(MUJOCO_FAMILY, MUJOCO),
}


def preset(env: str) -> OneStep:
    """The settings for an environment id: the preset of its family, or the defaults."""
    return for_family(PRESETS, env, OneStep())


STATISTICS = ("policy_loss", "value_loss", "entropy", "gradient_norm")


@over_processes
@own_settings
def train(
    config: OneStep,
    resume: dict[str, Any] | None = None,
    *,
    network: Network | None = None,
    start: dict[str, Any] | None = None,
    allow_inexact: bool = False,
) -> Iterator[AgentIteration]:
    """Train and yield after every `num_steps` steps: `.rows` are its metrics, `.state` continues it bit for bit.

    `network`, `start` and `allow_inexact` are those of `ppo.train`. With `weight` "q" or "advantage" the network
    returns action values [N, A] in place of values [N].
    """
    more: dict[str, Any] = {"network": network, "start": start, "allow_inexact": allow_inexact}
    session = Session(config, resume, Learner, **more)
    update = session.lift(update_agent(config, session.agent), (0, 0, None))
    for iteration in session.iterations():
        learning_rate = session.scheduled(config.learning_rate, config.anneal_learning_rate)
        step_size = torch.tensor(learning_rate, device=config.device)
        noise, statistics = session.rollouts.noise(iteration), []
        for t in range(config.num_steps):
            session.learner, row = update(session.learner, step_of(session, noise[t], t), step_size)
            statistics.append(row)
        rate = np.full(config.seeds, learning_rate)
        yield session.finish({**mean_statistics(STATISTICS, statistics), "learning_rate": rate})


def update_agent(config: OneStep, agent: ActorCritic) -> Callable[..., tuple[Learner, Tensor]]:
    """Return one gradient step of one agent on one step of its environments, as a pure function."""
    policy = agent.distribution

    def mean_value(outputs: Tensor, critic: Tensor, masks: Tensor | None) -> Tensor:
        """V(s) [B]: the critic's output, or Σ_a π(a|s) Q(s, a)."""
        return critic if config.weight == "td" else (policy.probabilities(outputs, masks) * critic).sum(-1)

    def judged(vector: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The policy's outputs, and what the critic learns and the weight is taken from: V(s), or Q(s, a) and V(s)."""
        outputs, critic = agent.network.apply(agent.layout.unflatten(vector), batch.observations)
        values = mean_value(outputs, critic, batch.action_masks)
        return outputs, critic if config.weight == "td" else of_action(critic, batch.actions), values

    def targets(vector: Tensor, batch: Batch) -> Tensor:
        """r + γ (1 − terminated) V(s') [B]: δ with value 0."""
        outputs, critic = agent.network.apply(agent.layout.unflatten(vector), batch.next_observations)
        ahead = mean_value(outputs, critic, batch.next_masks)
        return td_error(batch.rewards, torch.zeros_like(ahead), ahead, terminated=batch.terminated, gamma=config.gamma)

    def loss(vector: Tensor, batch: Batch, wanted: Tensor) -> tuple[Tensor, Tensor]:
        outputs, learned, values = judged(vector, batch)
        weight = {"td": wanted - values, "advantage": learned - values, "q": learned}[config.weight].detach()  # Ψ [B]
        weights = mean_weights(batch.live)
        log_probs = policy.log_prob(outputs, batch.actions, batch.action_masks)
        actor = (weights * reinforce(log_probs, weight)).sum()
        critic = (weights * squared_value_loss(learned, wanted)).sum()
        bonus = (weights * policy.entropy(outputs, batch.action_masks)).sum()
        total = actor + config.value_coefficient * critic - config.entropy_coefficient * bonus
        return total, torch.stack([actor, critic, bonus]).detach()

    def update(old: Learner, batch: Batch, learning_rate: Tensor) -> tuple[Learner, Tensor]:
        wanted = targets(old.parameters, batch).detach()  # [B]
        gradient, statistics = torch.func.grad(loss, has_aux=True)(old.parameters, batch, wanted)
        gradient, norm = clip_by_norm(gradient, config.max_grad_norm)
        new = Learner(*adam(*old, gradient, learning_rate, eps=config.adam_eps))
        return where(batch.live.any(), new, old), torch.cat([statistics, norm[None]])  # no step without a live row

    return update

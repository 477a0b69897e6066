"""Asynchronous PPO for a population of seeds: IMPALA's actors and V-trace, PPO's clip, and a target network.

The clip bounds the ratio π/μ to the behaviour policy μ that acted, some updates ago. V-trace judges by a target network
that stays for some iterations, as in IMPACT (Luo et al. 2020, arXiv 1912.00167), so that targets do not move while
several epochs learn from them. The loop is `train`; every formula in it is imported. Leaves out IMPACT's ratio to the
target network.
"""

# T time, S seeds, B environments of an actor per seed, N = T·B samples per seed, M minibatch
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from telescope import checks
from telescope.control.agents.actor import ActorCritic
from telescope.control.agents.networks import Network
from telescope.control.asynchronous import ActorSession, VTraceConfig
from telescope.control.config import MUJOCO_FAMILY, for_family
from telescope.control.experience.corrected import behaviour, unpacked, with_vtrace
from telescope.control.experience.credit import Batch, critic_statistics, mean_weights, remembered
from telescope.control.experience.minibatches import check_sequences, minibatches, shuffled_indices
from telescope.control.training import mean_statistics
from telescope.control.workers.shares import over_processes
from telescope.iteration import AgentIteration
from telescope.losses import importance_ratio, kl_k3, ppo_clip, squared_value_loss
from telescope.optimisers import Adam, adam, adam_init, clip_by_norm
from telescope.threads import own_settings
from telescope.trees import where


@dataclasses.dataclass(frozen=True)
class APPO(VTraceConfig):
    """Asynchronous PPO: actors send rollouts to one learner, which makes several clipped epochs on each."""

    num_envs: int = 8
    """Number of environments per seed of each actor."""
    num_steps: int = 64
    """Steps of each environment per rollout (T in formulas)."""
    lam: float = 0.95
    """λ of V-trace's targets, between 0 and 1. 0 trusts one step and the value function; 1 the whole rollout."""
    minibatch_size: int = 128
    """Samples per gradient step, per seed. Each epoch shuffles the rollout again."""
    epochs: int = 4
    """Number of passes over each rollout."""
    clip: float = 0.2
    """Clip range ε of PPO's policy loss: the ratio to the policy that acted counts within 1 − ε … 1 + ε."""
    target_iterations: int = 1
    """Iterations between two copies of the networks into the target networks, by which V-trace judges a rollout."""
    adam_eps: float = 1e-5
    """Adam's ε. The default 1e-5 is that of OpenAI baselines; PyTorch's is 1e-8."""
    sequence_length: int | None = None
    """Steps of the sequences in a minibatch, with a memory. none: num_steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self, "minibatch_size", "epochs", "clip", "target_iterations", "adam_eps")
        if self.minibatch_size > self.batch_size:
            raise ValueError(
                f"minibatch_size is {self.minibatch_size}, more than the {self.batch_size} samples of a rollout "
                f"(num_steps {self.num_steps} × num_envs {self.num_envs}); lower it, or raise num_steps or num_envs"
            )
        check_sequences(self)

    @property
    def minibatches(self) -> int:
        """Gradient steps per epoch. The last minibatch is smaller if N is not a multiple of M."""
        return -(-self.batch_size // self.minibatch_size)

    @property
    def updates(self) -> int:
        """Gradient steps in the whole run."""
        return self.iterations * self.epochs * self.minibatches


# The settings that flags start from, by environment.
CARTPOLE = APPO(
    env="CartPole-v1",
    total_steps=500_000,
    num_steps=128,
    minibatch_size=256,
    learning_rate=1e-3,
    normalise_rewards=True,
)
MUJOCO = APPO(
    num_envs=8,
    num_steps=256,
    minibatch_size=64,
    epochs=10,
    value_coefficient=0.25,
    log_std=-0.5,
    normalise_observations=True,
    normalise_rewards=True,
)
PRESETS = {
    "CartPole": CARTPOLE,
    "Acrobot": APPO(total_steps=500_000, num_envs=16, normalise_observations=True, normalise_rewards=True),
    "LunarLander": APPO(num_envs=16, num_steps=256, minibatch_size=256, gamma=0.999, normalise_rewards=True),
    **dict.fromkeys(MUJOCO_FAMILY, MUJOCO),
}


def preset(env: str) -> APPO:
    """The settings for an environment id: the preset of its family, or the defaults."""
    return for_family(PRESETS, env, APPO())


class Learner(NamedTuple):
    """What learning changes: all parameters of actor and critic as one vector, Adam's state, and the target."""

    parameters: Tensor  # [P] of one agent; [S, P] of the population
    adam: Adam
    target: Tensor  # [P] the parameters of some iterations ago

    @classmethod
    def begin(cls, parameters: Tensor) -> Learner:
        return cls(parameters, adam_init(parameters), parameters.clone())

    @property
    def acting(self) -> Tensor:
        return self.parameters


STATISTICS = ("policy_loss", "value_loss", "entropy", "kl", "clip_fraction", "gradient_norm")


@over_processes
@own_settings
def train(
    config: APPO,
    resume: dict[str, Any] | None = None,
    *,
    network: Network | None = None,
    start: dict[str, Any] | None = None,
    allow_inexact: bool = False,
) -> Iterator[AgentIteration]:
    """Train and yield after every iteration: `.rows` are its metrics, `.state` continues it.

    Bit for bit without actors; see docs/asynchrony.md for the others. `network`, `start` and `allow_inexact` are those
    of `ppo.train`.
    """
    more: dict[str, Any] = {"network": network, "start": start, "allow_inexact": allow_inexact}
    session = ActorSession(config, resume, Learner, behaviour, recurrent=True, **more)
    update = session.lift(update_agent(config, session.agent), (0, 0, None))
    for iteration in session.iterations():
        learning_rate = session.scheduled(config.learning_rate, config.anneal_learning_rate)
        step_size, statistics = torch.tensor(learning_rate, device=config.device), []
        rollout, log_probs = unpacked(session.gather())  # [T, S, B, …] and log μ [S, N], of some updates ago
        batch, clipped = with_vtrace(config, session, rollout, log_probs, session.learner.target)
        for indices in shuffled_indices(config, session.agent, iteration):
            for minibatch in minibatches(batch, indices.to(config.device)):
                session.learner, row = update(session.learner, minibatch, step_size)
                statistics.append(row)
        if (iteration + 1) % config.target_iterations == 0:
            session.learner = session.learner._replace(target=session.parameters.clone())
        yield session.finish(
            mean_statistics(STATISTICS, statistics)
            | critic_statistics(batch)
            | clipped
            | {"learning_rate": np.full(config.seeds, learning_rate)}
        )


def update_agent(config: APPO, agent: ActorCritic) -> Callable[..., tuple[Learner, Tensor]]:
    """Return one gradient step of one agent on one minibatch, as a pure function."""

    def loss(vector: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        seen = remembered(agent, vector, batch, config.sequence_steps)
        log_probs, entropy, values = agent.evaluate(vector, seen, batch.actions, batch.action_masks)  # [M] each
        ratio = importance_ratio(log_probs, batch.log_probs)  # [M] π/μ
        weights = mean_weights(batch.live)  # [M]
        policy = (weights * ppo_clip(ratio, batch.advantages, config.clip)).sum()
        value = (weights * squared_value_loss(values, batch.returns)).sum()
        bonus = (weights * entropy).sum()
        total = policy + config.value_coefficient * value - config.entropy_coefficient * bonus
        kl = (weights * kl_k3(log_probs, batch.log_probs)).sum()
        clipped = (weights * ((ratio - 1).abs() > config.clip)).sum()
        return total, torch.stack([policy, value, bonus, kl, clipped]).detach()

    def update(old: Learner, batch: Batch, learning_rate: Tensor) -> tuple[Learner, Tensor]:
        gradient, statistics = torch.func.grad(loss, has_aux=True)(old.parameters, batch)  # [P], [5]
        gradient, norm = clip_by_norm(gradient, config.max_grad_norm)
        new = Learner(*adam(*old[:2], gradient, learning_rate, eps=config.adam_eps), old.target)
        return where(batch.live.any(), new, old), torch.cat([statistics, norm[None]])  # no step without a live row

    return update

"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) for a population of seeds.

The loop is `train`; every formula in it is imported. The details that make PPO work in practice are fields of `PPO`.
docs/ppo.md lists them by their numbers in "The 37 implementation details of PPO" (Huang et al. 2022).
"""

# T time, S seeds, B environments per seed, N = T·B samples per seed, M minibatch, D observation size, A actions
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from telescope import checks
from telescope.control.agents.actor import ActorCritic
from telescope.control.agents.critics import critic_loss, penalty, step_sizes, with_gradient
from telescope.control.agents.networks import Network
from telescope.control.config import MUJOCO_FAMILY, OnPolicyConfig, for_family
from telescope.control.experience.credit import (
    Batch,
    critic_statistics,
    judged_again,
    mean_weights,
    remembered,
    samples,
    whitened_minibatch,
    with_advantages,
)
from telescope.control.experience.minibatches import (
    check_sequences,
    minibatch_indices,
    minibatches,
    sequence_indices,
)
from telescope.control.training import Session, mean_statistics
from telescope.control.workers.shares import over_processes
from telescope.iteration import AgentIteration
from telescope.losses import importance_ratio, kl_k3, ppo_clip
from telescope.optimisers import Learner, adam, clip_by_norm
from telescope.renamed import takes_former_names
from telescope.threads import own_settings
from telescope.trees import where


@takes_former_names
@dataclasses.dataclass(frozen=True)
class PPO(OnPolicyConfig):
    """Proximal policy optimisation: several epochs of a clipped surrogate on each rollout."""

    learns_from_frames: ClassVar[bool] = True
    minibatch_size: int = 64
    """Samples per gradient step, per seed. Each epoch shuffles the rollout again."""
    epochs: int = 10
    """Number of passes over each rollout."""
    clip: float = 0.2
    """Clip range ε of PPO's policy loss: the probability ratio counts within 1 − ε … 1 + ε."""
    anneal_clip: bool = False
    """Decay the clip range ε linearly to 0 over the run, as the PPO paper does on Atari."""
    adam_eps: float = 1e-5
    """Adam's ε. The default 1e-5 is that of OpenAI baselines; PyTorch's is 1e-8."""
    normalise_advantages: bool = True
    """Whiten advantages within each minibatch, per seed. A minibatch of one uses the rollout's statistics."""
    value_clip: float | None = None
    """Clip the value loss around old values by this, in units of the return. none: off (ablations found no gain)."""
    target_kl: float | None = None
    """Stop a seed's updates in this iteration once a minibatch's KL estimate (k3) exceeds this value."""
    recompute_advantages: bool = False
    """Recompute values and advantages before each epoch (Andrychowicz et al. 2021, section 3.5)."""
    value_learning_rate: float | None = None
    """Learning rate of the critic's own parameters at the start of the run. none: learning_rate."""
    sequence_length: int | None = None
    """Steps of the sequences in a minibatch, with a memory or a gradient critic. none: num_steps."""
    correction_penalty: float = 1.0
    """Weight β of ½β|θ|² for the parameters θ of a gradient critic's correction."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self, "minibatch_size", "epochs", "clip", "adam_eps", "value_clip", "target_kl")
        if self.minibatch_size > self.batch_size:
            raise ValueError(
                f"minibatch_size is {self.minibatch_size}, more than the {self.batch_size} samples of a rollout "
                f"(num_steps {self.num_steps} × num_envs {self.num_envs}); lower it, or raise num_steps or num_envs"
            )
        if self.normalise_advantages and self.batch_size == 1:
            raise ValueError(
                "normalise_advantages is True, but a rollout has one sample (num_steps 1 × num_envs 1), and the "
                "whitened advantage of one sample is 0; collect more, or set normalise_advantages to False"
            )
        self._check_critic()

    def _check_critic(self) -> None:
        checks.positive(self, "value_learning_rate")
        checks.at_least_zero(self, "correction_penalty")
        if self.critic != "value":
            checks.unread(self, "value_clip", "leave it at none", f"critic is {self.critic!r}, whose loss has no clip")
        if self.critic == "gradient":
            checks.unread(self, "memory", "leave it at none", "critic is 'gradient', which has no memory")
        else:
            checks.unread(self, "correction_penalty", "set critic to 'gradient'", f"critic is {self.critic!r}")
        check_sequences(self)

    @property
    def learns_sequences(self) -> bool:
        """Whether minibatches consist of sequences, and not of single steps."""
        return super().learns_sequences or self.critic == "gradient"

    @property
    def single_frames(self) -> bool:
        """Whether environments give single frames of a stack; not to a critic that reads successors."""
        return super().single_frames and self.critic != "gradient"

    @property
    def minibatches(self) -> int:
        """Gradient steps per epoch. The last minibatch is smaller if N is not a multiple of M."""
        return -(-self.batch_size // self.minibatch_size)

    @property
    def updates(self) -> int:
        """Gradient steps in the whole run."""
        return self.iterations * self.epochs * self.minibatches


# The settings that flags start from, by environment. CartPole's were chosen for the worst of 64 seeds: with those of
# rl-baselines3-zoo three seeds stayed below 490, with scaled rewards none (docs/results.md). The rest of classic
# control and Box2D follow rl-baselines3-zoo, without state-dependent exploration, with our ½ in the value loss, larger
# minibatches on Box2D, and more foresight (γ) and epochs on Pendulum. MuJoCo follows Tianshou, with one set for all but
# Swimmer, where a stroke pays off much later: γ and λ of rl-baselines3-zoo.
CARTPOLE = PPO(
    env="CartPole-v1",
    total_steps=100_000,
    num_envs=8,
    num_steps=128,
    minibatch_size=256,
    learning_rate=1e-3,
    anneal_clip=True,
    normalise_rewards=True,
)
ACROBOT = PPO(
    env="Acrobot-v1",
    num_envs=16,
    num_steps=256,
    epochs=4,
    lam=0.94,
    normalise_observations=True,
    normalise_rewards=True,
)
MOUNTAIN_CAR = dataclasses.replace(ACROBOT, env="MountainCar-v0", num_steps=16, lam=0.98)
PENDULUM = PPO(
    env="Pendulum-v1",
    total_steps=100_000,
    num_envs=4,
    num_steps=1024,
    epochs=20,
    gamma=0.95,
    lam=0.95,
    learning_rate=1e-3,
)
MOUNTAIN_CAR_CONTINUOUS = dataclasses.replace(
    PENDULUM,
    env="MountainCarContinuous-v0",
    epochs=10,
    gamma=0.9999,
    lam=0.9,
    normalise_observations=True,
    normalise_rewards=True,
)
LUNAR_LANDER = PPO(
    num_envs=16,
    num_steps=1024,
    minibatch_size=256,
    epochs=4,
    gamma=0.999,
    lam=0.98,
    entropy_coefficient=0.01,
    normalise_rewards=True,
)
BIPEDAL_WALKER = PPO(
    total_steps=5_000_000,
    num_envs=32,
    num_steps=512,
    minibatch_size=256,
    gamma=0.999,
    clip=0.18,
    normalise_observations=True,
    normalise_rewards=True,
)
MUJOCO = PPO(
    num_envs=8,
    num_steps=256,
    minibatch_size=64,
    epochs=10,
    value_coefficient=0.25,
    log_std=-0.5,
    normalise_advantages=False,
    normalise_observations=True,
    normalise_rewards=True,
    recompute_advantages=True,
)
SWIMMER = dataclasses.replace(
    MUJOCO, gamma=0.9999, lam=0.98, num_envs=4, num_steps=1024, minibatch_size=256, learning_rate=6e-4
)
# For tasks that need `--memory gru` (docs/memory.md): short rollouts of many environments, few and long minibatches.
TMAZE = PPO(
    total_steps=150_000,
    num_envs=16,
    num_steps=64,
    minibatch_size=256,
    epochs=4,
    learning_rate=2e-3,
    entropy_coefficient=0.02,
)
MASKED_CARTPOLE = dataclasses.replace(
    CARTPOLE, total_steps=150_000, num_envs=32, num_steps=64, minibatch_size=512, learning_rate=2e-3
)
MASKED_PENDULUM = PPO(
    total_steps=200_000,
    num_envs=32,
    num_steps=64,
    minibatch_size=512,
    gamma=0.95,
    learning_rate=2e-3,
    normalise_rewards=True,
)
MINATAR = PPO(
    total_steps=5_000_000,
    num_envs=64,
    num_steps=128,
    minibatch_size=512,
    epochs=3,
    learning_rate=1e-3,
    entropy_coefficient=0.01,
    anneal_clip=True,
    shared_network=True,
    hidden=(),
)
ATARI = PPO(  # of the PPO paper and of its implementations, with the preprocessing of Machado et al. 2018
    env_kwargs={"preprocessed": True},
    frame_stack=4,
    reward_bound=1.0,
    total_steps=10_000_000,
    num_envs=8,
    num_steps=128,
    minibatch_size=256,
    epochs=4,
    clip=0.1,
    learning_rate=2.5e-4,
    entropy_coefficient=0.01,
    shared_network=True,
    hidden=(),
)
PRESETS = {
    "MinAtar/": MINATAR,
    "ALE/": ATARI,
    "TMaze": TMAZE,
    "MaskedCartPole": MASKED_CARTPOLE,
    "MaskedPendulum": MASKED_PENDULUM,
    "CartPole": CARTPOLE,
    "Acrobot": ACROBOT,
    "MountainCar": MOUNTAIN_CAR,
    "MountainCarContinuous": MOUNTAIN_CAR_CONTINUOUS,
    "Pendulum": PENDULUM,
    "LunarLander": LUNAR_LANDER,
    "LunarLanderContinuous": LUNAR_LANDER,
    "BipedalWalker": BIPEDAL_WALKER,
    "BipedalWalkerHardcore": BIPEDAL_WALKER,
    **dict.fromkeys(MUJOCO_FAMILY, MUJOCO),
    "Swimmer": SWIMMER,
}


def preset(env: str, name: str = "ppo") -> PPO:
    """The settings for an environment id: the preset of its family, or the defaults, as `name` changes them."""
    config = for_family(PRESETS, env, PPO())
    if name == "distributional_ppo":
        return dataclasses.replace(config, critic="quantile")
    if name == "gradient_ppo":  # sequences, minibatches and the critic's learning rate are those of the paper's code
        sequences: dict[str, Any] = {"sequence_length": min(32, config.num_steps), "minibatch_size": 256}
        return dataclasses.replace(config, critic="gradient", value_learning_rate=3e-3, **sequences)
    return config


STATISTICS = ("policy_loss", "value_loss", "entropy", "kl", "clip_fraction", "gradient_norm", "updated")


@over_processes
@own_settings
def train(
    config: PPO,
    resume: dict[str, Any] | None = None,
    *,
    network: Network | None = None,
    start: dict[str, Any] | None = None,
    allow_inexact: bool = False,
) -> Iterator[AgentIteration]:
    """Train and yield after every iteration: `.rows` are its metrics, `.state` continues it bit for bit.

    `network` replaces the built-in perceptrons by any pure (init, apply) pair; see `telescope.control.agents.networks`.
    `start` is the state of another run; this run begins with its parameters and normalisation statistics.
    `allow_inexact` lets `resume` start new episodes if environments cannot be restored exactly.
    """
    more: dict[str, Any] = {"network": network, "start": start, "allow_inexact": allow_inexact}
    session = Session(config, resume, Learner, recurrent=True, **more)
    shuffled = sequence_indices if config.learns_sequences or session.agent.network.memory else minibatch_indices
    update = session.lift(update_agent(config, session.agent), (0, 0, 0, None, None))
    for iteration in session.iterations():
        learning_rate = session.scheduled(config.learning_rate, config.anneal_learning_rate)
        clip = session.scheduled(config.clip, config.anneal_clip)
        schedule = torch.tensor([learning_rate, clip], device=config.device).unbind()
        updating = torch.ones(config.seeds, dtype=torch.bool, device=config.device)  # [S] False after an early stop
        rollout, statistics = session.collect(), []
        batch = samples(session, rollout)
        for epoch, indices in enumerate(shuffled(config, iteration)):
            if epoch > 0 and config.recompute_advantages:
                rollout, batch = judged_again(session, rollout, batch)
            if epoch == 0 or config.recompute_advantages:
                batch = with_advantages(config, session, rollout, batch)
            for minibatch in minibatches(batch, indices.to(config.device)):
                session.learner, updating, row = update(session.learner, updating, minibatch, *schedule)
                statistics.append(row)
        yield session.finish(summary(config, statistics, batch, learning_rate))


def update_agent(config: PPO, agent: ActorCritic) -> Callable[..., tuple[Learner, Tensor, Tensor]]:
    """Return one gradient step of one agent on one minibatch, as a pure function."""

    def loss(vector: Tensor, batch: Batch, clip: Tensor) -> tuple[Tensor, Tensor]:
        seen = remembered(agent, vector, batch, config.sequence_steps)
        log_probs, entropy, outputs = agent.evaluate(vector, seen, batch.actions, batch.action_masks)  # [M] each
        ratio = importance_ratio(log_probs, batch.log_probs)  # [M]
        advantages = whitened_minibatch(batch) if config.normalise_advantages else batch.advantages
        weights = mean_weights(batch.live)  # [M]
        if config.critic == "gradient":
            batch = with_gradient(config, agent, vector, outputs, batch)
        policy = (weights * ppo_clip(ratio, advantages, clip)).sum()
        value = (weights * critic_loss(config, outputs, batch)).sum()
        bonus = (weights * entropy).sum()
        total = policy + config.value_coefficient * value - config.entropy_coefficient * bonus
        if config.critic == "gradient":
            total = total + config.value_coefficient * penalty(config, agent, vector)
        kl = (weights * kl_k3(log_probs, batch.log_probs)).sum()
        clipped = (weights * ((ratio - 1).abs() > clip)).sum()
        return total, torch.stack([policy, value, bonus, kl, clipped]).detach()

    def update(
        old: Learner, updating: Tensor, batch: Batch, learning_rate: Tensor, clip: Tensor
    ) -> tuple[Learner, Tensor, Tensor]:
        gradient, statistics = torch.func.grad(loss, has_aux=True)(old.parameters, batch, clip)  # [P], [5]
        gradient, norm = clip_by_norm(gradient, config.max_grad_norm)
        if config.value_learning_rate is not None:  # [P]
            learning_rate = step_sizes(agent.layout, learning_rate, config.value_learning_rate / config.learning_rate)
        new = Learner(*adam(*old, gradient, learning_rate, eps=config.adam_eps))
        if config.target_kl is not None:
            updating = updating & (statistics[3] <= config.target_kl)
        steps = updating & batch.live.any()  # no step without a live row
        return where(steps, new, old), updating, torch.cat([statistics, norm[None], steps[None]])

    return update


def summary(config: PPO, statistics: list[Tensor], batch: Batch, learning_rate: float) -> dict[str, np.ndarray]:
    """The iteration's metrics, name → [S]."""
    return {
        **mean_statistics(STATISTICS, statistics),
        **critic_statistics(batch),
        "learning_rate": np.full(config.seeds, learning_rate),
    }

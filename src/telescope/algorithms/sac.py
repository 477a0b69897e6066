"""Soft actor–critic (Haarnoja et al. 2018, arXiv 1801.01290 and 1812.05905) for a population of seeds, and CrossQ.

The loop is `train`; every formula in it is imported. Actions lie in −1 … 1 (a Box with bounds; the environment gets
them rescaled), and so do their log-probabilities and entropy; or they are discrete (Christodoulou 2019, arXiv
1910.07207), where means over actions are exact. A truncated step bootstraps from the state that it reached.
"""

# S seeds, B environments per seed, M minibatch, A components of an action or actions, K 1 or A, P parameters
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope import checks, td_error
from telescope.control.agents.actions import Bound, bounding
from telescope.control.agents.actor import ActorCritic
from telescope.control.agents.choices import Choice, chosen, sampling_noise, soft_head, usual_entropy
from telescope.control.agents.distributions import Distribution, of_action, uniform_actor
from telescope.control.agents.layout import Layout
from telescope.control.agents.networks import Network, Parameters
from telescope.control.agents.twins import SECTIONS, Norm, soft_network
from telescope.control.config import MUJOCO_FAMILY, for_family
from telescope.control.experience.credit import mean_weights
from telescope.control.experience.draws import Draws
from telescope.control.experience.replay import Batch
from telescope.control.off_policy import OffPolicyConfig
from telescope.control.training import Session, mean_statistics
from telescope.control.workers.shares import over_processes
from telescope.iteration import AgentIteration
from telescope.losses import soft_value, squared_value_loss, temperature_loss
from telescope.optimisers import Adam, adam, adam_init, clip_by_norm, polyak
from telescope.randomness import SAMPLES, generator
from telescope.threads import own_settings

RENORMALISE_AFTER = 100_000
"""Gradient steps with batch normalisation before batch renormalisation begins, as in CrossQ."""


@dataclasses.dataclass(frozen=True)
class SAC(OffPolicyConfig):
    """Soft actor–critic: twin critics and a policy that maximises return and entropy, from a replay buffer."""

    num_steps: int = 1000
    """Steps of each environment per iteration. Each iteration writes one row of metrics per seed."""
    learning_rate: float = 3e-4
    """Learning rate of Adam, for policy, critics and temperature."""
    max_grad_norm: float | None = None
    """Clip the gradients of policy and critics to this global norm, each by itself. none: never."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers. Initial weights are orthogonal, biases zero."""
    replay_capacity: int = 1_000_000
    """Size of the replay buffer, in steps per seed. The oldest steps are overwritten."""
    learning_starts: int = 10_000
    """Steps per seed to collect before the first gradient step. The first policy is nearly uniform."""
    minibatch_size: int = 256
    """Samples per gradient step and seed, drawn from the replay buffer."""
    updates_per_step: float = 1.0
    """Gradient steps per environment step and seed."""
    tau: float = 0.005
    """Share of the critics that moves into the target networks at each gradient step. 1: no target networks."""
    policy_delay: int = 1
    """Gradient steps of the critics for each one of policy and temperature."""
    alpha: float | None = None
    """A fixed temperature α, the weight of the entropy. none: learn it, from 1 on."""
    entropy_target: float | None = None
    """Entropy that a learned temperature aims at, nats. none: −dim(A) in a Box, entropy_share · log |A| otherwise."""
    entropy_share: float = 0.5
    """Discrete actions: entropy that a learned temperature aims at, as a share of that of the allowed actions."""
    critic_hidden: tuple[int, ...] | None = None
    """Widths of the critics' hidden layers. none: hidden."""
    critic_norm: Norm = "none"
    """Normalisation of the critics' layers: none, layer, or batch (renormalisation, as CrossQ)."""
    adam_beta: float = 0.9
    """Adam's β₁, for policy, critics and temperature."""
    critic_observations: tuple[str, ...] = ()
    """Keys of a Dict observation that only the critics see."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self, "tau", "policy_delay", "alpha")
        if self.critic_hidden is not None:
            checks.positive_all(self, "critic_hidden")
        checks.in_unit_interval(self, "tau", "entropy_share", "adam_beta")
        if self.adam_beta == 1:
            raise ValueError("adam_beta is 1; expected a number below 1, or no gradient would count")
        for name in ("entropy_target", "entropy_share"):
            if self.alpha is not None:
                checks.unread(self, name, "leave alpha at none", f"alpha is {self.alpha}, a fixed temperature")
        if self.entropy_target is not None:
            checks.unread(self, "entropy_share", "leave entropy_target at none", "entropy_target is set")

    @property
    def samples_to_share(self) -> int:
        """Samples of networks with 64 units whose gradient step takes as long, by which threads are chosen."""
        return self.minibatch_size * (max(*self.hidden, *(self.critic_hidden or ())) // 64) ** 2

    def head(self, action_space: gym.Space) -> Distribution:
        """tanh of a Gaussian in a Box, softmax in a Discrete space."""
        return soft_head(action_space)

    def bound(self, action_space: gym.Space, device: Any = None) -> Bound:
        """From −1 … 1 to a Box's bounds, or to all numbers without them; discrete actions stay as they are."""
        return bounding(action_space, "stretch" if isinstance(action_space, gym.spaces.Box) else "clip", device)

    def network(self, observation_size: int, action_space: gym.Space) -> Network:
        """A perceptron for the policy, and twin critics."""
        return soft_network(self, self.head(action_space), observation_size)

    def asymmetric_network(self, policy_size: int, observation_size: int, action_space: gym.Space) -> Network:
        """The same, but the policy reads the first `policy_size` numbers only."""
        return soft_network(self, self.head(action_space), observation_size, policy_size)


SMALL = SAC(total_steps=20_000, num_steps=200, learning_starts=500, replay_capacity=20_000)
PENDULUM = dataclasses.replace(SMALL, learning_rate=1e-3)
LONGER: dict[str, Any] = {"total_steps": 50_000, "replay_capacity": 50_000}
MOUNTAIN_CAR_CONTINUOUS = dataclasses.replace(SMALL, **LONGER, gamma=0.9999, alpha=0.1, tau=0.01)
CARTPOLE = dataclasses.replace(PENDULUM, **LONGER, hidden=(64, 64), minibatch_size=64, entropy_share=0.2)
LUNAR_LANDER = SAC(total_steps=500_000, learning_rate=7.3e-4, tau=0.01)
PRESETS = {
    "CartPole": CARTPOLE,
    "Acrobot": dataclasses.replace(CARTPOLE, total_steps=100_000, replay_capacity=100_000),
    "Pendulum": PENDULUM,
    "MountainCarContinuous": MOUNTAIN_CAR_CONTINUOUS,
    "LunarLander": LUNAR_LANDER,
    "LunarLanderContinuous": LUNAR_LANDER,
    "BipedalWalker": dataclasses.replace(LUNAR_LANDER, gamma=0.98),
    **dict.fromkeys(MUJOCO_FAMILY, SAC()),
}


def preset(env: str, name: str = "sac") -> SAC:
    """The settings for an environment id: the preset of its family, or the defaults, as `name` changes them."""
    config = for_family(PRESETS, env, SAC())
    if name == "crossq":
        more: dict[str, Any] = {"tau": 1.0, "policy_delay": 3, "learning_rate": 1e-3, "adam_beta": 0.5}
        return dataclasses.replace(config, critic_norm="batch", critic_hidden=(512, 512), **more)
    return config


class Learner(NamedTuple):
    """What learning changes: policy and critics as one vector, target critics, log α, and three optimisers' states."""

    parameters: Tensor  # [P] of one agent, in the order of `SECTIONS`; [S, P] of the population
    targets: Tensor  # [C] of the critics and their statistics; [0] without target networks
    log_alpha: Tensor  # []
    policy_adam: Adam
    critic_adam: Adam
    alpha_adam: Adam

    @property
    def acting(self) -> Tensor:
        return self.parameters


class Beginning(NamedTuple):
    """Makes the first learner from the parameters of new agents and their layout."""

    config: SAC

    def begin(self, parameters: Tensor, layout: Layout) -> Learner:
        policy, critics, statistics = parameters.split([part.size for part in layout.sections(SECTIONS)], -1)
        targets = torch.cat([critics, statistics], -1) if self.config.tau < 1 else critics[:, :0].clone()
        log_alpha = torch.full_like(parameters[:, 0], math.log(self.config.alpha or 1.0))
        return Learner(parameters, targets, log_alpha, adam_init(policy), adam_init(critics), adam_init(log_alpha))


CRITIC_STATISTICS = ("value_loss", "q_mean", "value_gradient_norm")
POLICY_STATISTICS = ("policy_loss", "entropy", "alpha", "gradient_norm")


@over_processes
@own_settings
def train(
    config: SAC,
    resume: dict[str, Any] | None = None,
    *,
    network: Network | None = None,
    start: dict[str, Any] | None = None,
    allow_inexact: bool = False,
) -> Iterator[AgentIteration]:
    """Train and yield after every `num_steps` steps: `.rows` are its metrics, `.state` continues it bit for bit.

    `network` is a policy with critics beside it, as `control.agents.twins.with_twins` makes of any policy. `start` and
    `allow_inexact` are those of `ppo.train`.
    """
    if isinstance(network, Network) and network.critics is None:
        raise ValueError("network has no critics of actions; pass with_twins(network, …), see control.agents.twins")
    more: dict[str, Any] = {"network": network, "start": start, "allow_inexact": allow_inexact}
    session = Session(config, resume, Beginning(config), **more)
    dims = (0, 0, 0, None, None)
    updates = [session.lift(update_agent(config, session.agent, policy=policy), dims) for policy in (False, True)]
    for iteration in session.iterations():
        learning_rate = session.scheduled(config.learning_rate, config.anneal_learning_rate)
        step_size = torch.tensor(learning_rate, device=config.device)
        acting, draws = session.rollouts.noise(iteration), Draws(session)
        rows: tuple[list[Tensor], list[Tensor]] = [], []
        samplers = [generator(seed, SAMPLES, iteration) for seed in config.seed_values]
        for t in range(config.num_steps):
            uniform = config.random_start and session.step + t * config.num_envs < config.learning_starts
            session.play(acting[t], t, uniform_actor(session.agent.distribution) if uniform else None)
            for number, batch in draws.after(t):
                noise = session.to_device(sampling_noise(session.agent.distribution, samplers, config.minibatch_size))
                warm = torch.tensor(number >= RENORMALISE_AFTER, device=config.device)
                update = updates[(number + 1) % config.policy_delay == 0]
                session.learner, *found = update(session.learner, batch, noise, step_size, warm)
                rows[0].append(found[0])
                rows[1].extend(found[1:])
        yield session.finish(summary(config, rows, learning_rate) | {"updates": draws.updates})


def update_agent(config: SAC, agent: ActorCritic, *, policy: bool) -> Callable[..., tuple[Any, ...]]:
    """Return one gradient step of one agent on one minibatch, as a pure function; of the critics alone if not `policy`.

    The critics step first, then the policy by the new critics, then the temperature; last the targets follow.
    """
    critics, head = agent.network.critics, agent.distribution
    assert critics is not None
    of_policy, *of_critics = layouts = agent.layout.sections(SECTIONS)
    sizes = [layout.size for layout in layouts]
    joint = config.tau == 1 and config.critic_norm == "batch"
    how: dict[str, Any] = {"betas": (config.adam_beta, 0.999), "eps": config.adam_eps}

    def named(judging: Tensor, statistics: Tensor) -> Parameters:
        values, running = of_critics
        return values.unflatten(judging) | running.unflatten(statistics)

    def choose(acting: Tensor, observations: Tensor, masks: Tensor | None, noise: Tensor | None) -> Choice:
        return chosen(agent.policy(of_policy.unflatten(acting), observations), noise, masks)  # type: ignore[arg-type]

    def worth(choice: Choice, q: Tensor, alpha: Tensor) -> Tensor:
        """The soft value [M] of a choice, from [2, M, K] of both critics."""
        return choice.mean(soft_value(q.amin(0), choice.log_probs, alpha))

    def critic_loss(
        judging: Tensor, statistics: Tensor, batch: Batch, ahead: Choice, next_q: Tensor, alpha: Tensor, warm: Tensor
    ) -> Any:
        weights, observations = mean_weights(batch.live), batch.observations  # [M], [M, D]
        inputs = batch.actions.reshape(len(weights), -1) if head.continuous else None  # [M, A]
        if joint:  # steps and those that follow are normalised by the statistics of both
            observations, both = torch.cat([observations, batch.next_observations]), torch.cat([weights, weights]) / 2
            inputs = None if inputs is None else torch.cat([inputs, ahead.actions])  # type: ignore[list-item]
            q, new = critics.learn(named(judging, statistics), observations, inputs, both, warm)
            q, next_q = q.split(len(weights), dim=1)
        else:
            q, new = critics.learn(named(judging, statistics), observations, inputs, weights, warm)
        values = q[..., 0] if head.continuous else of_action(q, batch.actions)  # [2, M]
        follows = worth(ahead, next_q.detach(), alpha)  # [M]
        # δ with value 0 is the target r + γ (1 − terminated) V' [M]
        discounts: dict[str, Any] = {"terminated": batch.terminated, "gamma": batch.discounts}
        wanted = td_error(batch.rewards, torch.zeros_like(follows), follows, **discounts)
        total = (weights * squared_value_loss(values, wanted.expand_as(values))).sum()
        found = torch.stack([total, (weights * values.mean(0)).sum()])
        statistics = torch.cat([statistics[:0], *(new[name].flatten() for name in of_critics[1].names)])
        return total, (found.detach(), statistics.detach())

    def policy_loss(acting: Tensor, judges: Parameters, batch: Batch, noise: Tensor | None, alpha: Tensor) -> Any:
        choice = choose(acting, batch.observations, batch.masks, noise)
        q: Any = critics.q(judges, batch.observations, choice.actions)
        weights = mean_weights(batch.live)  # [M]
        total = -(weights * worth(choice, q, alpha)).sum()
        return total, (-(weights * choice.mean(q.amin(0))).sum().detach(), choice.entropy)

    def alpha_loss(log_alpha: Tensor, entropy: Tensor, batch: Batch) -> Tensor:
        target = config.entropy_target
        if target is None:
            target = usual_entropy(head, config.entropy_share, batch.masks)  # type: ignore[assignment]
        return (mean_weights(batch.live) * temperature_loss(log_alpha, entropy, target)).sum()  # type: ignore[arg-type]

    def update(
        old: Learner, batch: Batch, noise: Tensor | None, learning_rate: Tensor, warm: Tensor
    ) -> tuple[Any, ...]:
        alpha, (acting, judging, statistics) = old.log_alpha.exp(), old.parameters.split(sizes)
        here, there = (None, None) if noise is None else noise.unbind()  # [M, A] each
        ahead, next_q = choose(acting, batch.next_observations, batch.next_masks, there), batch.rewards
        if not joint:
            judges = named(*old.targets.split(sizes[1:])) if config.tau < 1 else named(judging, statistics)
            next_q = critics.q(judges, batch.next_observations, ahead.actions)  # type: ignore[assignment]
        slope: Any = torch.func.grad(critic_loss, has_aux=True)
        gradient, (found, statistics) = slope(judging, statistics, batch, ahead, next_q, alpha, warm)
        gradient, norm = clip_by_norm(gradient, config.max_grad_norm)
        judging, critic_adam = adam(judging, old.critic_adam, gradient, learning_rate, **how)
        new, rows = old._replace(critic_adam=critic_adam), [torch.cat([found, norm[None]])]
        if policy:
            slope = torch.func.grad(policy_loss, has_aux=True)
            gradient, (found, entropy) = slope(acting, named(judging, statistics), batch, here, alpha)
            gradient, norm = clip_by_norm(gradient, config.max_grad_norm)
            acting, policy_adam = adam(acting, old.policy_adam, gradient, learning_rate, **how)
            new = new._replace(policy_adam=policy_adam)
            rows.append(torch.stack([found, (mean_weights(batch.live) * entropy).sum(), alpha, norm]))
            if config.alpha is None:
                gradient = torch.func.grad(alpha_loss)(old.log_alpha, entropy, batch)
                log_alpha, alpha_adam = adam(old.log_alpha, old.alpha_adam, gradient, learning_rate, **how)
                new = new._replace(log_alpha=log_alpha, alpha_adam=alpha_adam)
        if config.tau < 1:
            new = new._replace(targets=polyak(old.targets, torch.cat([judging, statistics]), config.tau))
        return (new._replace(parameters=torch.cat([acting, judging, statistics])), *rows)

    return update


def summary(config: SAC, rows: Any, learning_rate: float) -> dict[str, np.ndarray | None]:
    """The iteration's metrics, name → [S]. None for metrics of gradient steps before the first one."""
    means: dict[str, Any] = {}
    for names, found in zip((CRITIC_STATISTICS, POLICY_STATISTICS), rows, strict=True):
        means |= mean_statistics(names, found) if found else dict.fromkeys(names)
    return {**means, "learning_rate": np.full(config.seeds, learning_rate)}

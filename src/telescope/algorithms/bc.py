"""Behaviour cloning (Pomerleau 1988) for a population of seeds: maximum likelihood of demonstrated actions.

The loop is `train`; every formula in it is imported. The environment is used for evaluations only. Another algorithm
can begin from the agents (`--start`), whose critics have then learned nothing yet.
"""

# S seeds, N demonstrated steps, M minibatch, D observation size, A actions, P parameters
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope import checks
from telescope.control.agents.actions import Bound, bounding, unbounding
from telescope.control.agents.actor import ActorCritic, default_network
from telescope.control.agents.distributions import Distribution, distribution
from telescope.control.agents.networks import Network
from telescope.control.config import AgentConfig
from telescope.control.experience.demonstrations import Demonstrations, read
from telescope.control.training import Session, mean_statistics
from telescope.control.workers.shares import over_processes
from telescope.iteration import AgentIteration
from telescope.losses import reinforce
from telescope.optimisers import Learner, adam, clip_by_norm
from telescope.randomness import MINIBATCHES, generator
from telescope.threads import own_settings


@dataclasses.dataclass(frozen=True)
class BC(AgentConfig):
    """Behaviour cloning: learn to act as demonstrations do."""

    data: str = ""
    """Demonstrations: an npz file, such as `telescope record` writes, or the folder of a Minari data set."""
    total_steps: int = 1_000_000
    """Samples to learn from, per seed, counted as often as they are drawn."""
    num_steps: int = 5_000
    """Samples per iteration. Each iteration writes one row of metrics per seed."""
    minibatch_size: int = 64
    """Samples per gradient step and seed, drawn from the demonstrations."""
    held_out: float = 0.1
    """Share of the demonstrated episodes, the last ones, that are only measured. An odd one out is learned from."""
    adam_eps: float = 1e-5
    """Adam's ε."""
    shared_network: bool = False
    """Share the hidden layers between policy and value function, for an algorithm that begins from these agents."""
    log_std: float = 0.0
    """Initial log standard deviation of a Gaussian policy; one learned number per action component."""
    action_bounds: Literal["clip", "rescale", "squash"] = "clip"
    """How to keep actions within a Box's bounds: clip, rescale from -1 … 1 and clip, or squash with tanh (--squash)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(self, "minibatch_size", "adam_eps")
        checks.in_unit_interval(self, "held_out")
        checks.finite(self, "log_std")
        if self.num_envs != 1:
            raise ValueError(f"num_envs is {self.num_envs}, but bc collects no rollouts; expected 1")
        if self.held_out == 1:
            raise ValueError("held_out is 1, so nothing is left to learn from; lower it")

    @property
    def updates(self) -> int:
        """Gradient steps in the whole run."""
        return self.iterations * self.minibatches

    @property
    def minibatches(self) -> int:
        """Gradient steps per iteration."""
        return max(1, self.num_steps // self.minibatch_size)

    def demonstrations(self, observation_space: gym.Space, action_space: gym.Space) -> Demonstrations:
        """Read `data`. A ValueError if it does not fit the environment's spaces."""
        try:
            return read(self.data, observation_space, action_space)
        except ValueError as error:
            raise ValueError(f"{error}; is env {self.env} that of the demonstrations?") from error

    def try_out(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        """Read the demonstrations before a run folder is made."""
        super().try_out(observation_space, action_space)
        self.demonstrations(observation_space, action_space)

    def head(self, action_space: gym.Space) -> Distribution:
        """The action distribution of this space."""
        return distribution(action_space)

    def network(self, observation_size: int, action_space: gym.Space) -> Network:
        """Perceptrons for actor and critic, the same as those of the on-policy algorithms."""
        return default_network(self, observation_size, action_space)  # type: ignore[arg-type]

    def bound(self, action_space: gym.Space, device: Any = None) -> Bound:
        """The function that keeps a Gaussian's actions within a Box, as `action_bounds` says."""
        return bounding(action_space, self.action_bounds, device)


def preset(env: str) -> BC:
    """The settings for an environment id: the defaults."""
    return BC(env=env)


class Batch(NamedTuple):
    """Demonstrated steps: [S, M, …] of the population, [M, …] of one agent."""

    observations: Tensor  # [S, M, D] as the policy sees them
    actions: Tensor  # [S, M, …] as it would draw them
    action_masks: Tensor | None  # [S, M, A] bool, True = allowed


STATISTICS = ("loss", "entropy", "gradient_norm")


@over_processes
@own_settings
def train(
    config: BC,
    resume: dict[str, Any] | None = None,
    *,
    network: Network | None = None,
    start: dict[str, Any] | None = None,
    allow_inexact: bool = False,
) -> Iterator[AgentIteration]:
    """Train and yield after every `num_steps` samples: `.rows` are its metrics, `.state` continues it bit for bit.

    The arguments are those of `telescope.algorithms.ppo.train`.
    """
    more: dict[str, Any] = {"network": network, "start": start, "allow_inexact": allow_inexact}
    session = Session(config, resume, Learner, **more)
    try:
        steps = Steps(config, session)
    except BaseException:
        session.close()
        raise
    if not resume and not start:
        session.rollouts.normaliser.update(steps.everyones(np.arange(steps.learned)))
    update = session.lift(update_agent(config, session.agent), (0, 0, None))
    for iteration in session.iterations():
        learning_rate = session.scheduled(config.learning_rate, config.anneal_learning_rate)
        step_size, rows = torch.tensor(learning_rate, device=config.device), []
        for drawn in steps.drawn(iteration):  # [S, M]
            session.learner, row = update(session.learner, steps.batch(drawn), step_size)
            rows.append(row)
        found = mean_statistics(STATISTICS, rows) | {"held_out_loss": steps.held_out_loss()}
        yield session.finish({**found, "learning_rate": np.full(config.seeds, learning_rate)})


def update_agent(config: BC, agent: ActorCritic) -> Callable[..., tuple[Learner, Tensor]]:
    """Return one gradient step of one agent on one minibatch, as a pure function."""

    def loss(vector: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs: Any = agent.policy(agent.layout.unflatten(vector), batch.observations)
        log_probs = agent.distribution.log_prob(outputs, batch.actions, batch.action_masks)  # [M]
        total = reinforce(log_probs, torch.ones_like(log_probs)).mean()
        entropy = agent.distribution.entropy(outputs, batch.action_masks).mean()
        return total, torch.stack([total, entropy]).detach()

    def update(old: Learner, batch: Batch, learning_rate: Tensor) -> tuple[Learner, Tensor]:
        gradient, statistics = torch.func.grad(loss, has_aux=True)(old.parameters, batch)
        gradient, norm = clip_by_norm(gradient, config.max_grad_norm)
        new = Learner(*adam(*old, gradient, learning_rate, eps=config.adam_eps))
        return new, torch.cat([statistics, norm[None]])

    return update


class Steps:
    """The demonstrated steps of a run: those that are learned from, and the last episodes, which are held out."""

    def __init__(self, config: BC, session: Any) -> None:
        environments = session.rollouts.environments
        found = config.demonstrations(environments.observation_space, environments.action_space)
        self.config, self.session, self.masks = config, session, found.masks
        self.observations = session.rollouts.encoder.encode(found.observations[None])[0]  # [N, …]
        drawn = unbounding(environments.action_space, config.action_bounds)(found.actions)
        self.actions = torch.tensor(drawn).to(session.agent.distribution.action_dtype)  # [N, …]
        ends = np.flatnonzero(found.ends)
        kept = len(ends) - int(config.held_out * len(ends))
        self.learned = int(ends[kept - 1]) + 1
        """Steps to learn from, the first ones."""

    def everyones(self, rows: np.ndarray) -> np.ndarray:
        """The observations of these steps [n] for each seed [S, n, …]."""
        seen = self.observations[rows]
        return np.broadcast_to(seen, (self.config.seeds, *seen.shape))

    def drawn(self, iteration: int) -> np.ndarray:
        """The steps of this iteration's minibatches [K, S, M], each step with the same probability."""
        shape = self.config.minibatches, self.config.minibatch_size
        rngs = [generator(seed, MINIBATCHES, iteration) for seed in self.config.seed_values]
        return np.stack([rng.integers(self.learned, size=shape) for rng in rngs], axis=1)

    def batch(self, rows: np.ndarray) -> Batch:
        """These steps [S, M] as the policies see them."""
        seen = torch.tensor(self.session.rollouts.normaliser(self.observations[rows]))
        masks = None if self.masks is None else torch.from_numpy(self.masks[rows])
        return self.session.to_device(Batch(seen, self.actions[torch.from_numpy(rows)], masks))  # type: ignore[no-any-return]

    def held_out_loss(self) -> np.ndarray | None:
        """The mean loss of the steps that are held out [S]; None without any."""
        rows = np.arange(self.learned, len(self.observations))
        if not len(rows):
            return None
        batch = self.batch(np.tile(rows, (self.config.seeds, 1)))
        log_probs, _ = self.session.evaluate(*batch)
        return reinforce(log_probs, torch.ones_like(log_probs)).mean(1).cpu().numpy()  # type: ignore[no-any-return]

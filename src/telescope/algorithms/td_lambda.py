"""TD(λ): the values of a policy, as weighted sums of features (Sutton & Barto 2018, section 12.2), for many seeds.

The loop is `train`; every formula in it is imported. It learns online, along an eligibility trace; no policy changes.
Leaves out networks (`stream_td.py`), control (`sarsa_lambda.py`), and several environments per seed.
"""

# T time, S seeds, F features, P parameters of one agent: those of its policy, then F weights
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope.algorithms import config_class
from telescope.behaviour import PredictionConfig
from telescope.control.agents.features import Features, linear_v
from telescope.control.agents.networks import Network
from telescope.control.agents.reading import reads_rows
from telescope.control.agents.trial import require_no_network
from telescope.control.config import for_family
from telescope.control.experience.steps import Batch, step_of
from telescope.control.linear import LinearConfig, in_arrays, rows_where
from telescope.control.training import Session, mean_statistics
from telescope.control.workers.shares import over_processes
from telescope.estimators.eligibility import td_lambda_step, true_online_step
from telescope.iteration import AgentIteration
from telescope.threads import own_settings


@dataclasses.dataclass(frozen=True)
class TDLambda(LinearConfig, PredictionConfig):
    """TD(λ): the values of a given policy as weighted sums of features, learned online."""

    learning_rate: float = 0.1
    """Step size α. Tile coding divides it by tilings, so that 1 corrects the whole error; fourier divides it by ‖c‖."""

    @staticmethod
    def config_class(algorithm: str) -> Any:
        """The config class of an algorithm's name."""
        return config_class(algorithm)

    def value_network(self, observation_space: gym.Space) -> Network:
        """Return V(s) = Σ φ(s) w. All weights begin at 0."""
        return reads_rows(linear_v(self.features_for(observation_space)), observation_space)


# The settings that flags start from, by environment.
PRESETS = {
    "MountainCar": TDLambda(total_steps=40_000),
    "CartPole": TDLambda(total_steps=40_000, normalise_observations=True, clip_observations=3.0, tiles=4),
}


def preset(env: str, name: str = "td_lambda") -> TDLambda:
    """The settings for an environment id, and those of `true_online_td_lambda` if that is the name."""
    return for_family(PRESETS, env, TDLambda()).under(name)  # type: ignore[no-any-return]


class Learner(NamedTuple):
    """What learning changes: the weights, behind the policy's parameters, and the trace.

    They are tensors between steps and arrays within one.
    """

    parameters: Any  # [S, P]
    trace: Any  # [S, P], 0 for the policy's parameters
    old_value: Any  # [S, 1] v(s') of the step before by its weights; of the true online update

    @classmethod
    def begin(cls, parameters: Tensor) -> Learner:
        return cls(parameters, torch.zeros_like(parameters), torch.zeros_like(parameters[:, :1]))

    @property
    def acting(self) -> Tensor:
        return self.parameters  # type: ignore[no-any-return]


STATISTICS = ("td_error", "value_mean")


@over_processes
@own_settings
def train(
    config: TDLambda,
    resume: dict[str, Any] | None = None,
    *,
    network: Network | None = None,
    start: dict[str, Any] | None = None,
    allow_inexact: bool = False,
) -> Iterator[AgentIteration]:
    """Train and yield after every `num_steps` steps: `.rows` are its metrics, `.state` continues it bit for bit.

    `start` and `allow_inexact` are those of `ppo.train`. A `network` of your own is refused: the values are linear.
    """
    require_no_network(network, "td_lambda has linear values")
    first = start if resume or start else config.start_of_policy()
    session = Session(config, resume, Learner, start=first, allow_inexact=allow_inexact)
    features = config.features_for(session.observation_space)
    if session.new_episodes:
        session.learner = Learner.begin(session.parameters)
    for iteration in session.iterations():
        learning_rate = session.scheduled(config.learning_rate, config.anneal_learning_rate)
        step_sizes = np.float32(learning_rate) * features.step_sizes  # [F]
        noise, statistics = session.rollouts.noise(iteration), []
        for t in range(config.num_steps):
            batch = step_of(session, noise[t], t)
            session.learner, row = in_arrays(update, config, features, session.learner, batch, step_sizes)
            statistics.append(row)
        rate = np.full(config.seeds, learning_rate)
        yield session.finish({**mean_statistics(STATISTICS, statistics), "learning_rate": rate})


def update(
    config: TDLambda, features: Features, old: Learner, batch: Batch, step_sizes: np.ndarray
) -> tuple[Learner, np.ndarray]:
    """What all agents learn from one step of their environments, and its statistics [S, 2]. All are arrays.

    A truncated step bootstraps from the state that it reached. After an end of either kind the trace is empty.
    """
    one: list[Any] = [x[:, 0] for x in batch[:7]]  # of the one environment, without its axis
    reward, terminated, truncated, live = (x[:, None] for x in one[2:6])  # [S, 1]
    policy = old.parameters.shape[1] - features.size  # parameters before the weights
    weights, trace = old.parameters[:, policy:], old.trace[:, policy:]
    here, reached = features.apply(one[0]), features.apply(one[6])  # [S, F]
    numbers: dict[str, Any] = {
        "discount": np.where(terminated, np.float32(0), np.float32(config.gamma)),
        "decay": config.gamma * config.lam,
        "step_size": step_sizes,
    }
    if config.true_online:
        weights, trace, delta, old_value = true_online_step(
            weights, trace, old.old_value, here, reached, reward, **numbers
        )
    else:
        weights, trace, delta = td_lambda_step(weights, trace, here, reached, reward, **numbers, kind=config.trace)
        old_value = old.old_value
    values = (old.parameters[:, policy:] * here).sum(1)
    trace = np.where(terminated | truncated, np.float32(0), trace)
    parameters = np.concatenate([old.parameters[:, :policy], weights], 1)
    learned = Learner(parameters, np.concatenate([old.trace[:, :policy], trace], 1), old_value)
    new = rows_where(live, learned, old)
    return new, live * np.stack([np.abs(delta[:, 0]), values], axis=1)

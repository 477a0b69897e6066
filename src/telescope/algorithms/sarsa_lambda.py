"""SARSA(λ) with linear action values (Sutton & Barto 2018, sections 12.7 and 12.5) for a population of seeds.

The loop is `train`; every formula in it is imported. It learns online: after each step of the environment all weights
move along an eligibility trace. Leaves out networks (`stream_q.py`), off-policy corrections, and several environments
per seed.
"""

# S seeds, D observation size, F features, A actions, P = F·A weights
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope.control.agents.distributions import epsilon_greedy_probabilities
from telescope.control.agents.features import Features, linear_q, of_pair
from telescope.control.agents.networks import Network
from telescope.control.agents.reading import reads_rows
from telescope.control.agents.trial import require_no_network
from telescope.control.config import for_family
from telescope.control.experience.steps import Batch, step_of
from telescope.control.exploration import ExploringConfig, exploring
from telescope.control.linear import LinearConfig, in_arrays, rows_where
from telescope.control.training import Session, mean_statistics
from telescope.control.workers.shares import over_processes
from telescope.estimators.eligibility import td_lambda_step, true_online_step
from telescope.iteration import AgentIteration
from telescope.threads import own_settings


@dataclasses.dataclass(frozen=True)
class SarsaLambda(LinearConfig, ExploringConfig):
    """SARSA(λ): action values as weighted sums of features, learned online along an eligibility trace."""

    exploration_start: float = 0.1
    """ε, the probability of a random action, at the start of the run."""
    exploration_end: float = 0.0
    """ε after its decay, and for stochastic evaluation."""

    def network_for(self, observation_space: gym.Space, action_space: gym.Space) -> Network:
        """Return Q(s, a) = Σ φ(s) w(a) for these spaces. All weights begin at 0."""
        network = linear_q(self.features_for(observation_space), self.head(action_space).outputs)
        return reads_rows(network, observation_space)


# The settings that flags start from, by environment. MountainCar's are those of the textbook (figure 12.10): no
# exploration, because values that begin at 0 promise more than any action pays.
MOUNTAIN_CAR = SarsaLambda(env="MountainCar-v0", total_steps=40_000, gamma=1.0, exploration_start=0.0)
CARTPOLE = SarsaLambda(
    env="CartPole-v1", total_steps=100_000, normalise_observations=True, clip_observations=3.0, tiles=4, tilings=8
)
ACROBOT = SarsaLambda(
    env="Acrobot-v1",
    total_steps=100_000,
    features="fourier",
    trace="accumulating",
    learning_rate=1e-3,
    gamma=1.0,
    exploration_start=0.01,
)
PRESETS = {"MountainCar": MOUNTAIN_CAR, "CartPole": CARTPOLE, "Acrobot": ACROBOT}


def preset(env: str, name: str = "sarsa_lambda") -> SarsaLambda:
    """The settings for an environment id, and those of `true_online_sarsa_lambda` if that is the name."""
    return for_family(PRESETS, env, SarsaLambda()).under(name)  # type: ignore[no-any-return]


class Learner(NamedTuple):
    """What learning changes: the weights, the trace, and the step that still waits for its next action.

    They are tensors between steps and arrays within one.
    """

    parameters: Any  # [S, P]
    trace: Any  # [S, P]
    old_value: Any  # [S, 1] v(s') of the step before by its weights; of the true online update
    features: Any  # [S, P] of the state and action of the step that waits
    reward: Any  # [S, 1] of that step
    waiting: Any  # [S, 1] bool, whether there is such a step

    @classmethod
    def begin(cls, parameters: Tensor) -> Learner:
        zeros, number = torch.zeros_like(parameters), torch.zeros_like(parameters[:, :1])
        return cls(parameters, zeros, number, zeros.clone(), number.clone(), number.bool())

    @property
    def acting(self) -> Tensor:
        return self.parameters  # type: ignore[no-any-return]


STATISTICS = ("td_error", "q_mean")


@over_processes
@own_settings
def train(
    config: SarsaLambda,
    resume: dict[str, Any] | None = None,
    *,
    network: Network | None = None,
    start: dict[str, Any] | None = None,
    allow_inexact: bool = False,
) -> Iterator[AgentIteration]:
    """Train and yield after every `num_steps` steps: `.rows` are its metrics, `.state` continues it bit for bit.

    `start` and `allow_inexact` are those of `ppo.train`. A `network` of your own is refused: the values are linear.
    """
    require_no_network(network, "sarsa_lambda has linear values")
    session = Session(config, resume, Learner, start=start, allow_inexact=allow_inexact)
    features = config.features_for(session.observation_space)
    if session.new_episodes:
        session.learner = Learner.begin(session.parameters)
    for _ in session.iterations():
        learning_rate = session.scheduled(config.learning_rate, config.anneal_learning_rate)
        step_sizes = np.float32(learning_rate) * features.step_sizes  # [F]
        noise, statistics = exploring(config, session), []
        for t in range(config.num_steps):
            epsilon = config.exploration(session.step + t)
            batch = step_of(session, noise[t], t)
            session.learner, row = in_arrays(update, config, features, session.learner, batch, step_sizes, epsilon)
            statistics.append(row)
        constants = {"exploration": config.exploration(session.step), "learning_rate": learning_rate}
        rates = {name: np.full(config.seeds, number) for name, number in constants.items()}
        yield session.finish({**mean_statistics(STATISTICS, statistics), **rates})


def update(
    config: SarsaLambda, features: Features, old: Learner, batch: Batch, step_sizes: np.ndarray, epsilon: float
) -> tuple[Learner, np.ndarray]:
    """What all agents learn from one step of their environments, and its statistics [S, 2]. All are arrays.

    A step is learned when its next action is known, which is one step later, by the weights that chose that action. An
    end has no next action: it is learned at once. A truncated step bootstraps from Σ π(a) Q(s', a) of the state that it
    reached, because no action is taken there. After an end of either kind the trace is empty.
    """
    one: list[Any] = [x[:, 0] for x in batch[:7]]  # of the one environment, without its axis
    seen, action, reached = one[0], one[1], one[6]
    reward, terminated, truncated, live = (x[:, None] for x in one[2:6])  # [S, 1]
    actions = old.parameters.shape[1] // features.size
    alpha = np.repeat(step_sizes, actions)  # [P]

    def learned(old: Learner, here: np.ndarray, ahead: np.ndarray, reward: np.ndarray, discount: Any) -> Any:
        """SARSA(λ) for one step: φ(s, a), φ(s', a') and r. The learner after it, and δ."""
        numbers = {"discount": discount, "decay": config.gamma * config.lam, "step_size": alpha}
        if config.true_online:
            online = true_online_step(*old[:3], here, ahead, reward, **numbers)
            return old._replace(parameters=online.weights, trace=online.trace, old_value=online.old_value), online.delta
        step = td_lambda_step(*old[:2], here, ahead, reward, **numbers, kind=config.trace)
        return old._replace(parameters=step.weights, trace=step.trace), step.delta

    here = of_pair(features.apply(seen), np.eye(actions, dtype=np.float32)[action])  # [S, P]
    values, errors = (old.parameters * here).sum(1), np.zeros_like(reward)
    new = old
    if (due := old.waiting).any():  # in no row of a reset: it follows an end
        after, delta = learned(old, old.features, here, old.reward, config.gamma)
        new, errors = rows_where(due, after, old), np.where(due, np.abs(delta), 0)
    new = rows_where(live, new._replace(features=here, reward=reward, waiting=np.ones_like(live)), new)
    if (ended := live & (terminated | truncated)).any():
        phi = features.apply(reached)  # [S, F]
        q = np.einsum("sf,sfa->sa", phi, new.parameters.reshape(len(phi), -1, actions))
        masks: Any = None if batch.next_masks is None else batch.next_masks[:, 0]
        ahead = of_pair(phi, epsilon_greedy_probabilities(q, masks, epsilon))
        after, delta = learned(new, here, ahead, reward, np.where(terminated, np.float32(0), np.float32(config.gamma)))
        over = after._replace(trace=np.zeros_like(after.trace), waiting=np.zeros_like(live))
        new, errors = rows_where(ended, over, new), errors + np.where(ended, np.abs(delta), 0)
    return new, np.stack([errors[:, 0], values], axis=1)

"""The cart-pole experiment of the GAE paper (Schulman et al. 2016, arXiv 1506.02438, section 6.3.1).

TRPO with the trust-region fit of values, on batches of whole trajectories, for all seeds side by side. Leaves out the
map over λ and γ (`maps.py`).
"""

# T time, S seeds, B trajectories per seed, N samples per seed, P parameters of one agent
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope.algorithms.trpo import TRPO, policy_step
from telescope.control.agents.actor import Act, ActorCritic, Agents
from telescope.control.agents.distributions import distribution
from telescope.control.agents.layout import create
from telescope.control.agents.lifting import lift
from telescope.control.agents.networks import Network, mlp
from telescope.control.experience.credit import Batch, whitened_rollout
from telescope.control.experience.episodes import packed
from telescope.control.experience.samples import per_seed, time_major
from telescope.control.value_fits import by_trust_region
from telescope.estimators import discounted_return, gae, next_values
from telescope.lab import cart_pole
from telescope.optimisers import Learner
from telescope.randomness import ACTIONS, STARTS, generator

TRAJECTORIES, LIMIT = 20, 1000
"""Trajectories of a batch, and the most steps of each: the paper's."""
HIDDEN = 20
"""Units of the value function's hidden layer: the paper's. The policy is linear."""
SETTINGS = TRPO(
    value_fit="trust_region",
    max_kl=0.01,
    max_value_change=0.1,
    cg_iterations=10,
    damping=1e-3,
    normalise_advantages=False,
)
"""δ is that of the TRPO paper, and no paper says that advantages are whitened. The other numbers are ours."""


class Tools(NamedTuple):
    """What `policy_step` and `by_trust_region` ask of a session."""

    agent: ActorCritic
    lift: Callable[..., Any]


class Flight(NamedTuple):
    """A batch of trajectories from their starts on. Rows after a trajectory's end do not count."""

    observations: Tensor  # [T, S, B, 4]
    actions: Tensor  # [T, S, B, 1] in units of the largest force
    failed: Tensor  # [T, S, B] bool, where it ended by failure
    live: Tensor  # [T, S, B] bool
    last: Tensor  # [S, B, 4] after the last row


def network() -> Network:
    """A linear policy, and a value function with one hidden layer of tanh units, which share nothing."""
    policy, value = mlp(4, 2, hidden=(), log_std=0.0), mlp(4, 2, hidden=(HIDDEN,), log_std=0.0)

    def init(rng: np.random.Generator) -> dict[str, Any]:
        parts = policy.init(rng), value.init(rng)
        return {name: part for name, part in parts[0].items() if name.startswith("policy")} | {
            name: part for name, part in parts[1].items() if name.startswith("value")
        }

    look, judge = policy.policy, value.value
    assert look is not None
    assert judge is not None
    return Network(init, lambda p, x: (look(p, x), judge(p, x)), look, judge, broadcasts=True)


def fly(act: Act, seeds: Sequence[int], iteration: int, *, trajectories: int, limit: int) -> Flight:
    """Play trajectories of each seed, with starts and noise that depend on the seed and the iteration alone."""
    shape = (len(seeds), trajectories)
    begins = [generator(seed, STARTS, iteration).uniform(-1, 1, (4, trajectories)) for seed in seeds]
    draws = [
        generator(seed, ACTIONS, iteration).standard_normal((limit, trajectories, 1), np.float32) for seed in seeds
    ]
    state, noise = cart_pole.START * np.stack(begins, 1), np.stack(draws, 1)  # [4, S, B], [limit, S, B, 1]
    live, rows = np.ones(shape, bool), []
    for t in range(limit):
        seen = np.moveaxis(state, 0, -1).astype(np.float32)  # [S, B, 4]
        actions, _ = act(seen, None, noise[t], None)
        after = cart_pole.move(state, cart_pole.FORCE * np.clip(actions[..., 0], -1, 1))
        state = np.where(live, after, state)
        failed = live & cart_pole.failed(state)
        rows.append((seen, actions, failed, live))
        live = live & ~failed
        if not live.any():
            break
    parts: list[Any] = [*map(np.stack, zip(*rows, strict=True)), np.moveaxis(state, 0, -1).astype(np.float32)]
    return Flight(*map(torch.from_numpy, parts))


def credit(flight: Flight, values: Tensor, last: Tensor, *, gamma: float, lam: float | None) -> tuple[Tensor, Tensor]:
    """Advantages and sampled returns [T, S, B] of a batch. Where the limit cuts a trajectory, its value goes on.

    Without λ there is no value function: the advantage is the discounted return minus its mean over the trajectories
    that are still alive at this step.
    """
    rewards = torch.ones(flight.live.shape)
    ends: dict[str, Any] = {"terminated": flight.failed, "truncated": None, "mask": flight.live}
    if lam is None:
        nothing = torch.zeros_like(rewards)
        returns = discounted_return(rewards, nothing, **ends, gamma=gamma)
        alive = flight.live.sum(-1, keepdim=True).clamp(min=1)
        return returns - returns.sum(-1, keepdim=True) / alive, returns
    reached = next_values(values, last, **ends)
    return gae(rewards, values, reached, **ends, gamma=gamma, lam=lam, returns_lam=1.0)


class Experiment:
    """The experiment with its recorded functions, which all cells of a map share."""

    def __init__(self, *, trajectories: int = TRAJECTORIES, limit: int = LIMIT, settings: TRPO = SETTINGS) -> None:
        self.trajectories, self.limit, self.settings = trajectories, limit, settings
        self.network = network()
        head = distribution(gym.spaces.Box(-1, 1, (1,)))
        agent = ActorCritic(self.network, head, create(self.network, [0])[1])
        self.agents = Agents(agent)
        tools: Any = Tools(agent, partial(lift, compiled=False))
        self.improve, self.fit = policy_step(settings, tools), by_trust_region(settings, tools)

    def run(self, seeds: Sequence[int], *, gamma: float, lam: float | None, iterations: int) -> Iterator[np.ndarray]:
        """Yield the steps [S] that the pole stays up, mean over a batch: of the first policy, then after each update.

        The seeds fly together. Each learns for itself, because a batch of one fits a processor's cache.
        """
        parameters, _ = create(self.network, list(seeds))
        learners = [Learner.begin(own[None]) for own in parameters]
        for i in range(iterations + 1):
            parameters = torch.cat([learner.parameters for learner in learners])
            flight = fly(self.agents.actor(parameters), seeds, i, trajectories=self.trajectories, limit=self.limit)
            yield flight.live.sum(0).double().mean(-1).numpy()
            if i < iterations:
                learners = [
                    self._learned(learner, of_seed(flight, s), gamma, lam) for s, learner in enumerate(learners)
                ]

    def _learned(self, learner: Learner, flight: Flight, gamma: float, lam: float | None) -> Learner:
        batch = self.batch(learner.parameters, flight, gamma, lam)
        improved, _ = self.improve(learner.parameters, batch)
        learner = learner._replace(parameters=improved)
        return learner if lam is None else Learner(*self.fit(learner, batch, 0, 0.0)[0])

    def batch(self, parameters: Tensor, flight: Flight, gamma: float, lam: float | None) -> Batch:
        """The samples [S, N, …] that the policies [S, P] learn from."""
        seen, actions, live = map(per_seed, (flight.observations, flight.actions, flight.live))
        log_probs, values = self.agents.evaluate(parameters, seen, actions, None)
        last = self.agents.value(parameters, flight.last)
        found, returns = credit(flight, time_major(values, self.trajectories), last, gamma=gamma, lam=lam)
        batch = Batch(seen, actions, log_probs, values, per_seed(found), per_seed(returns), live, None)
        if self.settings.normalise_advantages:
            batch = batch._replace(advantages=whitened_rollout(batch.advantages, live))
        return packed(batch)


def of_seed(flight: Flight, s: int) -> Flight:
    """One seed's trajectories, up to the end of its longest one."""
    longest = int(flight.live[:, s].any(-1).sum())
    seen, actions, failed, live = (part[:longest, s : s + 1] for part in flight[:4])
    return Flight(seen, actions, failed, live, flight.last[s : s + 1])

"""Episode returns of a population whose parameters and normalisation stand still.

Every environment runs a fixed number of episodes, so short episodes are not over-represented. Statistics of the
returns are computed elsewhere (`telescope.metrics`).
"""

# S seeds, E episodes per seed, B environments per seed
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from telescope.control.actions import Bound
from telescope.control.agents import Agents
from telescope.control.env_checks import require_finite
from telescope.control.environments import Environments
from telescope.control.normalisation import ObservationNormaliser
from telescope.control.population import EVALUATION_ACTIONS, EVALUATION_ENVIRONMENTS, generator
from telescope.control.rollout import encoder

MOST_ENVIRONMENTS = 32  # per seed: more would only cost memory
Frame = Callable[[Environments], None]


class Evaluation(NamedTuple):
    """E whole episodes per seed."""

    returns: np.ndarray  # [S, E]
    lengths: np.ndarray  # [S, E]


def evaluation_environments(env: Any, *, seeds: Sequence[int], episodes: int, **kwargs: Any) -> Environments:
    """Environments for `evaluate`, with random numbers of their own, keyed by the seed's value."""
    num_envs = min(episodes, MOST_ENVIRONMENTS)
    return Environments(env, seeds=seeds, num_envs=num_envs, stream=EVALUATION_ENVIRONMENTS, **kwargs)


def evaluate(
    agents: Agents,
    parameters: Tensor,
    normaliser: ObservationNormaliser,
    environments: Environments,
    *,
    seeds: Sequence[int],
    episodes: int,
    bound: Bound,
    stochastic: bool = False,
) -> Evaluation:
    """Run `episodes` whole episodes of every seed, from the environments' first states, by the policy's mode."""
    choose = _policy(agents, parameters, seeds, stochastic)
    encode = encoder(environments.observation_space).encode
    observations, masks = environments.reset()
    shape = observations.shape[:2]
    quota = episodes // shape[1] + (np.arange(shape[1]) < episodes % shape[1])  # [B] episodes of each environment
    found: list[list[list[tuple[float, int]]]] = [[[] for _ in range(shape[1])] for _ in range(shape[0])]
    returns, lengths, done = np.zeros(shape), np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    while (done < quota).any():
        chosen = choose(normaliser(encode(observations)), masks)
        step = environments.step(bound(chosen))
        require_finite(step, seeds, "in an evaluation")
        returns, lengths = returns + step.rewards, lengths + step.mask
        for s, b in np.argwhere(step.terminated | step.truncated):
            found[s][b].append((returns[s, b], lengths[s, b]))
            returns[s, b], lengths[s, b], done[s, b] = 0.0, 0, done[s, b] + 1
        observations, masks = step.observations, step.action_masks
    kept = [[episode for b in range(shape[1]) for episode in found[s][b][: quota[b]]] for s in range(shape[0])]
    table = np.asarray(kept, dtype=np.float64)  # [S, E, 2]
    return Evaluation(table[..., 0], table[..., 1].astype(np.int64))


def _policy(
    agents: Agents, parameters: Tensor, seeds: Sequence[int], stochastic: bool
) -> Callable[[np.ndarray, np.ndarray | None], np.ndarray]:
    act = agents.actor(parameters)
    generators = [generator(seed, EVALUATION_ACTIONS) for seed in seeds]

    def choose(observations: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
        if not stochastic:
            return act(observations, None, masks)
        draws = [agents.agent.distribution.noise(rng, (observations.shape[1],)) for rng in generators]
        return act(observations, np.stack(draws), masks)

    return choose

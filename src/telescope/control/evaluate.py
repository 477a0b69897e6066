"""Evaluation: episode returns of a population with fixed parameters and normalisation.

Every seed runs a fixed number of episodes, each with its own random numbers. So short episodes are not
over-represented, and the number of environments does not matter. `telescope.metrics` computes statistics of the
returns.
"""

# S seeds, E episodes per seed, B environments per seed, D observation size
from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from torch import Tensor

from telescope.control.agents.actions import Bound
from telescope.control.agents.actor import Act, Agents
from telescope.control.config import LearnerConfig
from telescope.control.environments.checks import require_finite
from telescope.control.environments.factory import find_source
from telescope.control.environments.population import Environments, choose_vectorization, environment_seed
from telescope.control.experience.encoding import encoder
from telescope.control.experience.normalisation import ObservationNormaliser
from telescope.randomness import EVALUATION_ACTIONS, EVALUATION_ENVIRONMENTS, generator

MOST_ROWS = 32
"""Rows per seed in an environment's own vector version. They start together and wait for the last one."""
POLICY_ROWS = 8
"""Observations per seed in a policy call, for every B: products of another size may round differently."""


class Evaluation(NamedTuple):
    """The results of E episodes per seed."""

    returns: np.ndarray  # [S, E]
    lengths: np.ndarray  # [S, E]
    cut: np.ndarray  # [S, E] bool, True where an episode had not ended after the maximum number of steps


class OwnEpisodes(gym.Wrapper):
    """Plays some episodes one after the other, each from its own seed, and truncates long ones.

    A reset with a seed starts again with the first episode. After `most` steps the next step is not executed but ends
    the episode. So a cut episode looks one step longer than one that its own time limit ends.
    """

    def __init__(self, env: gym.Env, *, seeds: Sequence[int], most: int) -> None:
        super().__init__(env)
        self._seeds, self._most = list(seeds), most
        self._first: tuple[Any, dict[str, Any]] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:  # an evaluation begins
            self._waiting = self._seeds[::-1]
        self._idle, self._length = not self._waiting, 0
        if not self._idle:
            self._last = observation, info = self.env.reset(seed=self._waiting.pop(), options=options)
            self._first = self._first or (np.array(observation), info)
        assert self._first is not None
        return self._first if self._idle else self._last

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self._idle:
            assert self._first is not None
            return self._first[0], 0.0, False, False, self._first[1]
        self._length += 1
        if self._length > self._most:
            return self._last[0], 0.0, False, True, self._last[1]
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._last = observation, info
        return observation, reward, terminated, truncated, info


def evaluation_environments(config: LearnerConfig, *, episodes: int, max_steps: int) -> Environments:
    """Environments for `episodes` episodes of at most `max_steps` steps. Each seed gets one per available core."""
    make = functools.partial(Environments.of, config, stream=EVALUATION_ENVIRONMENTS, autoreset="same_step")
    source = config.env if config.backend == "envpool" else find_source(config.env)
    how = config.backend, config.vectorization, config.dressing, config.env_kwargs
    if choose_vectorization(source, *how) not in ("sync", "async"):
        return make(num_envs=min(episodes, MOST_ROWS))
    count = min(episodes, POLICY_ROWS, max(1, (os.cpu_count() or 1) // config.seeds))
    places = [(seed, range(b, episodes, count)) for seed in config.seed_values for b in range(count)]
    starts = [[environment_seed(seed, EVALUATION_ENVIRONMENTS, e) for e in own] for seed, own in places]
    return make(num_envs=count, wraps=[functools.partial(OwnEpisodes, seeds=own, most=max_steps) for own in starts])


def evaluate(
    agents: Agents,
    parameters: Tensor,
    normaliser: ObservationNormaliser,
    environments: Environments,
    *,
    seeds: Sequence[int],
    episodes: int,
    max_steps: int,
    bound: Bound,
    stochastic: bool = False,
    due: np.ndarray | None = None,
) -> Evaluation:
    """Run `episodes` episodes of every seed with the policy's mode, in environments of `evaluation_environments`.

    `due` [S] says for which seeds; the results of the others stay 0. None: for all.
    """
    act = _policy(agents, parameters, normaliser, environments)
    shape, rows = (len(seeds), environments.num_envs), np.arange(environments.num_envs)
    kept = shape[0], episodes
    result = Evaluation(np.zeros(kept), np.zeros(kept, dtype=np.int64), np.zeros(kept, dtype=bool))
    noise = _Noise(agents, seeds) if stochastic else None
    wanted = np.ones((shape[0], 1), bool) if due is None else due[:, None]
    number = np.where(wanted, rows, episodes)  # [S, B] the current episode of each environment; E or more means none
    returns, lengths = np.zeros(shape), np.zeros(shape, dtype=np.int64)  # [S, B] of the current episode
    observations, masks = environments.reset()
    width = agents.agent.network.memory
    memory = np.zeros((*shape, width), np.float32) if width else None  # [S, B, H]
    begun = shape[1]
    while (number < episodes).any():
        actions, memory = act(observations, memory, None if noise is None else noise.draw(number), masks)
        step = environments.step(bound(actions))
        require_finite(step, seeds, "in an evaluation")
        observations, masks = step.observations, step.action_masks
        before, returns, lengths = returns, returns + step.rewards, lengths + step.mask
        finished = step.terminated | step.truncated | (lengths > max_steps)
        if memory is not None:
            memory[finished | ~step.mask] = 0.0
        if not finished.any():
            continue
        _keep(result, number, finished, np.where(lengths > max_steps, before, returns), lengths, max_steps)
        returns[finished], lengths[finished] = 0.0, 0
        if environments.own_episodes:
            number[finished] += shape[1]
            continue
        number[finished] = episodes  # the other environments of this round continue
        if begun < episodes and (number >= episodes).all():
            observations, masks = environments.reset(first=begun)
            returns, lengths = np.zeros(shape), np.zeros(shape, dtype=np.int64)
            memory = None if memory is None else np.zeros_like(memory)
            number = np.where(wanted, begun + rows, episodes)
            begun += shape[1]
    return result


def _keep(result: Evaluation, number: np.ndarray, finished: np.ndarray, *ends: Any) -> None:
    """Record the episodes [S, B] that ended. The step beyond the limit does not belong to a cut episode."""
    returns, lengths, max_steps = ends
    for s, b in np.argwhere(finished & (number < result.returns.shape[1])):
        place = s, number[s, b]
        result.returns[place], result.lengths[place] = returns[s, b], min(lengths[s, b], max_steps)
        result.cut[place] = lengths[s, b] > max_steps


def cut_note(result: Evaluation, seeds: Sequence[int], max_steps: int) -> str:
    """A sentence about the episodes that were cut; empty if there are none."""
    if not result.cut.any():
        return ""
    which = "; ".join(
        f"seed {seed}: {', '.join(map(str, np.flatnonzero(row)[:10]))}{' …' if row.sum() > 10 else ''}"
        for seed, row in zip(seeds, result.cut, strict=True)
        if row.any()
    )
    return (
        f"{result.cut.sum()} of {result.cut.size} evaluation episodes were cut after {max_steps:,} steps, and their "
        f"returns count the steps until then ({which}, counted from 0); raise --eval-max-steps (eval: --max-steps) to "
        "let them continue"
    )


class _Noise:
    """Noise for sampled actions, from a separate generator for each episode."""

    def __init__(self, agents: Agents, seeds: Sequence[int]) -> None:
        self._draw, self._seeds = agents.agent.distribution.noise, seeds
        self._generators: dict[tuple[int, int], tuple[int, np.random.Generator]] = {}

    def draw(self, number: np.ndarray) -> np.ndarray:
        """Noise [S, B, …] for the current episodes [S, B]."""
        rows = [[self._draw(self._of(s, b, int(e)), ()) for b, e in enumerate(row)] for s, row in enumerate(number)]
        return np.array(rows)

    def _of(self, s: int, b: int, episode: int) -> np.random.Generator:
        known = self._generators.get((s, b))
        if known is None or known[0] != episode:
            known = self._generators[s, b] = episode, generator(self._seeds[s], EVALUATION_ACTIONS, episode)
        return known[1]


def _policy(agents: Agents, parameters: Tensor, normaliser: ObservationNormaliser, environments: Environments) -> Act:
    """act(observations [S, B, …], memory, noise, masks) → actions [S, B, …] and memory, by policy calls of one size."""
    shaped = agents.agent.network.shaped
    act, encode = agents.actor(parameters), encoder(environments.observation_space, shaped=shaped).encode
    count = environments.num_envs
    rows = max(count, POLICY_ROWS)

    def filled(x: np.ndarray | None, value: Any) -> np.ndarray | None:
        if x is None or count == rows:
            return x
        missing = np.full((len(x), rows - count, *x.shape[2:]), value, x.dtype)
        return np.concatenate([x, missing], axis=1)

    def choose(
        observations: np.ndarray, memory: np.ndarray | None, noise: np.ndarray | None, masks: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        seen = normaliser(encode(observations))
        actions, memory = act(filled(seen, 0), filled(memory, 0), filled(noise, 0), filled(masks, True))
        return actions[:, :count], None if memory is None else memory[:, :count]

    return choose

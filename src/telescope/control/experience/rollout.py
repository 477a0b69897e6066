"""Collecting experience: one policy call per time step for all seeds and environments, into preallocated buffers.

A rollout stores what an update and an estimator need: observations, actions, rewards, `terminated`, `truncated`, and
the final observations of truncated episodes. Leaves out advantages.
"""

# T time, S seeds, B environments per seed, D observation size
from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope.checks import fits_memory, same_kind
from telescope.control.agents.actions import Bound
from telescope.control.agents.actor import Act
from telescope.control.environments.checks import require_finite, require_finite_array
from telescope.control.environments.population import Environments, Step
from telescope.control.experience.normalisation import ObservationNormaliser, RewardScaler
from telescope.randomness import ACTIONS, generator

Value = Callable[[Tensor], Tensor]
"""value(observations [S, N, D]) → [S, N], without gradient, on the networks' device"""


class Rollout(NamedTuple):
    """T steps of S·B environments, as tensors on the CPU."""

    observations: Tensor  # [T, S, B, D] as the policy saw them: encoded and normalised
    actions: Tensor  # [T, S, B, …] as the policy chose them, before any bound
    rewards: Tensor  # [T, S, B] scaled if the run scales rewards
    terminated: Tensor  # [T, S, B] bool
    truncated: Tensor  # [T, S, B] bool
    mask: Tensor  # [T, S, B] bool, False on the row a NEXT_STEP autoreset inserts
    action_masks: Tensor | None  # [T, S, B, A] bool
    last_observations: Tensor  # [S, B, D]
    finals: Finals


class Transition(NamedTuple):
    """One step of S·B environments: encoded, but neither normalised nor scaled."""

    observations: np.ndarray  # [S, B, D]
    actions: np.ndarray  # [S, B, …]
    rewards: np.ndarray  # [S, B]
    terminated: np.ndarray  # [S, B] bool
    truncated: np.ndarray  # [S, B] bool
    mask: np.ndarray  # [S, B] bool, False on the row a NEXT_STEP autoreset inserts
    next_observations: np.ndarray  # [S, B, D] the state that the step led to, never the reset state
    next_masks: np.ndarray | None  # [S, B, A] bool, actions allowed there; all True where the episode ended


class Finals(NamedTuple):
    """The K states that truncated steps really led to."""

    places: np.ndarray  # [3, K] time, seed and environment
    observations: np.ndarray  # [K, D]


class Episodes(NamedTuple):
    """Episodes that ended during a rollout, one list per seed."""

    returns: list[list[float]]
    lengths: list[list[int]]


def no_episodes(seeds: int) -> Episodes:
    return Episodes([[] for _ in range(seeds)], [[] for _ in range(seeds)])


class Encoder(NamedTuple):
    """Observations [S, B, …] → float [S, B, size]: Box flattened, Discrete one-hot."""

    size: int
    encode: Callable[[np.ndarray], np.ndarray]


def encoder(space: gym.Space) -> Encoder:
    if isinstance(space, gym.spaces.Discrete):
        table = np.eye(int(space.n), dtype=np.float32)
        return Encoder(int(space.n), lambda observations: table[observations])
    size = math.prod(space.shape or ())
    # native floats for every kind of observation: float32 if it holds every value of the dtype, else float64
    dtype = np.result_type(space.dtype or np.float32, np.float32)
    dtype = dtype if dtype.itemsize <= 8 else np.dtype(np.float64)
    return Encoder(
        size, lambda observations: observations.reshape(*observations.shape[:2], size).astype(dtype, copy=False)
    )


class Rollouts:
    """The environments of a population, their normalisation, and the current episodes."""

    def __init__(
        self,
        environments: Environments,
        *,
        seeds: Sequence[int],
        num_envs: int,
        num_steps: int,
        distribution: Any,
        bound: Bound,
        normaliser: ObservationNormaliser,
        scaler: RewardScaler,
    ) -> None:
        self.environments, self.seeds, self.num_steps = environments, list(seeds), num_steps
        self.distribution, self.normaliser, self.scaler = distribution, normaliser, scaler
        self.bound = bound
        self.encoder = encoder(environments.observation_space)
        numbers = num_steps * len(self.seeds) * num_envs * (self.encoder.size + 4)
        fits_memory(numbers, f"a rollout of num_steps {num_steps} × {len(self.seeds) * num_envs} environments needs")
        self.shape = (len(self.seeds), num_envs)
        self.episode_return = np.zeros(self.shape)
        self.episode_length = np.zeros(self.shape, dtype=np.int64)
        self.time = {"env": 0.0, "policy": 0.0}

    def may_be_alone(self, minibatch_size: int) -> bool:
        """Whether a minibatch may have only one live sample: by its size, as the last one, or beside reset rows."""
        left_over = self.num_steps * self.shape[1] % minibatch_size
        return 1 in (minibatch_size, left_over) or self.environments.autoreset == "next_step"

    def reset(self) -> None:
        """Start every environment's first episode."""
        observations, masks = self.environments.reset()
        require_finite_array("observation", observations, self.seeds, "at reset")
        encoded = self.encoder.encode(observations)
        self.normaliser.update(encoded)
        self._begin(encoded, masks)

    def _begin(self, encoded: np.ndarray, masks: np.ndarray | None) -> None:
        self._encoded, self._observations, self._action_masks = encoded, self.normaliser(encoded), masks

    def play(self, act: Act, noise: np.ndarray, row: int, episodes: Episodes) -> Transition:
        """Step every environment once, as step `row` of the run. Adds episodes that end to `episodes`."""
        started, observations = time.perf_counter(), self._encoded.copy()  # environments may write into their buffers
        actions = act(self._observations, noise, self._action_masks)
        acted = time.perf_counter()
        step = self.environments.step(self.bound(actions))
        self.time["policy"] += acted - started
        self.time["env"] += time.perf_counter() - acted
        require_finite(step, self.seeds, f"at step {(row + 1) * self.shape[1]} (time step {row} of each environment)")
        ended = step.terminated | step.truncated
        reached = self.encoder.encode(step.next_observations).copy()  # [S, B, D]
        self._advance(step, ended, _FinalsList(), episodes, 0)
        masks = None if step.action_masks is None else step.action_masks | ended[..., None]
        flags = step.terminated, step.truncated, step.mask
        return Transition(observations, actions, step.rewards, *flags, reached, masks)

    def collect(self, act: Act, iteration: int) -> tuple[Rollout, Episodes]:
        """Run the policy for `num_steps`. A reward or observation that is not finite raises a FloatingPointError."""
        rollout, finals, noise = self._allocate(), _FinalsList(), self._noise(iteration)
        episodes = no_episodes(len(self.seeds))
        # this loop is NumPy on small arrays, so each operation costs about a microsecond
        seen, chosen, rewards, terminated, truncated, live = (x.numpy() for x in rollout[:6])
        masks = None if rollout.action_masks is None else rollout.action_masks.numpy()
        policy, environment, clock = 0.0, 0.0, time.perf_counter
        for t in range(self.num_steps):
            seen[t] = self._observations
            if masks is not None:
                masks[t] = self._action_masks
            started = clock()
            chosen[t] = act(seen[t], noise[t], None if masks is None else masks[t])
            acted = clock()
            step = self.environments.step(self.bound(chosen[t]))
            policy, environment = policy + acted - started, environment + clock() - acted
            row = iteration * self.num_steps + t
            require_finite(
                step, self.seeds, f"at step {(row + 1) * self.shape[1]} (time step {row} of each environment)"
            )
            ended = step.terminated | step.truncated  # [S, B]
            terminated[t], truncated[t], live[t] = step.terminated, step.truncated, step.mask
            rewards[t] = self.scaler(step.rewards, ended, step.mask)
            self._advance(step, ended, finals, episodes, t)
        rollout.last_observations.numpy()[:] = self._observations
        self.time = {"env": environment, "policy": policy}
        return rollout._replace(finals=finals.stack(self.encoder.size)), episodes

    def _advance(self, step: Step, ended: np.ndarray, finals: _FinalsList, episodes: Episodes, t: int) -> None:
        self.episode_return += step.rewards
        self.episode_length += step.mask
        some = ended.any()
        if some:
            self._count(ended, episodes)
        encoded = self.encoder.encode(step.observations)
        # the statistics only see states that the policy acts on; under NEXT_STEP a final state is not one
        acting = ~ended if some and self.environments.autoreset == "next_step" else None
        self.normaliser.update(encoded, acting)
        self._begin(encoded, step.action_masks)
        truncated = step.truncated & ~step.terminated
        if some and truncated.any():
            reached = self.normaliser(self.encoder.encode(step.next_observations))
            finals.add(t, truncated, reached)

    def _count(self, ended: np.ndarray, episodes: Episodes) -> None:
        for s, b in np.argwhere(ended):
            episodes.returns[s].append(float(self.episode_return[s, b]))
            episodes.lengths[s].append(int(self.episode_length[s, b]))
        self.episode_return[ended] = 0.0
        self.episode_length[ended] = 0

    def _noise(self, iteration: int) -> np.ndarray:
        """All random numbers of a rollout [T, S, B, …], drawn at once."""
        shape = (self.num_steps, self.shape[1])
        draws = [self.distribution.noise(generator(s, ACTIONS, iteration), shape) for s in self.seeds]
        return np.stack(draws, axis=1)

    def _allocate(self) -> Rollout:
        # torch's allocator aligns to 64 bytes, NumPy's does not; so vectorised sums round the same in every process
        rows = (self.num_steps, *self.shape)
        masks = None
        if self._action_masks is not None:
            masks = torch.zeros((*rows, self._action_masks.shape[-1]), dtype=torch.bool)
        return Rollout(
            observations=torch.zeros((*rows, self.encoder.size)),
            actions=torch.zeros((*rows, *self.distribution.action_shape), dtype=self.distribution.action_dtype),
            rewards=torch.zeros(rows),
            terminated=torch.zeros(rows, dtype=torch.bool),
            truncated=torch.zeros(rows, dtype=torch.bool),
            mask=torch.zeros(rows, dtype=torch.bool),
            action_masks=masks,
            last_observations=torch.zeros((*self.shape, self.encoder.size)),
            finals=_FinalsList().stack(self.encoder.size),
        )

    def state(self) -> dict[str, Any]:
        return {
            "environments": self.environments.state(),
            "scaler": self.scaler.state(),
            "episode_return": self.episode_return.copy(),
            "episode_length": self.episode_length.copy(),
        }

    def restore(self, state: dict[str, Any], *, allow_inexact: bool = False) -> None:
        """Continue from `state()`. Environments that cannot be restored start new episodes.

        `Environments.restore` takes `allow_inexact`. Restore the normaliser first: it belongs to the policy.
        """
        self.scaler.restore(state["scaler"])
        own = {"episode_return": self.episode_return, "episode_length": self.episode_length}
        same_kind("episodes", {name: state[name] for name in own}, own)
        self.episode_return, self.episode_length = (
            state["episode_return"].copy(),
            state["episode_length"].copy(),
        )
        observations, masks = self.environments.restore(state["environments"], allow_inexact=allow_inexact)
        require_finite_array("observation", observations, self.seeds, "at reset")
        encoded = self.encoder.encode(observations)
        if self.environments.began_anew:  # these are the first observations of new episodes
            self.episode_return[:], self.episode_length[:], self.scaler.returns = 0.0, 0, np.zeros(self.shape)
            self.normaliser.update(encoded)
        self._begin(encoded, masks)


class _FinalsList:
    """Collects the finals of a rollout."""

    def __init__(self) -> None:
        self.places: list[np.ndarray] = []
        self.observations: list[np.ndarray] = []

    def add(self, t: int, where: np.ndarray, observations: np.ndarray) -> None:
        seeds, envs = np.nonzero(where)
        self.places.append(np.stack([np.full_like(seeds, t), seeds, envs]))
        self.observations.append(observations[seeds, envs])

    def stack(self, size: int) -> Finals:
        if not self.places:
            return Finals(np.zeros((3, 0), dtype=np.int64), np.zeros((0, size), dtype=np.float32))
        return Finals(np.concatenate(self.places, axis=1), np.concatenate(self.observations))


def final_values(rollout: Rollout, value: Value) -> Tensor | None:
    """Values [T, S, B] of the states that truncated steps led to, NaN elsewhere, by one call; None without any."""
    places, observations = rollout.finals
    if not places.shape[1]:
        return None
    seeds = rollout.rewards.shape[1]
    position = np.zeros(places.shape[1], dtype=np.int64)  # [K] index of each final within its seed
    counts = np.zeros(seeds, dtype=np.int64)
    for k, s in enumerate(places[1]):
        position[k], counts[s] = counts[s], counts[s] + 1
    padded = torch.zeros((seeds, int(counts.max()), observations.shape[-1]))
    padded.numpy()[places[1], position] = observations
    values = value(padded).cpu()
    result = torch.full(rollout.rewards.shape, torch.nan)
    result[tuple(torch.from_numpy(i) for i in places)] = values[torch.from_numpy(places[1]), torch.from_numpy(position)]
    return result


def live_mask(rollout: Rollout) -> Tensor | None:
    """The rollout's mask, or None if every row is a real transition."""
    return None if bool(rollout.mask.all()) else rollout.mask


def per_seed(x: Tensor) -> Tensor:
    """[T, S, B, …] → [S, T·B, …], from which an update draws minibatches."""
    return x.transpose(0, 1).reshape(x.shape[1], x.shape[0] * x.shape[2], *x.shape[3:])


def time_major(x: Tensor, num_envs: int) -> Tensor:
    """[S, T·B] → [T, S, B], the inverse of `per_seed`."""
    return x.unflatten(1, (-1, num_envs)).transpose(0, 1).contiguous()

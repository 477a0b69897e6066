"""Collecting experience: one policy call per time step for all seeds and environments, into preallocated buffers.

A rollout stores what an update and an estimator need: observations, actions, rewards, `terminated`, `truncated`, and
the final observations of truncated episodes. Leaves out advantages.
"""

# T time, S seeds, B environments per seed, D observation size
from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from telescope.arrays import Array
from telescope.checks import fits_memory, same_kind
from telescope.control.agents.actions import Bound
from telescope.control.agents.actor import Act, Agents
from telescope.control.environments.checks import require_finite, require_finite_array
from telescope.control.environments.population import Environments, Step
from telescope.control.experience.encoding import Encoder
from telescope.control.experience.normalisation import ObservationNormaliser, RewardScaler
from telescope.control.experience.stacks import Stack, Store
from telescope.randomness import ACTIONS, generator


class Rollout(NamedTuple):
    """T steps of S·B environments, as tensors on the CPU, or where a simulator has its arrays."""

    observations: Tensor  # [T, S, B, D] as the policy saw them: encoded and normalised
    actions: Tensor  # [T, S, B, …] as the policy chose them, before any bound
    rewards: Tensor  # [T, S, B] scaled if the run scales rewards
    terminated: Tensor  # [T, S, B] bool
    truncated: Tensor  # [T, S, B] bool
    mask: Tensor  # [T, S, B] bool, False on the row a NEXT_STEP autoreset inserts
    action_masks: Tensor | None  # [T, S, B, A] bool
    last_observations: Tensor  # [S, B, D]
    finals: Finals
    memory: Tensor | None = None  # [T, S, B, H] before each step, of policies that remember
    last_memory: Tensor | None = None  # [S, B, H] before the last observations
    frames: Tensor | None = None  # [S, F, …] of stacks: all observations are then places [K] among them, int32


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
    masks: np.ndarray | None = None  # [S, B, A] bool, actions allowed before the step
    begins: np.ndarray | None = None  # [S, B] bool, of stacks: observations are then their latest frames


class Finals(NamedTuple):
    """The K states that truncated steps really led to."""

    places: Array  # [3, K] time, seed and environment
    observations: Array  # [K, D]
    memory: Array | None = None  # [K, H] before these observations


class Episodes(NamedTuple):
    """Episodes that ended during a rollout, one list per seed."""

    returns: list[list[float]]
    lengths: list[list[int]]

    def means(self, s: int) -> dict[str, float | None]:
        """Number, mean return and mean length of the episodes of seed s; None without any."""
        returns, lengths = self.returns[s], self.lengths[s]
        means = (float(np.mean(returns)), float(np.mean(lengths))) if returns else (None, None)
        return {"episodes": len(returns), "return_mean": means[0], "length_mean": means[1]}


def no_episodes(seeds: int) -> Episodes:
    return Episodes([[] for _ in range(seeds)], [[] for _ in range(seeds)])


class Rollouts:
    """The environments of a population, their normalisation, and the current episodes."""

    def __init__(
        self,
        environments: Environments,
        *,
        seeds: Sequence[int],
        num_envs: int,
        num_steps: int,
        encoder: Encoder,
        distribution: Any,
        bound: Bound,
        normaliser: ObservationNormaliser,
        scaler: RewardScaler,
        memory: int = 0,
        frame: Encoder | None = None,
        stack: int = 1,
        reward_bound: float | None = None,
    ) -> None:
        self.environments, self.seeds, self.num_steps = environments, list(seeds), num_steps
        self.distribution, self.normaliser, self.scaler = distribution, normaliser, scaler
        self.bound, self.reward_bound = bound, reward_bound
        self.encoder = encoder
        self.encode = (frame or encoder).encode
        self.stack = Stack(stack) if stack > 1 else None
        """The latest frames, where environments give single ones and the policy sees stacks."""
        self.shape = (len(self.seeds), num_envs)
        self._require_memory(memory)
        self.memory = np.zeros((*self.shape, memory), np.float32) if memory else None
        """[S, B, H], the policies' memory of the current episodes."""
        self.episode_return = np.zeros(self.shape)
        self.episode_length = np.zeros(self.shape, dtype=np.int64)
        self.time = {"env": 0.0, "policy": 0.0}

    def _require_memory(self, memory: int) -> None:
        environments = self.shape[0] * self.shape[1]
        seen = self.encoder.size // (self.stack.count if self.stack else 1) * self.kept.itemsize // 4
        numbers = self.num_steps * environments * (seen + memory + 4)
        fits_memory(numbers, f"a rollout of num_steps {self.num_steps} × {environments} environments needs")

    def actor(self, agents: Agents, parameters: Tensor) -> Act:
        """The policies with these parameters [S, P], as `collect` asks them."""
        return agents.actor(parameters)

    @property
    def kept(self) -> torch.dtype:
        """The dtype of observations in a rollout."""
        return torch.float32 if self.normaliser.enabled and self.encoder.floats is None else self.encoder.kept

    def may_be_alone(self, minibatch_size: int) -> bool:
        """Whether a minibatch may have only one live sample: by its size, as the last one, or beside reset rows."""
        left_over = self.num_steps * self.shape[1] % minibatch_size
        return 1 in (minibatch_size, left_over) or self.environments.autoreset == "next_step"

    first = 0
    """The index of the first environment, where these are a part of a larger run; see `Environments.reset`."""

    def reset(self) -> None:
        """Start every environment's first episode."""
        observations, masks = self.environments.reset(self.first)
        require_finite_array("observation", observations, self.seeds, "at reset")
        encoded = self.encode(observations)
        self.normaliser.update(encoded)
        self._begin(encoded, masks)

    def _begin(self, encoded: np.ndarray, masks: np.ndarray | None, begins: np.ndarray | None = None) -> None:
        """Take what the policy sees next. Of stacks, an episode begins where `begins` is True; everywhere if None."""
        self._encoded, self._observations, self._action_masks = encoded, self.normaliser(encoded), masks
        if self.stack is not None:
            if begins is None:
                self.stack.begin(self._observations)
            else:
                self.stack.push(self._observations, begins)
            self._observations = self.stack.seen

    @property
    def seen(self) -> tuple[np.ndarray, np.ndarray | None]:
        """What the policy sees now: copies of the observations [S, B, D], normalised, and of the action masks."""
        masks = self._action_masks
        return self._observations.copy(), None if masks is None else masks.copy()

    def play(self, act: Act, noise: np.ndarray, row: int, episodes: Episodes) -> Transition:
        """Step every environment once, as step `row` of the run. Adds episodes that end to `episodes`."""
        started, observations = time.perf_counter(), self._stored(self._encoded)
        before = None if self._action_masks is None else self._action_masks.copy()
        begins = None if self.stack is None else self.stack.age == 0
        actions, self.memory = act(self._observations, self.memory, noise, self._action_masks)
        acted = time.perf_counter()
        step = self.environments.step(self.bound(actions))
        self.time["policy"] += acted - started
        self.time["env"] += time.perf_counter() - acted
        require_finite(step, self.seeds, f"at step {(row + 1) * self.shape[1]} (time step {row} of each environment)")
        ended = step.terminated | step.truncated
        reached = self._stored(self.encode(step.next_observations))  # [S, B, D]
        self._advance(step, ended, FinalsList(), episodes, 0)
        masks = None if step.action_masks is None else step.action_masks | ended[..., None]
        flags = step.terminated, step.truncated, step.mask
        return Transition(observations, actions, self.learned(step.rewards), *flags, reached, masks, before, begins)

    def learned(self, rewards: Any) -> Any:
        """Rewards, an array or a tensor, as they are learned from: clipped if the run says so."""
        return rewards if self.reward_bound is None else rewards.clip(-self.reward_bound, self.reward_bound)

    def _stored(self, encoded: np.ndarray) -> np.ndarray:
        """A copy, because environments may write into their buffers: exact if it will be normalised, else as seen."""
        return (encoded if self.normaliser.enabled else self.normaliser(encoded)).copy()

    def collect(self, act: Act, iteration: int, noise: np.ndarray | None = None) -> tuple[Rollout, Episodes]:
        """Run the policy for `num_steps`. A reward or observation that is not finite raises a FloatingPointError."""
        rollout, finals, noise = self._allocate(), FinalsList(), self.noise(iteration) if noise is None else noise
        episodes, store = no_episodes(len(self.seeds)), None
        if self.stack is not None:
            store = finals.store = Store(self.stack, self.num_steps, self.kept)
        # this loop is NumPy on small arrays, so each operation costs about a microsecond
        seen, chosen, rewards, terminated, truncated, live = (x.numpy() for x in rollout[:6])
        memories = None if rollout.memory is None else rollout.memory.numpy()
        masks = None if rollout.action_masks is None else rollout.action_masks.numpy()
        policy, environment, clock = 0.0, 0.0, time.perf_counter
        for t in range(self.num_steps):
            seen[t] = self._observations if store is None else store.add()
            if masks is not None:
                masks[t] = self._action_masks
            if memories is not None:
                memories[t] = self.memory
            started = clock()
            now = seen[t] if store is None else self._observations
            chosen[t], self.memory = act(now, self.memory, noise[t], None if masks is None else masks[t])
            acted = clock()
            step = self.environments.step(self.bound(chosen[t]))
            policy, environment = policy + acted - started, environment + clock() - acted
            row = iteration * self.num_steps + t
            require_finite(
                step, self.seeds, f"at step {(row + 1) * self.shape[1]} (time step {row} of each environment)"
            )
            ended = step.terminated | step.truncated  # [S, B]
            terminated[t], truncated[t], live[t] = step.terminated, step.truncated, step.mask
            rewards[t] = self.scaler(self.learned(step.rewards), ended, step.mask)
            self._advance(step, ended, finals, episodes, t)
        rollout.last_observations.numpy()[:] = self._observations if store is None else store.add()
        if rollout.last_memory is not None:
            rollout.last_memory.numpy()[:] = self.memory
        self.time = {"env": environment, "policy": policy}
        frames = None if store is None else store.whole()
        return rollout._replace(finals=finals.stack(self._kept_shape), frames=frames), episodes

    @property
    def _kept_shape(self) -> tuple[int, ...]:
        """The shape of an observation in a rollout."""
        return self.encoder.shape if self.stack is None else (self.stack.count,)

    def _advance(self, step: Step, ended: np.ndarray, finals: FinalsList, episodes: Episodes, t: int) -> None:
        self.episode_return += step.rewards
        self.episode_length += step.mask
        some = ended.any()
        if some:
            self._count(ended, episodes)
        encoded = self.encode(step.observations)  # [S, B, D]
        # the statistics only see states that the policy acts on; under NEXT_STEP a final state is not one
        acting = ~ended if some and self.environments.autoreset == "next_step" else None
        self.normaliser.update(encoded, acting)
        truncated = step.truncated & ~step.terminated  # [S, B]
        if some and truncated.any():
            finals.add(t, truncated, self.normaliser(self.encode(step.next_observations)), self.memory)
        self._begin(encoded, step.action_masks, ended if self.environments.autoreset != "next_step" else ~step.mask)
        if self.memory is not None:
            self.memory[ended | ~step.mask] = 0.0

    def _count(self, ended: np.ndarray, episodes: Episodes) -> None:
        for s, b in np.argwhere(ended):
            episodes.returns[s].append(float(self.episode_return[s, b]))
            episodes.lengths[s].append(int(self.episode_length[s, b]))
        self.episode_return[ended] = 0.0
        self.episode_length[ended] = 0

    def noise(self, iteration: int) -> np.ndarray:
        """All random numbers of a rollout [T, S, B, …], drawn at once."""
        shape = (self.num_steps, self.shape[1])
        draws = [self.distribution.noise(generator(s, ACTIONS, iteration), shape) for s in self.seeds]  # [T, B, …]
        return np.stack(draws, axis=1)

    def _allocate(self) -> Rollout:
        # torch's allocator aligns to 64 bytes, NumPy's does not; so vectorised sums round the same in every process
        rows = (self.num_steps, *self.shape)
        kept, masks = self.kept if self.stack is None else torch.int32, None
        if self._action_masks is not None:
            masks = torch.zeros((*rows, self._action_masks.shape[-1]), dtype=torch.bool)
        return Rollout(
            observations=torch.zeros((*rows, *self._kept_shape), dtype=kept),
            actions=torch.zeros((*rows, *self.distribution.action_shape), dtype=self.distribution.action_dtype),
            rewards=torch.zeros(rows),
            terminated=torch.zeros(rows, dtype=torch.bool),
            truncated=torch.zeros(rows, dtype=torch.bool),
            mask=torch.zeros(rows, dtype=torch.bool),
            action_masks=masks,
            last_observations=torch.zeros((*self.shape, *self._kept_shape), dtype=kept),
            finals=FinalsList().stack(self._kept_shape),
            memory=None if self.memory is None else torch.zeros((self.num_steps, *self.memory.shape)),
            last_memory=None if self.memory is None else torch.zeros(self.memory.shape),
        )

    def state(self) -> dict[str, Any]:
        return {
            **({} if self.memory is None else {"memory": self.memory.copy()}),
            **({} if self.stack is None else {"stack": self.stack.state()}),
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
        own: dict[str, np.ndarray] = {"episode_return": self.episode_return, "episode_length": self.episode_length}
        if self.memory is not None:
            own["memory"] = self.memory
        same_kind("episodes", {name: state[name] for name in own}, own)
        for name, array in own.items():
            array[...] = state[name]
        observations, masks = self.environments.restore(state["environments"], allow_inexact=allow_inexact)
        require_finite_array("observation", observations, self.seeds, "at reset")
        encoded = self.encode(observations)
        if self.environments.began_anew:  # these are the first observations of new episodes
            self.episode_return[:], self.episode_length[:], self.scaler.returns = 0.0, 0, np.zeros(self.shape)
            if self.memory is not None:
                self.memory[:] = 0.0
            self.normaliser.update(encoded)
        self._begin(encoded, masks)
        if self.stack is not None and not self.environments.began_anew:
            self.stack.restore(state["stack"])
            self._observations = self.stack.seen


class FinalsList:
    """Collects the finals of a rollout."""

    def __init__(self) -> None:
        self.places: list[np.ndarray] = []
        self.observations: list[np.ndarray] = []
        self.memory: list[np.ndarray] = []
        self.store: Store | None = None

    def add(self, t: int, where: np.ndarray, observations: np.ndarray, memory: np.ndarray | None) -> None:
        seeds, envs = np.nonzero(where)
        self.places.append(np.stack([np.full_like(seeds, t), seeds, envs]))
        kept = observations[seeds, envs] if self.store is None else self.store.add_finals(where, observations)
        self.observations.append(kept)
        if memory is not None:
            self.memory.append(memory[seeds, envs])

    def stack(self, shape: tuple[int, ...]) -> Finals:
        if not self.places:
            return Finals(np.zeros((3, 0), dtype=np.int64), np.zeros((0, *shape), dtype=np.float32))
        memory = np.concatenate(self.memory) if self.memory else None
        return Finals(np.concatenate(self.places, axis=1), np.concatenate(self.observations), memory)

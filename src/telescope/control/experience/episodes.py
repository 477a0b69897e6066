"""Collecting whole episodes: each environment plays its share of them, and rows after these do not count.

Every iteration resets all environments, so no episode outlives it, and there is no episode to save. Leaves out which
seeds environments begin from (`control/episodes.py`).
"""

# T time, S seeds, B environments per seed, N = T·B samples per seed, D observation size
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from telescope.control.agents.actor import Act
from telescope.control.environments.checks import require_finite, require_finite_array
from telescope.control.experience.rollout import Episodes, FinalsList, Rollout, Rollouts, no_episodes
from telescope.randomness import ACTIONS, generator
from telescope.trees import mapped

DRAWN = 128
"""Rows of noise that are drawn at once."""


class FixedShare(gym.Wrapper):
    """Plays a number of episodes after a reset with a seed. After them it does nothing, and so costs nothing."""

    def __init__(self, env: gym.Env, *, episodes: int) -> None:
        super().__init__(env)
        self._episodes, self._left, self._idle = episodes, episodes, False
        self._first: tuple[Any, dict[str, Any]] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:  # an iteration begins
            self._left = self._episodes
        self._idle = not self._left
        if self._idle and self._first is not None:
            return self._first
        observation, info = self.env.reset(seed=seed, options=options)
        self._first = self._first or (np.array(observation), info)
        if self._idle:  # a share of no episodes still needs something to show
            return self._first
        self._left -= 1
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self._idle:
            assert self._first is not None
            return self._first[0], 0.0, False, False, self._first[1]
        return self.env.step(action)


def shares(episodes: int, num_envs: int) -> np.ndarray:
    """Episodes that each environment plays [B]: as equal as can be, and known before, so that short ones do not win."""
    return np.full(num_envs, episodes // num_envs) + (np.arange(num_envs) < episodes % num_envs)


class Row(NamedTuple):
    """One time step of a rollout, NumPy arrays [S, B, …]."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    mask: np.ndarray
    action_masks: np.ndarray | None


class EpisodeRollouts(Rollouts):
    """The same environments and statistics, but every rollout has whole episodes, from a reset on."""

    def _require_memory(self, memory: int) -> None:
        """Nothing: rows are kept as they come, and `num_steps` is only the most that there can be."""

    def reset(self) -> None:
        """Nothing: every iteration begins with a reset of its own."""

    def collect_episodes(
        self, act: Act, *, starts: np.ndarray, iterations: Sequence[int], running: np.ndarray, each: np.ndarray
    ) -> tuple[Rollout, Episodes]:
        """Run the policy until the environments of all running seeds [S] have finished their shares `each` [B].

        starts: [S, B], the seeds from which the environments begin. iterations: those of each seed, the key of its
        noise. The rollout is as long as the slowest environment takes. After an environment's last episode its rows do
        not count: `mask` is False, and they leave no trace in statistics.
        """
        left = np.where(running[:, None], each, 0)  # [S, B] episodes that are still to end
        rows, finals, episodes = list[Row](), FinalsList(), no_episodes(len(self.seeds))
        self._reset_from(starts, left > 0)
        noise = self._noise_by_row(iterations)
        while (left > 0).any():
            self._require_end(len(rows), left > 0, each)
            rows.append(self._one_step(act, next(noise), left, len(rows), finals, episodes))
        return self._stacked(rows, finals), episodes

    def _reset_from(self, starts: np.ndarray, live: np.ndarray) -> None:
        observations, masks = self.environments.reset(seeds=starts)
        require_finite_array("observation", observations, self.seeds, "at reset")
        self.episode_return[:], self.episode_length[:], self.scaler.returns = 0.0, 0, np.zeros(self.shape)
        encoded = self.encoder.encode(observations)
        self.normaliser.update(encoded, live)
        self._begin(encoded, masks)

    def _one_step(
        self, act: Act, noise: np.ndarray, left: np.ndarray, t: int, finals: FinalsList, episodes: Episodes
    ) -> Row:
        """Step every environment once. Subtract what has ended from `left` [S, B], the episodes still to end."""
        seen, masks = np.array(self._observations), self._action_masks
        started = time.perf_counter()
        actions, _ = act(seen, None, noise, masks)
        acted = time.perf_counter()
        step = self.environments.step(self.bound(actions))
        self.time["policy"] += acted - started
        self.time["env"] += time.perf_counter() - acted
        require_finite(step, self.seeds, f"at time step {t} of an iteration")
        counted, ends = (left > 0) & step.mask, step.terminated | step.truncated  # [S, B]
        ended = ends & counted
        left -= ended
        rewards = self.scaler(self.learned(step.rewards), ends, counted)
        self.episode_return += step.rewards
        self.episode_length += step.mask
        if ended.any():
            self._count(ended, episodes)
        encoded = self.encoder.encode(step.observations)  # [S, B, D]
        # the statistics only see states that the policy acts on; under NEXT_STEP a final state is not one
        acting = (left > 0) & ~ends if self.environments.autoreset == "next_step" else left > 0
        self.normaliser.update(encoded, acting)
        self._begin(encoded, step.action_masks)
        cut = step.truncated & ~step.terminated & counted
        if cut.any():
            finals.add(t, cut, self.normaliser(self.encoder.encode(step.next_observations)), None)
        flags = step.terminated & counted, step.truncated & counted, counted
        return Row(seen, actions, np.array(rewards), *flags, masks)

    def _noise_by_row(self, iterations: Sequence[int]) -> Iterator[np.ndarray]:
        """Random numbers [S, B, …] of one row after the other, from one generator per seed."""
        generators = [generator(seed, ACTIONS, int(i)) for seed, i in zip(self.seeds, iterations, strict=True)]
        while True:
            yield from np.stack([self.distribution.noise(g, (DRAWN, self.shape[1])) for g in generators], axis=1)

    def _require_end(self, steps: int, live: np.ndarray, each: np.ndarray) -> None:
        if steps < self.num_steps:
            return
        s, b = np.argwhere(live)[0]
        what = "an episode" if each[b] == 1 else f"{each[b]} episodes"
        raise ValueError(
            f"environment {b} of seed {self.seeds[s]} has not finished {what} within num_steps {self.num_steps:,}, the "
            "most steps of an iteration; give it a time limit (--time-limit 1000; in Python time_limit=1000), or "
            "raise num_steps"
        )

    def _stacked(self, rows: list[Row], finals: FinalsList) -> Rollout:
        parts: Row = Row(*zip(*rows, strict=True))  # type: ignore[arg-type]
        return Rollout(
            observations=_tensor(parts.observations, self.kept),
            actions=_tensor(parts.actions, self.distribution.action_dtype),
            rewards=_tensor(parts.rewards, torch.float32),
            terminated=_tensor(parts.terminated, torch.bool),
            truncated=_tensor(parts.truncated, torch.bool),
            mask=_tensor(parts.mask, torch.bool),
            action_masks=None if self._action_masks is None else _tensor(parts.action_masks, torch.bool),
            last_observations=torch.tensor(self._observations, dtype=self.kept),
            finals=finals.stack(self.encoder.shape),
        )

    def state(self) -> dict[str, Any]:
        """What an iteration hands on: statistics. `environments` says what a resume must find again."""
        return {"environments": self.environments.settings(), "scaler": self.scaler.state()}

    def restore(self, state: dict[str, Any], *, allow_inexact: bool = False) -> None:
        """Continue from `state()`."""
        self.scaler.restore(state["scaler"])
        self.environments.require_same(state["environments"])
        if not state["environments"]["exact_resume"]:
            self.environments.start_anew_on_resume(state["environments"]["resume_note"])
            self.environments.began_anew = True


def _tensor(rows: Any, dtype: torch.dtype) -> Tensor:
    """Rows as one tensor [T, …] from torch's allocator; see `Rollouts._allocate`."""
    stacked = torch.empty((len(rows), *rows[0].shape), dtype=dtype)
    np.stack(rows, out=stacked.numpy(), casting="unsafe")
    return stacked


def episode_numbers(rollout: Rollout) -> Tensor:
    """[T, S, B] how many episodes of its environment ended before each step: 0 in the first, 1 in the second, …"""
    ended = (rollout.terminated | rollout.truncated).long()
    return ended.cumsum(0) - ended


def of_first_step(x: Tensor, rollout: Rollout) -> Tensor:
    """[T, S, B] for each step the value that x has at the first live step of its episode."""
    number, time = episode_numbers(rollout), torch.arange(len(x))[:, None, None].expand(x.shape)
    first = torch.full((int(number.max()) + 1, *x.shape[1:]), len(x) - 1)
    first = first.scatter_reduce(0, number, time.masked_fill(~rollout.mask, len(x) - 1), "amin")
    return x.gather(0, first.gather(0, number))


def mean_of_others(x: Tensor, rollout: Rollout) -> Tensor:
    """[T, S, B] for each step the mean of x over all live steps of the seed's other episodes.

    It does not depend on the episode's own actions, so as a baseline it leaves the expected gradient as it is. 0 if
    there is no other episode.
    """
    number, live = episode_numbers(rollout), rollout.mask.to(x.dtype)
    others = []
    for part in (x * live, live):
        own = torch.zeros((int(number.max()) + 1, *x.shape[1:]), dtype=x.dtype).scatter_add(0, number, part)
        others.append(part.sum((0, 2), keepdim=True) - own.gather(0, number))  # [T, S, B]
    total, count = others
    return torch.where(count > 0, total / count.clamp(min=1), 0.0)


def packed(batch: Any) -> Any:
    """The samples [S, N, …] with those that are live in front, and as few others as a common length allows.

    The length is one of a few (64, 96, 128, 192, …), because a lifted update is recorded once for each.
    """
    count = int(batch.live.sum(1).max())
    order = torch.argsort(~batch.live, dim=1, stable=True)[:, :count]  # [S, count]
    indices = torch.nn.functional.pad(order, (0, rung(count) - count))
    seeds = torch.arange(len(indices))[:, None]
    chosen = mapped(lambda x: x[seeds, indices], batch)
    return chosen._replace(live=chosen.live & (torch.arange(indices.shape[1]) < count))


def padded_time(rollout: Rollout) -> Rollout:
    """The rollout with rows that do not count after its last one, up to one of few lengths; see `packed`."""
    missing = rung(len(rollout.mask)) - len(rollout.mask)
    names = ("observations", "actions", "rewards", "terminated", "truncated", "mask", "action_masks")
    parts = {name: getattr(rollout, name) for name in names if getattr(rollout, name) is not None}
    padding = {name: part[-1:].expand(missing, *part.shape[1:]) for name, part in parts.items()}  # real observations
    longer: dict[str, Any] = {name: torch.cat([part, padding[name]]) for name, part in parts.items()}
    longer["mask"][len(rollout.mask) :] = False
    return rollout._replace(**longer)


def rung(count: int) -> int:
    """The smallest of 64, 96, 128, 192, 256, … that is not below count."""
    power = 1 << max(count - 1, 63).bit_length()
    return 3 * power // 4 if 64 < count <= 3 * power // 4 else power

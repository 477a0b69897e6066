"""Rollouts of a simulator: every array stays where the simulator has it, from the observation to the advantage.

The same steps as in `rollout.py`, in tensors, and without a look at their numbers before the rollout ends, because
each look would wait for the device. Leaves out single steps (`play`), which are NumPy arrays.
"""

# T time, S seeds, B environments per seed, N = S·B, D observation size, H memory size, K truncations
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telescope.control.agents.actor import Agents
from telescope.control.environments.lanes import Step
from telescope.control.experience.device_statistics import TensorNormaliser, TensorScaler
from telescope.control.experience.encoding import tensor_encoder
from telescope.control.experience.rollout import Episodes, Finals, Rollout, Rollouts, no_episodes


class Ends:
    """What a rollout remembers of its steps' ends, to be read once at its end."""

    def __init__(self, rollout: Rollout) -> None:
        like: dict[str, Any] = {"device": rollout.rewards.device}
        self.reached = torch.zeros_like(rollout.observations)  # [T, S, B, D] where each step really led to
        self.memory = None if rollout.memory is None else torch.zeros_like(rollout.memory)  # [T, S, B, H] before it
        self.returns = torch.zeros(rollout.rewards.shape, dtype=torch.float64, **like)  # [T, S, B] of the episode
        self.lengths = torch.zeros(rollout.rewards.shape, dtype=torch.int64, **like)
        self.finite = torch.ones((3, *rollout.rewards.shape), dtype=torch.bool, **like)
        """[3, T, S, B] whether reward, observation and final observation are finite."""

    def finals(self, rollout: Rollout) -> Finals:
        """The states that truncated steps led to."""
        places = torch.nonzero(rollout.truncated & ~rollout.terminated, as_tuple=True)
        memory = None if self.memory is None else self.memory[places]
        return Finals(torch.stack(places), self.reached[places], memory)  # type: ignore[arg-type]

    def episodes(self, rollout: Rollout) -> Episodes:
        """The episodes that ended, per seed, in the order of their ends."""
        ended = rollout.terminated | rollout.truncated
        seeds = torch.nonzero(ended)[:, 1].tolist()
        result = no_episodes(ended.shape[1])
        for s, total, length in zip(seeds, self.returns[ended].tolist(), self.lengths[ended].tolist(), strict=True):
            result.returns[s].append(total)
            result.lengths[s].append(length)
        return result


class DeviceRollouts(Rollouts):
    """The simulator of a population, its normalisation, and the current episodes, as tensors on one device.

    `normaliser` and `scaler` are the host's; they know what the device has learned at the end of each rollout.
    """

    def __init__(self, environments: Any, *, bound_on: Callable[[torch.device], Any], **parts: Any) -> None:
        super().__init__(environments, **parts)
        self.simulator, self._bound_on = environments.simulator, bound_on
        self._encode = tensor_encoder(self.encoder, environments.observation_space)

    def actor(self, agents: Agents, parameters: Tensor) -> Any:
        return agents.tensor_actor(parameters)

    def reset(self) -> None:
        """Start every environment's first episode."""
        seen = self.environments.begin(self.first)
        self._require_finite_start(seen.observations)
        self._place(seen.observations.device)
        encoded = self._encode(self._by_seed(seen.observations))
        self._normaliser.update(encoded)
        self._begin_with(encoded, seen.action_masks)

    def _require_finite_start(self, observations: Tensor) -> None:
        if observations.is_floating_point() and not bool(torch.isfinite(observations).all()):
            raise FloatingPointError(f"observations of {self.simulator.name} are not finite at reset")

    def _place(self, device: torch.device) -> None:
        """Put what a rollout carries on from step to step on the simulator's device."""
        self.device, self._bound = device, self._bound_on(device)
        self._normaliser = TensorNormaliser(self.normaliser, device)
        self._scaler = TensorScaler(self.scaler, device)
        self._returns, self._lengths = (
            torch.tensor(x, device=device) for x in (self.episode_return, self.episode_length)
        )
        self._memory = None if self.memory is None else torch.tensor(self.memory, device=device)

    def _begin_with(self, encoded: Tensor, masks: Tensor | None) -> None:
        self._seen, self._masks = self._normaliser(encoded), None if masks is None else self._by_seed(masks)

    def _by_seed(self, x: Tensor) -> Tensor:
        return x.reshape(*self.shape, *x.shape[1:])

    @property
    def seen(self) -> Any:
        """What the policy sees now: observations [S, B, D], normalised, and action masks."""
        return self._seen, self._masks

    def collect(self, act: Any, iteration: int, noise: Any = None) -> tuple[Rollout, Episodes]:
        """Run the policy for `num_steps`. A reward or observation that is not finite raises a FloatingPointError."""
        rollout = self._allocate()
        noise = torch.as_tensor(self.noise(iteration) if noise is None else noise).to(self.device)
        ends, policy, environment, clock = Ends(rollout), 0.0, 0.0, time.perf_counter
        for t in range(self.num_steps):
            rollout.observations[t] = self._seen
            if rollout.action_masks is not None:
                rollout.action_masks[t] = self._masks  # type: ignore[assignment]
            if rollout.memory is not None:
                rollout.memory[t] = self._memory  # type: ignore[assignment]
            started = clock()
            masks = None if rollout.action_masks is None else rollout.action_masks[t]
            actions, self._memory = act(rollout.observations[t], self._memory, noise[t], masks)
            rollout.actions[t] = actions
            acted = clock()
            step = self.simulator.step(self._bound(rollout.actions[t]).flatten(0, 1))
            policy, environment = policy + acted - started, environment + clock() - acted
            parts: Any = (None if x is None else self._by_seed(x) for x in step)
            self._record(rollout, ends, Step(*parts), t)
        rollout.last_observations.copy_(self._seen)
        if rollout.last_memory is not None:
            rollout.last_memory.copy_(self._memory)  # type: ignore[arg-type]
        self._require_finite(ends, iteration)
        self.time = {"env": environment, "policy": policy}
        self._report()
        return rollout._replace(finals=ends.finals(rollout)), ends.episodes(rollout)

    def _record(self, rollout: Rollout, ends: Ends, step: Any, t: int) -> None:
        """Store what step t answered, and what the policy sees next."""
        ended = step.terminated | step.truncated  # [S, B]
        rollout.terminated[t], rollout.truncated[t], rollout.mask[t] = step.terminated, step.truncated, step.mask
        rollout.rewards[t] = self._scaler(self.learned(step.rewards), ended, step.mask)
        self._returns += step.rewards
        self._lengths += step.mask
        ends.returns[t], ends.lengths[t] = self._returns, self._lengths
        self._returns.masked_fill_(ended, 0.0)
        self._lengths.masked_fill_(ended, 0)
        encoded, reached = self._encode(step.observations), self._encode(step.next_observations)
        for kind, x in enumerate((step.rewards, encoded, reached)):
            if x.is_floating_point():
                ends.finite[kind, t] = torch.isfinite(x).flatten(1).unflatten(1, (self.shape[1], -1)).all(-1)
        # the statistics only see states that the policy acts on; under NEXT_STEP a final state is not one
        self._normaliser.update(encoded, ~ended if self.environments.autoreset == "next_step" else None)
        self._begin_with(encoded, None if step.action_masks is None else step.action_masks.flatten(0, 1))
        ends.reached[t] = self._normaliser(reached)
        if self._memory is not None:
            ends.memory[t] = self._memory  # type: ignore[index]
            self._memory = self._memory.masked_fill((ended | ~step.mask)[..., None], 0.0)

    def _require_finite(self, ends: Ends, iteration: int) -> None:
        broken = torch.nonzero(~ends.finite)
        if len(broken):
            kind, t, s, b = broken[broken[:, 1].argmin()].tolist()
            name, row = ("reward", "observation", "final observation")[kind], iteration * self.num_steps + t
            raise FloatingPointError(
                f"{name} of seed {self.seeds[s]}, environment {b} is not finite at step {(row + 1) * self.shape[1]} "
                f"(time step {row} of each environment), so the run stops here; check how {self.simulator.name} "
                f"computes this {name}"
            )

    def _report(self) -> None:
        """Tell the host what the device has learned."""
        self._normaliser.report()
        self._scaler.report()

    def _allocate(self) -> Rollout:
        self._action_masks = None if self._masks is None else np.empty(self._masks.shape, bool)
        parts: Any = (x.to(self.device) if isinstance(x, Tensor) else x for x in super()._allocate())
        return Rollout(*parts)

    def state(self) -> dict[str, Any]:
        self.episode_return, self.episode_length = self._returns.cpu().numpy(), self._lengths.cpu().numpy()
        if self._memory is not None:
            self.memory = self._memory.cpu().numpy()
        return super().state()

    def restore(self, state: dict[str, Any], *, allow_inexact: bool = False) -> None:
        """Continue from `state()`; see `Rollouts.restore`, which restores what the host keeps."""
        super().restore(state, allow_inexact=allow_inexact)
        seen = self.simulator.seen
        self._place(seen.observations.device)
        self._begin_with(self._encode(self._by_seed(seen.observations)), seen.action_masks)

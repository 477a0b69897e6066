"""A simulator as a lane of NumPy arrays, for whoever looks at single steps: evaluation, replay buffers, recordings.

Leaves out rollouts of on-policy algorithms, which stay on the device (`experience/device.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telescope.control.environments.lanes import Lane, Reset, Step
from telescope.control.simulators.protocol import Seen, Simulator, simulator


class SimulatorLane(Lane):
    """All environments of a run in one simulator, one row each."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.observation_space, self.action_space = simulator.observation_space, simulator.action_space
        self.mode, self.resume_note = simulator.mode, simulator.resume_note

    def reset(self, seeds: Sequence[int]) -> Reset:
        return _reset(self.simulator.reset(seeds))

    def restart(self) -> Reset:
        return _reset(self.simulator.restart())

    def step(self, actions: np.ndarray) -> Step:
        step = self.simulator.step(torch.tensor(actions, device=self.simulator.device))
        seen = _array(step.observations)
        reached = seen if step.next_observations is step.observations else _array(step.next_observations)
        rewards, *others = map(_array, step[2:])
        return Step(seen, reached, rewards.astype(np.float64), *others)

    def statistics(self) -> list[str]:
        return []

    def state(self) -> dict[str, Any]:
        return self.simulator.state()

    def restore(self, state: dict[str, Any], seeds: Sequence[int]) -> Reset:
        return _reset(self.simulator.restore(state, seeds))

    def close(self) -> None:
        self.simulator.close()


def simulated(source: Any, kwargs: Mapping[str, Any], seeds: list[int], num_envs: int, device: str) -> SimulatorLane:
    """A simulator of all environments, as a lane."""
    made = simulator(source, kwargs, len(seeds) * num_envs, device)
    if made.how.seeding == "one" and len(seeds) > 1:
        made.close()
        raise ValueError(
            f"{made.name} takes one seed for all its environments, so it cannot train {len(seeds)} seeds side by side "
            "with random numbers of their own; set seeds to 1, and train the others in runs of their own"
        )
    return SimulatorLane(made)


def _array(x: Any) -> Any:
    """A tensor as an array of its own memory; None stays."""
    return x.cpu().numpy().copy() if isinstance(x, Tensor) else x


def _reset(seen: Seen) -> Reset:
    return _array(seen.observations), _array(seen.action_masks)

"""A rehearsal of a simulator before the run, as `environments/rehearsal.py` does it for single environments.

It plays with the simulator itself, because a process may have room for one only, and compares tensors on its device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from telescope.control.agents.actions import bounding
from telescope.control.agents.distributions import distribution
from telescope.control.environments.population import Environments
from telescope.control.environments.rehearsal import STEPS, unrepeatable
from telescope.control.simulators.protocol import Seen, Simulator

SEEDING = (
    "Derive all random numbers from the seeds that reset(seed=[…]) gets, and let state() and restore(state) keep "
    "everything that changes"
)
WHAT = ("another observation", "another observation", "another reward", "another end of the episode")


def rehearse_simulator(environments: Environments) -> list[str]:
    """Return sentences for the user of a simulator. Reset it afterwards."""
    simulator: Any = environments.simulator
    first = played(simulator, environments.begin())
    second = played(simulator, environments.begin())
    reason = difference(first, second, "with the same seeds and actions, they give {} the second time")
    if not reason:
        kept = simulator.kept()
        later = played(simulator, simulator.seen)
        again = played(simulator, simulator.put(kept))
        reason = difference(later, again, "restored within an episode, they continue with {}")
    return [unrepeatable(environments, reason, SEEDING)] if reason else []


def played(simulator: Simulator, here: Seen) -> list[tuple[Tensor, ...]]:
    """Play `STEPS` steps with fixed (allowed) actions: [observations, successors, rewards, ends] of each."""
    space, device = simulator.action_space, here.observations.device
    actions, bound = distribution(space), bounding(space, device=device)
    rng, rows = np.random.default_rng(0), []
    outputs = torch.zeros((simulator.count, actions.outputs), device=device)
    for _ in range(STEPS):
        noise = torch.as_tensor(actions.noise(rng, (simulator.count,))).to(device)
        step: Any = simulator.step(bound(actions.sample(outputs, noise, here.action_masks)))
        here = simulator.seen
        ends = torch.stack([step.terminated, step.truncated])
        rows.append(tuple(x.clone() for x in (step.observations, step.next_observations, step.rewards, ends)))
    return rows


def difference(first: list[tuple[Tensor, ...]], second: list[tuple[Tensor, ...]], sentence: str) -> str:
    """The first difference between two pieces, put into the sentence; empty if they are equal bit for bit."""
    for one, other in zip(first, second, strict=True):
        for what, a, b in zip(WHAT, one, other, strict=True):
            if not torch.equal(a, b) and not torch.equal(a.nan_to_num(), b.nan_to_num()):
                return sentence.format(what)
    return ""

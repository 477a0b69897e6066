"""The settings that algorithms which learn from one step at a time share, and their step along a trace.

Leaves out what the trace is of (the algorithm's file), and the bounded step size (`obgd_step_size` in `optimisers.py`).
"""

# P parameters of one agent
from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from telescope.checks import at_least_zero, fits_memory, in_unit_interval, positive, positive_all
from telescope.control.config import RewardConfig

if TYPE_CHECKING:
    from telescope.control.agents.networks import Network


@dataclasses.dataclass(frozen=True)
class StreamConfig(RewardConfig):
    """The settings that algorithms which learn from one step at a time share."""

    num_steps: int = 1000
    """Steps per iteration. Each iteration writes one row of metrics per seed; learning does not wait for it."""
    learning_rate: float = 1.0
    """Largest step size α. The bound on overshooting usually makes it much smaller."""
    anneal_learning_rate: bool = False
    """Decay α linearly to 0 over the run."""
    lam: float = 0.8
    """λ of the eligibility trace, between 0 and 1. 0 learns from one step; 1 from the rest of the episode."""
    kappa: float = 2.0
    """κ of the values' step: larger values make smaller steps. Below 1 a step may overshoot its target."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers. Each is normalised before its leaky ReLU."""
    sparsity: float = 0.9
    """Share of each unit's incoming weights that begin at 0."""
    normalise_observations: bool = True
    """Normalise observations with a running mean and standard deviation, per seed."""
    normalise_rewards: bool = True
    """Divide rewards by the running standard deviation of the discounted return, per seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "kappa")
        positive_all(self, "hidden")
        in_unit_interval(self, "lam")
        at_least_zero(self, "sparsity")
        if self.sparsity >= 1:
            raise ValueError(f"sparsity is {self.sparsity}; expected a number below 1, so that some weights remain")
        if self.num_envs != 1:
            raise ValueError(
                f"num_envs is {self.num_envs}; expected 1, because a trace follows one environment; raise seeds instead"
            )

    @property
    def updates(self) -> int:
        """Updates in the whole run: one for each step."""
        return self.iterations * self.num_steps

    def streaming(self, observation_size: int, outputs: dict[str, int]) -> Network:
        """Return the perceptrons that these settings describe, one for each name."""
        from telescope.control.agents import networks

        widths = [(observation_size, *self.hidden, count) for count in outputs.values()]
        weights = sum(a * b for row in widths for a, b in itertools.pairwise(row))
        # weights, trace, and gradient
        fits_memory(3 * self.seeds * weights, f"hidden is {self.hidden}, so the networks of {self.seeds} seeds need")
        return networks.streaming(observation_size, outputs, hidden=self.hidden, sparsity=self.sparsity)


class Learner(NamedTuple):
    """What an algorithm with one trace learns: all parameters of an agent as one vector, and their trace."""

    parameters: Tensor  # [P] of one agent; [S, P] of the population
    trace: Tensor  # [P]

    @classmethod
    def begin(cls, parameters: Tensor) -> Learner:
        return cls(parameters, torch.zeros_like(parameters))

    @property
    def acting(self) -> Tensor:
        """The parameters that act."""
        return self.parameters


def advanced(old: Learner, parameters: Tensor, trace: Tensor, batch: Any) -> Learner:
    """The learner after a live step: new parameters, and a trace that is empty after an end of either kind."""
    live, ended = batch.live[0], (batch.terminated | batch.truncated)[0]
    kept = torch.where(ended, torch.zeros_like(trace), trace)
    return Learner(torch.where(live, parameters, old.parameters), torch.where(live, kept, old.trace))


def begun_anew(session: Any) -> Any:
    """The session's learner; with an empty trace if a resumed run had to begin new episodes."""
    return Learner.begin(session.parameters) if session.new_episodes else session.learner

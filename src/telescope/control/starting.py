"""A new run from the agents of another: their parameters, and the statistics by which they see and are paid.

What a run that continues needs besides (optimiser, episodes, clock) is left behind: `Session` in `training.py` restores
that.
"""

# S seeds of the new run, Z of the old one, P parameters of one agent
from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from telescope.control.agents.layout import create
from telescope.control.config import AgentConfig
from telescope.control.environments.population import Environments
from telescope.control.experience.encoding import encoder


class Start(NamedTuple):
    """What the new run's agents begin with, one row for each of its seeds."""

    parameters: Tensor  # [S, P]
    observations: dict[str, Any]  # statistics of the observations: mean, variance, count
    rewards: dict[str, Any]  # those of the discounted returns that scale rewards
    step: int  # of the run they come from


def start_from(state: dict[str, Any], seeds: int) -> Start:
    """The start of a run with `seeds` agents: the old run's in order, and from its first again where it has fewer.

    Raises:
        ValueError: `state` is not what `metrics.state` or `RunFolder.load_checkpoint` give.
    """
    if isinstance(state, Start):
        return state
    try:
        policy, step = state["policy"], int(state["step"])
        parts = state.get("shares", [state])  # of a run over several processes
        scalers = [part["rollouts"]["scaler"] for part in parts]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"start is {type(state).__name__} without {error}; expected the state of another run: metrics.state, or "
            "RunFolder.open(RUN).load_checkpoint()"
        ) from error
    rows = np.arange(seeds) % len(policy["parameters"])
    rewards = {name: np.concatenate([one[name] for one in scalers])[rows] for name in ("mean", "variance", "count")}
    observations = {name: array[rows] for name, array in policy["normaliser"].items()}
    return Start(policy["parameters"][rows], observations, rewards, step)


def rows_of(start: Start, first: int, count: int) -> Start:
    """The part of a start that belongs to `count` seeds from the `first` on."""
    rows = slice(first, first + count)
    observations, rewards = (
        {name: array[rows] for name, array in statistics.items()} for statistics in (start.observations, start.rewards)
    )
    return Start(start.parameters[rows], observations, rewards, start.step)


def require_same_shape(start: Start, parameters: Tensor, observation_shape: tuple[int, ...]) -> None:
    """ValueError where agents of other spaces or another network are to begin this run."""
    there, here = start.parameters.shape[1], parameters.shape[1]
    shape = start.observations["mean"].shape[1:]
    if there != here or shape != observation_shape:
        raise ValueError(
            f"start holds agents of {there} parameters for observations of {math.prod(shape)} numbers, but this run's "
            f"have {here} for {math.prod(observation_shape)}; the spaces and the network (hidden, shared_network, gru, "
            "network=) must be the same"
        )


def require_fit(state: dict[str, Any], config: AgentConfig, environments: Environments) -> None:
    """The same before anything is begun, for the network that the config describes."""
    shape = encoder(environments.observation_space).shape
    network = config.network(math.prod(shape), environments.action_space)
    require_same_shape(start_from(state, 1), create(network, [config.seed])[0], shape)


def new_episodes(state: dict[str, Any]) -> str:
    """Why a run that resumes from this state begins new episodes; empty if those under way go on."""
    environments = [part["rollouts"]["environments"] for part in state.get("shares", [state])]
    return next((one["resume_note"] for one in environments if not one["exact_resume"]), "")

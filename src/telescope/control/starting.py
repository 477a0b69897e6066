"""Start a new run from the agents of another run: their parameters and normalisation statistics.

Leaves out optimiser, episodes and clock; a resumed run needs them too, and `Session` in `training.py` restores them.
"""

# S seeds of the new run, Z of the old one, P parameters of one agent
from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from telescope.control.agents.layout import create
from telescope.control.config import LearnerConfig
from telescope.control.environments.population import Environments
from telescope.control.experience.encoding import encoder


class Start(NamedTuple):
    """What the agents of the new run begin with, one row per seed."""

    parameters: Tensor  # [S, P]
    observations: dict[str, Any]  # statistics of observations: mean, variance, count
    rewards: dict[str, Any]  # statistics of the discounted returns that scale rewards
    step: int  # of the old run


def start_from(state: dict[str, Any], seeds: int) -> Start:
    """The start of a run with `seeds` agents. If the old run has fewer agents, they are repeated in order.

    Raises:
        ValueError: `state` is not a state from `metrics.state` or `RunFolder.load_checkpoint`.
    """
    if isinstance(state, Start):
        return state
    try:
        policy, step = state["policy"], int(state["step"])
        parts = state.get("shares", [state])  # a run over several processes has shares
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
    """Raise a ValueError if the agents have other spaces or another network than this run."""
    there, here = start.parameters.shape[1], parameters.shape[1]
    shape = start.observations["mean"].shape[1:]
    if there != here or shape != observation_shape:
        raise ValueError(
            f"start holds agents of {there} parameters for observations of {math.prod(shape)} numbers, but this run's "
            f"have {here} for {math.prod(observation_shape)}; the spaces and the network (hidden, shared_network, "
            "memory, network=) must be the same"
        )


def require_fit(state: dict[str, Any], config: LearnerConfig, environments: Environments) -> None:
    """The same check before training begins, for the network that the config describes."""
    network = config.network_for(environments.observation_space, environments.action_space)
    shape = encoder(environments.observation_space, shaped=network.shaped).normalised
    require_same_shape(start_from(state, 1), create(network, [config.seed])[0], shape)


def new_episodes(state: dict[str, Any]) -> str:
    """Why a run that resumes from this state begins new episodes; empty if the current episodes continue."""
    environments = [part["rollouts"]["environments"] for part in state.get("shares", [state])]
    return next((one["resume_note"] for one in environments if not one["exact_resume"]), "")

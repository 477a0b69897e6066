"""Build the environments of a run, and everything between them and the networks, from its config."""

from __future__ import annotations

from functools import partial
from typing import Any

from telescope.control.agents.networks import Network
from telescope.control.config import LearnerConfig
from telescope.control.environments.population import Environments
from telescope.control.experience.encoding import Encoder, encoder
from telescope.control.experience.normalisation import ObservationNormaliser
from telescope.control.experience.rollout import Rollouts


def rollouts(
    config: LearnerConfig, environments: Environments, network: Network, kind: type[Rollouts] = Rollouts
) -> Rollouts:
    """The `Rollouts` that collect experience for agents with this network."""
    encoding = encoder(environments.observation_space, shaped=network.shaped)
    more: dict[str, Any] = {"reward_bound": config.reward_bound}
    if environments.stack > 1:
        more |= {"frame": encoder(environments.frame_space, shaped=network.shaped), "stack": environments.stack}
    if environments.simulator is not None and kind is Rollouts and config.collects_rollouts:
        from telescope.control.experience.device import DeviceRollouts

        kind, more = DeviceRollouts, more | {"bound_on": partial(config.bound, environments.action_space)}
    return kind(
        environments,
        seeds=config.seed_values,
        num_envs=config.num_envs,
        num_steps=config.num_steps,
        encoder=encoding,
        distribution=config.head(environments.action_space),
        bound=config.bound(environments.action_space),
        normaliser=normaliser(config, encoding),
        scaler=config.scaler(),
        memory=network.memory,
        **more,
    )


def normaliser(config: LearnerConfig, encoding: Encoder) -> ObservationNormaliser:
    """A new observation normaliser, as the config describes it."""
    fixed = getattr(config, "keeps_statistics", False)
    how: dict[str, Any] = {"enabled": config.normalise_observations, "clip": config.clip_observations}
    return ObservationNormaliser(config.seeds, encoding.normalised, **how, fixed=fixed, floats=encoding.floats)

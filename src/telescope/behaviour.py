"""The policy whose values are learned: uniformly random actions, or the first agent of a run folder.

`td_lambda` and `stream_td` learn V(s) of a policy that does not change. Leaves out how they learn it.
"""

# S seeds, N observations, P parameters of one agent
from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np

from telescope import arrays
from telescope.arrays import Array
from telescope.control.agents.actions import Bound
from telescope.control.agents.distributions import Distribution, distribution, uniform
from telescope.control.agents.layout import create
from telescope.control.agents.networks import Network, Parameters
from telescope.control.config import LearnerConfig
from telescope.control.environments.population import Environments
from telescope.control.starting import Start
from telescope.runs.files import RunError
from telescope.runs.folder import RunFolder

RANDOM = "random"


@dataclasses.dataclass(frozen=True)
class PredictionConfig(LearnerConfig):
    """The settings that algorithms which judge a policy share."""

    policy: str = RANDOM
    """Whose values to learn: random (uniform actions), or a run folder, whose first agent acts and does not change."""

    def run(self) -> Any:
        """The config of the run that `policy` names, with this config's environment; None for random."""
        if self.policy == RANDOM:
            return None
        try:
            folder = RunFolder.open(self.policy)
        except RunError as error:
            raise ValueError(f"policy is {self.policy!r}; expected random or a run folder, but {error}") from error
        found = folder.config_to_use(self.config_class(folder.algorithm))
        if not isinstance(found, LearnerConfig):
            raise ValueError(f"policy is {self.policy!r}, a run of {folder.algorithm}; expected agents in environments")
        return found

    @staticmethod
    def config_class(algorithm: str) -> Any:
        """The config class of an algorithm's name."""
        raise NotImplementedError

    def head(self, action_space: gym.Space) -> Distribution:
        """The action distribution of the policy."""
        if (run := self.run()) is not None:
            return run.head(action_space)  # type: ignore[no-any-return]
        return uniform(action_space) if type(action_space) is gym.spaces.Box else distribution(action_space)

    def bound(self, action_space: gym.Space, device: Any = None) -> Bound:
        """The function that maps the head's actions to the environment's."""
        run = self.run()
        return super().bound(action_space, device) if run is None else run.bound(action_space, device)  # type: ignore[no-any-return]

    def network_for(self, observation_space: gym.Space, action_space: gym.Space) -> Network:
        """Return the policy's network beside that of the values, whose parameters come last."""
        value = self.value_network(observation_space)
        if (run := self.run()) is None:
            return beside(None, value, self.head(action_space).outputs)
        network: Network = run.network_for(observation_space, action_space)
        if network.memory or (network.shaped and network.read is None):
            raise ValueError(f"policy is {self.policy!r}, whose network has a memory or reads images; expected neither")
        return beside(network, value, 0)

    @property
    def keeps_statistics(self) -> bool:
        """Whether the statistics of observations stay as the policy knows them."""
        return self.policy != RANDOM

    def value_network(self, observation_space: gym.Space) -> Network:
        """Return the network of the values alone. Its policy outputs are not used."""
        raise NotImplementedError

    def start_of_policy(self) -> Start | None:
        """What the run begins with: the policy's parameters and its statistics of observations; None for random."""
        run = self.run()
        if run is None:
            return None
        if run.normalise_observations != self.normalise_observations:
            raise ValueError(
                f"normalise_observations is {self.normalise_observations}, but the policy {self.policy!r} was trained "
                f"with {run.normalise_observations}; set it so"
            )
        checkpoint = RunFolder.open(self.policy).load_checkpoint()
        if checkpoint is None:
            raise RunError(f"{self.policy} has no checkpoint yet; `telescope train --resume` continues the run")
        environments = Environments.of(self, seeds=[self.seed], num_envs=1)
        environments.close()
        network = self.network_for(environments.observation_space, environments.action_space)
        parameters, _ = create(network, self.seed_values)
        policy = checkpoint["policy"]["parameters"][0]
        parameters[:, : len(policy)] = policy
        rows = np.zeros(self.seeds, int)
        observations = {name: array[rows] for name, array in checkpoint["policy"]["normaliser"].items()}
        rewards = {name: array for name, array in self.scaler().state().items() if name != "returns"}
        return Start(parameters, observations, rewards, int(checkpoint["step"]))


def beside(policy: Network | None, value: Network, outputs: int) -> Network:
    """One network from a policy's (None: `outputs` zeros, for equal probabilities) and that of the values."""

    def parts(parameters: Parameters) -> tuple[Parameters, Parameters]:
        own = {name.removeprefix("policy."): x for name, x in parameters.items() if name.startswith("policy.")}
        return own, {name: x for name, x in parameters.items() if not name.startswith("policy.")}

    def init(rng: np.random.Generator) -> Parameters:
        own = {} if policy is None else {f"policy.{name}": x for name, x in policy.init(rng).items()}
        return own | value.init(rng)

    def act(parameters: Parameters, observations: Array) -> Array:
        if policy is None:
            like = arrays.library("observations", observations)
            return observations[..., :1] * like.zeros(outputs, dtype=like.float32)
        own = parts(parameters)[0]
        return policy.policy(own, observations) if policy.policy is not None else policy.apply(own, observations)[0]

    def apply(parameters: Parameters, observations: Array) -> tuple[Array, Array]:
        return act(parameters, observations), value.apply(parts(parameters)[1], observations)[1]

    broadcasts = value.broadcasts and (policy is None or policy.broadcasts)
    return Network(init, apply, act, broadcasts=broadcasts, shaped=value.shaped)

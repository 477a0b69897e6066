"""The settings that all algorithms on environments share: the environment, the seeds, the amount of work, the machine.

Leaves out what only algorithms with a stochastic policy have, which is in `policy.py`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from telescope.checks import at_least_zero, in_unit_interval, positive, positive_all, typed

if TYPE_CHECKING:
    from torch import Tensor

    from telescope.control.agents.actions import Bound
    from telescope.control.agents.distributions import Distribution
    from telescope.control.agents.encoders import Input
    from telescope.control.agents.networks import Network
    from telescope.control.environments.dressing import Dressing
    from telescope.control.experience.normalisation import RewardScaler

MOST_ENVIRONMENTS = 2**20
"""The largest number of environments in a run, of all seeds. More is probably a typing error and would fill memory."""


@dataclasses.dataclass(frozen=True)
class ControlConfig:
    """The settings that all algorithms on Gymnasium environments share."""

    env: Any = "CartPole-v1"
    """Environment: a Gymnasium id such as CartPole-v1; from Python also a function that returns an environment."""
    seeds: int = 1
    """Number of independent agents to train side by side, one per seed."""
    seed: int = 0
    """First random seed. A run with several seeds uses seed, seed + 1, …"""
    total_steps: int = 1_000_000
    """Environment steps to train for, per seed. Only whole iterations run, so a run may stop a little below."""
    num_envs: int = 1
    """Number of environments per seed."""
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keyword arguments for the environment, as NAME VALUE pairs."""
    time_limit: int | None = None
    """Truncate each episode after this many steps. none: the environment's own limit, if it has one."""
    wrap: tuple[str, ...] = ()
    """Wrappers, the innermost first: module:Name, then its arguments as name=value. --wrap may be repeated."""
    frame_stack: int = 1
    """Number of the last observations that the policy sees at once. 1: only the present one."""
    backend: Literal["gymnasium", "envpool"] = "gymnasium"
    """Library that steps the environments. EnvPool is often faster, but a resumed run starts new episodes."""
    vectorization: Literal["auto", "sync", "async", "vector_entry_point", "simulator"] = "auto"
    """How to batch the environments. auto takes the environment's own vector version or simulator, otherwise sync."""
    autoreset: Literal["next_step", "same_step", "disabled"] = "same_step"
    """When sync and async environments reset: one of Gymnasium's three modes. Advantages are right in all of them."""
    device: str = "cpu"
    """Device of the networks: cpu, cuda, cuda:1, …"""
    threads: int = 0
    """CPU threads per process. 0 chooses: one for small gradient steps, up to 4 (or OMP_NUM_THREADS) for large ones."""
    processes: int = 1
    """Number of processes to spread the seeds over. 0 chooses: one per processor if the run is long enough to pay."""
    ray_address: str | None = None
    """Ray cluster to spread the seeds or actors over: its address, or auto. none: this machine alone."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the update and the policy with torch.compile. auto compiles when the run is long enough to pay for it."""
    eval_every: int = 0
    """Evaluate each time a seed has made this many more steps, and keep each seed's best agent. 0 never evaluates."""
    eval_episodes: int = 10
    """Episodes per seed in each evaluation."""
    eval_max_steps: int = 10_000
    """Cut an evaluation episode after this many steps, with a note. Some policies never end an episode."""

    def __post_init__(self) -> None:
        """Raise a ValueError for values that cannot work."""
        typed(self)
        positive(
            self, "seeds", "total_steps", "num_envs", "eval_episodes", "eval_max_steps", "time_limit", "frame_stack"
        )
        at_least_zero(self, "seed", "eval_every", "threads", "processes")
        if self.seed + self.seeds > 2**63:
            raise ValueError(f"seed is {self.seed}; expected seeds below 2**63")
        if self.seeds * self.num_envs > MOST_ENVIRONMENTS:
            raise ValueError(
                f"seeds {self.seeds} × num_envs {self.num_envs} are {self.seeds * self.num_envs} environments; "
                f"expected at most {MOST_ENVIRONMENTS}"
            )
        if self.processes > self.seeds:
            raise ValueError(
                f"processes is {self.processes}, but there are {self.seeds} seeds to spread; lower processes"
            )

    @property
    def dressing(self) -> Dressing:
        """What the run puts around its environments."""
        from telescope.control.environments.dressing import Dressing

        return Dressing(self.wrap, self.frame_stack, self.time_limit)

    @property
    def seed_values(self) -> list[int]:
        """The value of each seed, in the order of the population axis."""
        return list(range(self.seed, self.seed + self.seeds))


@dataclasses.dataclass(frozen=True)
class LearnerConfig(ControlConfig):
    """The settings that all algorithms with agents share, be these networks or tables."""

    collects_rollouts: ClassVar[bool] = False
    """Whether the algorithm learns from rollouts, which then stay where a simulator has its arrays."""
    learns_from_frames: ClassVar[bool] = False
    """Whether experience keeps each frame of a stack once, and minibatches gather the stacks."""
    may_share: ClassVar[bool] = True
    """Whether policy and value may have parameters in common. Not where they learn one after the other."""
    num_steps: int = 2048
    """Steps of each environment per iteration (T in formulas)."""
    gamma: float = 0.99
    """Discount factor γ per step, between 0 and 1."""
    reward_bound: float | None = None
    """Learn from rewards clipped to plus or minus this value; returns in metrics are not clipped. none: no clipping."""
    learning_rate: float = 3e-4
    """Learning rate of Adam."""
    anneal_learning_rate: bool = True
    """Decay the learning rate linearly to 0 over the run."""
    normalise_observations: bool = False
    """Normalise observations with a running mean and standard deviation, per seed."""
    clip_observations: float = 10.0
    """Clip normalised observations to plus or minus this value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "num_steps", "learning_rate", "clip_observations", "reward_bound")
        in_unit_interval(self, "gamma")
        self._require_an_iteration()

    def _require_an_iteration(self) -> None:
        if self.total_steps < self.batch_size:
            raise ValueError(
                f"total_steps is {self.total_steps}, less than one iteration of {self.batch_size} steps "
                f"(num_steps {self.num_steps} × num_envs {self.num_envs}); raise it, or lower num_steps or num_envs"
            )

    @property
    def batch_size(self) -> int:
        """Steps per seed and iteration (N in formulas)."""
        return self.num_steps * self.num_envs

    @property
    def single_frames(self) -> bool:
        """Whether environments give single frames of a stack. Statistics of observations are those of whole stacks."""
        return self.learns_from_frames and not self.normalise_observations

    @property
    def iterations(self) -> int:
        """Iterations in the whole run."""
        return self.total_steps // self.batch_size

    def head(self, action_space: Any) -> Distribution:
        """Return the distribution that turns network outputs into actions of this space."""
        raise NotImplementedError

    def network(self, observation_size: int, action_space: Any) -> Network:
        """Return the network that these settings describe, for this action space."""
        raise NotImplementedError

    def network_for(self, observation_space: Any, action_space: Any) -> Network:
        """Return the network for these spaces. Most need only the number of entries of an observation."""
        from telescope.control.agents.encoders import encoded
        from telescope.control.agents.reading import reading, require_keys, width
        from telescope.control.experience.encoding import input_size

        unseen, parts = getattr(self, "critic_observations", ()), self.inputs(observation_space)
        if unseen:
            require_keys(observation_space, unseen)
        if parts:
            size = sum(one.width for one in parts)
            policy_size = sum(one.width for one in parts if not one.hides(unseen))
        else:
            size = input_size(observation_space)
            policy_size = size - width(observation_space, unseen) if unseen else size
        if unseen:
            network = self.asymmetric_network(policy_size, size, action_space)
        else:
            network = self.network(size, action_space)
        if parts:
            return encoded(network, parts, shared=getattr(self, "shared_network", False), unseen=unseen)
        return reading(network, observation_space, unseen)

    def inputs(self, observation_space: Any) -> list[Input]:
        """Return the parts of an observation that has pictures, with their encoders; empty without any."""
        return []

    def asymmetric_network(self, policy_size: int, observation_size: int, action_space: Any) -> Network:
        """Return a network whose policy reads the first `policy_size` numbers only."""
        raise NotImplementedError

    def try_out(self, observation_space: Any, action_space: Any) -> None:
        """Raise a ValueError if anything else that the settings name does not fit these spaces."""

    def own_network(self, observation_space: Any, action_space: Any) -> Network | None:
        """Return the network that `network_module` names; None without one."""
        if (path := getattr(self, "network_module", None)) is None:
            return None
        from telescope.control.agents.named import named_network

        return named_network(path, observation_space, action_space)

    def agents_network(self, own: Network | None, observation_space: Any, action_space: Any) -> Network:
        """Return the user's own network, or the one for these spaces, in front of the observations as they are kept."""
        from telescope.control.agents.reading import own_reading

        if own is None:
            return self.network_for(observation_space, action_space)
        if unseen := getattr(self, "critic_observations", ()):
            raise ValueError(
                f"critic_observations is {unseen}, but a network of your own reads what it likes; leave it out, or "
                "keep these parts from the policy inside the network"
            )
        return own_reading(own, observation_space)

    def bound(self, action_space: Any, device: Any = None) -> Bound:
        """Return the function that maps the head's actions to the environment's; for tensors if a device is given."""
        from telescope.control.agents.actions import bounding

        return bounding(action_space, "clip", device)

    @property
    def critic_outputs(self) -> int:
        """Numbers that the critic returns for each state; 0: V(s) itself, without an axis."""
        return 0

    def state_values(self, outputs: Tensor) -> Tensor:
        """Return V(s) [N] for the critic's outputs."""
        return outputs

    @property
    def learns_values(self) -> bool:
        """Whether the critic is trained, so that its values mean something."""
        return True

    def scaler(self) -> RewardScaler:
        """Return the scaling of rewards; by default they stay as they are."""
        from telescope.control.experience.normalisation import RewardScaler

        return RewardScaler(self.seeds, self.num_envs, gamma=self.gamma, enabled=False, clip=1.0)


@dataclasses.dataclass(frozen=True)
class AgentConfig(LearnerConfig):
    """The settings that all algorithms with networks and an optimiser share."""

    max_grad_norm: float | None = 0.5
    """Clip each seed's gradient to this global norm. none: never."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers. Initial weights are orthogonal, biases zero."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Activation function of the hidden layers."""
    encoder: Literal["auto", "mlp", "cnn", "impala"] = "auto"
    """What reads pictures: cnn, which auto takes, impala (a residual network), or mlp, the hidden layers themselves."""
    network_module: str | None = None
    """Your own network, as module:build, also --network: an nn.Module class or a function of both spaces."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "max_grad_norm")
        positive_all(self, "hidden")

    def inputs(self, observation_space: Any) -> list[Input]:
        """Return the parts of an observation that has pictures, with their encoders; empty without any."""
        from telescope.control.agents.encoders import inputs

        return inputs(observation_space, self.encoder, getattr(self, "critic_observations", ()))

    def try_out(self, observation_space: Any, action_space: Any) -> None:
        """Raise a ValueError if the encoder does not fit."""
        self.inputs(observation_space)


@dataclasses.dataclass(frozen=True)
class RewardConfig(LearnerConfig):
    """The settings that algorithms which may scale rewards share."""

    normalise_rewards: bool = False
    """Divide rewards by the running standard deviation of the discounted return, per seed."""
    clip_rewards: float = 10.0
    """Clip normalised rewards to plus or minus this value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "clip_rewards")

    def scaler(self) -> RewardScaler:
        """Return the scaling by the standard deviation of the running return, if `normalise_rewards` is True."""
        from telescope.control.experience.normalisation import RewardScaler

        enabled, clip = self.normalise_rewards, self.clip_rewards
        return RewardScaler(self.seeds, self.num_envs, gamma=self.gamma, enabled=enabled, clip=clip)

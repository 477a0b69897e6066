"""The settings that all algorithms on environments share: the environment, the seeds, the amount of work, the machine.

They are frozen dataclasses with a docstring under each field; an algorithm extends them with its own settings. Other
modules make command-line flags and config files from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from telescope.checks import at_least_zero, finite, fits_memory, in_unit_interval, positive, positive_all, typed, unread
from telescope.control.risk import risk_weights

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
MUJOCO_FAMILY = (
    "Ant",
    "HalfCheetah",
    "Hopper",
    "Humanoid",
    "HumanoidStandup",
    "InvertedDoublePendulum",
    "InvertedPendulum",
    "Pusher",
    "Reacher",
    "Swimmer",
    "Walker2d",
)
"""Gymnasium's MuJoCo environments, without their version. They share one preset."""


def for_family(presets: Mapping[str, Any], env: str, default: Any) -> Any:
    """The settings for an environment id: the preset of its family, or the defaults.

    A family is an id without its version and its namespace; a namespace of games, such as MinAtar/, has presets of its
    own, for one game (MinAtar/Breakout) or for all of them (MinAtar/).
    """
    space, slash, name = env.rpartition("/")
    family = name.rpartition("-v")[0] or name
    own = (f"{space}/{family}", f"{space}/") if slash and f"{space}/" in presets else (family,)
    found = next((presets[key] for key in own if key in presets), default)
    return dataclasses.replace(found, env=env)


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


@dataclasses.dataclass(frozen=True)
class PolicyConfig(AgentConfig, RewardConfig):
    """The settings that algorithms with a stochastic policy share."""

    value_coefficient: float = 0.5
    """Weight of the value loss ½(V − R̂)² in the total loss."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus in the total loss. Larger values keep the policy random for longer."""
    shared_network: bool = False
    """Share the hidden layers between policy and value function, instead of one network for each."""
    log_std: float = 0.0
    """Initial log standard deviation of a Gaussian policy; one learned number per action component."""
    action_bounds: Literal["clip", "rescale", "squash"] = "clip"
    """How to keep actions within a Box's bounds: clip, rescale from -1 … 1 and clip, or squash with tanh (--squash)."""
    critic_observations: tuple[str, ...] = ()
    """Keys of a Dict observation that only the critic sees; a.b for the part b of a, and an index for a Tuple's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_zero(self, "value_coefficient", "entropy_coefficient")
        finite(self, "log_std")

    def head(self, action_space: Any) -> Distribution:
        """Return the action distribution of this space."""
        from telescope.control.agents.distributions import distribution

        return distribution(action_space)

    def network(self, observation_size: int, action_space: Any) -> Network:
        """Return perceptrons for actor and critic."""
        from telescope.control.agents.actor import default_network

        return default_network(self, observation_size, action_space)

    def asymmetric_network(self, policy_size: int, observation_size: int, action_space: Any) -> Network:
        """Return perceptrons: the actor reads the first `policy_size` numbers, the critic all of them."""
        from telescope.control.agents.reading import asymmetric

        for name in ("shared_network", "shared_memory"):
            if getattr(self, name, False):
                raise ValueError(
                    f"critic_observations is {self.critic_observations}, but {name} is True: policy and critic then "
                    "share what they see; leave out one of them"
                )
        actor, critic = (self.network(size, action_space) for size in (policy_size, observation_size))
        return asymmetric(actor, critic, policy_size)

    def bound(self, action_space: Any, device: Any = None) -> Bound:
        """Return the function that keeps a Gaussian's actions within a Box, as `action_bounds` says."""
        from telescope.control.agents.actions import bounding

        return bounding(action_space, self.action_bounds, device)


@dataclasses.dataclass(frozen=True)
class MemoryConfig(PolicyConfig):
    """The settings that algorithms whose policies may remember their episode share; see docs/memory.md."""

    memory: Literal["none", "gru", "lstm"] = "none"
    """A memory of the episode so far, in front of policy and value function: none, gru or lstm."""
    memory_size: int = 64
    """Units of the memory."""
    shared_memory: bool = False
    """Give policy and value function one memory, instead of one for each. shared_network does so too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "memory_size")
        if self.memory == "none":
            for name in ("memory_size", "shared_memory"):
                unread(self, name, "set memory to 'gru' or 'lstm'", "memory is 'none'")

    @property
    def learns_sequences(self) -> bool:
        """Whether minibatches consist of sequences, and not of single steps."""
        return self.memory != "none"

    @property
    def sequence_steps(self) -> int:
        """Steps of a sequence, where minibatches consist of sequences (L in formulas)."""
        return getattr(self, "sequence_length", None) or self.num_steps

    def network(self, observation_size: int, action_space: Any) -> Network:
        """Return perceptrons for actor and critic, behind the memory if there is one."""
        return self._behind_memory(observation_size, observation_size, action_space)

    def asymmetric_network(self, policy_size: int, observation_size: int, action_space: Any) -> Network:
        """Return the same where the actor, and its memory, read the first `policy_size` numbers only."""
        if self.memory == "none" or self.shared_memory or self.shared_network:
            return super().asymmetric_network(policy_size, observation_size, action_space)
        return self._behind_memory(policy_size, observation_size, action_space)

    def _behind_memory(self, policy_size: int, observation_size: int, action_space: Any) -> Network:
        from telescope.control.agents.actor import default_network
        from telescope.control.agents.memory import CELLS, with_memory

        if self.memory == "none":
            return default_network(self, observation_size, action_space)
        size, shared = self.memory_size, self.shared_memory or self.shared_network
        weights = CELLS[self.memory].gates * size * sum(n + size for n in (policy_size, observation_size))
        fits_memory(4 * self.seeds * weights, f"memory_size is {size}, so the memories of {self.seeds} seeds need")
        heads = default_network(self, size, action_space)
        return with_memory(heads, (policy_size, observation_size), size, self.memory, shared=shared)


@dataclasses.dataclass(frozen=True)
class OnPolicyConfig(MemoryConfig):
    """The settings that actor–critic algorithms on fresh rollouts share."""

    collects_rollouts = True
    lam: float = 0.95
    """GAE's λ, between 0 and 1. 0 trusts one step and the value function; 1 trusts the whole episode."""
    lam_rule: Literal["constant", "end_corrected", "adaptive"] = "constant"
    """How λ follows from lam: constant, end_corrected near episode ends, adaptive to the critic (lambda_rules.md)."""
    lam_low: float = 0.8
    """With lam_rule adaptive: λ where the critic explains all of the returns. lam is λ where it explains nothing."""
    returns_lam: float | None = None
    """Another λ for the critic's targets, without a rule. 1 gives sampled returns. none: that of the advantages."""
    normalise_advantages: bool = False
    """Whiten advantages within each gradient step, per seed."""
    critic: Literal["value", "quantile", "gradient"] = "value"
    """The critic: value predicts the mean return, quantile its distribution, gradient learns by gradient TD (ppo)."""
    quantiles: int = 32
    """Number of quantiles of a quantile critic."""
    quantile_huber: float = 1.0
    """Error κ up to which the loss of a quantile critic is quadratic, in units of the (scaled) return."""
    quantile_weights: str = "mean"
    """How advantages weigh quantiles: mean, cvar:α (the lowest share α), or asymmetric:η (η > 0 fears bad outcomes)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        in_unit_interval(self, "lam", "lam_low", "returns_lam")
        if self.lam_rule != "adaptive":
            unread(self, "lam_low", "set lam_rule to 'adaptive'", f"lam_rule is {self.lam_rule!r}")
        elif self.lam_low > self.lam:
            raise ValueError(f"lam_low is {self.lam_low}, above lam {self.lam}; lower lam_low, or raise lam")
        positive(self, "quantiles", "quantile_huber")
        if self.critic == "quantile":
            risk_weights(self.quantile_weights, self.quantiles)
        else:
            for name in ("quantiles", "quantile_huber", "quantile_weights"):
                unread(self, name, "set critic to 'quantile'", f"critic is {self.critic!r}")
        if self.critic == "gradient" and not hasattr(self, "correction_penalty"):
            raise ValueError(
                f"critic is 'gradient', which {type(self).__name__} cannot train; use ppo, or another critic"
            )

    @property
    def minibatch_size(self) -> int:
        """Samples per gradient step, per seed; the whole rollout unless an algorithm has a setting of this name."""
        return self.batch_size

    @property
    def critic_outputs(self) -> int:
        """Numbers that the critic returns for each state; 0: V(s) itself, without an axis."""
        return {"value": 0, "quantile": self.quantiles, "gradient": 2}[self.critic]

    def state_values(self, outputs: Tensor) -> Tensor:
        """Return V(s) [N] for the critic's outputs: the mean of its quantiles, or the value beside its correction."""
        if self.critic == "quantile":
            return outputs.mean(-1)
        return outputs[..., 0] if self.critic == "gradient" else outputs


@dataclasses.dataclass(frozen=True)
class EpisodeConfig(PolicyConfig):
    """The settings that algorithms on whole episodes share."""

    total_steps: int = 1_000_000
    """Environment steps to train for, per seed. A seed ends with the iteration in which it reaches them."""
    num_envs: int = 8
    """Number of environments per seed."""
    num_steps: int = 10_000
    """Most steps of each environment per iteration. An error if its episodes take longer: it needs a time limit."""

    def _require_an_iteration(self) -> None:
        """Nothing: any number of steps takes at least one iteration."""

    @property
    def episodes(self) -> int:
        """Whole episodes per iteration and seed; one of each environment unless an algorithm has such a setting."""
        return self.num_envs

    @property
    def group(self) -> int:
        """Environments that begin from the same seed; 1 unless an algorithm has such a setting."""
        return 1

    @property
    def iterations(self) -> int:
        """The most iterations that a run can have, because episodes have at least one step."""
        return self.total_steps

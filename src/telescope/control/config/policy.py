"""The settings that algorithms with a stochastic policy share: its head, its memory, λ, the critic, whole episodes.

They extend `learner.py`, which has what every algorithm needs.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from telescope.checks import at_least_zero, finite, fits_memory, in_unit_interval, positive, unread
from telescope.control.config.learner import AgentConfig, RewardConfig
from telescope.control.risk import risk_weights

if TYPE_CHECKING:
    from torch import Tensor

    from telescope.control.agents.actions import Bound
    from telescope.control.agents.distributions import Distribution
    from telescope.control.agents.networks import Network


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

"""Measure estimators against the truth: bias, variance and error of the advantage, and of the policy gradient it gives.

A `Case` is many independent rollouts of a small world with a value function that is right, fitted, noisy or stale. An
estimator is a row of `ESTIMATORS`. Leaves out the pictures (`figures.py`).
"""

# N states, A actions, T time, B rollouts
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import telescope
from telescope.estimators import lambdas
from telescope.lab.mdp import MDP, Array, Samples, Truth, sample, truth, uniform, visits

LAMBDAS = (0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98, 1.0)
STEPS = (1, 2, 3, 5, 10, 20)
CLIPS = (0.5, 1.0, 1.5, 2.0, 4.0, 1e9)
GROUPS = 3
"""States per group of the fitted value function, which has one number for each group."""


class Case(NamedTuple):
    """Rollouts of a world, each a column, and what is known of it."""

    world: MDP
    policy: Array  # [N, A] whose advantages are asked for
    gamma: float
    truth: Truth
    samples: Samples  # [T, B]
    values: Array  # [N] the value function that estimators use, 0 in terminal states
    log_ratios: Array  # [T, B] log π − log of the policy that acted

    @property
    def arguments(self) -> dict[str, Any]:
        """What most estimators take."""
        return {
            "rewards": self.samples.rewards,
            "values": self.values[self.samples.states],
            "next_values": self.values[self.samples.next_states],
            **self.ends,
        }

    @property
    def ends(self) -> dict[str, Any]:
        return {"terminated": self.samples.terminated, "truncated": self.samples.truncated, "gamma": self.gamma}

    @property
    def exact(self) -> Array:
        """A(s, a) of the steps that were made [T, B]."""
        return self.truth.advantages[self.samples.states, self.samples.actions]


VALUES = ("exact", "fitted", "noisy", "stale")
"""How wrong the value function is. Fitted: the best with one number for each group of states, weighed by visits. Noisy:
each state has an error of its own, half as large as values vary. Stale: that of the uniform policy."""


def value_function(kind: str, world: MDP, policy: Array, gamma: float, rng: np.random.Generator) -> Array:
    """A value function [N] of a kind in `VALUES`."""
    right = truth(world, policy, gamma).values
    if kind == "exact":
        return right
    if kind == "stale":
        return truth(world, uniform(world), gamma).values
    if kind == "noisy":
        return np.where(world.terminal, 0.0, right + 0.5 * right[~world.terminal].std() * rng.normal(size=len(right)))
    if kind != "fitted":
        raise ValueError(f"kind is {kind!r}; expected {', '.join(VALUES)}")
    weights, fitted = visits(world, policy, gamma), np.zeros_like(right)
    for group in np.array_split(np.flatnonzero(~world.terminal), max(1, int((~world.terminal).sum()) // GROUPS)):
        fitted[group] = np.average(right[group], weights=weights[group] + 1e-12)
    return fitted


def case(
    world: MDP,
    policy: Array,
    *,
    gamma: float,
    kind: str,
    rng: np.random.Generator,
    steps: int = 64,
    rollouts: int = 2000,
    behaviour: Array | None = None,
) -> Case:
    """Rollouts of `policy`, or of another `behaviour`, with a value function of a kind in `VALUES`."""
    acting = policy if behaviour is None else behaviour
    drawn = sample(world, acting, rng, steps, rollouts)
    place = drawn.states, drawn.actions
    ratios = np.log(policy[place]) - np.log(acting[place])
    values = value_function(kind, world, policy, gamma, rng)
    return Case(world, policy, gamma, truth(world, policy, gamma), drawn, values, ratios)


class Estimator(NamedTuple):
    """A row: an estimator with one parameter, and the values of it that are tried."""

    name: str
    parameter: str
    tried: tuple[float, ...]
    estimate: Callable[[Case, Any], Array]
    """(case, parameter) → [T, B], by which ∇log π of each step is weighed."""


def without(arguments: dict[str, Any], name: str) -> dict[str, Any]:
    """The arguments for an estimator that does not take this one."""
    return {key: x for key, x in arguments.items() if key != name}


def whole_return(case: Case, _: Any) -> Array:
    """Ψ: the episode's whole return, discounted from its beginning. Returns before the step are noise alone."""
    later, samples = reward_to_go(case, _), case.samples
    result = np.zeros_like(later)
    begun = np.zeros(later.shape[1])
    for t in range(len(later)):
        begun = np.where(samples.steps[t] == 0, later[t], begun)
        result[t] = begun / case.gamma ** samples.steps[t]  # in the units of step t
    return result


def reward_to_go(case: Case, _: Any) -> Array:
    """Ψ: the rewards from the step on."""
    return np.asarray(telescope.discounted_return(**without(case.arguments, "values")))


def minus_value(case: Case, _: Any) -> Array:
    """Ψ: the same minus the value function as a baseline."""
    return reward_to_go(case, _) - case.arguments["values"]


def action_values(case: Case, _: Any) -> Array:
    """Ψ: Q̂(s, a), one step ahead by the process with the value function."""
    ahead = (case.world.transitions * (case.world.rewards + case.gamma * case.values)).sum(-1)
    return np.asarray(ahead[case.samples.states, case.samples.actions])


def q_minus_v(case: Case, _: Any) -> Array:
    """Ψ: Q̂(s, a) − V̂(s)."""
    return action_values(case, _) - case.arguments["values"]


def residual(case: Case, _: Any) -> Array:
    """Ψ: the TD residual."""
    return np.asarray(telescope.td_error(**without(case.arguments, "truncated")))


def gae(case: Case, lam: float) -> Array:
    return np.asarray(telescope.gae(**case.arguments, lam=lam).advantages)


def k_step(case: Case, k: float) -> Array:
    return np.asarray(telescope.k_step_advantage(**case.arguments, k=int(k)))


def end_corrected(case: Case, lam: float) -> Array:
    ends: dict[str, Any] = {"terminated": case.samples.terminated, "truncated": case.samples.truncated}
    rule = lambdas.end_corrected(case.arguments["values"], **ends, lam=lam)
    return np.asarray(telescope.gae(**case.arguments, lam=rule).advantages)


def lambda_return(case: Case, lam: float) -> Array:
    returns = telescope.lambda_return(**without(case.arguments, "values"), lam=lam)
    return np.asarray(returns) - case.arguments["values"]


def distributional(case: Case, lam: float) -> Array:
    """GAE of three quantiles whose mean is the value function."""
    spread = np.array([-1.0, 0.0, 1.0])
    some = dict(case.arguments)
    quantiles, next_quantiles = (some.pop(name)[..., None] + spread for name in ("values", "next_values"))
    ours = {"quantiles": quantiles, "next_quantiles": next_quantiles}
    return np.asarray(telescope.distributional_gae(**some, **ours, lam=lam).advantages)


def vtrace(case: Case, clip: float) -> Array:
    clips: dict[str, Any] = {"rho_clip": clip, "c_clip": min(clip, 1.0), "pg_rho_clip": clip}
    return np.asarray(telescope.vtrace(**case.arguments, log_ratios=case.log_ratios, **clips).advantages)


def retrace(case: Case, lam: float) -> Array:
    some = without(case.arguments, "values")
    targets = telescope.retrace(**some, q_values=action_values(case, None), log_ratios=case.log_ratios, lam=lam)
    return (np.asarray(targets) - case.arguments["values"]) * np.exp(case.log_ratios)


ESTIMATORS = (
    Estimator("whole return", "", (0,), whole_return),
    Estimator("reward to go", "", (0,), reward_to_go),
    Estimator("reward to go − V", "", (0,), minus_value),
    Estimator("Q", "", (0,), action_values),
    Estimator("Q − V", "", (0,), q_minus_v),
    Estimator("TD residual", "", (0,), residual),
    Estimator("GAE", "λ", LAMBDAS, gae),
    Estimator("k steps", "k", STEPS, k_step),
    Estimator("end-corrected GAE", "λ", LAMBDAS, end_corrected),
    Estimator("λ-return − V", "λ", LAMBDAS, lambda_return),
    Estimator("distributional GAE", "λ", LAMBDAS, distributional),
)
"""Estimators on rollouts of the policy itself."""
OFF_POLICY = (Estimator("V-trace", "clip", CLIPS, vtrace), Estimator("Retrace", "λ", LAMBDAS, retrace))
"""Those on rollouts of another policy."""


class Measured(NamedTuple):
    """How far an estimate is off: advantages in units of A's spread, gradients in units of the right one's length."""

    bias: float  # root of the mean squared E[Â | s, a] − A(s, a), without what is noise of the measurement
    deviation: float  # root of the mean variance given s and a
    error: float  # root mean squared error
    gradient_bias: float  # length of E[gradient] − the right one
    gradient_bias_error: float  # standard error of that length if there were no bias
    gradient_deviation: float  # root of the total variance of one rollout's gradient


def measure(case: Case, estimate: Array) -> Measured:
    """Compare an estimate [T, B] with the exact advantage and with the gradient that it gives."""
    spread = float(case.exact.std())
    pairs = case.samples.states * case.world.actions + case.samples.actions
    count = case.world.states * case.world.actions
    numbers = np.bincount(pairs.ravel(), minlength=count)
    error = estimate - case.exact
    means = np.bincount(pairs.ravel(), error.ravel(), count) / np.maximum(numbers, 1)
    variances = np.bincount(pairs.ravel(), np.square(error - means[pairs]).ravel(), count) / np.maximum(numbers - 1, 1)
    weights = numbers / numbers.sum()
    squared = float((weights * (np.square(means) - variances / np.maximum(numbers, 1))).sum())
    off, right = gradients(case, estimate)
    length = float(np.linalg.norm(right.mean(0)))
    noise = off.var(0, ddof=1).sum() / len(off)  # E‖mean‖² without bias
    return Measured(
        max(squared, 0.0) ** 0.5 / spread,
        float((weights * variances).sum()) ** 0.5 / spread,
        float(np.square(error).mean()) ** 0.5 / spread,
        float(np.linalg.norm(off.mean(0))) / length,
        float(noise) ** 0.5 / length,
        float(off.var(0, ddof=1).sum()) ** 0.5 / length,
    )


def gradients(case: Case, estimate: Array) -> tuple[Array, Array]:
    """Gradients [B, N·A] of each rollout with respect to the logits: what is too much in its own, and the right one.

    The right one is the mean over actions in the states that were visited, π(a|s) A(s, a), so only the actions and what
    follows them are noise.
    """
    states, actions = case.samples.states, case.samples.actions
    steps, rollouts = states.shape
    columns = np.broadcast_to(np.arange(rollouts), states.shape)
    found, right = np.zeros((2, rollouts, case.world.states, case.world.actions))
    np.add.at(found, (columns, states, actions), estimate)
    np.add.at(found, (columns, states), -case.policy[states] * estimate[..., None])  # ∇log π = 1[a] − π
    np.add.at(right, (columns, states), (case.policy * case.truth.advantages)[states])
    flat = (rollouts, -1)
    return ((found - right) / steps).reshape(flat), (right / steps).reshape(flat)


class Line(NamedTuple):
    """One row of the study's table."""

    values: str
    estimator: str
    parameter: str
    setting: float
    measured: Measured


def study(
    world: MDP, policy: Array, *, gamma: float = 0.95, seed: int = 0, steps: int = 64, rollouts: int = 2000
) -> list[Line]:
    """All estimators with all value functions. Off-policy ones see rollouts of a policy half-way to the uniform one."""
    lines = []
    for kind in VALUES:
        for table, behaviour in ((ESTIMATORS, None), (OFF_POLICY, (policy + uniform(world)) / 2)):
            rng = np.random.default_rng(seed)
            here = case(
                world, policy, gamma=gamma, kind=kind, rng=rng, steps=steps, rollouts=rollouts, behaviour=behaviour
            )
            for row in table:
                for setting in row.tried:
                    measured = measure(here, row.estimate(here, setting))
                    lines.append(Line(kind, row.name, row.parameter, setting, measured))
    return lines

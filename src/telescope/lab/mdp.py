"""Small Markov decision processes and their exact truth: values, advantages, visits, the policy gradient.

Every truth is a linear solve in float64, so tests and studies can compare an estimator with it. `worlds.py` has some
processes. Leaves out function approximation: a value function is an array with one number for each state.
"""

# N states, A actions, T time, B columns of a rollout
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class MDP(NamedTuple):
    """A finite Markov decision process. A policy is an array [N, A] of probabilities."""

    transitions: Array  # [N, A, N] p(s'|s, a)
    rewards: Array  # [N, A, N] r(s, a, s')
    start: Array  # [N] probabilities of an episode's first state
    terminal: npt.NDArray[np.bool_]  # [N] entering such a state terminates the episode; nothing is read of its own rows
    time_limit: int | None = None
    """Steps after which an episode is truncated. The process itself goes on, so its values do not know the limit."""

    @property
    def states(self) -> int:
        return len(self.start)

    @property
    def actions(self) -> int:
        return self.transitions.shape[1]


class Truth(NamedTuple):
    """What a policy is worth, with 0 in terminal states."""

    values: Array  # [N] V(s)
    action_values: Array  # [N, A] Q(s, a)
    advantages: Array  # [N, A] A(s, a) = Q(s, a) − V(s)


class Samples(NamedTuple):
    """A rollout of B columns, one episode after the other in each."""

    states: npt.NDArray[np.int64]  # [T, B]
    actions: npt.NDArray[np.int64]  # [T, B]
    rewards: Array  # [T, B]
    terminated: npt.NDArray[np.bool_]  # [T, B]
    truncated: npt.NDArray[np.bool_]  # [T, B]
    next_states: npt.NDArray[np.int64]  # [T, B] where the step really led to, never the state after a reset
    steps: npt.NDArray[np.int64]  # [T, B] steps of the episode before this one


def check(mdp: MDP) -> MDP:
    """Return the process if its arrays fit together.

    Raises:
        ValueError: a shape, a probability or a reward is wrong; the sentence names the array.
    """
    n, a = mdp.states, mdp.actions
    for name, array, shape in (
        ("transitions", mdp.transitions, (n, a, n)),
        ("rewards", mdp.rewards, (n, a, n)),
        ("terminal", mdp.terminal, (n,)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; expected {shape} for {n} states and {a} actions")
    if np.asarray(mdp.terminal).dtype != np.bool_:
        raise ValueError(f"terminal has dtype {mdp.terminal.dtype}; expected bool, True for a terminal state")
    going_on = ~mdp.terminal
    for name, rows in (("transitions", mdp.transitions[going_on]), ("start", mdp.start)):
        if not (np.all(rows >= 0) and np.allclose(rows.sum(-1), 1, atol=1e-9)):
            raise ValueError(f"{name} holds rows that are no probabilities; expected numbers ≥ 0 that sum to 1")
    if mdp.start[mdp.terminal].any():
        raise ValueError("start has a terminal state; an episode begins in a state that has a step to make")
    if not np.isfinite(mdp.rewards[going_on]).all():
        raise ValueError("rewards holds NaN or infinity in a state that is not terminal")
    if mdp.time_limit is not None and mdp.time_limit < 1:
        raise ValueError(f"time_limit is {mdp.time_limit}; expected at least 1 step, or None")
    return mdp


def uniform(mdp: MDP) -> Array:
    """The policy [N, A] that chooses each action with the same probability."""
    return np.full((mdp.states, mdp.actions), 1 / mdp.actions)


def softmax(logits: Array) -> Array:
    """The policy [N, A] with these logits [N, A]."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def with_horizon(mdp: MDP, horizon: int) -> MDP:
    """The process that terminates after `horizon` steps. The time is part of its state: t · N + s, the end is last.

    Unlike a time limit, such an end belongs to the task, and values know it. Policies and other arrays of the first
    process are repeated with `np.tile(…, (horizon + 1, 1))` without the rows after horizon · N + 1.
    """
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}; expected at least 1 step")
    n, a, end = mdp.states, mdp.actions, mdp.states * horizon
    transitions, rewards = np.zeros((2, end + 1, a, end + 1))
    for t in range(horizon):
        here = slice(t * n, (t + 1) * n)
        if t + 1 < horizon:
            there = slice((t + 1) * n, (t + 2) * n)
            transitions[here, :, there], rewards[here, :, there] = mdp.transitions, mdp.rewards
        else:  # the reward of the last step is its mean over next states
            transitions[here, :, end] = mdp.transitions.sum(-1)
            rewards[here, :, end] = (mdp.transitions * mdp.rewards).sum(-1)
    terminal = np.append(np.tile(mdp.terminal, horizon), True)
    start = np.append(mdp.start, np.zeros(end + 1 - n))
    return check(MDP(transitions, rewards, start, terminal, mdp.time_limit))


def truth(mdp: MDP, policy: Array, gamma: float) -> Truth:
    """V, Q and A of a policy [N, A]: V solves (I − γ P_π) V = r_π, Q(s, a) = Σ p(s'|s, a) (r + γ V(s')).

    A time limit does not change them: a truncated episode would have gone on.

    Raises:
        ValueError: γ is 1 and some episode never ends, so that values are infinite or not unique.
    """
    steps, rewards = _under(mdp, policy)
    values = _solved(np.eye(mdp.states) - gamma * steps, rewards, gamma)
    following = (mdp.transitions * (mdp.rewards + gamma * values)).sum(-1)  # [N, A]; V is 0 in terminal states
    action_values = np.where(mdp.terminal[:, None], 0.0, following)
    return Truth(values, action_values, np.where(mdp.terminal[:, None], 0.0, action_values - values[:, None]))


def bellman_residuals(mdp: MDP, policy: Array, values: Array, gamma: float) -> Array:
    """E[δ | s] [N] of any value function: r_π + γ P_π v − v, with 0 in terminal states. 0 everywhere for V itself."""
    steps, rewards = _under(mdp, policy)
    known = np.where(mdp.terminal, 0.0, values)
    return rewards + gamma * steps @ known - known


def visits(mdp: MDP, policy: Array, gamma: float = 1.0) -> Array:
    """Σ_t γ^t Pr(s_t = s) [N] over an episode, up to its termination or its time limit.

    With γ = 1 these are expected numbers of visits, and their sum is the mean length of an episode.

    Raises:
        ValueError: γ is 1, there is no time limit, and some episode never ends.
    """
    steps, _ = _under(mdp, policy)
    if mdp.time_limit is None:
        return _solved((np.eye(mdp.states) - gamma * steps).T, mdp.start, gamma)
    total, now = np.zeros(mdp.states), mdp.start.copy()
    for _ in range(mdp.time_limit):
        total += now
        now = gamma * now @ steps
    return total


def expected_return(mdp: MDP, policy: Array, gamma: float) -> float:
    """E[Σ_t γ^t r_t] from the first state of an episode, without a time limit."""
    return float(mdp.start @ truth(mdp, policy, gamma).values)


def optimal_policy(mdp: MDP, gamma: float) -> Array:
    """The policy [N, A] of the largest V in every state without a time limit, by policy iteration (Howard 1960)."""
    policy, values = uniform(mdp), truth(mdp, uniform(mdp), gamma).values
    while True:
        better = np.eye(mdp.actions)[truth(mdp, policy, gamma).action_values.argmax(1)]
        found = truth(mdp, better, gamma).values
        if (found <= values + 1e-12 * (1 + np.abs(values))).all():
            return policy
        policy, values = better, found


def policy_gradient(mdp: MDP, policy: Array, gamma: float, *, visit_gamma: float | None = None) -> Array:
    """∂J/∂logits [N, A] of a softmax policy: d(s) π(a|s) A(s, a), the policy gradient theorem (Sutton et al. 2000).

    d are the visits with `visit_gamma`: γ gives the gradient of `expected_return`, 1 the direction that training takes,
    where every step of an episode counts the same.
    """
    weights = visits(mdp, policy, gamma if visit_gamma is None else visit_gamma)
    return weights[:, None] * policy * truth(mdp, policy, gamma).advantages


def sample(mdp: MDP, policy: Array, rng: np.random.Generator, steps: int, columns: int) -> Samples:
    """A rollout [steps, columns]. Each column begins with a new episode; an episode that ends is followed by the next.

    Random numbers are drawn column by column for all steps, so that a longer rollout begins like a shorter one only if
    it has as many columns.
    """
    cumulative = policy.cumsum(-1)  # [N, A]
    successors = mdp.transitions.cumsum(-1)  # [N, A, N]
    beginnings = mdp.start.cumsum()
    chances = rng.random((3, steps, columns))
    state, age = _drawn(beginnings, rng.random(columns)), np.zeros(columns, np.int64)
    rows = []
    for action_chance, next_chance, start_chance in chances.transpose(1, 0, 2):
        action = _drawn(cumulative[state], action_chance)
        reached = _drawn(successors[state, action], next_chance)
        terminated = mdp.terminal[reached]
        limit = np.zeros(columns, bool) if mdp.time_limit is None else age + 1 >= mdp.time_limit
        truncated = limit & ~terminated
        rows.append((state, action, mdp.rewards[state, action, reached], terminated, truncated, reached, age))
        ended = terminated | truncated
        state = np.where(ended, _drawn(beginnings, start_chance), reached)
        age = np.where(ended, 0, age + 1)
    return Samples(*(np.stack(column) for column in zip(*rows, strict=True)))


def _under(mdp: MDP, policy: Array) -> tuple[Array, Array]:
    """P_π [N, N] between states that are not terminal, and r_π [N]."""
    if policy.shape != (mdp.states, mdp.actions):
        raise ValueError(
            f"policy has shape {policy.shape}; expected {(mdp.states, mdp.actions)}, a probability for each state and "
            "action"
        )
    going_on = ~mdp.terminal
    if not np.allclose(policy[going_on].sum(-1), 1, atol=1e-9) or (policy[going_on] < 0).any():
        raise ValueError("policy holds rows that are no probabilities; expected numbers ≥ 0 that sum to 1")
    read = going_on[:, None, None]
    joint = np.where(read, policy[:, :, None] * mdp.transitions, 0.0)  # [N, A, N]
    rewards = (joint * np.where(read, mdp.rewards, 0.0)).sum((1, 2))
    return joint.sum(1) * going_on, rewards


def _solved(matrix: Array, vector: Array, gamma: float) -> Array:
    try:
        solution = np.asarray(np.linalg.solve(matrix, vector), np.float64)
    except np.linalg.LinAlgError:
        solution = np.full(len(vector), np.nan)
    if not np.isfinite(solution).all() or np.linalg.norm(matrix @ solution - vector) > 1e-6 * (
        1 + np.linalg.norm(vector)
    ):
        raise ValueError(f"gamma is {gamma}, and some episode never ends; expected gamma below 1, or a way to the end")
    return solution


def _drawn(cumulative: Array, chance: Array) -> npt.NDArray[np.int64]:
    """The index that each number in [0, 1) chooses from cumulative probabilities [..., n] whose last is 1."""
    rows = np.broadcast_to(cumulative, (*chance.shape, cumulative.shape[-1]))
    reached = chance[..., None] * rows[..., -1:] < rows  # the last sum may be 1 − 1e-16
    return reached.argmax(-1)

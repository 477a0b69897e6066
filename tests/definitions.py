"""Every public estimator once more, from its definition, for tests that draw their problems at random.

Plain loops over the live steps of each episode by itself, in Python's floats; γ and λ may differ from step to step.
It leaves out flag arithmetic, recurrences over a whole column, dtypes and libraries: nothing of what is judged.
"""

from collections.abc import Iterator
from math import exp
from typing import Any, NamedTuple

import numpy as np

import oracle

Index = tuple[int, ...]


class Step(NamedTuple):
    """One live step, and whether its episode goes on behind it."""

    at: Index
    discount: float  # γ, 0 where terminated: weighs the value of the state that the step led to
    decay: float  # λ
    goes_on: bool


class Given(dict[str, Any]):
    """The arguments of a call by name, in float64 and of one shape: γ and λ too, and a mask that is never None."""

    def episodes(self) -> Iterator[list[Step]]:
        flags = (self["terminated"], self["truncated"], self["mask"])
        for episode in oracle.episodes(oracle.Rollout(*[self["gamma"]] * 3, *flags)):
            yield [
                Step(i, 0.0 if self["terminated"][i] else self["gamma"][i], self["lam"][i], i is not episode[-1])
                for i in episode
            ]

    def number(self, name: str, step: Step) -> float:
        return float(self[name][step.at])

    def ahead(self, name: str, step: Step) -> float:
        """γ' times a value of the successor, which is not looked at where there is none."""
        return step.discount * float(self[name][step.at]) if step.discount else 0.0

    def residual(self, step: Step, values: str = "values", successors: str = "next_values") -> float:
        return self.number("rewards", step) + self.ahead(successors, step) - self.number(values, step)

    def zeros(self, *more: int) -> np.ndarray:
        return np.zeros((*self["gamma"].shape, *more))


def td_error(given: Given, values: str = "values", successors: str = "next_values") -> np.ndarray:
    result = given.zeros()
    for step in (step for episode in given.episodes() for step in episode):
        result[step.at] = given.residual(step, values, successors)
    return result


def shaped_rewards(given: Given) -> np.ndarray:
    return td_error(given, "potentials", "next_potentials")


def gae(given: Given) -> tuple[np.ndarray, np.ndarray]:
    rollout = oracle.Rollout(*(given[name] for name in oracle.Rollout._fields))
    advantages, ahead = (oracle.advantages(rollout, given["gamma"], given[lam]) for lam in ("lam", "returns_lam"))
    return advantages, np.where(given["mask"], ahead + given["values"], 0)


def next_values(given: Given) -> np.ndarray:
    rollout = oracle.Rollout(*[given["values"]] * 3, *(given[name] for name in ("terminated", "truncated", "mask")))
    return oracle.successors(rollout, given["last_values"], given["final_values"])


def lambda_return(given: Given) -> np.ndarray:
    """From the end of each episode: with weight λ trust the next step's target, else the value ahead."""
    result = given.zeros()
    for episode in given.episodes():
        later = 0.0
        for step in reversed(episode):
            trust = step.decay if step.goes_on else 0.0
            later = given.number("rewards", step) + (1 - trust) * given.ahead("next_values", step) + (
                trust * step.discount * later if trust else 0.0
            )  # fmt: skip
            result[step.at] = later
    return result


def discounted_return(given: Given) -> np.ndarray:
    return lambda_return(Given(given, lam=np.ones_like(given["lam"])))


def windows(given: Given, length: int) -> Iterator[tuple[Index, list[tuple[float, Step]]]]:
    """For each live step the up to `length` steps from it on, with the product of the discounts before each."""
    for episode in given.episodes():
        for start, first in enumerate(episode):
            weight, window = 1.0, []
            for step in episode[start : start + length]:
                window.append((weight, step))
                weight *= step.discount
            yield first.at, window


def k_step_advantage(given: Given) -> np.ndarray:
    result = given.zeros()
    for at, window in windows(given, given["k"]):
        result[at] = sum(weight * given.residual(step) for weight, step in window)
    return result


def n_step_return(given: Given) -> np.ndarray:
    result = given.zeros()
    for at, window in windows(given, given["n"]):
        weight, last = window[-1]
        result[at] = sum(w * given.number("rewards", step) for w, step in window)
        result[at] += weight * given.ahead("next_values", last)
    return result


def ratio(given: Given, step: Step, clip: str) -> float:
    found = exp(given.number("log_ratios", step))
    return found if given[clip] is None else min(found, given[clip])


def vtrace(given: Given) -> tuple[np.ndarray, np.ndarray]:
    """Espeholt et al. 2018, eq. 1 as a double sum; the advantages look one step ahead to those targets."""
    targets, advantages = given.zeros(), given.zeros()
    for episode in given.episodes():
        for start, first in enumerate(episode):
            total, weight = given.number("values", first), 1.0
            for step in episode[start:]:
                total += weight * ratio(given, step, "rho_clip") * given.residual(step)
                weight *= step.discount * step.decay * ratio(given, step, "c_clip")
            targets[first.at] = total
        for step, later in zip(episode, [*episode[1:], None], strict=True):
            ahead = given.ahead("next_values", step) if later is None else step.discount * targets[later.at]
            distance = given.number("rewards", step) + ahead - given.number("values", step)
            advantages[step.at] = ratio(given, step, "pg_rho_clip") * distance
    return targets, advantages


def retrace(given: Given) -> np.ndarray:
    """Munos et al. 2016, eq. 3: Q + Σ_t (Π γ c) (r + γ E_π Q' − Q), the ratio being that of the action arrived at."""
    result = given.zeros()
    for episode in given.episodes():
        for start, first in enumerate(episode):
            total, weight = given.number("q_values", first), 1.0
            for step in episode[start:]:
                if step is not first:
                    weight *= step.decay * ratio(given, step, "c_clip")
                total += weight * given.residual(step, "q_values")
                weight *= step.discount
            result[first.at] = total
    return result


def traces(given: Given, kind: str) -> np.ndarray:
    """Forwards through each episode, from a trace of zeros; γ and λ of the step before decay it."""
    result = given.zeros(given["features"].shape[-1])
    for episode in given.episodes():
        trace, decay = np.zeros(given["features"].shape[-1]), 0.0
        for step in episode:
            phi, trace = given["features"][step.at], decay * trace
            if kind == "replacing":
                trace = np.array([new if new else old for new, old in zip(phi, trace, strict=True)])
            else:
                trace = trace + phi - (given["step_size"] * (trace @ phi) * phi if kind == "dutch" else 0)
            result[step.at], decay = trace, step.discount * step.decay
    return result


def eligibility_trace(given: Given) -> np.ndarray:
    return traces(given, given["kind"])


def dutch_trace(given: Given) -> np.ndarray:
    return traces(given, "dutch")


def true_online_td(given: Given) -> np.ndarray:
    """Van Seijen et al. 2016, algorithm 1, each episode beginning with v_old = 0 and no trace."""
    weights, alpha, phis = np.array(given["weights"], float), given["step_size"], given["features"]
    for episode in given.episodes():
        column, trace, old, decay = episode[0].at[1:], 0 * phis[0][episode[0].at[1:]], 0.0, 0.0
        for step in episode:
            w, phi = weights[column].copy(), phis[step.at]
            ahead = float(w @ given["next_features"][step.at]) if step.discount else 0.0
            delta = given.number("rewards", step) + step.discount * ahead - w @ phi
            trace = decay * trace + phi - alpha * decay * (trace @ phi) * phi
            weights[column] = w + alpha * (delta + w @ phi - old) * trace - alpha * (w @ phi - old) * phi
            old, decay = ahead, step.discount * step.decay
    return weights


def distributional_gae(given: Given) -> tuple[np.ndarray, np.ndarray]:
    count = given["quantiles"].shape[-1]
    weights = np.full(count, 1 / count) if given["weights"] is None else given["weights"]
    values, successors = ((given[name] * weights).sum(-1) for name in ("quantiles", "next_quantiles"))
    mean = Given(given, values=values, next_values=successors, returns_lam=given["lam"])
    targets = given.zeros(count)
    for step in (step for episode in given.episodes() for step in episode):
        ahead = step.discount * given["next_quantiles"][step.at] if step.discount else 0.0
        targets[step.at] = given.number("rewards", step) + ahead
    return gae(mean)[0], targets


def end_corrected(given: Given) -> np.ndarray:
    """The share of the normalised mixture that looks further than one step."""
    result = given.zeros()
    for episode in given.episodes():
        for start, first in enumerate(episode):
            weight, weights = 1.0, []
            for step in episode[start:]:  # of the advantages of 1, 2, … steps, as many as there are
                weights.append(weight)
                weight *= step.decay
            result[first.at] = sum(weights[1:]) / sum(weights)
    return result


def length_adaptive(given: Given) -> np.ndarray:
    result = given.zeros()
    for episode in given.episodes():
        for step in episode:
            result[step.at] = max(0.0, 1 - 1 / (given["alpha"] * len(episode)))
    return result


def per_segment(given: Given) -> np.ndarray:
    ends = given["segment_ends"]
    return np.where(given["mask"], np.where(ends, given["lam"], 1.0), 0.0)


def per_turn(given: Given) -> tuple[np.ndarray, ...]:
    """Turn by turn: all of its reward at its last step, its first value everywhere."""
    rewards, values, successors, gamma, lam = (given.zeros() for _ in range(5))
    for turn in turns(given):
        *earlier, last = turn
        rewards[last.at] = sum(given.number("rewards", step) for step in turn)
        for step in turn:
            values[step.at] = given.number("values", turn[0])
        for step in earlier:
            successors[step.at], gamma[step.at], lam[step.at] = values[last.at], 1.0, 1.0
        successors[last.at] = 0.0 if given["terminated"][last.at] else given.number("next_values", last)
        gamma[last.at], lam[last.at] = given["gamma"][last.at], last.decay
    return rewards, values, successors, gamma, lam


def turns(given: Given) -> Iterator[list[Step]]:
    for episode in given.episodes():
        turn = []
        for step in episode:
            turn.append(step)
            if given["turn_ends"][step.at] or not step.goes_on:
                yield turn
                turn = []


def from_explained_variance(given: Given) -> np.ndarray:
    found = [given["low"] if share >= 1 else given["high"] - (given["high"] - given["low"]) * max(share, 0.0)
             for share in given["explained_variance"].flat]  # fmt: skip
    return np.reshape(found, given["explained_variance"].shape)


def whiten(given: Given) -> np.ndarray:
    x, mask, axis = given["x"], given["mask"], given["axis"]
    n = mask.sum(axis=axis, keepdims=True)
    mean = np.where(mask, x, 0).sum(axis=axis, keepdims=True) / np.maximum(n, 1)
    squares = np.where(mask, (x - mean) ** 2, 0).sum(axis=axis, keepdims=True)
    variance = squares / np.maximum(n if given["biased"] else n - 1, 1)
    scale = np.sqrt(variance + given["eps"]) if given["eps_inside"] else np.sqrt(variance) + given["eps"]
    return np.where(mask, x if given["scale_only"] else x - mean, 0) / scale


def group_relative(given: Given) -> np.ndarray:
    plain = whiten(Given(given, x=given["rewards"], axis=-1, eps_inside=False, scale_only=False))
    if given["scale"]:
        return plain
    return (
        leave_one_out(given)
        * np.maximum(given["mask"].sum(-1, keepdims=True) - 1, 0)
        / given["mask"].sum(-1, keepdims=True).clip(1)
    )


def leave_one_out(given: Given) -> np.ndarray:
    rewards, mask = given["rewards"], given["mask"]
    result = np.zeros(rewards.shape)
    for at in np.argwhere(mask):
        others = mask[tuple(at[:-1])].copy()
        others[at[-1]] = False
        group = rewards[tuple(at[:-1])]
        result[tuple(at)] = group[at[-1]] - group[others].mean() if others.any() else 0
    return result


def response_function(given: Given) -> np.ndarray:
    """E[r[t+l] | s, a] by powers of the policy's own transition matrix."""
    transitions, rewards, policy = (given[name] for name in ("transitions", "rewards", "policy"))
    onwards = np.einsum("sa,san->sn", policy, transitions)
    responses = []
    for lag in range(given["lags"]):
        earned = np.linalg.matrix_power(onwards, max(lag - 1, 0)) @ (policy * rewards).sum(-1)
        q = transitions @ earned if lag else rewards
        responses.append(q - (policy * q).sum(-1, keepdims=True))
    return np.stack(responses)

"""The mathematics of language objectives once more, from its formulas: loops over Python's floats, one token at a time.

It leaves out tensors, masks as arithmetic, and everything that makes it fast: nothing of what is judged.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from telescope.objectives.rows import Correction, Objective

Table = Sequence[Sequence[float]]
LARGEST = [math.log(3.4028234663852886e38)]  # a log-ratio's bound: no ratio is infinite in float32


def live(mask: Table) -> Iterator[tuple[int, list[int]]]:
    """Of each completion its number and the places that count."""
    for b, row in enumerate(mask):
        yield b, [t for t, counts in enumerate(row) if counts]


def zeros(mask: Table) -> list[list[float]]:
    return [[0.0] * len(row) for row in mask]


def exp(x: float) -> float:
    return math.exp(min(x, LARGEST[0]))


def bounded(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def ratio(objective: Objective, d: Sequence[float], t: int, places: list[int]) -> float:
    """ρ of place t, with d = log π − log π_old."""
    if objective.ratio == "token":
        log_ratio = d[t]
    else:
        log_ratio = math.fsum(d[s] for s in places)
        if objective.ratio != "sequence_sum":
            log_ratio /= len(places)
    return exp(bounded(log_ratio, *(objective.log_ratio_bounds or (-math.inf, math.inf))))


def surrogate(objective: Objective, rho: float, log_prob: float, a: float) -> float:
    low, high = 1 - objective.clip[0], 1 + objective.clip[1]
    if objective.surrogate == "reinforce":
        return -a * log_prob
    if objective.surrogate == "cispo":
        return -bounded(rho, low, high) * a * log_prob
    first = rho if objective.ratio_cap is None else min(rho, objective.ratio_cap)
    loss = -min(first * a, bounded(rho, low, high) * a)
    return min(loss, -objective.dual_clip * a) if objective.dual_clip is not None and a < 0 else loss


def kl(objective: Objective, log_prob: float, reference: float, old: float) -> float:
    limit, bound = objective.kl_bounds or (math.inf, math.inf)
    d = bounded(log_prob - reference, -limit, limit)
    estimate = {"k1": d, "k2": d * d / 2, "k3": exp(-d) - 1 + d}[objective.kl]
    return bounded(estimate, -bound, bound) * (exp(log_prob - old) if objective.kl_gradient == "ratio" else 1)


def policy_loss(objective: Objective, x: dict[str, Any]) -> list[list[float]]:
    found = zeros(x["mask"])
    for b, places in live(x["mask"]):
        d = [n - o for n, o in zip(x["new"][b], x["old"][b], strict=True)]
        for t in places:
            rho = ratio(objective, d, t, places)
            found[b][t] = surrogate(objective, rho, x["new"][b][t], x["token"][b][t]) * x["correction"][b][t]
            if objective.beta and objective.kl_place == "loss":
                found[b][t] += objective.beta * kl(objective, x["new"][b][t], x["reference"][b][t], x["old"][b][t])
    return found


def kl_penalty(objective: Objective, x: dict[str, Any]) -> list[list[float]]:
    found = zeros(x["mask"])
    for b, places in live(x["mask"]):
        for t in places:
            found[b][t] = kl(objective, x["new"][b][t], x["reference"][b][t], x["old"][b][t])
    return found


def off_policy_weights(correction: Correction, x: dict[str, Any]) -> list[list[float]]:
    found = zeros(x["mask"])
    for b, places in live(x["mask"]):
        d = [x["old"][b][t] - x["new"][b][t] if t in places else 0.0 for t in range(len(x["mask"][b]))]
        levels = {"sequence": math.fsum(d), "geometric": math.fsum(d) / max(len(places), 1)}
        for t in places:
            weight, decision = (
                exp({"token": d[t], **levels}[level]) for level in (correction.weight, correction.decision)
            )
            inside = correction.low <= decision <= correction.high
            if correction.outside == "clamp":
                found[b][t] = bounded(weight, correction.low, correction.high)
            else:
                found[b][t] = weight if inside else 0.0
    return found


def deviation(numbers: list[float], unbiased: bool) -> float:
    mean = math.fsum(numbers) / len(numbers)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / max(len(numbers) - unbiased, 1))


def sample_advantages(objective: Objective, x: dict[str, Any]) -> list[list[float]]:
    found = zeros(x["mask"])
    everybody = [x["scores"][b][t] for b, places in live(x["mask"]) for t in places]
    for b, places in live(x["mask"]):
        group = [x["scores"][b][t] for t in places]
        for i, t in enumerate(places):
            others = group[:i] + group[i + 1 :]
            baseline = {
                "none": 0.0,
                "group": math.fsum(group) / len(group),
                "others": math.fsum(others) / len(others) if others else group[i],
            }[objective.baseline]
            a = group[i] - baseline
            whose = {"none": [], "group": group, "others": others, "batch": everybody}[objective.scale]
            spread = deviation(whose, objective.unbiased) if whose and max(whose) > min(whose) else 0.0
            if objective.scale != "none" and spread > 0:
                a /= spread + objective.eps
            if len(places) == 1 and objective.singleton == "score":
                a = group[i]
            found[b][t] = a
    return found


def token_rewards(objective: Objective, x: dict[str, Any]) -> list[list[float]]:
    found = zeros(x["mask"])
    for b, places in live(x["mask"]):
        for t in places:
            if objective.kl_place == "reward":
                found[b][t] -= objective.beta * x["kl"][b][t]
        if places:
            at = places[-1]
            if objective.score_at == "after" and at + 1 < len(found[b]):
                at += 1
            found[b][at] += x["score"][b]
    return found


def penalised_scores(objective: Objective, x: dict[str, Any]) -> list[float]:
    found = list(x["score"])
    if objective.kl_place == "reward" and objective.credit == "sequence":
        for b, places in live(x["mask"]):
            found[b] -= objective.beta * math.fsum(x["kl"][b][t] for t in places)
    return found


def token_advantages(objective: Objective, x: dict[str, Any]) -> list[list[float]]:
    """Before whitening; time stands still where masked."""
    rewards, found = token_rewards(objective, x), zeros(x["mask"])
    for b, places in live(x["mask"]):
        total = 0.0
        for t in reversed(places):
            total = rewards[b][t] + objective.gamma * total
            found[b][t] = total if objective.credit == "returns" else x["score"][b]
    return found


def whitened(objective: Objective, x: dict[str, Any]) -> list[list[float]]:
    found = zeros(x["mask"])
    numbers = [x["token"][b][t] for b, places in live(x["mask"]) for t in places]
    if not numbers:
        return found
    mean, spread = math.fsum(numbers) / len(numbers), deviation(numbers, objective.whiten == "unbiased")
    for b, places in live(x["mask"]):
        for t in places:
            found[b][t] = (x["token"][b][t] - mean) / math.sqrt(spread**2 + 1e-8)
    return found

"""The usual failures of RL on language models, found in a step's numbers: a row for each, a sentence about each.

It leaves out what ends a run (an error names that where it happens), and who reads the sentences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

AGAIN = 50
"""Steps before a finding of the same name is told again; then twice as many each time, for it is known by then."""
ROUNDING = {"float32": 1e-3, "bfloat16": 0.5}
"""How far sampler and trainer may be apart at one token by rounding alone, in nats."""


class Finding(NamedTuple):
    """Something that looks wrong: a row of health.csv."""

    name: str
    value: float
    sentence: str


class Check(NamedTuple):
    """A quantity, the least and the most that are healthy, and what is said of any other: a format of all numbers."""

    name: str
    quantity: str
    low: float
    high: float
    sentence: str


CHECKS = (
    Check(
        "equal_groups",
        "flat",
        0.0,
        0.9,
        "equal_groups is {equal_groups:.0%}: in these groups all completions have the same score (mean {score:.3g}) "
        "and nothing can be learned; healthy is below 90%; take prompts that are neither solved nor hopeless, a reward "
        "with more levels, a larger group, or resample",
    ),
    Check(
        "resample",
        "filled",
        0.9,
        1.0,
        "resample has found only {filled:.0%} of the rollout's groups in {rounds} rounds of sampling (scores differ in "
        "{kept:.0%} of all groups), and the step learns from these alone; healthy is above 90%; raise resample, or "
        "take prompts that are neither solved nor hopeless",
    ),
    Check(
        "truncated",
        "truncated",
        0.0,
        0.9,
        "truncated is {truncated:.0%}: this share of completions was cut at max_tokens ({max_tokens}) before its end; "
        "healthy is below 90%; raise max_tokens, or ask in the format in which the model has learned to end answers",
    ),
    Check(
        "unscored",
        "unscored",
        0.0,
        0.5,
        "unscored is {unscored:.0%}: the reward function gave None for this share of completions, which teach nothing; "
        "healthy is below 50%; have it give a low score to what it cannot read",
    ),
    Check(
        "sampler_mismatch",
        "roundings",
        0.0,
        1.0,
        "sampler_mismatch is {sampler_mismatch:.2g} nats: before the first update the trainer's log-probability of "
        "each token should be the sampler's; healthy is rounding, below {rounding:g} in {dtype}; train in float32, or "
        "have off_policy weigh the difference",
    ),
    Check(
        "off_policy_bounded",
        "off_policy_bounded",
        0.0,
        0.1,
        "off_policy_bounded is {off_policy_bounded:.0%}: for these tokens the trainer's probability is so far from "
        "the sampler's that their weight was bounded; healthy is below 10%; let both compute the same model, in one "
        "precision, at one temperature and with one top_k and top_p",
    ),
    Check(
        "kl",
        "moved",
        0.0,
        0.1,
        "kl is {kl:.2g} nats per token: so far have the updates of one rollout moved the policy (largest ratio "
        "{ratio_max:.3g}); healthy is below 0.1; lower learning_rate, or take fewer epochs or minibatches",
    ),
    Check(
        "entropy",
        "exploring",
        0.1,
        math.inf,
        "entropy is {entropy:.2g} nats per token, {entropy_kept:.0%} of the first step's, but score is {score:.3g} and "
        "{highest:.3g} has been seen: the policy has stopped exploring before the task is solved; healthy is above "
        "10% of the first for a score that has not risen, and less in proportion as it rises; lower learning_rate, "
        "raise clip's upper bound (dapo), or hold the policy to its reference with beta",
    ),
    Check(
        "kl_reference",
        "drift",
        -math.inf,
        5.0,
        "kl_reference is {drift:.2g} nats per token: such completions the reference would hardly ever give; healthy is "
        "below 5; raise beta or lower learning_rate, and read some of samples.csv for what the reward is taken in by",
    ),
)
"""What every step on sampled completions is judged by."""


def findings(numbers: Mapping[str, Any]) -> list[Finding]:
    """What is wrong with a step, by the rows of `CHECKS`; of a quantity that is not given nothing is said."""
    found = []
    for check in CHECKS:
        value = numbers.get(check.quantity)
        if value is not None and not check.low <= value <= check.high:  # a NaN is not within bounds
            found.append(Finding(check.name, float(value), check.sentence.format_map(numbers)))
    return found


def quantities(
    statistics: Mapping[str, float],
    *,
    group: int,
    critic: bool,
    dtype: str,
    max_tokens: int,
    first_entropy: float,
    seen: tuple[float, float],
) -> dict[str, Any]:
    """The numbers of a step, and besides them those that only make sense next to another.

    `flat` is `equal_groups`, where anything was scored; with a critic, which compares across prompts, only whether that
    is all of them. Where groups have one completion it says nothing, and where equal ones are replaced `filled` says
    it. `roundings` is `sampler_mismatch` in units of what is rounding, where no weight makes up for it. `drift` is
    `kl_reference` per token, which with a critic is per completion. `moved` is `kl` over all groups, those too that
    were skipped because they move nothing. `exploring` is the share of the first step's entropy that is left, for each
    part of the way from the lowest to the highest score seen that the mean score has still to go: who solves a task
    becomes certain.
    """
    numbers: dict[str, Any] = {"ratio_max": math.nan, **statistics, "dtype": dtype, "max_tokens": max_tokens}
    if group > 1 and "filled" not in numbers and "score" in numbers:
        numbers["flat"] = float(numbers["equal_groups"] == 1) if critic else numbers["equal_groups"]
    if "sampler_mismatch" in numbers and "off_policy_weight" not in numbers:
        numbers["rounding"] = ROUNDING[dtype]
        numbers["roundings"] = numbers["sampler_mismatch"] / ROUNDING[dtype]
    if "kl_reference" in numbers:
        numbers["drift"] = numbers["kl_reference"] / (numbers["length"] if critic else 1)
    if "kl" in numbers:
        numbers["moved"] = numbers["kl"] * (1 - numbers.get("skipped", 0.0))
    if first_entropy > 0 and "score" in numbers:
        lowest, highest = seen
        to_go = (highest - numbers["score"]) / (highest - lowest) if highest > lowest else 1.0
        kept = numbers["entropy"] / first_entropy
        numbers |= {"entropy_kept": kept, "highest": highest, "exploring": kept / to_go if to_go > 0 else math.inf}
    return numbers


def of_tokens(pad: int | None, ends: Sequence[int], token: str | None) -> list[Finding]:
    """A remark where a tokenizer pads with a token that ends completions."""
    if pad is None or pad not in ends:
        return []
    sentence = (
        f"the tokenizer pads with its end token {token!r} (id {pad}): here nothing is lost, masks are made from "
        "lengths, but what makes them from padding never learns to end; a healthy tokenizer has a pad_token of its own"
    )
    return [Finding("eos_is_pad", float(pad), sentence)]


class Watch:
    """Looks at one step after the other, and tells a finding again only after a while."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        """Anew, or where `state` left off."""
        state = state or {"first_entropy": None, "seen": [math.inf, -math.inf], "told": {}}
        self.first_entropy: float | None = state["first_entropy"]
        self.seen: tuple[float, float] = tuple(state["seen"])
        """The lowest and the highest score of all completions so far."""
        self.told: dict[str, int] = dict(state["told"])

    def look(self, step: int, statistics: Mapping[str, float], **settings: Any) -> list[Finding]:
        """What to tell about a step; settings are those of `quantities`."""
        if self.first_entropy is None:
            self.first_entropy = statistics["entropy"]
        if "score" in statistics:
            lowest, highest = self.seen
            self.seen = min(lowest, statistics["score_min"]), max(highest, statistics["score_max"])
        found = findings(quantities(statistics, first_entropy=self.first_entropy, seen=self.seen, **settings))
        new = [one for one in found if step >= self._due(one.name)]
        self.told |= {one.name: step for one in new}
        return new

    def _due(self, name: str) -> int:
        """The step from which a finding may be told."""
        return max(self.told[name] + AGAIN, 2 * self.told[name]) if name in self.told else 0

    def state(self) -> dict[str, Any]:
        """What a resumed run needs in order to tell the same."""
        return {"first_entropy": self.first_entropy, "seen": list(self.seen), "told": dict(self.told)}

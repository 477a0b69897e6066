"""The usual failures of RL on language models, detected from a step's numbers, with a row and a sentence for each.

Leaves out failures that end a run; they raise an error where they happen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

AGAIN = 50
"""Steps before the same finding is reported again. The interval doubles each time."""
ROUNDING = {"float32": 1e-3, "bfloat16": 0.5}
"""How much sampler and trainer may differ at one token by rounding alone, in nats."""


class Finding(NamedTuple):
    """A problem that was found: a row of health.csv."""

    name: str
    value: float
    sentence: str


class Check(NamedTuple):
    """A quantity, its healthy range, and the sentence for values outside: a format string of all numbers."""

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
        "equal_groups is {equal_groups:.0%}: in these groups all completions have the same score (mean {score:.3g}), "
        "so they teach nothing; healthy is below 90%; use prompts that are neither solved nor hopeless, a reward with "
        "more levels, a larger group, or resample",
    ),
    Check(
        "resample",
        "filled",
        0.9,
        1.0,
        "resample has found only {filled:.0%} of the rollout's groups in {rounds} rounds of sampling (scores differ in "
        "{kept:.0%} of all groups), and the step learns only from these; healthy is above 90%; raise resample, or "
        "use prompts that are neither solved nor hopeless",
    ),
    Check(
        "truncated",
        "truncated",
        0.0,
        0.9,
        "truncated is {truncated:.0%}: this share of completions was cut at max_tokens ({max_tokens}) before its end; "
        "healthy is below 90%; raise max_tokens, or use the prompt format in which the model learned to end answers",
    ),
    Check(
        "unscored",
        "unscored",
        0.0,
        0.5,
        "unscored is {unscored:.0%}: the reward function gave None for this share of completions, which teach nothing; "
        "healthy is below 50%; return a low score for completions that it cannot read",
    ),
    Check(
        "sampler_mismatch",
        "roundings",
        0.0,
        1.0,
        "sampler_mismatch is {sampler_mismatch:.2g} nats: before the first update the trainer's log-probability of "
        "each token should be the sampler's; healthy is rounding, below {rounding:g} in {dtype}; train in float32, or "
        "set off_policy to correct for the difference",
    ),
    Check(
        "off_policy_bounded",
        "off_policy_bounded",
        0.0,
        0.1,
        "off_policy_bounded is {off_policy_bounded:.0%}: for these tokens the trainer's probability is so far from "
        "the sampler's that their weight was bounded; healthy is below 10%; use the same model, precision, "
        "temperature, top_k and top_p in both",
    ),
    Check(
        "kl",
        "moved",
        0.0,
        0.1,
        "kl is {kl:.2g} nats per token: the updates of one rollout have moved the policy this far (largest ratio "
        "{ratio_max:.3g}); healthy is below 0.1; lower learning_rate, epochs or minibatches",
    ),
    Check(
        "entropy",
        "exploring",
        0.1,
        math.inf,
        "entropy is {entropy:.2g} nats per token, {entropy_kept:.0%} of the first step's, but score is {score:.3g} and "
        "{highest:.3g} has been seen: the policy stopped exploring before it solved the task; healthy is above 10% of "
        "the first step's while the score has not risen, and proportionally less as it rises; lower learning_rate, "
        "raise clip's upper bound (dapo), or raise beta to keep the policy near its reference",
    ),
    Check(
        "kl_reference",
        "kl_reference",
        -math.inf,
        5.0,
        "kl_reference is {kl_reference:.2g} nats per token: the reference would hardly ever give such completions; "
        "healthy is below 5; raise beta or lower learning_rate, and read samples.csv: does the policy exploit the "
        "reward?",
    ),
)
"""The checks of every step on sampled completions."""


def findings(numbers: Mapping[str, Any]) -> list[Finding]:
    """The findings about a step, from the rows of `CHECKS`. A quantity that is not given has no finding."""
    found = []
    for check in CHECKS:
        value = numbers.get(check.quantity)
        if value is not None and not check.low <= value <= check.high:  # NaN is outside too
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
    """The numbers of a step, and quantities that combine several of them.

    - `flat` is `equal_groups` if anything was scored. With a critic, which compares across prompts, it is whether all
      groups are equal. It is missing for groups of one, and `filled` replaces it where equal groups are resampled.
    - `roundings` is `sampler_mismatch` in units of its rounding, if no weight corrects it.
    - `moved` is `kl` over all groups, including groups that were skipped because they have no gradient.
    - `exploring` is the remaining share of the first step's entropy, divided by the share of the way from the lowest to
      the highest score that the mean score has still to go. A policy that solves a task becomes certain.
    """
    numbers: dict[str, Any] = {"ratio_max": math.nan, **statistics, "dtype": dtype, "max_tokens": max_tokens}
    if group > 1 and "filled" not in numbers and "score" in numbers:
        numbers["flat"] = float(numbers["equal_groups"] == 1) if critic else numbers["equal_groups"]
    if "sampler_mismatch" in numbers and "off_policy_weight" not in numbers:
        numbers["rounding"] = ROUNDING[dtype]
        numbers["roundings"] = numbers["sampler_mismatch"] / ROUNDING[dtype]
    if "kl" in numbers:
        numbers["moved"] = numbers["kl"] * (1 - numbers.get("skipped", 0.0))
    if first_entropy > 0 and "score" in numbers:
        lowest, highest = seen
        to_go = (highest - numbers["score"]) / (highest - lowest) if highest > lowest else 1.0
        kept = numbers["entropy"] / first_entropy
        numbers |= {"entropy_kept": kept, "highest": highest, "exploring": kept / to_go if to_go > 0 else math.inf}
    return numbers


def of_tokens(pad: int | None, ends: Sequence[int], token: str | None) -> list[Finding]:
    """A sentence if a tokenizer pads with a token that ends completions."""
    if pad is None or pad not in ends:
        return []
    sentence = (
        f"the tokenizer pads with its end token {token!r} (id {pad}): this is harmless here, because masks come from "
        "lengths, but a trainer that makes masks from padding never learns to end; give the tokenizer its own pad_token"
    )
    return [Finding("eos_is_pad", float(pad), sentence)]


class Watch:
    """Checks one step after the other. It reports the same finding again only after some steps."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        """Start fresh, or continue from `state`."""
        state = state or {"first_entropy": None, "seen": [math.inf, -math.inf], "told": {}}
        self.first_entropy: float | None = state["first_entropy"]
        self.seen: tuple[float, float] = tuple(state["seen"])
        """The lowest and the highest score of all completions so far."""
        self.told: dict[str, int] = dict(state["told"])

    def look(self, step: int, statistics: Mapping[str, float], **settings: Any) -> list[Finding]:
        """The findings to report about a step. `settings` are those of `quantities`."""
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
        """The first step at which a finding may be reported."""
        return max(self.told[name] + AGAIN, 2 * self.told[name]) if name in self.told else 0

    def state(self) -> dict[str, Any]:
        """The state that a resumed run needs to report the same findings."""
        return {"first_entropy": self.first_entropy, "seen": list(self.seen), "told": dict(self.told)}

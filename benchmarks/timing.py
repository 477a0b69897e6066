"""Times of several functions taken in turns, so that a machine that slows down slows them all.

It leaves out what is timed and whether it is right.
"""

import gc
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

SAMPLE = 2e-3  # seconds that one sample lasts at least, so that the clock's own cost does not show

Call = Callable[[], Any]


class Times(NamedTuple):
    """Seconds per call: the median of the samples, their quartiles, and how many there were."""

    median: float
    low: float
    high: float
    samples: int


def interleaved(
    calls: dict[str, Call], rounds: int, budget: float, *, least: int = 1, finish: Call = lambda: None
) -> dict[str, Times]:
    """A, B, C, A, B, C, … for so many rounds; a call so slow that it has spent its budget (seconds) sits out.

    A sample is at least so many calls, and ends when `finish` returns: what a device has queued is then done.
    """
    counts = {name: repeats(call, budget, least, finish) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    for _ in range(rounds):
        gc.collect()
        for name, call in calls.items():
            if spent[name] < budget:
                seconds = sample(call, counts[name], finish)
                spent[name] += seconds
                samples[name].append(seconds / counts[name])
    return {name: summary(found) for name, found in samples.items()}


def sample(call: Call, count: int, finish: Call) -> float:
    """Seconds for so many calls, the garbage collector off."""
    gc.disable()
    finish()
    started = time.perf_counter()
    for _ in range(count):
        call()
    finish()
    seconds = time.perf_counter() - started
    gc.enable()
    return seconds


def summary(samples: list[float]) -> Times:
    low, median, high = np.quantile(samples, [0.25, 0.5, 0.75])
    return Times(float(median), float(low), float(high), len(samples))


def repeats(call: Call, budget: float, count: int, finish: Call) -> int:
    """How many calls make a sample; the calls that find it out also warm the call up."""
    while (seconds := sample(call, count, finish)) < min(SAMPLE, budget):
        count = max(2 * count, int(count * SAMPLE / max(seconds, 1e-6)))
    return count

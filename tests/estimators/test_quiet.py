"""NumPy's floating point state is the caller's: a valid call neither warns nor raises because of it.

Kills: a RuntimeWarning where a select leaves out what it is about, and a FloatingPointError under
`np.errstate(all="raise")`.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_invalid_calls import CALLS

import telescope
from telescope import metrics

WILD = {
    "f4": [0.0, -0.0, 1.0, -1e-45, 1e-38, 3e38, -3e38, np.inf, -np.inf, np.nan],
    "f8": [0.0, -0.0, 1.0, -5e-324, 1e-308, 1e308, -1e308, np.inf, -np.inf, np.nan],
    "f2": [0.0, 1.0, 6e4, -6e4, np.inf, np.nan],
}
METRICS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "iqm": (metrics.iqm, {"scores": np.ones(9)}),
    "bootstrap_ci": (metrics.bootstrap_ci, {"scores": np.ones((4, 2)), "resamples": 20}),
    "intervals": (metrics.intervals, {"scores": np.ones((6, 3))}),
    "probability_of_improvement": (metrics.probability_of_improvement, {"x": np.ones(5), "y": np.ones(4)}),
    "improvement_replicates": (metrics.improvement_replicates, {"x": np.ones(5), "y": np.ones(4), "resamples": 20}),
    "performance_profile": (metrics.performance_profile, {"scores": np.ones((5, 2)), "thresholds": np.ones(3)}),
    "profile_interval": (metrics.profile_interval, {"scores": np.ones((5, 2)), "thresholds": np.ones(3)}),
    "optimality_gap": (metrics.optimality_gap, {"scores": np.ones(5)}),
    "explained_variance": (metrics.explained_variance, {"values": np.ones(6), "returns": np.ones(6)}),
    "summarise": (metrics.summarise, {"per_seed_episode_returns": np.ones((3, 4))}),
}
FIXED = {"gamma", "lam", "returns_lam", "weights", "transitions", "policy", "out"}  # numbers with rules of their own


def wild(arguments: dict[str, Any], kind: str, random: np.random.Generator) -> dict[str, Any]:
    found = {key: value for key, value in arguments.items() if key != "out"}
    for key, value in found.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            found[key] = value.astype(kind) if key in FIXED else random.choice(np.array(WILD[kind], kind), value.shape)
    if "rewards" in found and kind == "f4":
        found["rewards"] = random.choice(WILD["f8"], found["rewards"].shape)  # too large for the values' dtype
    return found


def outcome(function: Callable[..., Any], arguments: dict[str, Any], how: Any) -> str | list[np.ndarray]:
    """What comes out, or the sentence it is refused with."""
    with warnings.catch_warnings(), np.errstate(all=how):
        warnings.simplefilter("error")
        try:
            found = function(**arguments)
        except ValueError as error:
            return str(error)
    found = list(found.values()) if isinstance(found, dict) else found
    found = found if isinstance(found, tuple | list) else [found]
    return [np.asarray(one, dtype=float) for one in found if one is not None]


@pytest.mark.parametrize("name", [*CALLS, *METRICS])
def test_it_neither_warns_nor_raises_whatever_the_numbers_are(name: str) -> None:
    function, arguments = (CALLS | METRICS)[name]
    random = np.random.default_rng(0)
    answers = 0
    for kind in WILD:
        for _ in range(4):
            problem = wild(arguments, kind, random)
            loud, silent = outcome(function, problem, "raise"), outcome(function, problem, "ignore")
            answers += isinstance(loud, list)
            assert type(loud) is type(silent)
            for one, other in zip(loud, silent, strict=True):
                np.testing.assert_array_equal(one, other)
    assert answers, "every one of these calls was refused"


def test_the_callers_state_is_as_it_was() -> None:
    with np.errstate(divide="raise", over="warn"):
        before = np.geterr()
        telescope.whiten(np.zeros(3), eps=0.0)
        assert np.geterr() == before

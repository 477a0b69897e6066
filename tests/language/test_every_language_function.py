"""Fuzz: the language mathematics, over rows, dtypes, sizes, masks and bounds, is its definition in float64.

The short run draws a few hundred problems; `make test-slow` some twenty thousand.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import language_definitions as definitions
from telescope import metrics
from telescope.objectives import advantages
from telescope.objectives import loss as policy_loss
from telescope.objectives.frameworks import AS_IN
from telescope.objectives.rows import ROWS, Correction, Objective

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
PRESETS = [*ROWS.values(), *(row for rows in AS_IN.values() for row in rows.values())]
LEVELS = ("token", "sequence", "geometric")


def objective(random: np.random.Generator) -> Objective:
    """A preset with some of its numbers changed."""
    row = PRESETS[random.integers(len(PRESETS))]
    change: dict[str, Any] = {"beta": float(random.choice([0.0, 0.1])), "kl": str(random.choice(["k1", "k2", "k3"]))}
    if row.surrogate == "clip" and random.random() < 0.5:
        change["clip"] = (float(random.choice([0.0, 0.2, 0.5])), float(random.choice([0.0, 0.3, math.inf])))
    if random.random() < 0.3:
        change["kl_bounds"] = (float(random.choice([1.0, math.inf])), float(random.choice([0.5, math.inf])))
    if row.baseline != "none":
        change["scale"] = str(random.choice(["none", "group", "others", "batch"]))
    return replace(row, **change)


def correction(random: np.random.Generator) -> Correction:
    weight, outside = str(random.choice(LEVELS)), str(random.choice(["clamp", "drop"]))
    decision = weight if outside == "clamp" else str(random.choice(LEVELS))
    low, high = float(random.choice([0.0, 0.5])), float(random.choice([1.5, 3.0]))
    return Correction(weight, decision, outside, low, high)  # type: ignore[arg-type]


def problem(random: np.random.Generator, dtype: torch.dtype) -> dict[str, Any]:
    shape = (int(random.integers(1, 4)), int(random.integers(1, 6)))
    size = float(random.choice([1e-3, 0.3, 3.0, 40.0]))

    def draw(*of: int, scale: float = 1.0) -> torch.Tensor:
        return torch.tensor(random.normal(size=of) * scale, dtype=torch.float64).to(dtype)

    mask = torch.tensor(random.random(shape) < 0.7)
    x = {
        "new": draw(*shape, scale=size),
        "old": draw(*shape, scale=size),
        "reference": draw(*shape, scale=size),
        "token": draw(*shape),
        "kl": draw(*shape),
        "correction": draw(*shape).abs(),
        "scores": draw(*shape, scale=float(random.choice([1e-2, 1.0, 300.0]))),
        "score": draw(shape[0]),
    }
    for name, value in x.items():
        if value.ndim == 2 and random.random() < 0.5:  # whatever stands in masked places
            x[name] = torch.where(mask, value, torch.tensor(random.choice([math.nan, math.inf]), dtype=dtype))
    return {**x, "mask": mask.to(random.choice([torch.bool, torch.float32, torch.int64]))}


def calls(
    row: Objective, held: Correction, x: dict[str, Any]
) -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """Of each function: what it says, and its definition of the same numbers."""
    no_whitening = replace(row, whiten="none")
    found: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
        "policy_loss": (
            lambda: policy_loss.policy_loss(
                row, x["new"], x["old"], x["token"], x["mask"], reference_log_probs=x["reference"],
                correction=x["correction"],
            ).loss,
            lambda y: definitions.policy_loss(row, y),
        ),
        "kl_penalty": (
            lambda: policy_loss.kl_penalty(row, x["new"], x["reference"], x["mask"], old_log_probs=x["old"]),
            lambda y: definitions.kl_penalty(row, y),
        ),
        "off_policy_weights": (
            lambda: policy_loss.off_policy_weights(held, x["old"], x["new"], x["mask"]),
            lambda y: definitions.off_policy_weights(held, y),
        ),
        "sample_advantages": (
            lambda: advantages.sample_advantages(row, x["scores"], x["mask"]),
            lambda y: definitions.sample_advantages(row, y),
        ),
        "token_rewards": (
            lambda: advantages.token_rewards(row, x["score"], x["mask"], x["kl"]),
            lambda y: definitions.token_rewards(row, y),
        ),
        "penalised_scores": (
            lambda: advantages.penalised_scores(row, x["score"], x["kl"], x["mask"]),
            lambda y: definitions.penalised_scores(row, y),
        ),
        "whitened": (
            lambda: advantages.whitened(replace(row, whiten="unbiased"), x["token"], x["mask"]),
            lambda y: definitions.whitened(replace(row, whiten="unbiased"), y),
        ),
    }  # fmt: skip
    if row.credit != "gae" and row.masked == "skipped" and row.score_at == "last":
        found["token_advantages"] = (
            lambda: advantages.token_advantages(no_whitening, x["score"], x["mask"], x["kl"]),
            lambda y: definitions.token_advantages(no_whitening, y),
        )
    return found


def compare(seed: int) -> int:
    """The number of results that were compared."""
    random = np.random.default_rng(seed)
    dtype = DTYPES[random.integers(len(DTYPES))]
    row, held, x = objective(random), correction(random), problem(random, dtype)
    before = {name: value.clone() for name, value in x.items()}
    plain = {name: value.double().tolist() for name, value in x.items()}
    found = calls(row, held, x)
    definitions.LARGEST[0] = math.log(np.finfo(np.float64 if dtype == torch.float64 else np.float32).max)
    for name, (ours, definition) in found.items():
        result = ours()
        assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32), name
        right = torch.tensor(definition(plain), dtype=torch.float64)
        # In float32 a log-ratio of size 100 is known to 1e-5, and its exponential to as much, relatively.
        exact = 1e-9 if dtype == torch.float64 else 2e-4
        right = right.clamp(-3e38, 3e38)
        inside = right.abs() < 1e37
        torch.testing.assert_close(
            result.double()[inside],
            right[inside],
            rtol=exact,
            atol=exact,
            msg=lambda text: f"{name}, {seed}: {text}",  # noqa: B023
        )
        assert not result.isnan().any(), (name, seed)
    for name, value in before.items():
        assert torch.equal(value.isnan(), x[name].isnan()), f"{name} was changed"
    return len(found)


def test_it_is_its_definition() -> None:
    assert sum(compare(seed) for seed in range(120)) > 800


@pytest.mark.slow
def test_it_is_its_definition_thousands_of_times() -> None:
    assert sum(compare(seed) for seed in range(1000, 4000)) > 20_000


def test_metrics_are_their_definitions() -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        shape = tuple(random.integers(1, 6, size=random.integers(1, 3)))
        values, returns = random.normal(size=(2, *shape)) * random.choice([1e-150, 1.0, 1e150])
        mask = random.random(shape) < 0.8
        y, v = returns[mask].astype(np.longdouble), values[mask].astype(np.longdouble)
        found = metrics.explained_variance(values, returns, mask)
        if len(set(y.tolist())) < 2:
            assert math.isnan(found)
            continue
        assert found == pytest.approx(float(1 - (y - v).var() / y.var()), rel=1e-9, abs=1e-9)
        scores = np.sort(random.normal(size=4 * random.integers(1, 9)))
        quarter = len(scores) // 4
        assert metrics.iqm(scores) == pytest.approx(scores[quarter:-quarter].mean(), rel=1e-12)

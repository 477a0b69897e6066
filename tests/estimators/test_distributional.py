"""Distributional GAE: its definition, GAE where the cost is linear and even, and what uneven weights are for."""

from typing import Any

import numpy as np
import pytest
import torch

import oracle
import telescope

GAMMA, LAM = 0.95, 0.8
EXACT = {"rtol": 0, "atol": 1e-11}


def rollout(shape: tuple[int, ...] = (20, 3), count: int = 5) -> tuple[oracle.Rollout, np.ndarray, np.ndarray]:
    random = np.random.default_rng(2)
    quantiles, successors = (np.sort(random.normal(size=(*shape, count)), axis=-1) for _ in range(2))
    return oracle.rollout(shape), quantiles, successors


def flags(steps: oracle.Rollout) -> dict[str, np.ndarray]:
    return {"terminated": steps.terminated, "truncated": steps.truncated, "mask": steps.mask}


def transport(steps: oracle.Rollout, quantiles: np.ndarray, successors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ_l (γλ)^l δ[t+l], δ the weighted gap between quantile functions; a terminated step leads to a return of 0."""
    result = np.zeros(steps.rewards.shape)
    for episode in oracle.episodes(steps):
        gaps = []
        for i in episode:
            target = steps.rewards[i] + (0.0 if steps.terminated[i] else GAMMA) * np.nan_to_num(successors[i])
            gaps.append(sum(w * (u - v) for w, u, v in zip(weights, target, quantiles[i], strict=True)))
        for start, index in enumerate(episode):
            result[index] = sum((GAMMA * LAM) ** n * gap for n, gap in enumerate(gaps[start:]))
    return result


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("weights", [None, [0.2] * 5, [0.5, 0.5, 0, 0, 0], [2.0, -1.0, 0, 0, 0]], ids=str)
def test_against_the_definition(weights: Any, axis: int) -> None:
    steps, quantiles, successors = rollout()
    successors[steps.terminated] = np.nan  # there is no such state
    w = np.full(5, 0.2) if weights is None else np.array(weights)
    expected = transport(steps, quantiles, successors, w)
    alive = np.where(steps.terminated[..., None], 0.0, GAMMA * successors)
    targets = (steps.rewards[..., None] + alive) * steps.mask[..., None]
    given = (steps.rewards, quantiles, successors)
    options: dict[str, Any] = flags(steps)
    if axis == 1:
        given = tuple(array.swapaxes(0, 1) for array in given)
        options = {name: flag.T for name, flag in options.items()}
        expected, targets = expected.T, targets.swapaxes(0, 1)
    options["weights"] = None if weights is None else w
    result = telescope.distributional_gae(*given, **options, gamma=GAMMA, lam=LAM, axis=axis)
    np.testing.assert_allclose(result.advantages, expected, **EXACT)
    np.testing.assert_allclose(result.targets, targets, **EXACT)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_even_weights_are_gae_on_the_mean(dtype: Any) -> None:
    steps, quantiles, successors = rollout(count=32)
    quantiles, successors = quantiles.astype(dtype), successors.astype(dtype)
    working = np.float64 if dtype == np.float64 else np.float32
    means = (array.astype(working).mean(-1) for array in (quantiles, successors))
    common = {**flags(steps), "gamma": GAMMA, "lam": LAM}
    expected = telescope.gae(steps.rewards, *means, **common).advantages
    result = telescope.distributional_gae(steps.rewards, quantiles, successors, **common)
    assert result.advantages.dtype == result.targets.dtype == working
    np.testing.assert_allclose(result.advantages, expected, rtol=0, atol=1e-6)
    even = np.full(32, 1 / 32, dtype)
    again = telescope.distributional_gae(steps.rewards, quantiles, successors, **common, weights=even)
    np.testing.assert_allclose(again.advantages, expected, rtol=0, atol=2e-6)


def test_one_quantile_is_gae() -> None:
    steps, _, _ = rollout()
    common = {**flags(steps), "gamma": np.array([0.9, 0.8, 0.7]), "lam": LAM}
    result = telescope.distributional_gae(
        steps.rewards, steps.values[..., None], steps.next_values[..., None], **common
    )
    np.testing.assert_allclose(result.advantages, telescope.gae(*steps[:3], **common).advantages, **EXACT)


def test_positive_is_better_than_expected() -> None:
    steps, quantiles, successors = rollout()
    common = {**flags(steps), "gamma": GAMMA, "lam": LAM}
    plain = telescope.distributional_gae(steps.rewards, quantiles, successors, **common).advantages
    richer = telescope.distributional_gae(steps.rewards + 1, quantiles, successors, **common).advantages
    assert (richer[steps.mask] >= plain[steps.mask] + 1 - 1e-12).all()


def test_weights_on_the_low_quantiles_shun_risk() -> None:
    """Two outcomes of one mean: what spreads more is worse where the lower half counts, better where the upper."""
    quantiles = np.array([[[-1.0, 1.0]]])
    wider = 3 * quantiles
    common: dict[str, Any] = {"terminated": None, "truncated": None, "gamma": 1.0, "lam": 1.0}
    signs = [
        float(telescope.distributional_gae(np.zeros((1, 1)), quantiles, wider, **common, weights=w).advantages[0, 0])
        for w in (np.array([1.0, 0.0]), None, np.array([0.0, 1.0]))
    ]
    assert signs == [-2.0, 0.0, 2.0]


def test_torch_and_gradients() -> None:
    steps, quantiles, successors = rollout((6, 2), 3)
    named = {name: torch.from_numpy(flag) for name, flag in flags(steps).items()}
    floats = [torch.from_numpy(array).requires_grad_() for array in (steps.rewards, quantiles, successors)]
    weights = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)

    def both(*arrays: Any) -> Any:
        settings = {"gamma": GAMMA, "lam": LAM, "weights": weights, "differentiable": True}
        return telescope.distributional_gae(*arrays, **named, **settings)

    assert torch.autograd.gradcheck(both, tuple(floats))
    plain = telescope.distributional_gae(*floats, **named, gamma=GAMMA, lam=LAM, weights=weights)
    for one, other in zip(plain, both(*floats), strict=True):
        assert not one.requires_grad
        torch.testing.assert_close(one, other.detach())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"quantiles": np.ones((20, 3))},
            r"quantiles has shape \(20, 3\) but rewards has \(20, 3\); expected the same and",
        ),
        ({"quantiles": np.ones((20, 3, 0))}, r"quantiles has shape \(20, 3, 0\)"),
        ({"next_quantiles": np.ones((20, 3, 4))}, r"next_quantiles has shape \(20, 3, 4\) but .* \(20, 3, 5\)"),
        ({"next_quantiles": np.ones((20, 3, 5), "f4")}, "next_quantiles has dtype float32 but quantiles has float64"),
        ({"quantiles": np.ones((20, 3, 5), int)}, "quantiles has dtype int64"),
        ({"quantiles": None}, "quantiles is None"),
        ({"rewards": None}, "rewards is None"),
        ({"weights": np.ones(4) / 4}, r"weights has shape \(4,\) but one per quantile is \(5,\)"),
        ({"weights": np.ones(5)}, "weights sum to 5; expected 1. Divide them by their sum"),
        ({"weights": np.full(5, np.nan)}, "weights sum to nan"),
        ({"weights": [0.2] * 5}, "weights is a list"),
        ({"gamma": -1.0}, "gamma is -1.0"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    steps, quantiles, successors = rollout()
    good = {"rewards": steps.rewards, "quantiles": quantiles, "next_quantiles": successors, **flags(steps)}
    with pytest.raises(ValueError, match=message):
        telescope.distributional_gae(**{**good, "gamma": GAMMA, "lam": LAM, **change})


def safer_by(lam: float, *, behind: bool) -> float:
    """Expected advantage of a safe action minus that of a risky one, with weights on the lower of two quantiles.

    Safe is worth 1, risky 0 or 2.4, evenly: as the return from the state it leads to, or as its own reward.
    """
    start, weights = [1.0, 1.0], np.array([1.0, 0.0])
    later = {"safe": [1.0, 1.0], "risky": [0.0, 2.4]}
    found = {}
    for action, outcomes in {"safe": [1.0, 1.0], "risky": [0.0, 2.4]}.items():
        columns = np.array([[0.0, 0.0], outcomes] if behind else [outcomes, [0.0, 0.0]])  # [T, outcome]
        follow = later[action] if behind else [0.0, 0.0]
        quantiles = np.array([[start, start], [follow, follow]])  # [T, outcome, N]
        found[action] = telescope.distributional_gae(
            columns, quantiles, np.array([[follow, follow], [[0.0, 0.0]] * 2]),
            terminated=np.array([[False, False], [True, True]]), truncated=None, gamma=1.0, lam=lam, weights=weights,
        ).advantages[0].mean()  # fmt: skip
    return round(float(found["safe"] - found["risky"]), 12)


def test_low_quantiles_shun_risk_only_below_lambda_1_and_behind_the_step() -> None:
    """The table of docs/estimators.md. Kills: the claim that they always do."""
    assert [safer_by(lam, behind=True) for lam in (0.0, 0.5, 0.95, 1.0)] == [1.0, 0.4, -0.14, -0.2]
    assert [safer_by(lam, behind=False) for lam in (0.0, 0.5, 0.95, 1.0)] == [-0.2] * 4

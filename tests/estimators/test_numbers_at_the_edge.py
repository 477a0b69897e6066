"""Numbers at the edge of what a dtype holds: no spread, huge and tiny ones, half precision, ratios that overflow.

The right values are those of float64, or of the formula on paper; each test says which bug it kills.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import telescope
from problems import told
from telescope import losses, metrics
from telescope.objectives import advantages as credit
from telescope.objectives.frameworks import AS_IN
from telescope.objectives.loss import kl_penalty, mismatch, off_policy_weights, policy_loss
from telescope.objectives.rows import CISPO, GRPO, GSPO, GSPO_TOKEN, PPO, REINFORCE_PP, RLOO, Correction

LIBRARIES = ["numpy", "torch", "jax"]
HALVES = [torch.float16, torch.bfloat16]
ROWS = [GRPO, GSPO, GSPO_TOKEN, CISPO, AS_IN["trl"]["rloo"], replace(GRPO, dual_clip=3.0), replace(GRPO, ratio_cap=3.0)]


# No spread


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("how", [{}, {"eps_inside": True}, {"scale_only": True}, {"biased": False}])
@pytest.mark.parametrize("x", [[0.5], [0.1, 0.1, 0.1], [3e38, 3e38], [0.0, 0.0], [-1e-30] * 5])
def test_without_eps_equal_numbers_are_0(library: str, how: dict[str, bool], x: list[float]) -> None:
    """Kills: 0/0."""
    found = telescope.whiten(told(np.float32(x), library), eps=0.0, **how)
    np.testing.assert_array_equal(np.asarray(found), 0)
    mask = told(np.arange(len(x)) != 1, library)
    np.testing.assert_array_equal(np.asarray(telescope.whiten(told(np.float32(x), library), mask=mask, eps=0.0)), 0)


@pytest.mark.parametrize("library", LIBRARIES)
def test_without_eps_a_group_of_equals_is_0_and_the_others_are_as_ever(library: str) -> None:
    rewards = told(np.float32([[0.1, 0.1, 0.1], [0.0, 1.0, 2.0]]), library)
    found = np.asarray(telescope.group_relative(rewards, eps=0.0))
    np.testing.assert_array_equal(found[0], 0)
    np.testing.assert_allclose(found[1], np.array([-1, 0, 1]) * math.sqrt(1.5), rtol=1e-6)
    assert (np.asarray(telescope.group_relative(rewards[:1], scale=False)) == 0).all()
    assert (np.asarray(telescope.leave_one_out(rewards[:1])) == 0).all()


def test_a_million_equal_numbers_are_0() -> None:
    """Kills: a mean that a long sum has rounded, which leaves ±1 where the deviation is only rounding too."""
    column = np.full((1_000_000, 2), 0.1, np.float32)
    np.testing.assert_array_equal(telescope.whiten(column, axis=0), 0)
    assert math.isnan(metrics.explained_variance(np.arange(1000.0), np.full(1000, 0.1)))


@pytest.mark.parametrize("how", [{}, {"eps_inside": True}, {"scale_only": True}])
def test_its_gradient_is_finite_where_nothing_spreads(how: dict[str, bool]) -> None:
    for eps in (0.0, 1e-8):
        x = torch.full((4,), 0.5, requires_grad=True)
        telescope.whiten(x, eps=eps, differentiable=True, **how).sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()


# Huge and tiny


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("size", [1e-37, 1e-20, 1.0, 1e20, 3e38])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"eps_inside": True},
        {"scale_only": True},
        {"biased": False},
        {"eps": 1e-8},
        {"eps": 1e-8, "eps_inside": True},
    ],
)
def test_whitening_does_not_know_the_unit(library: str, size: float, how: dict[str, Any]) -> None:
    """Kills: squares that are infinite, which whiten to 0, and squares that vanish, which whiten to infinity."""
    if library == "jax":  # whose division is a product with a reciprocal, and small numbers are 0
        size = min(max(size, 1e-30), 1e30)
    x = np.float32(np.array([[1.0, -1.0, 0.25], [-0.5, 0.75, 0.0]]) * size)
    wanted = telescope.whiten(x.astype(float), **{"eps": 0.0, **how})
    found = np.asarray(telescope.whiten(told(x, library), **{"eps": 0.0, **how}))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())


def test_explained_variance_does_not_know_the_unit() -> None:
    returns = np.array([1.0, 2.0, 4.0, 3.0])
    values = np.array([1.5, 2.0, 3.0, 3.0])
    wanted = 1 - (returns - values).var() / returns.var()
    for size in (1e-200, 1.0, 1e200, 4e307):
        assert metrics.explained_variance(values * size, returns * size) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("scale", ["group", "others", "batch"])
def test_scores_have_no_unit_either(scale: Any) -> None:
    objective = replace(GRPO, scale=scale, eps=0.0)
    scores = torch.tensor([[1.0, -1.0, 0.5, 0.0], [0.2, 0.1, 0.4, 0.3]], dtype=torch.float64)
    wanted = credit.sample_advantages(objective, scores)
    for size in (1e-30, 1e20, 3e38):
        found = credit.sample_advantages(objective, (scores * size).float())
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


# Half precision: as if it had been converted first


def inputs(dtype: torch.dtype) -> dict[str, Any]:
    random = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)  # noqa: E731
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 1, 0]]).bool()
    return {
        "new": draw(3, 4),
        "old": draw(3, 4),
        "reference": draw(3, 4),
        "token": draw(3, 4),
        "scores": 200 * draw(3, 4),
        "score": draw(3),
        "mask": mask,
    }


def language_calls(x: dict[str, Any]) -> dict[str, Any]:
    new, old, reference, token, mask = (x[name] for name in ("new", "old", "reference", "token", "mask"))
    both = (old, reference, mask)
    found: dict[str, Any] = {
        f"policy_loss {row.name}": policy_loss(
            replace(row, beta=0.1), new, old, token, mask, reference_log_probs=reference
        )
        for row in ROWS
    }
    for kind in ("k1", "k2", "k3"):
        for gradient in ("own", "k2", "score", "ratio"):
            row = replace(GRPO, kl=kind, kl_gradient=gradient)
            found[f"kl_penalty {kind} {gradient}"] = kl_penalty(row, new, reference, mask, old_log_probs=old)
    for level in ("token", "sequence", "geometric"):
        found[f"off_policy_weights {level}"] = off_policy_weights(Correction(level, level), *both)
    return found | {
        "scores by group": credit.sample_advantages(GRPO, x["scores"]),
        "scores by others": credit.sample_advantages(replace(GRPO, scale="others"), x["scores"]),
        "scores by batch": credit.sample_advantages(replace(GRPO, scale="batch"), x["scores"]),
        "penalised": credit.penalised_scores(RLOO, x["score"], token, mask),
        "not penalised": credit.penalised_scores(GRPO, x["score"], None, mask),
        "token_rewards": credit.token_rewards(REINFORCE_PP, x["score"], mask, token),
        "token_advantages": credit.token_advantages(REINFORCE_PP, x["score"], mask, token),
        "critic_advantages": credit.critic_advantages(PPO, token, old, mask, terminated=None, final_values=x["score"]),
        "whitened": credit.whitened(REINFORCE_PP, token, mask),
        "mismatch": tuple(mismatch(new, old, mask).values()),
        "sequence_log_ratio": losses.sequence_log_ratio(new, old, mask, average=False),
        "ppo_clip": losses.ppo_clip(losses.importance_ratio(new, old), token, 3e-4, 4e-4),
        "cispo": losses.cispo(losses.importance_ratio(new, old), new, token, 0.0, 5.0),
        "bradley_terry": losses.bradley_terry(new, old, 0.1),
        "values": losses.clipped_value_loss(new, old, token, 0.2),
        "kl": (losses.kl_k1(new, old), losses.kl_k2(new, old), losses.kl_k3(new, old)),
    }  # fmt: skip


def tensors(found: Any) -> list[torch.Tensor]:
    return [found] if isinstance(found, torch.Tensor) else [x for x in found if x.is_floating_point()]


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_converted_first(dtype: torch.dtype) -> None:
    """Kills: sums, squares and exponentials in half precision."""
    x = inputs(dtype)
    wide = {name: value.float() if value.is_floating_point() else value for name, value in x.items()}
    for (name, found), wanted in zip(language_calls(x).items(), language_calls(wide).values(), strict=True):
        for one, right in zip(tensors(found), tensors(wanted), strict=True):
            assert one.dtype == torch.float32, name
            torch.testing.assert_close(one, right, rtol=0, atol=0, msg=name)


def test_a_spread_of_hundreds_in_half_precision() -> None:
    scores = torch.tensor([[200.0, -200.0, 0.0, 50.0]])
    wanted = credit.sample_advantages(GRPO, scores)
    for dtype in HALVES:
        torch.testing.assert_close(credit.sample_advantages(GRPO, scores.to(dtype)), wanted)


# Ratios that overflow, and ties


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize("distance", [11.5, 89.0, 720.0, 1e4, math.inf])
@pytest.mark.parametrize(
    ("advantage", "how"),
    [(1.0, {}), (0.0, {}), (-1.0, {"dual_clip": 3.0}), (-1.0, {"ratio_cap": 3.0}), (-2.5, {"dual_clip": 3.0})],
)
def test_a_clipped_loss_has_no_gradient_however_large_the_ratio(
    dtype: torch.dtype, distance: float, advantage: float, how: dict[str, float]
) -> None:
    """Kills: 0 · ∞ = NaN."""
    new = torch.tensor([distance], dtype=dtype, requires_grad=True)
    ratio = losses.importance_ratio(new, torch.zeros(1, dtype=dtype))
    loss = losses.ppo_clip(ratio, torch.tensor([advantage], dtype=dtype), 0.2, **how)
    loss.backward()
    assert loss.item() == pytest.approx(-1.2 * advantage if advantage >= 0 else -3.0 * advantage, rel=1e-6)
    assert new.grad is not None
    assert new.grad.item() == 0


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name} {row.dual_clip} {row.ratio_cap}")
@pytest.mark.parametrize("step", [0.1, 5.0, 100.0])
def test_no_row_has_a_gradient_of_nan(row: Any, step: float) -> None:
    """A thousand tokens that each moved by a little: the product of their ratios is infinite."""
    for advantage in (1.0, -1.0, 0.0):
        new = torch.full((1, 1000), -0.9, requires_grad=True)
        old = torch.full((1, 1000), -0.9 - step)
        found = policy_loss(row, new, old, torch.full((1, 1000), advantage), torch.ones(1, 1000).bool())
        found.loss.mean().backward()
        assert new.grad is not None
        assert not new.grad.isnan().any()
        assert not found.loss.isnan().any()
        if row.surrogate == "clip" and advantage >= 0 and step == 100:
            assert (new.grad == 0).all()


def test_weights_of_another_sampler_stay_within_their_bounds() -> None:
    """Kills: a weight of infinity where it is not bounded, which makes NaN of a loss of 0."""
    old, sampler, mask = torch.full((1, 900), -0.1), torch.full((1, 900), -90.0), torch.ones(1, 900).bool()
    for level in ("token", "sequence", "geometric"):
        assert (off_policy_weights(Correction(level, level), old, sampler, mask) == 2).all()
        assert (off_policy_weights(Correction(level, level, "drop"), old, sampler, mask) == 0).all()
        free = off_policy_weights(Correction(level, level, high=math.inf), old, sampler, mask)
        assert free.isfinite().all()
        assert (free > 1e38).all()
    assert mismatch(old, sampler, mask)["ratio_mean"].isfinite()


def test_a_bounded_kl_has_no_gradient_however_far_the_reference() -> None:
    row = replace(GRPO, beta=0.1, kl_bounds=(math.inf, 10.0))
    for gradient in ("own", "ratio", "score"):
        new = torch.tensor([[-300.0, -0.5]], requires_grad=True)
        estimate = kl_penalty(
            replace(row, kl_gradient=gradient), new, torch.tensor([[-0.1, -0.6]]), torch.ones(1, 2).bool()
        )
        estimate.sum().backward()
        assert new.grad is not None
        assert new.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("clips", [(0.0, 0.0), (0.2, 0.2), (3e-4, 4e-4), (torch.tensor(0.0), torch.tensor(0.0))])
def test_at_a_bound_a_clip_has_its_full_gradient(dtype: torch.dtype, clips: tuple[Any, Any]) -> None:
    """Kills: a minimum and a maximum that share out the gradient of a tie; every framework clamps."""
    for advantage in (1.0, -1.0):
        ratio = torch.ones(1, dtype=dtype, requires_grad=True)
        losses.ppo_clip(ratio, torch.tensor([advantage], dtype=dtype), *clips).sum().backward()
        assert ratio.grad is not None
        assert ratio.grad.item() == -advantage
    ratio = torch.tensor([3.0], dtype=dtype, requires_grad=True)
    losses.ppo_clip(ratio, torch.tensor([-1.0], dtype=dtype), 0.2, dual_clip=3.0).sum().backward()
    assert ratio.grad is not None
    assert ratio.grad.item() == 1
    values = torch.tensor([1.0], dtype=dtype, requires_grad=True)
    losses.clipped_value_loss(values, values.detach(), torch.zeros(1, dtype=dtype), clips[0]).sum().backward()
    assert values.grad is not None
    assert values.grad.item() == 1


def _clip(advantage: float, **how: float) -> Any:
    return lambda x: losses.ppo_clip(x, torch.full_like(x, advantage), 0.2, **how)


def _value_clip(target: float) -> Any:
    return lambda x: losses.clipped_value_loss(x, torch.zeros_like(x), torch.full_like(x, target), 0.5)


def _kl(**row: Any) -> Any:
    row = {"kl": "k1", "kl_gradient": "own", **row}
    mask = torch.ones(1).bool()
    return lambda x: kl_penalty(replace(GRPO, **row), x, torch.zeros_like(x), mask)


def _bounded_log_ratio(advantage: float) -> Any:
    row, mask = replace(GRPO, log_ratio_bounds=(-0.5, 0.5)), torch.ones(1).bool()
    return lambda x: policy_loss(row, x, torch.zeros_like(x), torch.full_like(x, advantage), mask).loss


def _largest(dtype: torch.dtype) -> float:
    return math.log(torch.finfo(dtype).max) * (1 - torch.finfo(dtype).eps)


# The function of x, its bound, the direction in which it is beyond the bound, and its gradient up to the bound.
BOUNDS: dict[str, tuple[Any, Any, int, Any]] = {
    "clip, above": (_clip(1.0), 1.2, 1, -1.0),
    "clip, below": (_clip(-1.0), 0.8, -1, 1.0),
    "dual clip": (_clip(-1.0, dual_clip=3.0), 3.0, 1, 1.0),
    "ratio cap": (_clip(-1.0, ratio_cap=3.0), 3.0, 1, 1.0),
    "value clip, above": (_value_clip(1.0), 0.5, 1, lambda x: x - 1),
    "value clip, below": (_value_clip(-1.0), -0.5, -1, lambda x: x + 1),
    "the largest ratio": (losses.ratio_of, _largest, 1, torch.exp),
    "the largest k3": (lambda x: losses.kl_k3(x, torch.zeros_like(x)), _largest, 1, torch.expm1),
    "distance of the KL, above": (_kl(kl_bounds=(2.0, math.inf)), 2.0, 1, 1.0),
    "distance of the KL, below": (_kl(kl_bounds=(2.0, math.inf)), -2.0, -1, 1.0),
    "estimate of the KL, above": (_kl(kl_bounds=(math.inf, 3.0)), 3.0, 1, 1.0),
    "estimate of the KL, below": (_kl(kl_bounds=(math.inf, 3.0)), -3.0, -1, 1.0),
    "estimate of the KL, k2": (_kl(kl="k2", kl_bounds=(math.inf, 2.0)), 2.0, 1, lambda x: x),
    "log-ratio, above": (_bounded_log_ratio(-1.0), 0.5, 1, torch.exp),
    "log-ratio, below": (_bounded_log_ratio(1.0), -0.5, -1, lambda x: -x.exp()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BOUNDS)
def test_the_gradient_is_whole_up_to_and_at_a_bound_and_0_beyond_it(name: str, dtype: torch.dtype) -> None:
    """Kills: torch.clamp, whose gradient exactly at a bound is 1, ½ or 0, as its version has it."""
    function, bound, beyond, wanted = BOUNDS[name]
    bound = torch.tensor([bound(dtype) if callable(bound) else bound], dtype=dtype)
    for steps in (-1, 0, 1):
        x = bound if steps == 0 else bound.nextafter(torch.full_like(bound, steps * beyond * math.inf))
        gradient = torch.func.grad(lambda x: function(x).sum())(x)
        whole = wanted(x) if callable(wanted) else torch.full_like(x, wanted)
        assert torch.equal(gradient, torch.zeros_like(x) if steps == 1 else whole), (steps, gradient)


def test_a_ratio_is_its_exponential_as_far_as_there_is_one() -> None:
    for dtype in (torch.float32, torch.float64):
        limit = math.log(torch.finfo(dtype).max)
        at = torch.tensor([-limit, -3.0, 0.0, 0.9 * limit, limit - 1e-3], dtype=dtype)
        assert torch.equal(losses.ratio_of(at), at.exp())
        assert losses.ratio_of(torch.tensor([2 * limit, math.inf], dtype=dtype)).isfinite().all()


def test_a_sequences_ratio_is_not_rounded_by_its_tokens() -> None:
    """Kills: (log s + log π) − log π, whose rounding is as large as GSPO's clips."""
    new = torch.full((1,), -12.3)
    assert losses.anchored(torch.tensor([1.2e-5]), new).item() == torch.tensor(1.2e-5).item()


# Shapes


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: losses.ppo_clip(a, b, 0.2),
        lambda a, b: losses.ppo_clip(a, a, b.abs()),
        losses.importance_ratio,
        losses.reinforce,
        losses.squared_value_loss,
        losses.bradley_terry,
        lambda a, b: losses.bradley_terry(a, a, b),
        lambda a, b: losses.clipped_value_loss(a, a, b, 0.2),
        lambda a, b: losses.cispo(a, a, b, 0.0, 5.0),
        losses.kl_k1,
        losses.kl_k2,
        losses.kl_k3,
        losses.value_of,
    ],
)
def test_no_loss_makes_a_matrix_of_a_column_and_a_row(call: Any) -> None:
    """Kills: [4] against [4, 1], which is 16 losses."""
    with pytest.raises(ValueError, match="has shape"):
        call(torch.ones(4), torch.ones(4, 1))
    assert call(torch.ones(4), torch.tensor(1.0)).shape == (4,)

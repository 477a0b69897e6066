"""Laws of the objectives, against their definitions in plain Python and against finite differences."""

import numpy as np
import pytest
import torch

from telescope.losses import (
    clipped_value_loss,
    importance_ratio,
    kl_k1,
    kl_k2,
    kl_k3,
    ppo_clip,
    squared_value_loss,
)


def gradient(function, at):
    at = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    function(at).sum().backward()
    return at.grad


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [(1.3, 1.0, 0.0), (1.1, 1.0, -1.0), (0.5, 1.0, -1.0), (0.7, -1.0, 0.0), (0.9, -1.0, 1.0), (1.5, -1.0, 1.0)],
)
def test_clip_stops_the_gradient_only_where_the_ratio_has_gone_the_right_way_far_enough(ratio, advantage, slope):
    assert gradient(lambda r: ppo_clip(r, torch.tensor(advantage), 0.2), ratio) == pytest.approx(slope)


def test_ppo_clip_is_the_minimum_of_its_two_terms():
    rng = np.random.default_rng(0)
    ratio, advantage = rng.uniform(0.3, 2, 500), rng.normal(size=500)
    wanted = [-min(r * a, min(max(r, 0.9), 1.1) * a) for r, a in zip(ratio, advantage, strict=True)]
    found = ppo_clip(torch.tensor(ratio), torch.tensor(advantage), torch.tensor(0.1, dtype=torch.float64))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_without_a_clip_it_is_the_conservative_surrogate():
    ratio, advantage = torch.rand(50) + 0.5, torch.randn(50)
    torch.testing.assert_close(ppo_clip(ratio, advantage, torch.inf), -ratio * advantage)


def test_the_gradient_of_the_ratio_is_the_policy_gradient():
    log_probs = torch.tensor([-1.0, -0.3, -2.0])
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = gradient(lambda x: ppo_clip(importance_ratio(x, log_probs.double()), advantages, 0.2), log_probs.tolist())
    torch.testing.assert_close(found, -advantages)


def test_clipped_value_loss_is_never_below_the_plain_one_and_equals_it_within_the_clip():
    values, old, targets = torch.randn(3, 200, dtype=torch.float64)
    plain, clipped = squared_value_loss(values, targets), clipped_value_loss(values, old, targets, 0.2)
    assert (clipped >= plain).all()
    near = (values - old).abs() <= 0.2
    assert near.any()
    assert (clipped > plain).any()
    torch.testing.assert_close(clipped[near], plain[near])
    torch.testing.assert_close(clipped_value_loss(values, old, targets, torch.inf), plain)


def test_kl_estimators_average_to_the_kl_divergence():
    p, q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    exact = (p * (p / q).log()).sum()
    for estimator in (kl_k1, kl_k3):
        assert (p * estimator(q.log(), p.log())).sum() == pytest.approx(exact.item(), rel=1e-9)
    assert (p * kl_k2(q.log(), p.log())).sum() == pytest.approx(exact.item(), rel=0.1)  # biased, but close
    assert (kl_k3(q.log(), p.log()) >= 0).all()
    assert (kl_k1(q.log(), p.log()) < 0).any()

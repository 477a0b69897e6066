"""Laws of the objectives, against their definitions in plain Python and against finite differences."""

import numpy as np
import pytest
import torch

from telescope.losses import (
    anchored,
    bradley_terry,
    cispo,
    clipped_value_loss,
    importance_ratio,
    kl_k1,
    kl_k2,
    kl_k3,
    per_sequence,
    ppo_clip,
    reinforce,
    sequence_log_ratio,
    squared_value_loss,
    value_of,
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


def test_a_clip_of_two_sides_is_each_of_them_where_it_acts():
    rng = np.random.default_rng(1)
    ratio, advantage = torch.tensor(rng.uniform(0.3, 2, 500)), torch.tensor(rng.normal(size=500))
    found = ppo_clip(ratio, advantage, 0.1, 0.4)
    up = ratio > 1
    torch.testing.assert_close(found[up], ppo_clip(ratio, advantage, 0.4)[up])
    torch.testing.assert_close(found[~up], ppo_clip(ratio, advantage, 0.1)[~up])
    assert (found != ppo_clip(ratio, advantage, 0.1)).any()


def test_dual_clip_and_cap_bound_the_loss_of_bad_actions_alone():
    ratio = torch.linspace(0, 9, 200, dtype=torch.float64)
    for advantage in (torch.tensor(1.5), torch.tensor(0.0)):
        plain = ppo_clip(ratio, advantage, 0.2)
        torch.testing.assert_close(ppo_clip(ratio, advantage, 0.2, dual_clip=3.0), plain)
        torch.testing.assert_close(ppo_clip(ratio, advantage, 0.2, ratio_cap=3.0), plain)
    bad = torch.tensor(-1.5)
    wanted = ppo_clip(ratio, bad, 0.2).clamp(max=4.5)
    torch.testing.assert_close(ppo_clip(ratio, bad, 0.2, dual_clip=3.0), wanted)
    torch.testing.assert_close(ppo_clip(ratio, bad, 0.2, ratio_cap=3.0), wanted)
    assert gradient(lambda r: ppo_clip(r, bad, 0.2, dual_clip=3.0), 4.0) == 0
    assert gradient(lambda r: ppo_clip(r, bad, 0.2, dual_clip=3.0), 2.0) == 1.5


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: ppo_clip(x.exp(), torch.tensor([1.0, -1.0, 2.0]), 0.1, 0.3, dual_clip=2.0),
        lambda x: ppo_clip(x.exp(), torch.tensor([-1.0, -1.0, 2.0]), 0.1, ratio_cap=1.5),
        lambda x: reinforce(x, torch.tensor([1.0, -1.0, 2.0])),
        lambda x: bradley_terry(x[:2], x[1:], 0.3),
        lambda x: clipped_value_loss(x, torch.zeros(3), torch.ones(3), 0.5),
        lambda x: sequence_log_ratio(x, torch.zeros(3), torch.tensor([True, False, True])).exp(),
        lambda x: sequence_log_ratio(x, torch.zeros(3), torch.tensor([True, False, True]), average=False).exp(),
        lambda x: torch.stack([kl_k1(x, -x), kl_k2(x, -x), kl_k3(x, -x)]),
    ],
)
def test_gradients_are_those_of_finite_differences(loss):
    at = torch.tensor([0.7, -0.2, 0.05], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(x), at)


def test_cispo_bounds_the_weight_but_not_the_gradient():
    ratio, log_probs = torch.tensor([0.5, 1.0, 7.0]), torch.tensor([-1.0, -2.0, -3.0])
    found = gradient(lambda x: cispo(ratio, x, torch.tensor(2.0), 0.8, 5.0), log_probs.tolist())
    torch.testing.assert_close(found, torch.tensor([-1.6, -2.0, -10.0], dtype=torch.float64))
    assert not cispo(ratio.clone().requires_grad_(), log_probs, torch.tensor(2.0), 0.8, 5.0).requires_grad
    advantages = torch.tensor([1.0, -1.0, 0.5])
    torch.testing.assert_close(cispo(ratio, log_probs, advantages, 1.0, 1.0), reinforce(log_probs, advantages))


def test_the_ratio_of_a_sequence_is_the_mean_or_product_of_its_tokens():
    new, old = torch.randn(2, 3, 5, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
    new, old = (torch.where(mask, x, torch.nan) for x in (new, old))
    mean, total = (sequence_log_ratio(new, old, mask, average=average) for average in (True, False))
    for row, live in enumerate(mask):
        ratios = (new - old)[row][live].exp()
        torch.testing.assert_close(total[row][live].exp(), ratios.prod().expand_as(ratios))
        torch.testing.assert_close(mean[row][live].exp(), ratios.prod().pow(1 / max(len(ratios), 1)).expand_as(ratios))
        assert (mean[row][~live] == 0).all()
    one = mask & (mask.cumsum(1) == 1)
    torch.testing.assert_close(sequence_log_ratio(new, old, one).exp()[one], importance_ratio(new, old)[one])


def test_an_anchored_ratio_has_the_value_of_the_sequence_and_the_gradient_of_the_token():
    new = torch.tensor([0.1, 0.4], dtype=torch.float64, requires_grad=True)
    whole = sequence_log_ratio(new, torch.zeros(2), torch.ones(2, dtype=torch.bool))
    found = anchored(whole, new).exp()
    torch.testing.assert_close(found.detach(), torch.full((2,), 0.25, dtype=torch.float64).exp())
    found[0].backward()
    torch.testing.assert_close(new.grad, torch.stack([found[0].detach(), torch.zeros_like(found[0])]))


def test_sums_over_sequences_are_those_of_their_owner():
    x, owner = torch.arange(8.0).reshape(2, 4), torch.tensor([[9, 9, 4, 4], [4, 0, 0, 9]])
    assert per_sequence(x, owner).tolist() == [[8, 8, 9, 9], [9, 11, 11, 8]]
    assert per_sequence(x).tolist() == [[6] * 4, [22] * 4]
    assert per_sequence(x.unflatten(1, (2, 2))).tolist() == [[[1, 1], [5, 5]], [[9, 9], [13, 13]]]


def test_preferences_are_those_of_bradley_and_terry():
    chosen, rejected = torch.randn(2, 50, dtype=torch.float64)
    won = chosen.exp() / (chosen.exp() + rejected.exp())
    torch.testing.assert_close(bradley_terry(chosen, rejected), -won.log())
    torch.testing.assert_close(bradley_terry(chosen, rejected, 0.5), bradley_terry(chosen - 0.5, rejected))
    assert bradley_terry(torch.tensor(-1e4), torch.tensor(1e4)) == 2e4  # no overflow


def test_the_value_of_one_with_the_gradient_of_another():
    x = torch.tensor(3.0, requires_grad=True)
    found = value_of(x**2, x**3)
    found.backward()
    assert (found.item(), x.grad.item()) == (9, 27)

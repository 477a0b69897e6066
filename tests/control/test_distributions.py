"""Our action distributions against torch.distributions, and samples against probabilities."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import distributions as D

from telescope.control.agents.distributions import distribution

SPACES = {
    "Discrete": gym.spaces.Discrete(4),
    "MultiDiscrete": gym.spaces.MultiDiscrete([3, 2, 4]),
    "MultiDiscrete 2-D": gym.spaces.MultiDiscrete(np.array([[3, 2], [2, 4]])),
    "MultiBinary": gym.spaces.MultiBinary(3),
    "MultiBinary 2-D": gym.spaces.MultiBinary((2, 2)),
    "Box": gym.spaces.Box(-1, 1, (3,)),
    "Box 2-D": gym.spaces.Box(-1, 1, (2, 2)),
    "Box scalar": gym.spaces.Box(-1, 1, ()),
}


def reference(space, outputs, actions):
    """log-probability and entropy by torch.distributions."""
    if isinstance(space, gym.spaces.Discrete):
        d = D.Categorical(logits=outputs)
        return d.log_prob(actions), d.entropy()
    if isinstance(space, gym.spaces.MultiDiscrete):
        parts = [D.Categorical(logits=x) for x in torch.split(outputs, list(space.nvec.ravel()), dim=-1)]
        columns = actions.reshape(len(actions), -1).unbind(-1)
        log_probs = [d.log_prob(a) for d, a in zip(parts, columns, strict=True)]
        return sum(log_probs), sum(d.entropy() for d in parts)
    if isinstance(space, gym.spaces.MultiBinary):
        d = D.Bernoulli(logits=outputs)
        return d.log_prob(actions.reshape(outputs.shape).float()).sum(-1), d.entropy().sum(-1)
    mean, log_std = outputs.chunk(2, dim=-1)
    d = D.Normal(mean, log_std.exp())
    return d.log_prob(actions.reshape(mean.shape)).sum(-1), d.entropy().sum(-1)


@pytest.mark.parametrize("name", SPACES)
def test_agrees_with_torch_distributions(name):
    space, rng = SPACES[name], np.random.default_rng(0)
    d = distribution(space)
    outputs = torch.tensor(rng.normal(size=(64, d.outputs)), dtype=torch.float32)
    actions = d.sample(outputs, torch.tensor(d.noise(rng, (64,))))
    assert actions.shape == (64, *space.shape)
    assert actions.dtype == d.action_dtype
    log_probs, entropy = reference(space, outputs, actions)
    torch.testing.assert_close(d.log_prob(outputs, actions), log_probs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(d.entropy(outputs), entropy, rtol=1e-5, atol=1e-5)
    assert d.mode(outputs).shape == actions.shape
    assert (d.log_prob(outputs, d.mode(outputs)) >= log_probs - 1e-5).all()


@pytest.mark.parametrize("name", SPACES)
def test_the_kl_is_the_mean_of_the_log_ratio(name):
    """Exact where actions can be counted, to five standard errors where they are drawn; 0 for the policy itself."""
    space, rng, n = SPACES[name], np.random.default_rng(5), 40_000
    d = distribution(space)
    new, old = (torch.tensor(rng.normal(size=(d.outputs,)), dtype=torch.float64).expand(n, -1) for _ in range(2))
    actions = d.sample(old, torch.tensor(d.noise(rng, (n,))))
    ratios = d.log_prob(old, actions) - d.log_prob(new, actions)
    kl = float(d.kl(new, old)[0])
    assert abs(ratios.mean() - kl) < 5 * ratios.std() / n**0.5
    if not d.continuous:
        found = torch.unique(actions.reshape(n, -1), dim=0).reshape(-1, *space.shape)
        p, q = (d.log_prob(x[: len(found)], found) for x in (old, new))
        assert p.exp().sum() == pytest.approx(1)
        assert kl == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-6)
    assert float(d.kl(old, old)[0]) == pytest.approx(0, abs=1e-12)


def test_forbidden_actions_are_no_part_of_a_kl():
    d = distribution(gym.spaces.Discrete(3))
    new, old, mask = torch.tensor([0.3, 7.0, -1.0]), torch.tensor([1.0, -4.0, 0.5]), torch.tensor([True, False, True])
    two = distribution(gym.spaces.Discrete(2))
    assert d.kl(new, old, mask) == pytest.approx(float(two.kl(new[mask], old[mask])), rel=1e-5)


@pytest.mark.parametrize("name", ["Discrete", "MultiDiscrete", "MultiBinary"])
def test_samples_come_as_often_as_their_probability_says(name):
    space, rng, n = SPACES[name], np.random.default_rng(1), 20_000
    d = distribution(space)
    outputs = torch.tensor(rng.normal(size=(d.outputs,)), dtype=torch.float32).expand(n, -1)
    actions = d.sample(outputs, torch.tensor(d.noise(rng, (n,))))
    found, counts = torch.unique(actions.reshape(n, -1), dim=0, return_counts=True)
    shaped = found.reshape(-1, *space.shape)
    p = d.log_prob(outputs[: len(found)], shaped).exp()
    assert p.sum() == pytest.approx(1.0, abs=1e-3)
    five_sigma = 5 * (p * (1 - p) / n).sqrt()
    assert ((counts / n - p).abs() < five_sigma + 1e-4).all()


def test_gaussian_samples_have_the_mean_and_deviation_of_the_outputs():
    d, rng, n = distribution(SPACES["Box"]), np.random.default_rng(2), 20_000
    outputs = torch.tensor([1.0, -2.0, 0.0, 0.5, -1.0, 0.0])
    samples = d.sample(outputs.expand(n, -1), torch.tensor(d.noise(rng, (n,))))
    sigma = outputs[3:].exp()
    assert ((samples.mean(0) - outputs[:3]).abs() < 5 * sigma / n**0.5).all()
    assert ((samples.std(0) / sigma - 1).abs() < 5 / (2 * n) ** 0.5).all()


def test_forbidden_actions_have_no_probability_and_leave_the_rest_as_if_they_were_not_there():
    d, rng = distribution(gym.spaces.Discrete(4)), np.random.default_rng(3)
    logits = torch.tensor(rng.normal(size=(1000, 4)), dtype=torch.float32)
    masks = torch.tensor([True, False, True, False]).expand(1000, -1)
    actions = d.sample(logits, torch.tensor(d.noise(rng, (1000,))), masks)
    assert set(actions.tolist()) == {0, 2}
    assert set(d.mode(logits, masks).tolist()) <= {0, 2}
    two = D.Categorical(logits=logits[:, [0, 2]])
    torch.testing.assert_close(d.log_prob(logits, actions, masks), two.log_prob(actions // 2))
    torch.testing.assert_close(d.entropy(logits, masks), two.entropy())


def test_a_masked_logit_gets_no_gradient():
    d = distribution(gym.spaces.Discrete(3))
    logits = torch.zeros(1, 3, requires_grad=True)
    masks = torch.tensor([[True, True, False]])
    (d.entropy(logits, masks) + d.log_prob(logits, torch.tensor([0]), masks)).sum().backward()
    assert logits.grad[0, 2] == 0
    assert torch.isfinite(logits.grad).all()


def test_another_space_is_refused_by_name():
    with pytest.raises(ValueError, match="action_space is Dict"):
        distribution(gym.spaces.Dict({"a": gym.spaces.Discrete(2)}))

"""Windows of k and n steps: against sums over each episode by itself, and their reductions to GAE and returns."""

from typing import Any

import numpy as np
import pytest
import torch

import oracle
import telescope

GAMMA = 0.9
EXACT = {"rtol": 0, "atol": 1e-12}


def windows(steps: oracle.Rollout, gamma: Any, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Σ_{l<k} γ^l δ[t+l], and r[t] + … + γⁿ v': written out, episode by episode."""
    gamma = np.broadcast_to(np.float64(gamma), steps.values.shape)
    advantages, returns = np.zeros(steps.values.shape), np.zeros(steps.values.shape)
    for episode in oracle.episodes(steps):
        for start, index in enumerate(episode):
            weight = 1.0
            for i in episode[start : start + length]:
                tail = 0.0 if steps.terminated[i] else gamma[i] * steps.next_values[i]
                advantages[index] += weight * (steps.rewards[i] + tail - steps.values[i])
                returns[index] += weight * steps.rewards[i]
                last, weight = weight * tail, weight * gamma[i]
            returns[index] += last
    return advantages, returns


def rollout(shape: tuple[int, ...], masked: bool = True, ends: float = 0.1) -> oracle.Rollout:
    steps = oracle.rollout(shape, ends=ends)
    steps = steps if masked else steps._replace(mask=np.ones(shape, bool))
    random = np.random.default_rng(7)
    successors = oracle.successors(steps, random.normal(size=shape[1:]), random.normal(size=shape))
    return steps._replace(next_values=successors)


def both(steps: oracle.Rollout, length: int, **more: Any) -> tuple[Any, Any]:
    flags = {"terminated": steps.terminated, "truncated": steps.truncated, **more}
    advantages = telescope.k_step_advantage(*steps[:3], **flags, k=length)
    return advantages, telescope.n_step_return(steps.rewards, steps.next_values, **flags, n=length)


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 13, 39, 40, 41, 1000])
def test_against_the_plain_sums(length: int, masked: bool) -> None:
    steps = rollout((40, 4), masked)
    results = both(steps, length, gamma=GAMMA, mask=steps.mask if masked else None)
    for result, expected in zip(results, windows(steps, GAMMA, length), strict=True):
        np.testing.assert_allclose(result, expected, **EXACT)


@pytest.mark.parametrize("shape", [(0,), (1,), (0, 3), (3, 0), (1, 2), (5, 2, 3)], ids=str)
@pytest.mark.parametrize("length", [1, 2, 3])
def test_odd_shapes(shape: tuple[int, ...], length: int) -> None:
    steps = rollout(shape)
    for result, expected in zip(
        both(steps, length, gamma=GAMMA, mask=steps.mask), windows(steps, GAMMA, length), strict=True
    ):
        assert result.shape == shape
        np.testing.assert_allclose(result, expected, **EXACT)


@pytest.mark.parametrize("shape", [(4,), (12, 1), (12, 4), ()], ids=str)
def test_gamma_per_environment_and_per_step(shape: tuple[int, ...]) -> None:
    steps = rollout((12, 4))
    gamma = np.random.default_rng(2).random(shape)
    for length in 2, 5, 12:
        results = both(steps, length, gamma=gamma, mask=steps.mask)
        for result, expected in zip(results, windows(steps, gamma, length), strict=True):
            np.testing.assert_allclose(result, expected, **EXACT)


def test_one_step_is_the_td_residual_and_target() -> None:
    steps = rollout((30, 3))
    residual = telescope.td_error(*steps[:3], terminated=steps.terminated, gamma=GAMMA, mask=steps.mask)
    advantages, returns = both(steps, 1, gamma=GAMMA, mask=steps.mask)
    np.testing.assert_array_equal(advantages, residual)
    np.testing.assert_allclose(returns, residual + steps.values * steps.mask, **EXACT)


def test_all_steps_are_monte_carlo() -> None:
    steps = rollout((30, 3))
    flags = {"terminated": steps.terminated, "truncated": steps.truncated, "mask": steps.mask, "gamma": GAMMA}
    advantages, returns = both(steps, 30, gamma=GAMMA, mask=steps.mask)
    np.testing.assert_allclose(advantages, telescope.gae(*steps[:3], **flags, lam=1.0).advantages, **EXACT)
    discounted = telescope.discounted_return(steps.rewards, steps.next_values, **flags)
    np.testing.assert_allclose(returns, discounted, **EXACT)


def test_the_sum_telescopes() -> None:
    """−v[t] + r[t] + … + γ^k v[t+k]: nothing in between is left of the values."""
    steps = rollout((30, 3))
    for k in 1, 2, 3, 6, 29:
        advantages, returns = both(steps, k, gamma=GAMMA, mask=steps.mask)
        np.testing.assert_allclose(advantages, returns - steps.values * steps.mask, **EXACT)


@pytest.mark.parametrize("lam", [0.0, 0.6, 0.95])
def test_gae_is_the_mixture_of_windows(lam: float) -> None:
    """GAE(γ, λ) = (1−λ) Σ_k λ^{k−1} Â⁽ᵏ⁾; from k = T on all windows are the same."""
    steps = rollout((20, 3))
    every = [both(steps, k, gamma=GAMMA, mask=steps.mask)[0] for k in range(1, 21)]
    mixture = sum((1 - lam) * lam**k * window for k, window in enumerate(every[:-1])) + lam**19 * every[-1]
    flags = {"terminated": steps.terminated, "truncated": steps.truncated, "mask": steps.mask}
    np.testing.assert_allclose(mixture, telescope.gae(*steps[:3], **flags, gamma=GAMMA, lam=lam).advantages, **EXACT)


def test_long_sums_stay_accurate() -> None:
    """A difference of running sums would lose what a window holds: here 1e8 comes before it."""
    steps, n = oracle.rollout((5000, 1), np.float32), 600
    steps.rewards[:100] += 1e8
    flags = {"terminated": None, "truncated": None, "gamma": 1.0}
    result = telescope.n_step_return(steps.rewards, steps.next_values, **flags, n=n)[:, 0]
    rewards = np.concatenate([steps.rewards[:, 0].astype(np.float64), np.zeros(n - 1)])
    last = np.minimum(np.arange(5000) + n - 1, 4999)
    exact = np.lib.stride_tricks.sliding_window_view(rewards, n).sum(-1) + steps.next_values[last, 0]
    np.testing.assert_allclose(result[100:], exact[100:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_gradients_are_exact_on_request(masked: bool) -> None:
    steps = rollout((7, 2))
    floats = [torch.from_numpy(array).requires_grad_() for array in steps[:3]]
    gamma = torch.tensor([0.9, 0.7], dtype=torch.float64, requires_grad=True)
    flags: dict[str, Any] = {
        "terminated": torch.from_numpy(steps.terminated),
        "truncated": torch.from_numpy(steps.truncated),
        "mask": torch.from_numpy(steps.mask) if masked else None,
    }
    for length in 1, 3, 9:

        def every(r: Any, v: Any, n: Any, gamma: Any, length: int = length) -> Any:
            common = {**flags, "gamma": gamma, "differentiable": True}
            return (
                telescope.k_step_advantage(r, v, n, **common, k=length),
                telescope.n_step_return(r, n, **common, n=length),
            )

        assert torch.autograd.gradcheck(every, (*floats, gamma))
    assert not telescope.k_step_advantage(*floats, **flags, gamma=gamma, k=3).requires_grad


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, None, "3"])
def test_the_length_is_a_positive_integer(bad: Any) -> None:
    steps = rollout((5, 2))
    flags = {"terminated": None, "truncated": None, "gamma": GAMMA}
    with pytest.raises(ValueError, match=r"k is .*; expected an integer >= 1"):
        telescope.k_step_advantage(*steps[:3], **flags, k=bad)
    with pytest.raises(ValueError, match=r"n is .*; expected an integer >= 1"):
        telescope.n_step_return(steps.rewards, steps.values, **flags, n=bad)

"""V-trace and Retrace: against the double sums of their papers, and what they are on-policy."""

from typing import Any

import numpy as np
import pytest
import torch

import oracle
import telescope

GAMMA, LAM = 0.95, 0.8
EXACT = {"rtol": 0, "atol": 1e-11}


def rollout(shape: tuple[int, ...] = (20, 3), ends: float = 0.12) -> tuple[oracle.Rollout, np.ndarray]:
    """Steps as of a real rollout (next_values come from values), and log-ratios."""
    steps = oracle.rollout(shape, ends=ends)
    random = np.random.default_rng(11)
    successors = oracle.successors(steps, random.normal(size=shape[1:]), random.normal(size=shape))
    return steps._replace(next_values=successors), random.normal(size=shape) * 0.8


def flags(steps: oracle.Rollout) -> dict[str, np.ndarray]:
    return {"terminated": steps.terminated, "truncated": steps.truncated, "mask": steps.mask}


def clipped(ratio: float, clip: float | None) -> float:
    return float(ratio) if clip is None else min(clip, float(ratio))


def residual(steps: oracle.Rollout, i: tuple[int, ...], value: float) -> float:
    tail = 0.0 if steps.terminated[i] else GAMMA * steps.next_values[i]
    return float(steps.rewards[i] + tail - value)


def espeholt(
    steps: oracle.Rollout, log_ratios: np.ndarray, lam: np.ndarray, clips: tuple[float | None, float | None]
) -> np.ndarray:
    """v_s = V(x_s) + Σ_{t≥s} γ^{t−s} (Π_{s≤i<t} c_i) ρ_t δ_t (Espeholt et al. 2018, eq. 1)."""
    targets = np.zeros(steps.values.shape)
    for episode in oracle.episodes(steps):
        for start, s in enumerate(episode):
            targets[s] = steps.values[s]
            for stop in range(start, len(episode)):
                t, weight = episode[stop], GAMMA ** (stop - start)
                for i in episode[start:stop]:
                    weight *= lam[i] * clipped(np.exp(log_ratios[i]), clips[1])
                targets[s] += weight * clipped(np.exp(log_ratios[t]), clips[0]) * residual(steps, t, steps.values[t])
    return targets


def policy_gradient(steps: oracle.Rollout, log_ratios: np.ndarray, targets: np.ndarray, clip: Any) -> np.ndarray:
    """ρ_s (r_s + γ v_{s+1} − V(x_s)), where v_{s+1} is V where the data stop (ibid., section 4.2)."""
    advantages = np.zeros(targets.shape)
    for episode in oracle.episodes(steps):
        for i, following in zip(episode, [*episode[1:], None], strict=True):
            ahead = steps.next_values[i] if following is None else targets[following]
            tail = 0.0 if steps.terminated[i] else GAMMA * ahead
            advantages[i] = clipped(np.exp(log_ratios[i]), clip) * (steps.rewards[i] + tail - steps.values[i])
    return advantages


CLIPS = [(1.0, 1.0, 1.0), (2.0, 0.5, 1.5), (None, 1.0, None), (1.3, None, 0.7), (None, None, 1.0), (0.6, 0.0, 0.0)]


@pytest.mark.parametrize("clips", CLIPS, ids=str)
@pytest.mark.parametrize("lam", [1.0, 0.7, "per step"])
def test_vtrace_is_the_double_sum(clips: Any, lam: Any) -> None:
    steps, log_ratios = rollout()
    lam = np.random.default_rng(0).random(log_ratios.shape) if lam == "per step" else lam
    names = ("rho_clip", "c_clip", "pg_rho_clip")
    settings = {**dict(zip(names, clips, strict=True)), "gamma": GAMMA, "lam": lam}
    result = telescope.vtrace(*steps[:3], log_ratios=log_ratios, **flags(steps), **settings)
    expected = espeholt(steps, log_ratios, np.broadcast_to(lam, log_ratios.shape), clips[:2])
    np.testing.assert_allclose(result.targets, expected, **EXACT)
    np.testing.assert_allclose(result.advantages, policy_gradient(steps, log_ratios, expected, clips[2]), **EXACT)


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_on_policy_vtrace_is_the_lambda_return(lam: float) -> None:
    steps, log_ratios = rollout()
    common = {**flags(steps), "gamma": GAMMA, "lam": lam}
    result = telescope.vtrace(*steps[:3], log_ratios=np.zeros_like(log_ratios), **common)
    returns = telescope.lambda_return(steps.rewards, steps.next_values, **common)
    np.testing.assert_allclose(result.targets, returns, **EXACT)
    if lam == 1:
        np.testing.assert_allclose(result.advantages, telescope.gae(*steps[:3], **common).advantages, **EXACT)
    defaults = telescope.vtrace(*steps[:3], log_ratios=log_ratios, **flags(steps), gamma=GAMMA)
    ones = telescope.vtrace(
        *steps[:3], log_ratios=log_ratios, **flags(steps), gamma=GAMMA, lam=1.0, rho_clip=1, c_clip=1, pg_rho_clip=1
    )
    np.testing.assert_array_equal(defaults.targets, ones.targets)
    np.testing.assert_array_equal(defaults.advantages, ones.advantages)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_a_leaky_mixture_of_ratios_is_a_ratio(alpha: float) -> None:
    """Targets weighed by α min(1, ρ) + (1 − α) ρ, advantages by min(1, ρ): the two lines of the docs."""
    steps, log_ratios = rollout()
    rho = np.exp(log_ratios)
    mixed = np.log(alpha * np.minimum(1, rho) + (1 - alpha) * rho)
    common = {**flags(steps), "gamma": GAMMA, "lam": LAM}
    result = telescope.vtrace(*steps[:3], log_ratios=mixed, **common, rho_clip=None, c_clip=None)
    expected = espeholt(steps, mixed, np.full(rho.shape, LAM), (None, None))
    np.testing.assert_allclose(result.targets, expected, **EXACT)
    np.testing.assert_allclose(result.advantages, policy_gradient(steps, log_ratios, expected, 1.0), **EXACT)
    if alpha == 1:
        clipped = telescope.vtrace(*steps[:3], log_ratios=log_ratios, **common)
        np.testing.assert_allclose(result.targets, clipped.targets, **EXACT)


def test_unclipped_vtrace_has_the_value_of_the_learning_policy() -> None:
    """One state, two actions, μ uniform: the mean target is π's value; clipped, it is that of a policy between."""
    pi, mu, reward = np.array([0.8, 0.2]), np.array([0.5, 0.5]), np.array([1.0, 0.0])
    pairs = np.array([(a, b) for a in range(2) for b in range(2)])  # two steps, both actions at each, as columns
    actions, weight = pairs.T, mu[pairs].prod(axis=1)
    zeros = np.zeros((2, 4))
    common = {"log_ratios": np.log(pi / mu)[actions], "terminated": None, "truncated": None, "gamma": 0.5}
    unclipped = telescope.vtrace(reward[actions], zeros, zeros, **common, rho_clip=None, c_clip=None)
    assert unclipped.targets[0] @ weight == pytest.approx(0.8 * (1 + 0.5))
    between = np.minimum(mu, pi) / np.minimum(mu, pi).sum()
    clipped = telescope.vtrace(reward[actions], *[np.full((2, 4), between[0] / 0.5)] * 2, **common)
    assert clipped.targets[0] @ weight == pytest.approx(between[0] / 0.5)  # v of that policy is the fixed point


def munos(steps: oracle.Rollout, log_ratios: np.ndarray, lam: np.ndarray, clip: float | None) -> np.ndarray:
    """Q(x, a) + Σ_t γ^t (Π_{s=1}^t c_s)(r_t + γ E_π Q(x_{t+1}, ·) − Q(x_t, a_t)) (Munos et al. 2016, eq. 3)."""
    targets = np.zeros(steps.values.shape)
    for episode in oracle.episodes(steps):
        for start, s in enumerate(episode):
            targets[s], weight = steps.values[s], 1.0
            for t in episode[start:]:
                if t != s:
                    weight *= GAMMA * lam[t] * clipped(np.exp(log_ratios[t]), clip)
                targets[s] += weight * residual(steps, t, steps.values[t])
    return targets


@pytest.mark.parametrize("clip", [1.0, 0.5, None, 0.0])
@pytest.mark.parametrize("lam", [1.0, 0.7, "per step"])
def test_retrace_is_the_double_sum(clip: float | None, lam: Any) -> None:
    steps, log_ratios = rollout()
    steps = steps._replace(next_values=np.random.default_rng(1).normal(size=log_ratios.shape))  # E_π Q, not Q
    lam = np.random.default_rng(0).random(log_ratios.shape) if lam == "per step" else lam
    result = telescope.retrace(*steps[:3], log_ratios=log_ratios, **flags(steps), gamma=GAMMA, lam=lam, c_clip=clip)
    expected = munos(steps, log_ratios, np.broadcast_to(lam, log_ratios.shape), clip)
    np.testing.assert_allclose(result, expected, **EXACT)


def test_what_retrace_reduces_to() -> None:
    steps, log_ratios = rollout()
    common = {**flags(steps), "gamma": GAMMA}
    expected_sarsa = telescope.retrace(*steps[:3], log_ratios=log_ratios, **common, lam=0.0)
    one_step = telescope.n_step_return(steps.rewards, steps.next_values, **common, n=1)
    np.testing.assert_allclose(expected_sarsa, one_step, **EXACT)
    on_policy = telescope.retrace(*steps[:3], log_ratios=np.zeros_like(log_ratios), **common, lam=LAM)
    returns = telescope.lambda_return(steps.rewards, steps.next_values, **common, lam=LAM)
    np.testing.assert_allclose(on_policy, returns, **EXACT)  # here next_values are the q of the next action


def test_the_first_action_of_an_episode_is_given() -> None:
    """Its ratio does not enter Retrace; that of the last does not enter its V-trace through c."""
    steps, log_ratios = rollout()
    other = log_ratios.copy()
    for episode in oracle.episodes(steps):
        other[episode[0]] += 3.0
    common = {**flags(steps), "gamma": GAMMA}
    one, two = (telescope.retrace(*steps[:3], log_ratios=array, **common) for array in (log_ratios, other))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_gradients_are_exact_on_request(masked: bool) -> None:
    steps, log_ratios = rollout((6, 2))
    floats = [torch.from_numpy(array).requires_grad_() for array in (*steps[:3], log_ratios)]
    lam = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    common: dict[str, Any] = {name: torch.from_numpy(flag) for name, flag in flags(steps).items()}
    common |= {"gamma": GAMMA, "differentiable": True} | ({} if masked else {"mask": None})

    def every(r: Any, v: Any, n: Any, log_ratios: Any, lam: Any) -> Any:
        pair = telescope.vtrace(r, v, n, log_ratios=log_ratios, lam=lam, **common, rho_clip=1.2, pg_rho_clip=None)
        return *pair, telescope.retrace(r, v, n, log_ratios=log_ratios, lam=lam, **common)

    assert torch.autograd.gradcheck(every, (*floats, lam))
    constant = telescope.vtrace(*floats[:3], log_ratios=floats[3], **{**common, "differentiable": False})
    assert not constant.targets.requires_grad
    assert not constant.advantages.requires_grad


def test_huge_ratios_are_clipped_without_nan() -> None:
    steps, _ = rollout((5, 2))
    tensors = [torch.from_numpy(array) for array in steps[:3]]
    huge = torch.full((5, 2), 2000.0, dtype=torch.float64, requires_grad=True)
    common: dict[str, Any] = {"terminated": None, "truncated": None, "gamma": GAMMA}
    result = telescope.vtrace(*tensors, log_ratios=huge, **common, differentiable=True)
    at_one = telescope.vtrace(*tensors, log_ratios=torch.zeros_like(huge), **common)
    torch.testing.assert_close(result.targets.detach(), at_one.targets)
    (gradient,) = torch.autograd.grad(result.targets.sum() + result.advantages.sum(), huge)
    assert bool((gradient == 0).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rho_clip": -1.0}, "rho_clip is -1.0; expected a number >= 0, or None"),
        ({"c_clip": float("nan")}, "c_clip is nan"),
        ({"pg_rho_clip": "1"}, "pg_rho_clip is '1'"),
        ({"log_ratios": np.zeros((20, 2))}, r"log_ratios has shape \(20, 2\) but rewards has \(20, 3\)"),
        ({"log_ratios": None}, "log_ratios is None"),
        ({"log_ratios": np.zeros((20, 3), "f4")}, "log_ratios has dtype float32 but values has float64"),
        ({"lam": 1.5}, "lam is 1.5"),
        ({"terminated": 0.5 * np.ones((20, 3))}, "terminated has dtype float64 and holds 0.5"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    steps, log_ratios = rollout()
    good = {**steps.arguments(), "log_ratios": log_ratios, "gamma": GAMMA}
    with pytest.raises(ValueError, match=message):
        telescope.vtrace(**{**good, **change})

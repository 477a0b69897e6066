"""Shaping leaves advantages where they are; the response function of a known world adds up to its advantages."""

from typing import Any

import numpy as np
import pytest
import torch

import oracle
import telescope

GAMMA, LAM = 0.9, 0.8
EXACT = {"rtol": 0, "atol": 1e-11}


def rollout() -> tuple[oracle.Rollout, np.ndarray, np.ndarray]:
    """Steps of a real rollout (next_values come from values), and a potential of its states."""
    steps, random = oracle.rollout((25, 3)), np.random.default_rng(1)
    potentials = random.normal(size=(25, 3))
    last, final = random.normal(size=3), random.normal(size=(25, 3))
    following = oracle.successors(steps._replace(values=potentials), last, final)
    return steps._replace(next_values=oracle.successors(steps, last, final)), potentials, following


def test_against_the_definition() -> None:
    steps, potentials, following = rollout()
    following[steps.terminated] = np.nan  # the potential of no state is 0
    gamma = np.random.default_rng(3).random((25, 3))
    result = telescope.shaped_rewards(
        steps.rewards, potentials, following, terminated=steps.terminated, gamma=gamma, mask=steps.mask
    )
    ahead = np.where(steps.terminated, 0.0, following)
    np.testing.assert_allclose(result, (steps.rewards + gamma * ahead - potentials) * steps.mask, **EXACT)


@pytest.mark.parametrize("lam", [0.0, LAM, 1.0])
def test_shaping_leaves_advantages_unchanged(lam: float) -> None:
    """The values of the shaped world are v − Φ; nothing else moves."""
    steps, potentials, following = rollout()
    flags = {"terminated": steps.terminated, "truncated": steps.truncated, "mask": steps.mask}
    plain = telescope.gae(*steps[:3], **flags, gamma=GAMMA, lam=lam)
    rewards = telescope.shaped_rewards(
        steps.rewards, potentials, following, terminated=steps.terminated, gamma=GAMMA, mask=steps.mask
    )
    shifted = steps.values - potentials, steps.next_values - following
    shaped = telescope.gae(rewards, *shifted, **flags, gamma=GAMMA, lam=lam)
    np.testing.assert_allclose(shaped.advantages, plain.advantages, **EXACT)
    np.testing.assert_allclose(shaped.returns, plain.returns - potentials * steps.mask, **EXACT)


def test_shaped_by_the_values_the_reward_is_the_residual() -> None:
    steps, _, _ = rollout()
    common = {"terminated": steps.terminated, "gamma": GAMMA, "mask": steps.mask}
    shaped = telescope.shaped_rewards(*steps[:3], **common)
    np.testing.assert_array_equal(shaped, telescope.td_error(*steps[:3], **common))
    gae = telescope.gae(*steps[:3], **common, truncated=steps.truncated, lam=LAM).advantages
    zeros = np.zeros_like(shaped)
    discounted = telescope.discounted_return(
        shaped, zeros, terminated=steps.terminated, truncated=steps.truncated, gamma=GAMMA * LAM, mask=steps.mask
    )
    np.testing.assert_allclose(gae, discounted, **EXACT)


def test_bad_potentials_are_named() -> None:
    steps, potentials, following = rollout()
    with pytest.raises(ValueError, match=r"potentials has shape \(25,\) but rewards has \(25, 3\)"):
        telescope.shaped_rewards(steps.rewards, potentials[:, 0], following, terminated=None, gamma=GAMMA)
    with pytest.raises(ValueError, match="next_potentials has dtype float32 but potentials has float64"):
        telescope.shaped_rewards(steps.rewards, potentials, following.astype("f4"), terminated=None, gamma=GAMMA)


def world(states: int = 5, actions: int = 3, stay: float = 0.9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A random world in which every step terminates with probability 1 − stay, and a policy for it."""
    random = np.random.default_rng(states)
    transitions = stay * random.dirichlet(np.ones(states), (states, actions))
    return transitions, random.normal(size=(states, actions)), random.dirichlet(np.ones(actions), states)


def exact_values(transitions: np.ndarray, rewards: np.ndarray, policy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """V and the advantage, by solving the Bellman equations."""
    under_policy = np.einsum("sa,san->sn", policy, transitions)
    values = np.linalg.solve(np.eye(len(policy)) - GAMMA * under_policy, (policy * rewards).sum(1))
    return values, rewards + GAMMA * transitions @ values - values[:, None]


@pytest.mark.parametrize("array", [np.asarray, torch.as_tensor])
def test_the_discounted_response_is_the_advantage(array: Any) -> None:
    transitions, rewards, policy = world()
    response = telescope.response_function(array(transitions), array(rewards), array(policy), lags=150)
    response = np.asarray(response)
    discounted = (GAMMA ** np.arange(150)[:, None, None] * response).sum(0)
    np.testing.assert_allclose(discounted, exact_values(transitions, rewards, policy)[1], **EXACT)
    np.testing.assert_allclose((policy * response).sum(-1), 0, atol=1e-12)  # on average an action changes nothing


def test_shaping_by_the_values_leaves_an_immediate_response() -> None:
    """With Φ = V^{π,γ} the response is A at lag 0 and nothing after it (Schulman et al. 2016, section 4)."""
    transitions, rewards, policy = world()
    values, advantages = exact_values(transitions, rewards, policy)
    shaped = rewards + GAMMA * transitions @ values - values[:, None]
    response = telescope.response_function(transitions, shaped, policy, lags=6)
    np.testing.assert_allclose(response[0], advantages, **EXACT)
    np.testing.assert_allclose(response[1:], 0, atol=1e-12)


def test_a_response_arrives_when_its_reward_does() -> None:
    """A corridor: the first action decides which of two rewards comes three steps later, ±1, and then it ends."""
    transitions, rewards = np.zeros((7, 2, 7)), np.zeros((7, 2))
    transitions[0, 0, 1] = transitions[0, 1, 2] = 1
    for state in 1, 2, 3, 4:
        transitions[state, :, state + 2] = 1
    rewards[5], rewards[6] = 1.0, -1.0  # and their rows sum to 0: terminal
    response = telescope.response_function(transitions, rewards, np.full((7, 2), 0.5), lags=6)
    np.testing.assert_array_equal(response[:, 0], [[0, 0], [0, 0], [0, 0], [1, -1], [0, 0], [0, 0]])
    assert (response[:, 1:] == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transitions": np.ones((5, 3))}, r"transitions has shape \(5, 3\); expected \(states, actions, states\)"),
        ({"transitions": np.ones((5, 3, 4))}, r"transitions has shape \(5, 3, 4\)"),
        ({"transitions": np.ones((5, 3, 5))}, "transitions holds negative numbers or NaN, or sums to more than 1"),
        ({"transitions": np.full((5, 3, 5), np.nan)}, "transitions holds negative numbers or NaN"),
        ({"transitions": np.zeros((5, 3, 5), int)}, "transitions has dtype int64"),
        ({"rewards": np.zeros(5)}, r"rewards has shape \(5,\) but states and actions of transitions are \(5, 3\)"),
        ({"policy": np.full((5, 3), 0.2)}, "policy does not sum to 1"),
        ({"policy": np.full((5, 3), 0.5)}, "policy holds negative numbers or NaN, or sums to more than 1"),
        ({"policy": None}, "policy is None"),
        ({"lags": 0}, "lags is 0; expected an integer >= 1"),
    ],
)
def test_bad_worlds_are_named(change: dict[str, Any], message: str) -> None:
    good = {**dict(zip(("transitions", "rewards", "policy"), world(), strict=True)), "lags": 3}
    with pytest.raises(ValueError, match=message):
        telescope.response_function(**{**good, **change})

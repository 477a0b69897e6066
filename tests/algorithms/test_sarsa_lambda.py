"""SARSA(λ): the textbook's loop over the same experience gives the same weights, with every kind of trace and end.

Leaves out what holds of every trainer: `test_laws.py`; and the features: `test_features.py`.
"""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

import telescope
from telescope.algorithms import sarsa_lambda
from telescope.algorithms.sarsa_lambda import SarsaLambda, preset, train
from worlds import Chain, Forever, Masked

SMALL = SarsaLambda(
    env="CartPole-v1",
    env_kwargs={"max_episode_steps": 15},
    seeds=2,
    total_steps=150,
    num_steps=50,
    normalise_observations=True,
    clip_observations=3.0,
    tiles=2,
    tilings=2,
    learning_rate=0.3,
    exploration_start=0.5,
    exploration_end=0.5,
    vectorization="sync",
    compile="off",
)
"""CartPole falls within 15 steps or is cut: both ends occur."""


def cut_masked():
    """Three actions, one of them forbidden, and a time limit of 3 steps."""
    return gym.wrappers.TimeLimit(Masked(), 3)


def played(config, monkeypatch):
    """The batches of a run, and its last iteration."""
    batches = []

    def recorded(*arguments):
        batches.append(sarsa_lambda_step(*arguments))
        return batches[-1]

    sarsa_lambda_step = sarsa_lambda.step_of
    monkeypatch.setattr(sarsa_lambda, "step_of", recorded)
    *_, last = train(config)
    return batches, last


def by_the_book(config, features, batches, s, actions=2):
    """Sarsa(λ) of one seed as in Sutton & Barto (2018), section 12.7, with x[s, a] in a table of arrays, in float64."""
    phi = lambda x: features.apply(x[None].numpy())[0].astype(float)  # noqa: E731
    alpha = config.learning_rate * features.step_sizes.astype(float)[:, None]
    w, z, q_old = np.zeros((features.size, actions)), np.zeros((features.size, actions)), 0.0
    waiting = None
    steps = [[x[s, 0] if x is not None else None for x in batch] for batch in batches]

    def learn(x, reward, ahead, discount):
        nonlocal w, z, q_old
        q, q_next, decay = (w * x).sum(), (w * ahead).sum(), config.gamma * config.lam
        delta = reward + discount * q_next - q
        if config.trace == "dutch":
            z = decay * z + x - decay * (alpha * z * x).sum() * x
        elif config.trace == "replacing":
            z = np.where(x != 0, x, decay * z)
        else:
            z = decay * z + x
        change = (delta + q - q_old) * z - (q - q_old) * x if config.true_online else delta * z
        w = w + alpha * change
        q_old = q_next

    for seen, action, reward, terminated, truncated, live, reached, _, allowed in steps:
        if not live:
            continue
        x = np.zeros((features.size, actions))
        x[:, action] = phi(seen)
        if waiting is not None:
            learn(waiting[0], waiting[1], x, config.gamma)
        waiting = (x, float(reward))
        if terminated or truncated:
            best = (phi(reached) @ w + np.where(True if allowed is None else allowed, 0, -1e9)).argmax()
            may = np.ones(actions) if allowed is None else allowed.double().numpy()
            share = config.exploration_start * may / may.sum()
            share[best] += 1 - config.exploration_start
            learn(x, float(reward), phi(reached)[:, None] * share, 0.0 if terminated else config.gamma)
            z, q_old, waiting = np.zeros_like(z), 0.0, None
    return w


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
@pytest.mark.parametrize(
    "how",
    [
        {"trace": "accumulating"},
        {"trace": "replacing"},
        {"trace": "dutch"},
        {"trace": "dutch", "true_online": True},
        {"trace": "accumulating", "lam": 0.0},
        {"trace": "dutch", "true_online": True, "features": "fourier", "tilings": 8, "tiles": 8, "learning_rate": 0.02},
        {"trace": "accumulating", "features": "fourier", "tilings": 8, "tiles": 8, "learning_rate": 0.01},
    ],
    ids=lambda how: "-".join(map(str, how.values())),
)
def test_the_weights_are_those_of_the_textbooks_loop(how, autoreset, monkeypatch):
    config = dataclasses.replace(SMALL, autoreset=autoreset, **how)
    batches, last = played(config, monkeypatch)
    ends = [
        torch.stack([getattr(batch, name) for batch in batches]).any(0).all() for name in ("terminated", "truncated")
    ]
    assert all(ends), "each seed has met both ends"
    features = config.features_for(gym.make("CartPole-v1").observation_space)
    for s in range(2):
        expected = by_the_book(config, features, batches, s)
        found = last.policy["parameters"][s].reshape(features.size, 2)
        assert np.abs(expected).max() > 0.3
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4)


def test_masks_reach_the_bootstrap_of_a_cut_episode(monkeypatch):
    config = dataclasses.replace(SMALL, env=cut_masked, env_kwargs={}, normalise_observations=False, tilings=1)
    batches, last = played(config, monkeypatch)
    features = config.features_for(Masked.observation_space)
    expected = by_the_book(config, features, batches, 0, actions=3)
    np.testing.assert_allclose(last.policy["parameters"][0].reshape(-1, 3), expected, rtol=1e-3, atol=2e-4)


def test_a_time_limit_bootstraps():
    """Reward 1 for ever, cut every 5 steps: Q = 1 / (1 − γ) = 5. Taken for terminations it would be below 3.4."""
    config = dataclasses.replace(
        SMALL, env=Forever, env_kwargs={}, normalise_observations=False, gamma=0.8, total_steps=2000, num_steps=500
    )
    *_, last = train(config)
    assert [row["q_mean"] for row in last.rows] == pytest.approx([5.0, 5.0], rel=0.05)


@pytest.mark.parametrize("name", ["sarsa_lambda", "true_online_sarsa_lambda"])
def test_it_finds_the_way_past_a_lure(name, tmp_path):
    config = dataclasses.replace(preset("none", name), env=Chain, seeds=2, gamma=0.9, total_steps=4000, compile="off")
    config = dataclasses.replace(config, exploration_start=1.0, exploration_fraction=0.8, learning_rate=0.2)
    run = telescope.train(config, tmp_path / "run")
    policy = telescope.load(run.path, trust=True)
    assert (policy.evaluate(2).returns == 1.0).all()
    values = [float(policy.value(s, seed=1)) for s in range(4)]
    np.testing.assert_allclose(values, [0.9**3, 0.9**2, 0.9, 1.0], atol=0.15)
    assert policy.act(0) == 1


def test_mountain_car_is_solved_within_a_hundred_episodes():
    """It learns at every step: after 20 episodes or so the car comes up in less than the 200 steps of its limit."""
    *_, last = train(dataclasses.replace(preset("MountainCar-v0"), seeds=4, total_steps=14_000, compile="off"))
    assert all(row["length_mean"] < 180 for row in last.rows)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="SarsaLambda expects Discrete"):
        next(train(dataclasses.replace(SMALL, env="Pendulum-v1", env_kwargs={})))
    with pytest.raises(ValueError, match="network is given, but sarsa_lambda has linear values"):
        next(train(SMALL, network=object()))

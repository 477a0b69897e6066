"""td_lambda and stream_td: the values of a policy that does not change, random or a run's.

Leaves out what holds of every trainer: `test_laws.py`.
"""

import dataclasses

import numpy as np
import pytest
import torch

import telescope
from telescope.algorithms import stream_td, td_lambda
from telescope.algorithms.ppo import PPO
from telescope.algorithms.stream_td import StreamTD
from telescope.algorithms.td_lambda import TDLambda, preset
from telescope.control.experience.steps import Batch
from telescope.control.streaming import Learner
from telescope.control.training import Session
from telescope.estimators.eligibility import td_lambda_step
from worlds import Chain, Forever

SMALL = TDLambda(env="MountainCar-v0", seeds=2, total_steps=200, num_steps=100, gamma=0.9, lam=0.8)
STREAM = StreamTD(
    env="Pendulum-v1", seeds=2, total_steps=200, num_steps=100, hidden=(8,), sparsity=0.5, compile="off", threads=1
)


def steps(random, count, size):
    """Random steps of both seeds with every kind of end, some of them rows of a reset."""
    for _ in range(count):
        flags = [torch.from_numpy(random.random((2, 1)) < chance) for chance in (0.1, 0.1, 0.9)]
        seen, reached = (torch.from_numpy(random.uniform(-1, 0.5, (2, 1, size)).astype(np.float32)) for _ in range(2))
        rewards = torch.from_numpy(random.normal(size=(2, 1)).astype(np.float32))
        yield Batch(seen, torch.zeros(2, 1), rewards, *flags, reached, None, None)


@pytest.mark.parametrize(
    "how",
    [{"trace": "accumulating"}, {"trace": "replacing"}, {"trace": "dutch"}, {"trace": "dutch", "true_online": True}],
    ids=lambda how: "-".join(map(str, how.values())),
)
def test_an_update_is_the_textbooks_for_one_seed_by_hand(how):
    """TD(λ) with features φ, in float64; truncations bootstrap, and both ends empty the trace."""
    config = dataclasses.replace(SMALL, learning_rate=0.4, **how)
    session = Session(config, None, td_lambda.Learner)
    features, learner = config.features_for(session.observation_space), session.learner
    alpha, w, z, old = 0.4 / 8, np.zeros(features.size), np.zeros(features.size), 0.0
    for batch in steps(np.random.default_rng(0), 80, 2):
        sizes = np.float32(0.4) * features.step_sizes
        learner, row = td_lambda.in_arrays(td_lambda.update, config, features, learner, batch, sizes)
        one = [x[0, 0].numpy() for x in batch[:7]]
        if one[5]:
            x, y = (features.apply(place[None])[0].astype(float) for place in (one[0], one[6]))
            v, ahead = w @ x, w @ y
            delta = one[2] + (0.0 if one[3] else 0.9 * ahead) - v
            if config.trace == "dutch":
                z = 0.72 * z + x - alpha * 0.72 * (z @ x) * x
            else:
                z = np.where(x != 0, x, 0.72 * z) if config.trace == "replacing" else 0.72 * z + x
            w = w + alpha * ((delta + v - old) * z - (v - old) * x if config.true_online else delta * z)
            old = ahead
            assert float(row[0, 0]) == pytest.approx(abs(delta), abs=1e-4)
            if one[3] or one[4]:
                z, old = np.zeros_like(z), 0.0
        np.testing.assert_allclose(learner.parameters[0], w, atol=1e-4)
        np.testing.assert_allclose(learner.trace[0], z, atol=1e-4)
    assert np.abs(w).max() > 0.1


@pytest.mark.parametrize("lam", [0.0, 0.8])
def test_a_network_without_hidden_layers_and_bounds_is_linear_td_lambda(lam):
    """Its features are the observation and 1; with κ near 0 the step size is α itself."""
    config = dataclasses.replace(STREAM, hidden=(), kappa=1e-12, learning_rate=0.05, lam=lam, gamma=0.9)
    session = Session(config, None, Learner)
    update = session.lift(stream_td.update_agent(config, session.agent), (0, 0, None))
    learner = session.learner
    w = learner.parameters.numpy().astype(float)  # weights of the observation, then the bias
    trace, decay = np.zeros_like(w), np.zeros((2, 1))
    for batch in steps(np.random.default_rng(1), 100, 3):
        learner, _ = update(learner, batch, torch.tensor(0.05))
        here, ahead = (
            np.pad(x[:, 0].numpy().astype(float), [(0, 0), (0, 1)], constant_values=1) for x in (batch[0], batch[6])
        )
        live, ended = batch.live.numpy(), (batch.terminated | batch.truncated).numpy()
        discount = np.where(batch.terminated.numpy(), 0.0, 0.9)
        new = td_lambda_step(
            w, trace, here, ahead, batch.rewards.numpy(), discount=discount, decay=decay, step_size=0.05
        )
        w, trace = np.where(live, new.weights, w), np.where(live, new.trace, trace)
        decay = np.where(live, np.where(ended, 0.0, 0.9 * lam), decay)
        np.testing.assert_allclose(learner.parameters, w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("module", [td_lambda, stream_td])
def test_a_time_limit_bootstraps(module):
    """Reward 1 for ever, cut every 5 steps: V = 1 / (1 − γ) = 5. Taken for terminations it would be below 3.4."""
    small = {td_lambda: SMALL, stream_td: STREAM}[module]
    more = {"normalise_rewards": False, "normalise_observations": False} if module is stream_td else {}
    *_, last = module.train(dataclasses.replace(small, env=Forever, gamma=0.8, total_steps=3000, **more))
    assert [row["value_mean"] for row in last.rows] == pytest.approx([5.0, 5.0], rel=0.1)


@pytest.mark.parametrize("name", ["td_lambda", "true_online_td_lambda"])
def test_it_finds_the_values_of_a_random_walk(name, tmp_path):
    """Chain with equal chances: v solves the Bellman equation, which is linear."""
    gamma = 0.9
    p, r = np.zeros((4, 4)), np.array([0.025, 0, 0, 0.5])
    for s in range(4):
        p[s, max(s - 1, 0)] += 0.5
        if s < 3:
            p[s, s + 1] += 0.5
    truth = np.linalg.solve(np.eye(4) - gamma * p, r)
    config = dataclasses.replace(preset("none", name), env=Chain, seeds=2, gamma=gamma, lam=0.5, learning_rate=0.02)
    run = telescope.train(dataclasses.replace(config, total_steps=6000, anneal_learning_rate=True), tmp_path / "run")
    policy = telescope.load(run.path, trust=True)
    for seed in (0, 1):
        np.testing.assert_allclose([float(policy.value(s, seed=seed)) for s in range(4)], truth, atol=0.08)


@pytest.mark.parametrize("module", [td_lambda, stream_td])
def test_the_policy_may_be_a_run(module, tmp_path):
    """It acts as the run's first agent does, with that agent's statistics; neither changes."""
    shared = {"env": "CartPole-v1", "normalise_observations": True, "compile": "off"}
    run = telescope.train(PPO(**shared, total_steps=128, num_steps=64, hidden=(8,)), tmp_path / "ppo")
    kind = TDLambda(tiles=2) if module is td_lambda else STREAM
    config = dataclasses.replace(kind, **shared, policy=str(run.path), seeds=2, total_steps=200, num_steps=100)
    *_, last = module.train(config)
    there, here = telescope.load(run.path), telescope.policy.Policy(config, last.policy)
    count = there.parameters.shape[1]
    for s in range(2):
        assert torch.equal(here.parameters[s, :count], there.parameters[0])
        assert here.parameters[s, count:].abs().max() > 0
        np.testing.assert_array_equal(here.normaliser.moments.mean[s], there.normaliser.moments.mean[0])
        for x in np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32):
            assert here.act(x, seed=s) == there.act(x)
    with pytest.raises(ValueError, match="normalise_observations is False, but the policy"):
        next(module.train(dataclasses.replace(config, normalise_observations=False)))


@pytest.mark.parametrize("module", [td_lambda, stream_td])
def test_a_random_policy_is_uniform(module):
    config = dataclasses.replace({td_lambda: SMALL, stream_td: STREAM}[module], env="MountainCar-v0")
    session = Session(config, None, module.Learner)
    noise = session.agent.distribution.noise(np.random.default_rng(0), (3000,))
    outputs = session.agent.policy(session.agent.layout.unflatten(session.parameters[0]), torch.zeros(3000, 2))
    counts = np.bincount(session.agent.distribution.sample(outputs.numpy(), noise), minlength=3)
    np.testing.assert_allclose(counts / 3000, 1 / 3, atol=0.04)


def test_a_random_policy_in_a_box_fills_it():
    session = Session(STREAM, None, Learner)
    noise = session.agent.distribution.noise(np.random.default_rng(0), (3000,))
    actions = session.agent.distribution.sample(np.zeros((3000, 1)), noise)
    assert actions.shape == (3000, 1)
    assert -2 <= actions.min() < -1.9
    assert 1.9 < actions.max() <= 2
    assert abs(actions.mean()) < 0.1


@pytest.mark.parametrize("module", [td_lambda, stream_td])
def test_what_is_no_policy_is_named(module, tmp_path):
    config = dataclasses.replace({td_lambda: SMALL, stream_td: STREAM}[module], policy=str(tmp_path))
    with pytest.raises(ValueError, match=r"policy is .*; expected random or a run folder, but .* has no run.json"):
        next(module.train(config))
    with pytest.raises(ValueError, match="network is given"):
        next(module.train(dataclasses.replace(config, policy="random"), network=object()))

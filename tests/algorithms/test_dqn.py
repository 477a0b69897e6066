"""DQN: what is kept is what happened, targets are Bellman's, a time limit is no end, and a seed alone is itself.

Leaves out what holds of every trainer: `test_laws.py`.
"""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

import telescope
from telescope.algorithms.dqn import DQN, Learner, train, update_agent
from telescope.control.agents.distributions import epsilon_greedy
from telescope.control.agents.lifting import lift
from telescope.control.agents.networks import q_network
from telescope.control.experience.draws import Draws
from telescope.control.exploration import exploring
from telescope.control.training import Session
from worlds import Chain, Forever, Masked

SMALL = DQN(
    env=Forever,
    total_steps=4000,
    num_envs=4,
    num_steps=50,
    gamma=0.8,
    hidden=(16,),
    learning_rate=3e-3,
    learning_starts=40,
    minibatch_size=32,
    target_every=20,
    compile="off",
    threads=1,
)


def test_a_time_limit_bootstraps():
    """Reward 1 for ever, cut every 5 steps: Q = 1 / (1 − γ) = 5. Taken for terminations it would be below 3.4."""
    *_, last = train(SMALL)
    assert last.rows[0]["q_mean"] == pytest.approx(5.0, rel=0.05)


def test_it_finds_the_way_past_a_lure(tmp_path):
    config = dataclasses.replace(SMALL, env=Chain, gamma=0.9, total_steps=6000, seeds=2, exploration_fraction=0.5)
    run = telescope.train(config, tmp_path / "run")
    policy = telescope.load(run.path, trust=True)
    assert (policy.evaluate(2).returns == 1.0).all()
    values = [float(policy.value(s, seed=1)) for s in range(4)]
    np.testing.assert_allclose(values, [0.9**3, 0.9**2, 0.9, 1.0], atol=0.1)


def one_update(config, **changes):
    """Statistics and learner after one update on a batch, and that batch's Q-values by the plain formulas."""
    session = Session(config, None, Learner)
    noise = np.random.default_rng(0).random((20, 1, config.num_envs, 4), dtype=np.float32) - [[[[0.7, 0, 0, 0]]]]
    session._episodes = telescope.control.experience.rollout.no_episodes(1)
    for t in range(20):
        session.play(noise[t].astype(np.float32), t)
    (_, batch), *_ = Draws(session).after(19)
    batch = batch._replace(**changes)
    parameters = session.learner.parameters
    moved = parameters + 0.1 * torch.randn(parameters.shape, generator=torch.Generator().manual_seed(1))
    learner = session.learner._replace(target=moved)
    after, row = lift(update_agent(config, session.agent), (0, 0, None), compiled=False)(
        learner, batch, torch.tensor(1e-3)
    )
    q = lambda vector, x: session.agent.network.apply(session.agent.layout.unflatten(vector[0]), x[0])[0].detach()  # noqa: E731
    session.close()
    one_update.session = session  # for its agent
    return config, learner, batch, after, row[0], q


@pytest.mark.parametrize("double", [False, True])
def test_an_update_is_bellmans_by_the_plain_formula(double):
    config, learner, batch, after, row, q = one_update(dataclasses.replace(SMALL, env=Masked, double=double))
    judging, choosing = q(learner.target, batch.next_observations), q(learner.parameters, batch.next_observations)
    assert not batch.next_masks[0, range(len(judging)), judging.argmax(-1)].all(), "the best is often forbidden"
    total, values = 0.0, q(learner.parameters, batch.observations)
    for i in range(config.minibatch_size):
        allowed = [a for a in range(3) if batch.next_masks[0, i, a]]
        best = max(allowed, key=lambda a, i=i: float((choosing if double else judging)[i, a]))
        ended = bool(batch.terminated[0, i])
        target = float(batch.rewards[0, i]) + (0 if ended else config.gamma * float(judging[i, best]))
        error = abs(float(values[i, batch.actions[0, i]]) - target)
        total += (0.5 * error**2 if error <= 1 else error - 0.5) / config.minibatch_size
    assert float(row[0]) == pytest.approx(total, rel=1e-5)
    assert torch.equal(after.target, learner.target)
    assert not torch.equal(after.parameters, learner.parameters)


@pytest.mark.parametrize("double", [False, True])
def test_an_update_of_quantiles_is_that_of_the_plain_formula(double):
    """Every quantile of the chosen action against every quantile of the target, which has up to two rewards."""
    how = {"quantiles": 3, "quantile_huber": 0.5, "n_step": 2, "dueling": True}
    config, learner, batch, _, row, _ = one_update(dataclasses.replace(SMALL, env=Masked, double=double, **how))
    agent = one_update.session.agent

    def outputs(vector, x):
        return agent.network.apply(agent.layout.unflatten(vector[0]), x[0])[1].detach().reshape(-1, 3, 3)

    judging = outputs(learner.target, batch.next_observations)
    choosing = outputs(learner.parameters, batch.next_observations)
    values, total = outputs(learner.parameters, batch.observations), 0.0
    assert {round(x, 3) for x in batch.discounts[0].tolist()} == {0.8, 0.64}
    for i in range(config.minibatch_size):
        allowed = [a for a in range(3) if batch.next_masks[0, i, a]]
        best = max(allowed, key=lambda a, i=i: float((choosing if double else judging)[i, a].mean()))
        ahead = 0 if batch.terminated[0, i] else batch.discounts[0, i] * judging[i, best]
        targets = (batch.rewards[0, i] + ahead + torch.zeros(3)).tolist()
        for k, quantile in enumerate(values[i, batch.actions[0, i]].tolist()):
            for target in targets:
                error = abs(target - quantile)
                huber = 0.5 * error**2 if error <= 0.5 else 0.5 * (error - 0.25)
                level = (2 * k + 1) / 6
                total += (level if target >= quantile else 1 - level) * huber / 9 / config.minibatch_size
    assert float(row[0]) == pytest.approx(total, rel=1e-4)


def test_dueling_heads_are_a_value_and_advantages_of_mean_zero():
    network = q_network(3, 4, hidden=(8,), activation="tanh", dueling=True)
    parameters = network.init(np.random.default_rng(0))
    x = torch.randn(6, 3)
    hidden = torch.tanh(x @ parameters["q.0.weight"] + parameters["q.0.bias"])
    value = hidden @ parameters["q.value.weight"] + parameters["q.value.bias"]
    advantage = hidden @ parameters["q.out.weight"] + parameters["q.out.bias"]
    q, best = network.apply(parameters, x)
    torch.testing.assert_close(q, value + advantage - advantage.mean(1, keepdim=True), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(best, q.amax(-1))
    torch.testing.assert_close(network.policy(parameters, x).mean(-1), value[:, 0], rtol=1e-4, atol=1e-5)


def test_quantiles_learn_a_distribution(tmp_path):
    """Reward 1 or −1 by a coin, then an end: the lower half of the quantiles is −1, the upper half 1."""
    config = dataclasses.replace(SMALL, env=Coin, quantiles=4, quantile_huber=0.01, total_steps=6000)
    policy = telescope.load(telescope.train(config, tmp_path / "run").path, trust=True)
    network, parameters = policy.agent.network, policy.agent.layout.unflatten(policy.parameters[0])
    _, found = network.apply(parameters, torch.zeros(1, 1))
    np.testing.assert_allclose(found.detach().reshape(2, 4).numpy(), [[-1, -1, 1, 1]] * 2, atol=0.4)
    assert policy.value(np.zeros(1, np.float32)) == pytest.approx(0, abs=0.2)


def test_quantiles_need_the_built_in_network():
    with pytest.raises(ValueError, match="network is given, but quantiles is 5"):
        next(train(dataclasses.replace(SMALL, quantiles=5), network=q_network(1, 3, hidden=(), activation="relu")))


class Coin(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), float(self.np_random.choice([-1, 1])), True, False, {}


def test_rows_of_a_reset_teach_nothing():
    config = dataclasses.replace(SMALL, env=Masked)
    none = torch.zeros((1, config.minibatch_size), dtype=torch.bool)
    _, learner, _, after, row, _ = one_update(config, live=none)
    assert torch.equal(after.parameters, learner.parameters)
    assert float(row[0]) == 0.0


def test_exploring_is_uniform_over_what_is_allowed_and_greedy_otherwise():
    head, rng = epsilon_greedy(3), np.random.default_rng(0)
    q = np.tile(np.array([3.0, 2.0, 1.0], np.float32), (30_000, 1))
    masks = np.array([False, True, True])
    noise = head.noise(rng, (30_000,))
    assert (head.sample(q, noise, masks) == 1).all()
    noise[:, 0] -= 0.4
    counts = np.bincount(head.sample(q, noise, masks), minlength=3) / 30_000
    np.testing.assert_allclose(counts, [0, 0.8, 0.2], atol=0.015)
    for outputs in (q, torch.from_numpy(q)):
        assert int(head.mode(outputs)[0]) == 0


def test_epsilon_is_that_of_the_schedule():
    """Of 20,000 steps of four environments, the share that acts at random is ε, which falls from 0.9 to 0.3."""
    config = dataclasses.replace(
        SMALL, total_steps=20_000, num_steps=5000, exploration_start=0.9, exploration_end=0.3, exploration_fraction=0.5
    )
    session = Session(config, None, Learner)
    next(session.iterations())
    random = (exploring(config, session)[..., 0] < 0).mean(axis=(1, 2))  # [T]
    assert random[:200].mean() == pytest.approx(0.9, abs=0.04)
    assert random[1150:1350].mean() == pytest.approx(0.6, abs=0.06)
    assert random[2600:].mean() == pytest.approx(0.3, abs=0.02)
    session.close()


def test_a_seed_alone_is_that_of_the_population():
    config = dataclasses.replace(
        SMALL, env="CartPole-v1", total_steps=800, seeds=3, seed=5, normalise_observations=True
    )
    *_, together = train(config)
    for s, seed in enumerate(config.seed_values):
        *_, alone = train(dataclasses.replace(config, seeds=1, seed=seed))
        difference = together.policy["parameters"][s] - alone.policy["parameters"][0]
        assert difference.abs().max() <= 1e-5
        ours, theirs = (one.state["replay"]["chunks"][0]["actions"] for one in (together, alone))
        np.testing.assert_array_equal(ours[s], theirs[0])


def test_the_gradient_steps_are_counted_by_steps_alone():
    config = dataclasses.replace(SMALL, updates_per_step=0.3, total_steps=1000, env="CartPole-v1")
    done = [row["updates"] for step in train(config) for row in step.rows]
    assert done == sorted(done)
    assert done[-1] == config.updates == int((1000 - 40) * 0.3)


@pytest.mark.parametrize(("env", "message"), [("Pendulum-v1", "DQN expects Discrete"), (lambda: 1, "env")])
def test_what_it_cannot_do_is_refused(env, message):
    with pytest.raises((ValueError, TypeError), match=message):
        next(train(dataclasses.replace(SMALL, env=env)))

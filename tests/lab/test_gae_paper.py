"""The GAE paper's cart-pole: its physics, its batches and its steps against plain versions."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv

from telescope.control.agents.layout import create
from telescope.control.value_fits import value_change
from telescope.lab import cart_pole
from telescope.lab.gae_paper import SETTINGS, Experiment, credit, fly, of_seed
from telescope.optimisers import Learner


@pytest.fixture(scope="module")
def small():
    return Experiment(trajectories=4, limit=60)


def states(count):
    rng = np.random.default_rng(0)
    scale = np.array([[3.0], [2.0], [0.3], [3.0]])
    return scale * rng.uniform(-1, 1, (4, count)), rng.uniform(-10, 10, count)


def test_physics_are_newtons_equations_with_friction():
    state, force = states(50)
    found = cart_pole.move(state, force)
    mass, pole, length = 1.0, 0.1, 0.5
    for i, (x, speed, angle, turning) in enumerate(state.T):
        sides = [[mass + pole, pole * length * math.cos(angle)], [math.cos(angle), 4 / 3 * length]]
        pushes = [
            force[i] + pole * length * turning**2 * math.sin(angle) - 5e-4 * math.copysign(1, speed),
            9.8 * math.sin(angle) - 2e-6 * turning / (pole * length),
        ]
        moved, turned = np.linalg.solve(sides, pushes)
        after = [x + 0.02 * speed, speed + 0.02 * moved, angle + 0.02 * turning, turning + 0.02 * turned]
        np.testing.assert_allclose(found[:, i], after, rtol=1e-12)


def test_physics_without_friction_are_those_of_gymnasium():
    state, force = states(50)
    found, env = cart_pole.move(state, 10 * np.sign(force), friction=False), CartPoleEnv()
    for i in range(50):
        env.reset(seed=0)
        env.state = state[:, i]
        after, _, terminated, _, _ = env.step(int(force[i] > 0))
        np.testing.assert_allclose(found[:, i].astype(np.float32), after, rtol=1e-6)
        assert terminated == cart_pole.failed(found[:, i])


def play(experiment, seeds, iteration=0):
    parameters, _ = create(experiment.network, seeds)
    flight = fly(experiment.agents.actor(parameters), seeds, iteration, trajectories=4, limit=60)
    return parameters, flight


def test_a_batch_is_what_its_actions_lead_to_and_counts_nothing_after_the_end(small):
    _, flight = play(small, [5, 2])
    for s, b in np.ndindex(2, 4):
        state = flight.observations[0, s, b].double().numpy()
        assert (np.abs(state) <= 0.05).all()
        lived = int(flight.live[:, s, b].sum())
        assert flight.live[:lived, s, b].all()
        for t in range(lived):
            np.testing.assert_allclose(flight.observations[t, s, b], state, atol=1e-5)
            force = 10 * min(1.0, max(-1.0, float(flight.actions[t, s, b, 0])))
            state = cart_pole.move(state, np.array(force))
            assert flight.failed[t, s, b] == cart_pole.failed(state)
        assert flight.failed[:, s, b].sum() == 1 or lived == 60
        np.testing.assert_allclose(flight.last[s, b], state, atol=1e-5)


def test_other_iterations_have_other_starts(small):
    first, second = (play(small, [0], i)[1].observations[0] for i in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 0.0), (0.99, 0.95), (1.0, 1.0), (0.5, 0.3)])
def test_credit_is_gae_by_a_plain_loop(small, gamma, lam):
    flight, values, last = random_credit(small)
    found, returns = credit(flight, values, last, gamma=gamma, lam=lam)
    for s, b in np.ndindex(2, 4):
        lived = int(flight.live[:, s, b].sum())
        after = 0.0 if flight.failed[lived - 1, s, b] else float(last[s, b])
        advantage, total = 0.0, after
        for t in reversed(range(lived)):
            value = float(values[t, s, b])
            advantage = 1 + gamma * after - value + gamma * lam * advantage
            total, after = 1 + gamma * total, value
            assert float(found[t, s, b]) == pytest.approx(advantage, rel=1e-4, abs=1e-4)
            assert float(returns[t, s, b]) == pytest.approx(total, rel=1e-4, abs=1e-4)
        assert (found[lived:, s, b] == 0).all()


def test_without_a_value_function_the_baseline_is_the_mean_of_a_time_step(small):
    flight, values, last = random_credit(small)
    found, _ = credit(flight, values, last, gamma=0.9, lam=None)
    for s in range(2):
        lived = [int(flight.live[:, s, b].sum()) for b in range(4)]
        for t in range(max(lived)):
            alive = [b for b in range(4) if lived[b] > t]
            returns = [sum(0.9**k for k in range(lived[b] - t)) for b in alive]
            for b, total in zip(alive, returns, strict=True):
                expected = total - sum(returns) / len(returns)
                assert float(found[t, s, b]) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def random_credit(experiment):
    """Trajectories of which some reach the limit, with random values."""
    parameters, _ = create(experiment.network, [5, 2])
    flight = fly(experiment.agents.actor(parameters), [5, 2], 0, trajectories=4, limit=25)
    assert flight.failed.any()
    assert (flight.live & ~flight.failed)[24:].any()
    rng = torch.Generator().manual_seed(0)
    return flight, torch.randn(flight.live.shape, generator=rng), torch.randn(2, 4, generator=rng)


def test_the_steps_stay_within_both_trust_regions(small):
    for i in range(4):
        parameters, flight = play(small, [7], i)
        batch = small.batch(parameters, flight, 0.99, 0.95)
        improved, statistics = small.improve(parameters, batch)
        assert 0 < statistics["kl"] <= SETTINGS.max_kl
        assert statistics["surrogate_gain"] > 0
        fitted, _ = small.fit(Learner.begin(improved), batch, 0, 0.0)
        agent, one = (
            small.agents.agent,
            batch._replace(**{k: v[0] for k, v in batch._asdict().items() if v is not None}),
        )
        before, _ = value_change(SETTINGS, agent, improved[0], one)
        after, moved = value_change(SETTINGS, agent, fitted[0][0], one)
        assert after < before
        assert 0 < moved <= SETTINGS.max_value_change
        policy = agent.layout.part("policy.")
        assert torch.equal(fitted[0][0, policy], improved[0, policy])


def test_whitened_advantages_have_mean_0_and_deviation_1(small):
    whitened = Experiment(trajectories=4, limit=60, settings=dataclasses.replace(SETTINGS, normalise_advantages=True))
    parameters, flight = play(small, [7])
    plain, found = (experiment.batch(parameters, flight, 0.99, 0.95) for experiment in (small, whitened))
    a, b = plain.advantages[plain.live], found.advantages[found.live]
    torch.testing.assert_close(b, (a - a.mean()) / a.std(correction=0), rtol=1e-3, atol=1e-3)


def test_a_seed_alone_is_the_same_as_in_company(small):
    together = list(small.run([3, 8], gamma=0.99, lam=0.9, iterations=3))
    alone = list(small.run([8], gamma=0.99, lam=0.9, iterations=3))
    assert [steps[1] for steps in together] == [steps[0] for steps in alone]


def test_a_seeds_batch_ends_with_its_longest_trajectory(small):
    _, flight = play(small, [5, 2])
    for s in range(2):
        one = of_seed(flight, s)
        assert one.live[-1].any()
        assert one.live.sum() == flight.live[:, s].sum()


def test_lam_0_learns_far_more_slowly_than_0_95():
    experiment = Experiment(limit=200)
    ends = [list(experiment.run(range(2), gamma=0.99, lam=lam, iterations=7))[-1].mean() for lam in (0.0, 0.95)]
    assert ends[1] > 1.5 * ends[0], ends


def test_settings_are_those_of_the_papers():
    assert (SETTINGS.max_kl, SETTINGS.value_fit) == (0.01, "trust_region")
    experiment = Experiment()
    assert (experiment.trajectories, experiment.limit) == (20, 1000)
    layout = experiment.agents.agent.layout
    sizes = dict(zip(layout.names, layout.sizes, strict=True))
    assert sum(size for name, size in sizes.items() if name.startswith("policy")) == 6  # 4 weights, a bias, log σ
    assert sizes["value.0.weight"] == 4 * 20

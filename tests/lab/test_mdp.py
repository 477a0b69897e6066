"""The truth of small processes against sampling, closed forms and finite differences."""

import numpy as np
import pytest

import telescope
from telescope.lab import mdp as truths
from telescope.lab import worlds
from telescope.lab.mdp import MDP, check, sample, softmax, truth, uniform, visits, with_horizon

RNG = np.random.default_rng
WORLDS = {
    "chain": worlds.chain(5),
    "chain with a time limit": worlds.chain(5, time_limit=7),
    "random walk": worlds.random_walk(5),
    "grid": worlds.grid_world(),
    "garnet": worlds.garnet(RNG(1), states=6),
    "garnet with a time limit": worlds.garnet(RNG(1), states=6, time_limit=4),
    "bandit": worlds.two_turn_bandit(),
    "horizon": with_horizon(worlds.garnet(RNG(2), states=4), 5),
}
EACH = pytest.mark.parametrize("world", WORLDS.values(), ids=list(WORLDS))


def policy_of(world, seed=0):
    return softmax(RNG(seed).normal(size=(world.states, world.actions)))


@EACH
def test_values_are_those_of_iterating_the_bellman_equation(world):
    policy, gamma = policy_of(world), 0.9
    values = np.zeros(world.states)
    for _ in range(600):
        q = (world.transitions * (world.rewards + gamma * values)).sum(-1)
        values = np.where(world.terminal, 0.0, (policy * q).sum(-1))
    found = truth(world, policy, gamma)
    np.testing.assert_allclose(found.values, values, atol=1e-10)
    np.testing.assert_allclose((policy * found.advantages).sum(-1), 0, atol=1e-12)
    np.testing.assert_allclose(truths.bellman_residuals(world, policy, found.values, gamma), 0, atol=1e-12)
    residuals = truths.bellman_residuals(world, policy, found.values + 1.0, gamma)  # a constant error c: (γ P − 1) c
    assert (residuals[~world.terminal] <= -(1 - gamma) + 1e-12).all()


@EACH
def test_samples_follow_the_process(world):
    policy = policy_of(world)
    drawn = sample(world, policy, RNG(3), 60, 3000)
    counts = np.zeros((world.states, world.actions, world.states))
    np.add.at(counts, (drawn.states, drawn.actions, drawn.next_states), 1)
    for s in np.flatnonzero(counts.sum((1, 2)) > 2000):
        total = counts[s].sum()
        expected = policy[s][:, None] * world.transitions[s]
        spread = np.sqrt(expected * (1 - expected) / total)
        assert (np.abs(counts[s] / total - expected) <= 5.5 * spread + 1e-12).all()
    ended = drawn.terminated | drawn.truncated
    assert np.array_equal(drawn.terminated, world.terminal[drawn.next_states])
    assert not (drawn.terminated & drawn.truncated).any()
    assert np.array_equal(drawn.states[1:][~ended[:-1]], drawn.next_states[:-1][~ended[:-1]])
    assert (world.start[drawn.states[1:][ended[:-1]]] > 0).all()
    assert (drawn.steps[1:][ended[:-1]] == 0).all()
    if world.time_limit:
        assert np.array_equal(drawn.truncated, (drawn.steps == world.time_limit - 1) & ~drawn.terminated)
    else:
        assert not drawn.truncated.any()


@EACH
def test_visits_are_mean_counts(world):
    policy = policy_of(world)
    drawn = sample(world, policy, RNG(4), 400, 2000)
    first = np.minimum.accumulate(np.vstack([np.ones((1, 2000)), ~(drawn.terminated | drawn.truncated)[:-1]]), 0) > 0
    for gamma in (0.8, 1.0):
        each = np.zeros((2000, world.states))  # of the first episode of each column
        columns = np.broadcast_to(np.arange(2000), drawn.states.shape)
        np.add.at(each, (columns[first], drawn.states[first]), gamma ** drawn.steps[first])
        error = each.std(0) / np.sqrt(2000)
        assert (np.abs(each.mean(0) - visits(world, policy, gamma)) <= 5 * error + 1e-9).all()


@EACH
def test_the_policy_gradient_is_the_derivative_of_the_expected_return(world):
    world = world._replace(time_limit=None)
    logits, gamma = RNG(5).normal(size=(world.states, world.actions)), 0.9
    gradient = truths.policy_gradient(world, softmax(logits), gamma)
    for index in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[index] = 1e-5
        ahead, behind = (truths.expected_return(world, softmax(logits + sign * step), gamma) for sign in (1, -1))
        assert gradient[index] == pytest.approx((ahead - behind) / 2e-5, abs=1e-8)


def test_closed_forms():
    walk = worlds.random_walk(19)
    np.testing.assert_allclose(truth(walk, uniform(walk), 1.0).values[:19], np.linspace(-0.9, 0.9, 19), atol=1e-12)
    sure = worlds.chain(4, slip=0.0)
    right = np.tile([0.0, 1.0], (5, 1))
    np.testing.assert_allclose(truth(sure, right, 0.5).values, [0.125, 0.25, 0.5, 1.0, 0.0])
    assert visits(sure, right).sum() == 4
    # one step from the end, with a wall behind: V = (1 − slip) · 1 + slip · γ V
    short = worlds.chain(1, slip=0.25)
    np.testing.assert_allclose(truth(short, right[:2], 0.5).values[0], 0.75 / (1 - 0.25 * 0.5))
    garnet = worlds.garnet(RNG(0), states=50)  # the rewards of all ways are standard normal, however rare the way
    rewards = garnet.rewards[garnet.transitions > 0]
    assert abs(rewards.std() - 1) < 5 / np.sqrt(2 * len(rewards))
    bandit = worlds.two_turn_bandit(stop=0.5, second=(0.4, 0.6))
    np.testing.assert_allclose(truth(bandit, uniform(bandit), 1.0).action_values[0], [0.5, 0.5])
    grid = worlds.grid_world()
    assert (grid.states, grid.terminal.sum(), grid.start.argmax()) == (11, 2, 7)


def test_gae_of_exact_values_has_the_advantage_as_its_mean():
    """The estimators and the truth agree: with exact V, E[GAE | s, a] = A(s, a) for every λ, at every kind of end."""
    world = worlds.garnet(RNG(6), states=5, ending=0.15, time_limit=6)
    policy, gamma = policy_of(world, 7), 0.95
    exact, drawn = truth(world, policy, gamma), sample(world, policy, RNG(8), 40, 20_000)
    values, following = exact.values[drawn.states], exact.values[drawn.next_states]
    for lam in (0.0, 0.7, 1.0):
        ends = {"terminated": drawn.terminated, "truncated": drawn.truncated}
        advantages = telescope.gae(drawn.rewards, values, following, **ends, gamma=gamma, lam=lam).advantages
        for s, a in np.ndindex(world.states - 1, world.actions):
            here = (drawn.states == s) & (drawn.actions == a)
            error = advantages[here].std() / np.sqrt(here.sum())
            assert abs(advantages[here].mean() - exact.advantages[s, a]) < 5 * error


def test_a_horizon_belongs_to_the_task():
    """Backward induction over the steps that remain."""
    world, horizon, gamma = worlds.garnet(RNG(9), states=4), 3, 0.9
    policy = policy_of(world)
    expanded = with_horizon(world, horizon)
    repeated = np.vstack([np.tile(policy, (horizon, 1)), uniform(world)[:1]])
    found = truth(expanded, repeated, gamma).values[:-1].reshape(horizon, -1)
    following = np.zeros(world.states)
    for t in reversed(range(horizon)):
        q = (world.transitions * (world.rewards + gamma * following)).sum(-1)
        following = np.where(world.terminal, 0.0, (policy * q).sum(-1))
        np.testing.assert_allclose(found[t], following, atol=1e-12)


def test_the_cart_stays_up_longer_by_the_best_policy_than_by_chance():
    cart = worlds.cart_pole()
    random = truth(cart, uniform(cart), 0.99)
    policy = uniform(cart)
    for _ in range(20):
        policy = np.eye(2)[truth(cart, policy, 0.99).action_values.argmax(-1)]
    middle = cart.start.argmax()
    assert truth(cart, policy, 0.99).values[middle] > 2 * random.values[middle]
    mirrored = np.flip(random.values[:-1].reshape(3, 3, 7, 9))
    np.testing.assert_allclose(random.values[:-1].reshape(3, 3, 7, 9), mirrored, atol=1e-9)


def test_the_cart_is_gymnasiums():
    import gymnasium as gym

    env = gym.make("CartPole-v1").unwrapped
    rng = RNG(10)
    for _ in range(20):
        env.reset(seed=0)
        state = rng.uniform(-0.2, 0.2, 4)
        env.state = tuple(state)
        action = int(rng.integers(2))
        env.step(action)
        np.testing.assert_allclose(worlds._pushed(state, action), env.state, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transitions": np.ones((3, 2, 2))}, "transitions has shape"),
        ({"transitions": np.ones((3, 2, 3))}, "transitions holds rows that are no probabilities"),
        ({"terminal": np.array([0, 0, 1])}, "terminal has dtype"),
        ({"start": np.array([0.5, 0.0, 0.5])}, "start has a terminal state"),
        ({"start": np.array([0.5, 0.0, 0.0])}, "start holds rows"),
        ({"time_limit": 0}, "time_limit is 0"),
        ({"rewards": np.full((3, 2, 3), np.nan)}, "rewards holds NaN"),
    ],
)
def test_a_process_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check(worlds.two_turn_bandit()._replace(**change))


def test_a_policy_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="policy has shape"):
        truth(worlds.chain(), np.ones(3), 0.9)
    with pytest.raises(ValueError, match="no probabilities"):
        truth(worlds.chain(3), np.ones((4, 2)), 0.9)


def test_an_endless_episode_needs_a_discount():
    for_ever = MDP(np.ones((1, 1, 1)), np.ones((1, 1, 1)), np.ones(1), np.zeros(1, bool))
    assert truth(for_ever, np.ones((1, 1)), 0.5).values == pytest.approx(2)
    for function in (truth, visits):
        with pytest.raises(ValueError, match="gamma is 1"):
            function(for_ever, np.ones((1, 1)), 1.0)
    assert visits(for_ever._replace(time_limit=3), np.ones((1, 1))) == 3


def test_nothing_is_read_of_terminal_states():
    world = worlds.chain(4)
    spoiled = world._replace(transitions=world.transitions.copy(), rewards=world.rewards.copy())
    spoiled.transitions[world.terminal] = np.nan
    spoiled.rewards[world.terminal] = np.nan
    policy = policy_of(world)
    check(spoiled)
    for one, other in zip(truth(world, policy, 0.9), truth(spoiled, policy, 0.9), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(visits(world, policy), visits(spoiled, policy))

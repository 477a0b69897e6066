"""REINFORCE's gradient against the exact one of a small world, and its weights against loops over episodes."""

import dataclasses
import itertools
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

from telescope.algorithms.reinforce import Batch, Learner, Reinforce, samples, train, update_agent
from telescope.control.agents.actor import ActorCritic
from telescope.control.agents.distributions import distribution
from telescope.control.agents.layout import create
from telescope.control.experience.episodes import packed, rung
from telescope.control.experience.rollout import Finals, Rollout
from worlds import Forever

LENGTH, ACTIONS = 3, gym.spaces.Discrete(2)
ESTIMATORS = [
    {"weight": "total"},
    {"weight": "to_go"},
    {"weight": "baselined", "baseline": "value"},
    {"weight": "baselined", "baseline": "mean", "episodes": 2},
]


def agent_of(config, seed=0):
    network = config.network(LENGTH, ACTIONS)
    parameters, layout = create(network, [seed])
    return ActorCritic(network, distribution(ACTIONS), layout), parameters


def play(actions):
    """A walk over states 0, 1, 2: action 0 ends it. (state, action, reward) per step."""
    steps = []
    for state, action in enumerate(actions):
        steps.append((state, action, 1.0 + 2.0 * state if action == 0 else -0.3 * (state + 1)))
        if action == 0:
            break
    return tuple(steps)


EPISODES = sorted({play(actions) for actions in itertools.product((0, 1), repeat=LENGTH)})


def rollout_of(columns):
    """Lists of episodes, one per environment, as a rollout [T, 1, B]; rows after the last episode are rubbish."""
    flat = [[(step, i == len(e) - 1) for e in column for i, step in enumerate(e)] for column in columns]
    longest, count = max(map(len, flat)), len(columns)
    observations = torch.full((longest, 1, count, LENGTH), 7.0)
    actions, rewards = torch.ones((longest, 1, count), dtype=torch.int64), torch.full((longest, 1, count), 100.0)
    ended, mask = torch.zeros((longest, 1, count), dtype=torch.bool), torch.zeros((longest, 1, count), dtype=torch.bool)
    for b, column in enumerate(flat):
        for t, ((state, action, reward), last) in enumerate(column):
            observations[t, 0, b] = torch.eye(LENGTH)[state]
            actions[t, 0, b], rewards[t, 0, b], ended[t, 0, b], mask[t, 0, b] = action, reward, last, True
    nothing = Finals(np.zeros((3, 0), np.int64), np.zeros((0, LENGTH), np.float32))
    never = torch.zeros_like(ended)
    return Rollout(observations, actions, rewards, ended, never, mask, None, observations[-1], nothing)


def session_of(config, seed=0):
    agent, parameters = agent_of(config, seed)
    value = torch.func.vmap(agent.value)
    return SimpleNamespace(
        agent=agent,
        parameters=parameters,
        value=lambda x, memory=None: value(parameters, x).detach(),
        to_device=lambda x: x,
    )


def gradient_of(config, session, columns):
    """The gradient of the update, and the number of its samples."""
    batch = packed(samples(config, session, rollout_of(columns)))
    one = Batch(*(None if x is None else x[0] for x in batch))
    old = Learner.begin(session.parameters)
    old = Learner(old.parameters[0], type(old.adam)(*(part[0] for part in old.adam)))
    new, _ = update_agent(config, session.agent)(old, one, torch.tensor(1e-3))
    return new.adam.first_moment / (1 - 0.9), int(one.live.sum())


def probability(session, episode, vector):
    steps = list(zip(*episode, strict=True))
    seen, actions = torch.eye(LENGTH)[list(steps[0])], torch.tensor(steps[1])
    return session.agent.evaluate(vector, seen, actions, None)[0].sum().exp()


@pytest.mark.parametrize("settings", ESTIMATORS, ids=lambda x: x.get("baseline", x["weight"]))
def test_every_weight_has_the_gradient_of_the_expected_return(settings):
    """Of undiscounted returns: the sum over all that can happen, against the derivative of the expected return."""
    few = {"episodes": 1, "num_envs": 1, "gamma": 1.0, "max_grad_norm": 1e9, "value_coefficient": 0.0, "hidden": (5,)}
    config = Reinforce(**few | settings | {"num_envs": settings.get("episodes", 1)})
    session = session_of(config)

    def expected(vector):
        return sum(probability(session, e, vector) * sum(reward for _, _, reward in e) for e in EPISODES)

    exact = -torch.func.grad(expected)(session.parameters[0])
    found = torch.zeros_like(exact)
    for columns in itertools.product(EPISODES, repeat=config.episodes):
        gradient, count = gradient_of(config, session, [[e] for e in columns])
        chance = torch.stack([probability(session, e, session.parameters[0]) for e in columns]).prod().detach()
        found += chance * gradient * count / config.episodes  # a mean over steps; the theorem has a sum over an episode
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)
    assert exact.norm() > 0.1


def weights_of(config, rollout, session=None):
    return samples(config, session or session_of(config), rollout)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_weights_are_those_of_loops_over_episodes(gamma):
    """Two episodes of each of two environments, of different lengths."""
    columns = [[EPISODES[0], EPISODES[2]], [EPISODES[3], EPISODES[1]]]
    rollout = rollout_of(columns)
    few = {"episodes": 4, "num_envs": 2, "gamma": gamma, "hidden": (5,)}
    to_go = {
        (b, k): [sum(gamma**j * step[2] for j, step in enumerate(e[t:])) for t in range(len(e))]
        for b, column in enumerate(columns)
        for k, e in enumerate(column)
    }

    def found(**settings):
        config = Reinforce(**few | settings)
        session = session_of(config)
        batch = samples(config, session, rollout)
        weights = batch.weights.unflatten(1, (-1, 2))[0]  # [T, B]
        live = rollout.mask[:, 0]
        return [weights[live[:, b], b].tolist() for b in range(2)], session

    def wanted(weight):
        return [pytest.approx([*weight(b, 0), *weight(b, 1)], rel=1e-5) for b in range(2)]

    assert found(weight="to_go")[0] == wanted(lambda b, k: to_go[b, k])
    assert found(weight="total")[0] == wanted(lambda b, k: [to_go[b, k][0]] * len(to_go[b, k]))

    def minus_others(b, k):
        others = [x for place, xs in to_go.items() if place != (b, k) for x in xs]
        return [x - np.mean(others) for x in to_go[b, k]]

    assert found(weight="baselined", baseline="mean")[0] == wanted(minus_others)
    weights, session = found(weight="baselined", baseline="value")
    values = session.value(torch.eye(LENGTH)[None])[0]

    def minus_value(b, k):
        return [x - float(values[step[0]]) for x, step in zip(to_go[b, k], columns[b][k], strict=True)]

    assert weights == wanted(minus_value)


def test_whitened_weights_are_whitened_over_what_counts():
    config = Reinforce(episodes=2, num_envs=2, normalise_returns=True, hidden=(5,))
    batch = weights_of(config, rollout_of([[EPISODES[0]], [EPISODES[3]]]))
    live = batch.weights[batch.live]
    assert float(live.mean()) == pytest.approx(0, abs=1e-6)
    assert float(live.std(correction=0)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("baseline", [None, "value"])
def test_a_time_limit_ends_an_episode_and_only_a_value_function_looks_beyond(baseline):
    weight = "to_go" if baseline is None else "baselined"
    config = Reinforce(episodes=1, num_envs=1, gamma=0.9, weight=weight, baseline=baseline, hidden=(5,))
    session, whole = session_of(config), rollout_of([[play((1, 1, 1))]])
    beyond = np.full((1, LENGTH), 0.5, np.float32)
    finals = Finals(np.array([[2], [0], [0]]), beyond)
    cut = whole._replace(truncated=whole.terminated, terminated=whole.truncated, finals=finals)
    ended, limited = (samples(config, session, one).returns[0] for one in (whole, cut))
    value = float(session.value(torch.from_numpy(beyond)[None])[0, 0]) if baseline else 0.0
    assert (limited - ended).tolist() == pytest.approx([0.9**3 * value, 0.9**2 * value, 0.9 * value], abs=1e-6)


def test_rows_that_do_not_count_have_no_effect():
    config = Reinforce(episodes=2, num_envs=2, weight="baselined", baseline="value", hidden=(5,))
    session = session_of(config)
    rollout = rollout_of([[EPISODES[0]], [EPISODES[-1]]])
    dead = ~rollout.mask
    assert dead.any()
    worse = rollout._replace(
        rewards=rollout.rewards.masked_fill(dead, -1e6),
        actions=rollout.actions.masked_fill(dead, 0),
        observations=rollout.observations.masked_fill(dead[..., None], -3.0),
    )
    one, other = (packed(samples(config, session, x)) for x in (rollout, worse))
    assert torch.equal(one.live, other.live)
    for name in ("observations", "actions", "weights", "returns"):
        assert torch.equal(getattr(one, name)[one.live], getattr(other, name)[one.live])
    learners = []
    for batch in (one, other):
        alone = Batch(*(None if x is None else x[0] for x in batch))
        begin = Learner.begin(session.parameters)
        old = Learner(begin.parameters[0], type(begin.adam)(*(part[0] for part in begin.adam)))
        learners.append(update_agent(config, session.agent)(old, alone, torch.tensor(1e-2))[0].parameters)
    torch.testing.assert_close(*learners, rtol=1e-6, atol=1e-7)
    still = alone._replace(live=torch.zeros_like(alone.live))
    assert torch.equal(
        update_agent(config, session.agent)(old, still, torch.tensor(1e-2))[0].parameters, old.parameters
    )


def test_packing_keeps_what_counts_in_order():
    generator = torch.Generator().manual_seed(0)
    live = torch.rand((2, 150), generator=generator) < 0.4
    numbers = torch.arange(300).view(2, 150)
    batch = Batch(numbers[..., None], numbers, *(numbers.float(),) * 3, live, None)
    found = packed(batch)
    assert found.live.shape[1] in (64, 96)
    for s in range(2):
        assert found.actions[s][found.live[s]].tolist() == numbers[s][live[s]].tolist()
    assert [rung(n) for n in (0, 1, 64, 65, 96, 97, 128, 129)] == [64, 64, 64, 96, 96, 128, 128, 192]


def test_a_value_function_learns_the_value_of_a_state():
    """Reward 1 for ever, cut after 5 steps: V = 1 / (1 − γ), because a value function looks beyond a time limit."""
    config = Reinforce(
        env=Forever, total_steps=12_000, num_envs=4, episodes=4, gamma=0.5, weight="baselined", baseline="value"
    )
    config = dataclasses.replace(config, learning_rate=1e-2, value_coefficient=1.0, hidden=(8,), threads=1)
    *_, last = train(config)
    assert last.rows[0]["value_loss"] == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": "baselined"}, "weight is 'baselined', but baseline is none"),
        ({"baseline": "mean"}, "baseline is 'mean', which weight 'to_go' does not read"),
        ({"weight": "baselined", "baseline": "mean", "episodes": 1, "num_envs": 1}, "episodes is 1; raise episodes"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Reinforce(**settings)

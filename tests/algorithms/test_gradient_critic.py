"""Gradient critics: TDRC(λ)'s update against its dense formula and finite differences, sequences, rates, penalty.

Leaves out what holds of every trainer (`test_laws.py`, the row "ppo with a gradient critic").
"""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from telescope.algorithms.a2c import A2C
from telescope.algorithms.ppo import PPO, Learner, preset, train, update_agent
from telescope.control.agents.critics import critic_loss, penalty, step_sizes, with_gradient
from telescope.control.agents.layout import Layout
from telescope.control.agents.lifting import PATIENCE, lift
from telescope.control.agents.networks import from_module
from telescope.control.experience.credit import Steps, samples, with_advantages
from telescope.control.experience.minibatches import minibatches, sequence_indices
from telescope.control.experience.samples import successors, time_major
from telescope.control.training import Session
from telescope.losses import gradient_td_loss, squared_value_loss
from telescope.policy import Policy
from worlds import Forever

SMALL = PPO(
    env="Pendulum-v1",
    env_kwargs={"max_episode_steps": 9},
    seeds=2,
    num_envs=3,
    num_steps=16,
    minibatch_size=16,
    epochs=2,
    total_steps=96,
    hidden=(8,),
    gamma=0.9,
    lam=0.8,
    critic="gradient",
    sequence_length=8,
    threads=1,
    compile="off",
)
LENGTH, COUNT, SIZE = 6, 4, 3
LINEAR = dataclasses.replace(SMALL, num_steps=LENGTH, num_envs=COUNT, minibatch_size=LENGTH * COUNT, sequence_length=6)
LAYOUT = Layout(("value.weight", "correction.weight"), ((SIZE, 1), (SIZE, 1)))


def apply(parameters, features):
    return features, torch.cat([features @ parameters["value.weight"], features @ parameters["correction.weight"]], -1)


AGENT = SimpleNamespace(
    layout=LAYOUT,
    network=SimpleNamespace(memory=0),
    value=lambda vector, features: apply(LAYOUT.unflatten(vector), features)[1],
)
"""A critic that is linear in its observations, and so is its correction."""


def linear_batch(seed=0):
    """L steps of some sequences, time first [M, …], in float64, with every kind of ending and masked rows."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    m = LENGTH * COUNT
    terminated, truncated = (torch.rand(2, m, generator=generator) < 0.15).unbind()
    steps = Steps(normal(m), terminated, truncated & ~terminated, normal(m, SIZE))
    live = torch.rand(m, generator=generator) < 0.85
    batch = SimpleNamespace(observations=normal(m, SIZE), steps=steps, live=live, returns=None, lam=None)
    batch._replace = lambda **new: SimpleNamespace(**(vars(batch) | new))
    return batch, normal(2 * SIZE)


def total(vector, batch, config=LINEAR):
    outputs = AGENT.value(vector, batch.observations)
    found = critic_loss(config, outputs, with_gradient(config, AGENT, vector, outputs, batch))
    return (batch.live * found).sum() / batch.live.sum() + penalty(config, AGENT, vector)


def dense(batch, vector, beta):
    """TDRC(λ) for linear v = φᵀw and h = φᵀu, with matrices over the steps of each sequence: −∇w and −∇u."""
    w, u = (x.numpy() for x in vector.split(SIZE))
    axes = lambda x: x.numpy().reshape(LENGTH, COUNT, *x.shape[1:])  # noqa: E731
    phi, after = axes(batch.observations), axes(batch.steps.successors)
    rewards, terminated, truncated = map(axes, batch.steps[:3])
    live, steps_w, steps_u = axes(batch.live), np.zeros(SIZE), np.zeros(SIZE)
    for k in range(COUNT):
        rows = np.flatnonzero(live[:, k])  # masked rows are no steps at all
        x, y = phi[rows, k], after[rows, k]
        bootstrap = np.diag(0.9 * ~terminated[rows, k])
        goes_on = 0.9 * 0.8 * ~(terminated | truncated)[rows, k]
        traces = np.linalg.inv(np.eye(len(rows)) - np.diag(goes_on[:-1], 1)) if len(rows) else np.zeros((0, 0))
        errors = traces @ (rewards[rows, k] + bootstrap @ y @ w - x @ w)  # δ^λ
        slopes = traces @ (bootstrap @ y - x)  # ∇δ^λ
        steps_w += errors @ x - (x @ u) @ (x + slopes)
        steps_u += (errors - x @ u) @ x
    return steps_w / live.sum(), steps_u / live.sum() - beta * u


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_the_dense_formula_for_a_linear_critic(seed):
    batch, vector = linear_batch(seed)
    found = -torch.func.grad(total)(vector, batch)
    np.testing.assert_allclose(found, np.concatenate(dense(batch, vector, 1.0)), rtol=1e-9, atol=1e-12)
    free = dataclasses.replace(LINEAR, correction_penalty=0.0)  # TDC(λ)
    found = -torch.func.grad(total)(vector, batch, free)
    np.testing.assert_allclose(found, np.concatenate(dense(batch, vector, 0.0)), rtol=1e-9, atol=1e-12)


def test_the_gradient_of_the_returns_is_that_of_finite_differences():
    batch, vector = linear_batch()

    def returns(x):
        return with_gradient(LINEAR, AGENT, x, AGENT.value(x, batch.observations), batch).returns

    found = torch.func.jacrev(returns)(vector)[:, :SIZE]
    for i in range(SIZE):
        step = 1e-6 * torch.eye(2 * SIZE, dtype=torch.float64)[i]
        slope = (returns(vector + step) - returns(vector - step)) / 2e-6
        torch.testing.assert_close(found[:, i], slope, rtol=1e-6, atol=1e-8)


def test_without_a_correction_it_is_the_gradient_of_a_value_critic_and_with_the_error_that_of_the_whole_square():
    x, target = torch.randn(2, 9, dtype=torch.float64)
    for correction, wanted in ((0.0, squared_value_loss), (1.0, lambda v, g: 0.5 * (g - v) ** 2)):

        def found(v, correction=correction):
            g = target + 0.3 * v.flip(0)  # returns that depend on values
            return gradient_td_loss(v, g, correction * (g - v).detach()).sum()

        def plain(v, correction=correction, wanted=wanted):
            g = target + 0.3 * v.flip(0)
            return wanted(v, g if correction else g.detach()).sum()

        torch.testing.assert_close(torch.func.grad(found)(x), torch.func.grad(plain)(x))
    values, returns, corrections = torch.randn(3, 9)
    torch.testing.assert_close(gradient_td_loss(values, returns, corrections), 0.5 * (returns - values) ** 2)


def test_the_correction_regresses_on_the_errors():
    """Where v rests, h ends at the ridge regression of δ^λ on the features."""
    batch, vector = linear_batch()
    config = dataclasses.replace(LINEAR, correction_penalty=0.1)
    for _ in range(4000):
        gradient = torch.func.grad(total)(vector, batch, config)
        vector = torch.cat([vector[:SIZE], vector[SIZE:] - 0.2 * gradient[SIZE:]])
    outputs = AGENT.value(vector, batch.observations)
    errors = with_gradient(config, AGENT, vector, outputs, batch).returns - outputs[:, 0]
    x, y = batch.observations[batch.live].numpy(), errors[batch.live].numpy()
    wanted = np.linalg.solve(x.T @ x / len(x) + 0.1 * np.eye(SIZE), x.T @ y / len(x))
    np.testing.assert_allclose(vector[SIZE:], wanted, rtol=1e-6)


# Sequences


def credit(config):
    session = Session(config, None, Learner)
    rollout = session.collect()
    session.close()
    return session, rollout, with_advantages(config, session, rollout, samples(session, rollout))


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
def test_whole_sequences_of_the_critic_that_judged_have_the_returns_of_the_rollout(autoreset):
    config = dataclasses.replace(SMALL, autoreset=autoreset, sequence_length=16, minibatch_size=48)
    session, _, batch = credit(config)
    for s in range(2):
        one = batch._replace(steps=Steps(*(x[s] for x in batch.steps)), live=batch.live[s])
        found = with_gradient(config, session.agent, session.parameters[s], batch.outputs[s], one)
        live = batch.live[s]
        torch.testing.assert_close(found.returns[live], batch.returns[s][live], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
def test_values_of_successors_are_what_each_step_led_to(autoreset):
    """Known from the environment itself: the next row's observation, or the final one of a truncated episode."""
    config = dataclasses.replace(SMALL, autoreset=autoreset)
    _, rollout, batch = credit(config)
    reached, seen = successors(rollout), rollout.observations
    assert rollout.truncated.any()
    for t in range(15):
        goes_on = rollout.mask[t] & ~rollout.truncated[t] & ~rollout.terminated[t]
        torch.testing.assert_close(reached[t][goes_on], seen[t + 1][goes_on])
    places, observations, _ = rollout.finals
    for place, observation in zip(places.T, observations, strict=True):
        assert torch.equal(reached[tuple(place)], torch.from_numpy(observation))
    goes_on = ~(rollout.truncated | rollout.terminated)[15]
    torch.testing.assert_close(reached[15][goes_on], rollout.last_observations[goes_on])
    assert torch.equal(time_major(batch.steps.successors, 3), reached)


def test_minibatches_are_stretches_of_an_environment():
    config = dataclasses.replace(SMALL, num_envs=5)
    for epoch in sequence_indices(config, 0):
        assert epoch.shape == (2, 5, 16)
        for seed in epoch:
            drawn = seed.reshape(5, 8, 2)  # minibatch, step, place
            stretches = [drawn[k, :, i].tolist() for k in range(5) for i in range(2)]
            wanted = [[t * 5 + b for t in range(first, first + 8)] for first in (0, 8) for b in range(5)]
            assert sorted(stretches) == sorted(wanted)


def test_a_memory_may_learn_from_stretches_too():
    """Each begins with the memory that the policy had there, so that new and old log-probabilities agree."""
    settings = {"memory": "gru", "memory_size": 4, "epochs": 1, "num_envs": 2, "total_steps": 32, "minibatch_size": 32}
    config = dataclasses.replace(SMALL, critic="value", **settings)
    for row in next(iter(train(config))).rows:
        assert row["kl"] == pytest.approx(0, abs=1e-6)
        assert row["clip_fraction"] == 0


def test_a_recorded_update_is_the_update():
    session, _, batch = credit(SMALL)
    update = update_agent(SMALL, session.agent)
    recorded = lift(update, (0, 0, 0, None, None), compiled=False)
    indices = next(iter(sequence_indices(SMALL, 0)))
    first, second, *_ = minibatches(batch, indices)
    more = (torch.ones(2, dtype=torch.bool), torch.tensor(1e-3), torch.tensor(0.2))

    def called(function, minibatch):
        learner, _, row = function(session.learner, more[0], minibatch, *more[1:])
        return learner.parameters, row

    for _ in range(PATIENCE + 1):
        called(recorded, first)
    assert recorded.programs, "it is recorded by now"
    plain = lift(update, (0, 0, 0, None, None), compiled=False)
    for minibatch in (first, second):
        for found, wanted in zip(called(recorded, minibatch), called(plain, minibatch), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


# Training


def test_values_are_those_of_a_known_world():
    """Reward 1 for ever: V = 1 / (1 − γ)."""
    config = PPO(env=Forever, total_steps=3200, num_envs=4, num_steps=20, minibatch_size=40, epochs=4, hidden=(8,))
    config = dataclasses.replace(
        config, gamma=0.8, critic="gradient", sequence_length=10, value_learning_rate=2e-2, threads=1, compile="off"
    )
    *_, last = train(config)
    assert Policy(config, last.policy).value(np.ones(1, np.float32)) == pytest.approx(5, abs=0.3)


def test_the_critics_own_parameters_have_their_own_learning_rate():
    layout = Layout(("policy.out.weight", "value.out.weight", "correction.out.bias"), ((2, 2), (3, 1), (2,)))
    assert step_sizes(layout, torch.tensor(0.5), 10.0).tolist() == [0.5] * 4 + [5.0] * 5
    with pytest.raises(ValueError, match="value_learning_rate is set, but no parameter's name"):
        step_sizes(Layout(("body.weight",), ((2, 2),)), torch.tensor(0.5), 10.0)
    session, _, batch = credit(SMALL)
    first = next(minibatches(batch, next(iter(sequence_indices(SMALL, 0)))))
    moved = {}
    for rate in (None, 1e-2):
        config = dataclasses.replace(SMALL, value_learning_rate=rate)
        update = lift(update_agent(config, session.agent), (0, 0, 0, None, None), compiled=False)
        learner, *_ = update(
            session.learner, torch.ones(2, dtype=torch.bool), first, torch.tensor(1e-3), torch.tensor(0.2)
        )
        moved[rate] = learner.parameters - session.parameters
    ratio = 1e-2 / SMALL.learning_rate
    policy, value = session.agent.layout.part("policy."), session.agent.layout.part("value.")
    torch.testing.assert_close(moved[1e-2][:, policy], moved[None][:, policy])
    torch.testing.assert_close(moved[1e-2][:, value], ratio * moved[None][:, value], rtol=1e-3, atol=1e-6)


def test_a_correction_begins_near_0_and_leaves_policy_and_values_as_they_were():
    session, _, batch = credit(SMALL)
    plain = dataclasses.replace(SMALL, critic="value", sequence_length=None)
    *_, other = credit(plain)
    torch.testing.assert_close(batch.values, other.values)
    torch.testing.assert_close(batch.log_probs, other.log_probs)
    assert 0 < batch.outputs[..., 1].abs().max() < 0.1
    part = session.parameters[:, session.agent.layout.part("correction.")]
    norms = torch.stack([penalty(SMALL, session.agent, x) for x in session.parameters])
    torch.testing.assert_close(norms, 0.5 * part.square().sum(1))


def test_the_preset_is_that_of_ppo_with_sequences_and_a_faster_critic():
    config = preset("Hopper-v5", name="gradient_ppo")
    changed = {"critic": "gradient", "sequence_length": 32, "minibatch_size": 256, "value_learning_rate": 3e-3}
    assert config == dataclasses.replace(preset("Hopper-v5"), **changed)
    assert preset("MountainCar-v0", name="gradient_ppo").sequence_length == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_length": 5}, "sequence_length is 5; expected a divisor of num_steps 16"),
        ({"minibatch_size": 12}, "minibatch_size is 12, but a gradient critic learns from whole sequences"),
        ({"memory": "gru"}, "memory is 'gru', but critic is 'gradient'"),
        ({"value_clip": 0.2}, r"value_clip is 0\.2, but critic is 'gradient'"),
        ({"critic": "value"}, "sequence_length is 8, but minibatches have no sequences"),
        (
            {"critic": "value", "sequence_length": None, "correction_penalty": 2.0},
            "correction_penalty is .* 'gradient'",
        ),
        ({"correction_penalty": -1.0}, "correction_penalty is -1"),
        ({"value_learning_rate": 0.0}, "value_learning_rate is 0"),
    ],
)
def test_what_cannot_work_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_only_what_has_sequences_takes_a_gradient_critic():
    with pytest.raises(ValueError, match="critic is 'gradient', which A2C cannot train"):
        A2C(critic="gradient")


class Net(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.policy, self.value = nn.Linear(3, 2), nn.Linear(3, 1)
        setattr(self, name, nn.Linear(3, 1))
        self.name = name

    def forward(self, x):
        return self.policy(x), torch.cat([self.value(x), getattr(self, self.name)(x)], -1)


def test_a_network_of_ones_own_names_its_correction():
    *_, last = train(SMALL, network=from_module(lambda: Net("correction")))
    assert np.isfinite(last.rows[0]["value_loss"])
    with pytest.raises(ValueError, match="no parameter's name begins with 'correction"):
        list(train(SMALL, network=from_module(lambda: Net("other"))))

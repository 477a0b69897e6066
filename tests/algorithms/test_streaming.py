"""Streaming deep learning: traces are sums of gradients, steps stay below the bound, ends cut both.

Leaves out what holds of every trainer: `test_laws.py`.
"""

import dataclasses

import numpy as np
import pytest
import torch

from telescope.algorithms import stream_ac, stream_q
from telescope.algorithms.stream_ac import StreamAC
from telescope.algorithms.stream_q import StreamQ
from telescope.control.agents.layout import create
from telescope.control.agents.networks import streaming, with_softplus
from telescope.control.experience.steps import Batch
from telescope.control.streaming import Learner
from telescope.control.training import Session
from telescope.optimisers import obgd_step_size
from worlds import Chain, Forever, Masked

SMALL = StreamAC(
    env="CartPole-v1", seeds=2, hidden=(8,), sparsity=0.5, total_steps=40, num_steps=40, compile="off", threads=1
)
SMALL_Q = StreamQ(
    env=Masked, seeds=2, hidden=(8,), sparsity=0.5, total_steps=40, num_steps=40, compile="off", threads=1
)


# The bounded step


@pytest.mark.parametrize("kappa", [1.0, 2.0, 3.0])
def test_a_step_never_overshoots_a_linear_target(kappa):
    """On features within ±1 the error after a step keeps its sign, and moves by at most min(|δ|, 1) / κ."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        x = 2 * torch.rand(7, generator=generator) - 1
        w, target = torch.randn(7, generator=generator), 10 * torch.randn((), generator=generator)
        alpha = torch.rand((), generator=generator) * 5
        delta = target - w @ x
        step = obgd_step_size(delta, x.abs().sum(), alpha, kappa=kappa)
        moved = delta - (target - (w + step * delta * x) @ x)
        assert float(moved.abs()) <= min(float(delta.abs()), 1.0) / kappa + 1e-5
        assert moved * delta >= 0
        assert step <= alpha
        bound = float(alpha) * kappa * max(float(delta.abs()), 1.0) * float(x.abs().sum())
        assert float(step) == pytest.approx(float(alpha) / max(bound, 1.0), rel=1e-5)


def test_a_small_step_is_left_as_it_is():
    found = obgd_step_size(torch.tensor(0.3), torch.tensor(0.1), torch.tensor(0.5), kappa=2.0)
    assert float(found) == 0.5
    doubled = obgd_step_size(torch.tensor(4.0), torch.tensor(10.0), torch.tensor(1.0), kappa=2.0)
    assert float(doubled) == pytest.approx(1 / 80)


# The network


def test_most_incoming_weights_of_each_unit_begin_at_0():
    network = streaming(20, {"policy": 3, "value": 1}, hidden=(30, 40), sparsity=0.9)
    parameters = network.init(np.random.default_rng(0))
    assert list(parameters) == [
        f"{part}.{layer}.{kind}"
        for part in ("policy", "value")
        for layer in (0, 1, "out")
        for kind in ("weight", "bias")
    ]
    for name, weight in parameters.items():
        if name.endswith("bias"):
            assert (weight == 0).all()
            continue
        rows = len(weight)
        assert ((weight == 0).sum(0) == int(0.9 * rows)).all(), "of each unit, not of the layer"
        assert weight.abs().max() <= rows**-0.5
    assert parameters["policy.1.weight"].abs().max() > 0.9 * 30**-0.5
    assert len({tuple(column.tolist()) for column in (parameters["policy.0.weight"] != 0).T}) > 20, "other ones of each"


def test_the_network_is_torchs_layers_and_runs_in_numpy():
    network = with_softplus(streaming(5, {"policy": 4, "value": 1}, hidden=(6, 7), sparsity=0.5), 2)
    parameters, x = network.init(np.random.default_rng(0)), torch.randn(9, 5)

    def by_torch(part):
        h = x
        for layer in (0, 1):
            h = h @ parameters[f"{part}.{layer}.weight"] + parameters[f"{part}.{layer}.bias"]
            h = torch.nn.functional.leaky_relu(torch.nn.functional.layer_norm(h, h.shape[-1:]))
        return h @ parameters[f"{part}.out.weight"] + parameters[f"{part}.out.bias"]

    raw = by_torch("policy")
    expected = torch.cat([raw[:, :2], torch.nn.functional.softplus(raw[:, 2:]).log()], -1)
    outputs, values = network.apply(parameters, x)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(values, by_torch("value")[:, 0])
    arrays = {name: value.numpy() for name, value in parameters.items()}
    for one, other in zip(network.apply(arrays, x.numpy()), (outputs, values), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


# Updates


def session_of(module, config):
    session = Session(config, None, Learner)
    update = session.lift(module.update_agent(config, session.agent), (0, 0, None))
    return session, update


def steps(session, count, seed=0):
    """Random steps of both seeds with every kind of end, some of them rows of a reset."""
    random = np.random.default_rng(seed)
    size, actions = session.rollouts.encoder.size, session.agent.distribution.outputs
    for _ in range(count):
        masks = torch.from_numpy(random.random((2, 1, actions)) < 0.7) | torch.eye(actions, dtype=torch.bool)[:1]
        following = torch.from_numpy(random.random((2, 1, actions)) < 0.7) | torch.eye(actions, dtype=torch.bool)[1:2]
        action = torch.multinomial(masks[:, 0].float(), 1, generator=torch.Generator().manual_seed(_))
        flags = [torch.from_numpy(random.random((2, 1)) < chance) for chance in (0.1, 0.1, 0.9)]
        draw = lambda *shape: torch.from_numpy(random.normal(size=shape).astype(np.float32))  # noqa: E731
        yield Batch(draw(2, 1, size), action, 3 * draw(2, 1), *flags, draw(2, 1, size), masks, following)


def of(session, vector, x):
    return session.agent.network.apply(session.agent.layout.unflatten(vector), x)


def bounded(theta, z, delta, kappa):
    """ObGD as the paper's algorithm writes it."""
    m = 1.0 * kappa * max(abs(delta), 1.0) * float(z.abs().sum())
    return theta + min(1.0 / m, 1.0) * delta * z if m > 0 else theta


@pytest.mark.parametrize("lam", [0.0, 0.8])
def test_the_actor_critic_is_that_of_the_paper_for_one_seed_by_hand(lam):
    """Two traces, two bounds, an entropy gradient with the sign of δ; truncations bootstrap and empty the traces."""
    config = dataclasses.replace(SMALL, lam=lam, entropy_coefficient=0.3, gamma=0.9)
    session, update = session_of(stream_ac, config)
    learner = session.learner
    theta, z = [x[0].clone() for x in (learner.parameters, learner.trace)]
    policy = torch.zeros(len(theta), dtype=torch.bool)
    policy[session.agent.layout.part("policy")] = True
    for batch in steps(session, 60):
        learner, row = update(learner, batch, torch.tensor(1.0))
        one = Batch(*(x[0] for x in batch))
        if one.live[0]:
            leaf = theta.clone().requires_grad_()
            logits, value = of(session, leaf, one.observations)
            with torch.no_grad():
                after = of(session, theta, one.next_observations)[1]
                delta = float(one.rewards + (0.0 if one.terminated[0] else 0.9 * after) - value)
            log_p = logits[0] - logits[0][one.action_masks[0]].logsumexp(0)
            entropy = -(log_p.exp() * log_p)[one.action_masks[0]].sum()
            gain = log_p[one.actions[0]] + 0.3 * np.sign(delta) * entropy
            gradient = torch.autograd.grad(gain + value[0], leaf)[0]
            z = 0.9 * lam * z + gradient
            moved = [bounded(theta, z * part, delta, kappa) for part, kappa in ((policy, 3.0), (~policy, 2.0))]
            theta = torch.where(policy, *moved)
            assert float(row[0, 0]) == pytest.approx(abs(delta), rel=1e-3, abs=1e-4)
            if one.terminated[0] or one.truncated[0]:
                z = torch.zeros_like(z)
        torch.testing.assert_close(learner.parameters[0], theta, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(learner.trace[0], z, rtol=1e-3, atol=1e-4)


def test_the_trace_is_the_discounted_sum_of_gradients_since_the_last_exploring_action():
    """Watkins's Q(λ): z_t = Σ_k (γλ)^(t−k) ∇Q(s_k, a_k), k from the last exploring action or the episode's start."""
    config = dataclasses.replace(SMALL_Q, gamma=0.9, lam=0.8)
    session, update = session_of(stream_q, config)
    learner, gradients = session.learner, []
    cuts = 0
    for batch in steps(session, 80):
        before = learner.parameters[0].clone()
        learner, row = update(learner, batch, torch.tensor(1.0))
        one = Batch(*(x[0] for x in batch))
        if not one.live[0]:
            torch.testing.assert_close(learner.parameters[0], before, rtol=0, atol=0)
            continue
        leaf = before.clone().requires_grad_()
        q = of(session, leaf, one.observations)[0][0]
        best = torch.where(one.action_masks[0], q.detach(), -torch.inf).max()
        if q[one.actions[0]].detach() < best:
            cuts += bool(gradients)
            gradients = []
        gradients.append(torch.autograd.grad(q[one.actions[0]], leaf)[0])
        z = sum(0.72**k * gradient for k, gradient in enumerate(reversed(gradients)))
        after = of(session, before, one.next_observations)[0][0].detach()
        ahead = 0.0 if one.terminated[0] else 0.9 * float(after[one.next_masks[0]].max())
        delta = float(one.rewards[0]) + ahead - float(q[one.actions[0]].detach())
        torch.testing.assert_close(learner.parameters[0], bounded(before, z, delta, 2.0), rtol=1e-3, atol=1e-5)
        assert float(row[0, 0]) == pytest.approx(abs(delta), rel=1e-3, abs=1e-4)
        if one.terminated[0] or one.truncated[0]:
            gradients, z = [], torch.zeros_like(z)
        torch.testing.assert_close(learner.trace[0], z, rtol=1e-3, atol=1e-4)
    assert cuts > 5


# Learning


@pytest.mark.parametrize("module", [stream_ac, stream_q], ids=["ac", "q"])
def test_a_time_limit_bootstraps(module):
    """Reward 1 for ever, cut every 5 steps: V = 1 / (1 − γ) = 5. Taken for terminations it would be below 3.4."""
    small = {stream_ac: SMALL, stream_q: SMALL_Q}[module]
    raw = {"normalise_rewards": False, "normalise_observations": False, "gamma": 0.8}
    *_, last = module.train(dataclasses.replace(small, env=Forever, total_steps=6000, num_steps=500, **raw))
    name = {stream_ac: "value_mean", stream_q: "q_mean"}[module]
    assert [row[name] for row in last.rows] == pytest.approx([5.0, 5.0], rel=0.1)


def test_it_finds_the_way_past_a_lure():
    config = dataclasses.replace(SMALL_Q, env=Chain, gamma=0.9, total_steps=6000, num_steps=500, hidden=(16,))
    *_, last = stream_q.train(config)
    assert [row["return_mean"] for row in last.rows] == pytest.approx([1.0] * 2, abs=0.05)


def test_it_balances_the_pole_within_seconds():
    """4000 steps of one cart, each learned once: episodes last five times as long as those of a random policy (22)."""
    config = dataclasses.replace(
        stream_ac.preset("CartPole-v1"), seeds=2, total_steps=4000, hidden=(32,), compile="off"
    )
    *_, last = stream_ac.train(config)
    assert min(row["return_mean"] for row in last.rows) > 110


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_envs": 4, "num_steps": 4}, "num_envs is 4; expected 1, because a trace follows one environment"),
        ({"sparsity": 1.0}, "sparsity is 1.0; expected a number below 1"),
        ({"kappa": 0.0}, "kappa is 0.0"),
        ({"lam": 2.0}, "lam is 2.0"),
        ({"hidden": (10**6, 10**6)}, "hidden is .*so the networks of 2 seeds need"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        next(stream_ac.train(dataclasses.replace(SMALL, **change)))


def test_a_population_is_one_batch_of_agents_with_first_weights_of_their_own():
    network = SMALL.network(4, Session(SMALL, None, Learner)._environments.action_space)
    together, _ = create(network, [0, 1])
    alone, _ = create(network, [1])
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(together[0], together[1])

"""One-step actor–critic: its update is that of a plain loss for each weight Ψ, and of GAE at λ = 0 on one step.

Leaves out what holds of every trainer: `test_laws.py`.
"""

import dataclasses

import pytest
import torch

from telescope import gae
from telescope.algorithms.actor_critic import Learner, OneStep, preset, step_of, train, update_agent
from telescope.control.agents.distributions import categorical
from telescope.control.training import Session
from worlds import Chain, Forever, Masked

SMALL = OneStep(env="CartPole-v1", seeds=2, num_envs=3, num_steps=4, total_steps=48, hidden=(8,), compile="off")


def a_step(config):
    """A session and its first step of experience."""
    session = Session(config, None, Learner)
    noise = next(session.rollouts.noise(iteration) for iteration in session.iterations())
    return session, step_of(session, noise[0], 0)


def outputs_of(session, vector, observations):
    return session.agent.network.apply(session.agent.layout.unflatten(vector), observations)


def gradient_of(config, session, vector, batch, s):
    """By hand: softmax, a loop over the environments, and targets without gradient."""
    with torch.no_grad():
        logits, after = outputs_of(session, vector, batch.next_observations[s])
        mean = after if config.weight == "td" else (logits.softmax(-1) * after).sum(-1)
        wanted = batch.rewards[s] + config.gamma * torch.where(batch.terminated[s], 0.0, mean)
    logits, critic = outputs_of(session, vector, batch.observations[s])
    total = 0.0
    for b, action in enumerate(batch.actions[s]):
        log_p = logits[b].log_softmax(-1)
        if config.weight == "td":
            learned, weight = critic[b], wanted[b] - critic[b]
        else:
            learned = critic[b, action]
            weight = learned - (log_p.exp() * critic[b]).sum() if config.weight == "advantage" else learned
        total += -weight.detach() * log_p[action] + config.value_coefficient * (learned - wanted[b]) ** 2 / 2
        total += config.entropy_coefficient * (log_p.exp() * log_p).sum()
    return torch.autograd.grad(total / len(batch.actions[s]), vector)[0]


@pytest.mark.parametrize("entropy", [0.0, 0.2])
@pytest.mark.parametrize("weight", ["td", "advantage", "q"])
def test_an_update_is_that_of_a_plain_loss(weight, entropy):
    config = dataclasses.replace(
        SMALL, weight=weight, entropy_coefficient=entropy, value_coefficient=0.7, max_grad_norm=1e9
    )
    session, batch = a_step(config)
    batch = batch._replace(terminated=torch.tensor([[True, False, False], [False, True, True]]))
    new, rows = session.lift(update_agent(config, session.agent), (0, 0, None))(
        session.learner, batch, torch.tensor(0.01)
    )
    for s in range(2):
        vector = session.parameters[s].clone().requires_grad_()
        gradient = gradient_of(config, session, vector, batch, s)
        torch.testing.assert_close(new.adam.first_moment[s], 0.1 * gradient, rtol=1e-4, atol=1e-6)
        assert rows[s, 3] == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_its_weight_is_gae_at_lambda_0():
    """On Forever's one state: the policy loss is −mean(A log π) with A of `gae` over the same step."""
    config = dataclasses.replace(SMALL, env=Forever)
    session, batch = a_step(config)
    _, rows = session.lift(update_agent(config, session.agent), (0, 0, None))(session.learner, batch, torch.tensor(0.0))
    for s in range(2):
        with torch.no_grad():
            logits, values = outputs_of(session, session.parameters[s], batch.observations[s])
            _, after = outputs_of(session, session.parameters[s], batch.next_observations[s])
        ends = {"terminated": batch.terminated[s][None], "truncated": None}
        found = gae(batch.rewards[s][None], values[None], after[None], **ends, gamma=config.gamma, lam=0.0)
        chosen = logits.log_softmax(-1).gather(1, batch.actions[s][:, None])[:, 0]
        assert rows[s, 0] == pytest.approx(float(-(found.advantages[0] * chosen).mean()), rel=1e-5)


def test_a_time_limit_bootstraps():
    """Reward 1 for ever, cut every 5 steps: V = 1 / (1 − γ) = 5. Taken for terminations it would be below 3.4."""
    config = dataclasses.replace(SMALL, env=Forever, gamma=0.8, total_steps=12_000, learning_rate=3e-3)
    *_, last = train(config)
    session = Session(config, None, Learner, start=last.state)
    assert session.value(torch.ones(2, 1, 1)).flatten().tolist() == pytest.approx([5.0, 5.0], rel=0.05)


def test_it_finds_the_way_past_a_lure():
    config = dataclasses.replace(
        SMALL, env=Chain, num_envs=8, num_steps=32, gamma=0.9, total_steps=16_384, learning_rate=3e-3
    )
    *_, last = train(config)
    assert [row["return_mean"] for row in last.rows] == pytest.approx([1.0] * 2, abs=0.15)


@pytest.mark.parametrize("weight", ["advantage", "q"])
def test_it_learns_from_action_values(weight):
    """Of two allowed actions the better one, known by its Q: 6 steps pay 10 on average at best, 6 at random."""
    more = {"env": Masked, "num_envs": 16, "num_steps": 32, "gamma": 0.5, "total_steps": 16_384, "learning_rate": 3e-3}
    *_, last = train(dataclasses.replace(SMALL, weight=weight, **more))
    assert min(row["return_mean"] for row in last.rows) > 9.0


def test_forbidden_actions_have_no_part_in_the_value():
    """V(s) = Σ π(a|s) Q(s, a) leaves out what the mask forbids, now and in the next state."""
    logits, masks = torch.randn(4, 3), torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0], [1, 1, 1]]).bool()
    found = categorical(3).probabilities(logits, masks)
    torch.testing.assert_close(found, torch.where(masks, logits, -torch.inf).softmax(-1))
    _, batch = a_step(dataclasses.replace(SMALL, env=Masked, weight="q"))
    assert batch.action_masks.sum(-1).eq(2).all()
    assert (batch.next_masks.sum(-1) == 2).logical_or(batch.terminated).all()


def test_forbidden_actions_do_not_judge_the_next_state():
    """With a Q that rises in the forbidden actions, the target is that of the allowed ones."""
    config = dataclasses.replace(SMALL, env=Masked, weight="q")
    session, batch = a_step(config)
    update = session.lift(update_agent(config, session.agent), (0, 0, None))
    masks = torch.tensor([True, True, False]).expand_as(batch.next_masks)
    more = batch._replace(terminated=torch.zeros_like(batch.terminated))
    losses = [update(session.learner, more._replace(next_masks=m), torch.tensor(0.0))[1][:, 1] for m in (masks, ~masks)]
    assert ((losses[0] - losses[1]).abs() > 1e-6).all()


def test_action_values_need_actions_that_can_be_counted():
    config = dataclasses.replace(SMALL, env="Pendulum-v1", weight="q")
    with pytest.raises(ValueError, match=r"weight is 'q'.*expected Discrete"):
        next(train(config))


@pytest.mark.parametrize("env", ["CartPole-v1", "Hopper-v5", "Unknown-v0"])
def test_presets_are_of_their_environment(env):
    assert preset(env).env == env

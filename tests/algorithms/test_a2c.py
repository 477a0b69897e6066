"""A2C: one step on each rollout against torch's own optimisers and a plain loss; λ = 1 is the n-step advantage.

Leaves out what holds of every trainer: `test_laws.py`.
"""

import dataclasses

import pytest
import torch

from telescope import n_step_return
from telescope.algorithms.a2c import A2C, Beginning, preset, train, update_agent
from telescope.control.experience.credit import samples, with_advantages
from telescope.control.training import Session
from telescope.optimisers import OPTIMISERS
from worlds import Chain, Forever

SMALL = A2C(env="CartPole-v1", seeds=2, num_envs=3, num_steps=5, total_steps=60, hidden=(8,), threads=1, compile="off")
RIVALS = {
    "rmsprop": lambda p: torch.optim.RMSprop([p], lr=0.01, alpha=0.99, eps=1e-5),
    "adam": lambda p: torch.optim.Adam([p], lr=0.01, eps=1e-5),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_takes_torchs_steps(name):
    generator = torch.Generator().manual_seed(0)
    ours, step = torch.randn(7, generator=generator), OPTIMISERS[name].step
    theirs = ours.clone().requires_grad_()
    state = type(begun := OPTIMISERS[name].begin(ours[None]))(*(x[0] for x in begun))
    rival = RIVALS[name](theirs)
    for _ in range(5):
        gradient = torch.randn(7, generator=generator)
        ours, state = step(ours, state, gradient, torch.tensor(0.01), eps=1e-5)
        theirs.grad = gradient
        rival.step()
    torch.testing.assert_close(ours, theirs.detach())


def rollout_of(config):
    session = Session(config, None, Beginning(config), recurrent=True)
    rollout = next(iter(session.collect() for _ in session.iterations()))
    return session, rollout, with_advantages(config, session, rollout, samples(session, rollout))


def test_lambda_1_is_the_n_step_advantage():
    """Rewards up to the end of the rollout or episode, then V: no window is longer than the rollout."""
    session, rollout, batch = rollout_of(dataclasses.replace(SMALL, env=Forever, num_steps=7))
    values = batch.values.unflatten(1, (7, 3)).transpose(0, 1)  # [T, S, B]
    last = session.value(rollout.last_observations)
    same = torch.where(rollout.truncated, values, torch.cat([values[1:], last[None]]))  # one state: V(s') = V(s)
    returns = n_step_return(
        rollout.rewards, same, terminated=rollout.terminated, truncated=rollout.truncated, gamma=0.99, n=7
    )
    torch.testing.assert_close(batch.returns, returns.transpose(0, 1).flatten(1))
    torch.testing.assert_close(batch.advantages, (returns - values).transpose(0, 1).flatten(1))


@pytest.mark.parametrize("changed", [{}, {"optimiser": "adam", "entropy_coefficient": 0.3}, {"max_grad_norm": 1e-2}])
def test_an_update_is_that_of_a_plain_loss(changed):
    """−A log π + c ½(V − R̂)² − c_e H by the networks' own outputs, torch's optimiser and its clipping."""
    config = dataclasses.replace(SMALL, learning_rate=0.01, value_coefficient=0.7, **changed)
    session, _, batch = rollout_of(config)
    update = session.lift(update_agent(config, session.agent), (0, 0, None))
    new, _ = update(session.learner, batch, torch.tensor(0.01))
    for s in range(2):
        vector = session.parameters[s].clone().requires_grad_()
        logits, values = session.agent.network.apply(session.agent.layout.unflatten(vector), batch.observations[s])
        table = torch.distributions.Categorical(logits=logits)
        policy = -(batch.advantages[s] * table.log_prob(batch.actions[s])).mean()
        value = ((values - batch.returns[s]) ** 2).mean() / 2
        (policy + 0.7 * value - config.entropy_coefficient * table.entropy().mean()).backward()
        torch.nn.utils.clip_grad_norm_([vector], config.max_grad_norm)
        RIVALS[config.optimiser](vector).step()
        torch.testing.assert_close(new.parameters[s], vector.detach(), rtol=1e-4, atol=1e-5)


def test_it_finds_the_way_past_a_lure():
    config = dataclasses.replace(
        SMALL, env=Chain, seeds=4, num_envs=8, num_steps=8, gamma=0.9, lam=0.95, total_steps=19_200
    )
    *_, last = train(dataclasses.replace(config, learning_rate=5e-3))
    assert [row["return_mean"] for row in last.rows] == pytest.approx([1.0] * 4, abs=0.1)


def test_a_rollout_of_one_sample_cannot_be_whitened():
    with pytest.raises(ValueError, match="normalise_advantages"):
        dataclasses.replace(SMALL, num_envs=1, num_steps=1, normalise_advantages=True)


@pytest.mark.parametrize("env", ["CartPole-v1", "Hopper-v5", "Unknown-v0"])
def test_presets_are_of_their_environment(env):
    assert preset(env).env == env

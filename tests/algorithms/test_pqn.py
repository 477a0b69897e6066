"""PQN: its returns are Peng's Q(λ) by a plain loop, a time limit is no end, and its optimiser is RAdam.

Leaves out what holds of every trainer: `test_laws.py`.
"""

import dataclasses

import numpy as np
import pytest
import torch

from telescope.algorithms.pqn import PQN, Learner, best_value, samples, train
from telescope.control.agents.lifting import lift
from telescope.control.agents.networks import q_network
from telescope.control.exploration import exploring
from telescope.control.training import Session
from telescope.optimisers import radam, radam_init
from worlds import Forever, Masked

SMALL = PQN(
    env=Forever,
    total_steps=12_800,
    num_envs=8,
    num_steps=16,
    gamma=0.8,
    hidden=(16,),
    learning_rate=1e-2,
    minibatch_size=32,
    compile="off",
    threads=1,
)


def test_a_time_limit_bootstraps():
    """Reward 1 for ever, cut every 5 steps: Q = 1 / (1 − γ) = 5. Taken for terminations it would be below 3.4."""
    *_, last = train(SMALL)
    assert last.rows[0]["q_mean"] == pytest.approx(5.0, rel=0.05)


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
@pytest.mark.parametrize("env", ["CartPole-v1", Masked])
def test_returns_are_those_of_the_plain_loop(env, autoreset):
    more = {"env_kwargs": {"max_episode_steps": 12}} if env != Masked else {}
    config = dataclasses.replace(
        SMALL, env=env, seeds=2, num_envs=2, num_steps=30, autoreset=autoreset, lam=0.7, **more
    )
    session = Session(config, None, Learner)
    rollout = session.collect(exploring(config, session))
    batch = samples(config, session, rollout, lift(best_value(session.agent), (0, 0, 0), compiled=False))
    q = lambda s, x: session.agent.network.apply(session.agent.layout.unflatten(session.parameters[s]), x)[0].detach()  # noqa: E731
    _, then = session.rollouts.seen
    places = [tuple(place) for place in rollout.finals.places.T]
    for s in range(2):
        for b in range(2):
            following = 0.0
            for t in reversed(range(30)):
                if not rollout.mask[t, s, b]:
                    assert not batch.live[s, t * 2 + b]
                    continue
                ended = bool(rollout.terminated[t, s, b] | rollout.truncated[t, s, b])
                if (t, s, b) in places:
                    best = q(s, torch.from_numpy(rollout.finals.observations)[places.index((t, s, b))].float()).max()
                elif t == 29:
                    best = q(s, rollout.last_observations[s, b])
                    best = (best if then is None else best[torch.from_numpy(then[s, b])]).max()
                else:
                    best = q(s, rollout.observations[t + 1, s, b])
                    masks = rollout.action_masks
                    best = (best if masks is None else best[masks[t + 1, s, b]]).max()
                mixed = best if ended or t == 29 else 0.3 * best + 0.7 * following
                following = float(rollout.rewards[t, s, b])
                if not rollout.terminated[t, s, b]:
                    following += config.gamma * float(mixed)
                assert float(batch.returns[s, t * 2 + b]) == pytest.approx(following, rel=1e-4, abs=1e-4)
    session.close()


def test_radam_is_that_of_torch():
    rng = torch.Generator().manual_seed(0)
    theirs = torch.randn(7, generator=rng, dtype=torch.float64).requires_grad_()
    optimiser = torch.optim.RAdam([theirs], lr=0.1, eps=1e-30)
    ours, state = theirs.detach()[None].clone(), radam_init(theirs.detach()[None])
    for _ in range(40):
        gradient = torch.randn(7, generator=rng, dtype=torch.float64)
        theirs.grad = gradient.clone()
        optimiser.step()
        ours, state = radam(ours, state, gradient[None], torch.tensor(0.1), eps=1e-30)
        torch.testing.assert_close(ours[0], theirs.detach(), rtol=1e-6, atol=1e-9)


def test_layer_normalisation_is_that_of_torch():
    network = q_network(3, 2, hidden=(8, 5), activation="relu", layer_norm=True)
    parameters = network.init(np.random.default_rng(0))
    parameters = {name: x + 0.3 * torch.randn(x.shape) for name, x in parameters.items()}
    x = seen = torch.randn(6, 3)
    for layer, width in enumerate((8, 5)):
        x = x @ parameters[f"q.{layer}.weight"] + parameters[f"q.{layer}.bias"]
        shape = parameters[f"q.{layer}.scale"], parameters[f"q.{layer}.shift"]
        x = torch.relu(torch.nn.functional.layer_norm(x, (width,), *shape))
    wanted = x @ parameters["q.out.weight"] + parameters["q.out.bias"]
    torch.testing.assert_close(network.policy(parameters, seen), wanted)
    named = {name: x.numpy() for name, x in parameters.items()}
    np.testing.assert_allclose(network.policy(named, seen.numpy()), wanted, rtol=1e-5, atol=1e-5)


def test_a_minibatch_beyond_the_rollout_is_refused():
    with pytest.raises(ValueError, match="minibatch_size is 999, more than the 128 samples"):
        dataclasses.replace(SMALL, minibatch_size=999)

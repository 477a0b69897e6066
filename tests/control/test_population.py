"""The seed axis: an agent in a population is the agent it would be alone."""

import dataclasses

import numpy as np
import pytest
import torch

from telescope.algorithms.ppo import PPO, train
from telescope.control.agents.layout import create
from telescope.control.agents.lifting import lift
from telescope.control.agents.networks import from_module, mlp
from telescope.optimisers import adam, adam_init, clip_by_norm
from telescope.policy import Policy

SMALL = PPO(env="CartPole-v1", total_steps=128, num_envs=2, num_steps=32, minibatch_size=64, epochs=1, seeds=1)


def first(config, **kwargs):
    metrics = next(iter(train(config, **kwargs)))
    return metrics.rows, metrics.state


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_one_update_of_a_seed_is_that_of_the_seed_alone(env):
    settings = {"env": env, "normalise_observations": True, "normalise_rewards": True, "max_grad_norm": 0.1}
    config = dataclasses.replace(SMALL, **settings, seeds=3, seed=5)
    rows, together = first(config)
    for s, seed in enumerate(config.seed_values):
        alone_rows, alone = first(dataclasses.replace(config, seeds=1, seed=seed))
        difference = together["policy"]["parameters"][s] - alone["policy"]["parameters"][0]
        assert difference.abs().max() <= 1e-6
        np.testing.assert_array_equal(together["rollouts"]["episode_return"][s], alone["rollouts"]["episode_return"][0])
        assert rows[s]["return_mean"] == alone_rows[0]["return_mean"]


def test_seeds_differ_from_each_other():
    _, state = first(dataclasses.replace(SMALL, seeds=2))
    a, b = state["policy"]["parameters"]
    assert (a - b).abs().max() > 1e-3


def test_early_stops_are_per_seed():
    # at this KL target some minibatches stop some seeds; each must have stopped where it would have alone
    settings = {"target_kl": 1e-3, "epochs": 4, "minibatch_size": 16, "learning_rate": 3e-3}
    config = dataclasses.replace(SMALL, **settings, seeds=4)
    rows, state = first(config)
    counts = state["learner"]["adam"]["first_decay"].tolist()
    assert len(set(counts)) > 1, "the seeds all stopped at once: the test sees nothing"
    alone = [
        first(dataclasses.replace(config, seeds=1, seed=s))[1]["learner"]["adam"]["first_decay"].item()
        for s in range(4)
    ]
    assert counts == alone
    assert all(row["updated"] < 1 for row in rows)


def test_adam_and_clipping_are_those_of_torch():
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 20, generator=rng)
    learned, state = vectors, adam_init(vectors)
    step = lift(lambda p, a, g, lr: adam(p, a, clip_by_norm(g, 0.5)[0], lr, eps=1e-5), (0, 0, 0, None), compiled=False)
    plain = [v.clone().requires_grad_() for v in vectors]
    optimisers = [torch.optim.Adam([p], lr=1e-2, eps=1e-5) for p in plain]
    for _ in range(5):
        gradients = torch.randn(3, 20, generator=rng) * torch.tensor([[0.01], [1.0], [10.0]])
        learned, state = step(learned, state, gradients, torch.tensor(1e-2))
        for p, optimiser, gradient in zip(plain, optimisers, gradients, strict=True):
            p.grad = gradient.clone()
            torch.nn.utils.clip_grad_norm_([p], 0.5)
            optimiser.step()
    torch.testing.assert_close(learned, torch.stack(plain).detach(), rtol=1e-5, atol=1e-6)


def test_orthogonal_weights_zero_biases_and_their_gains():
    parameters, layout = create(mlp(17, 6, hidden=(64, 32)), [0])
    p = layout.unflatten(parameters[0])
    for name, gain in (("policy.0", 2**0.5), ("value.1", 2**0.5), ("policy.out", 0.01), ("value.out", 1.0)):
        w = p[f"{name}.weight"]
        gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
        torch.testing.assert_close(gram, gain**2 * torch.eye(len(gram)), rtol=1e-4, atol=1e-5)
        assert not p[f"{name}.bias"].any()


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(4, 16)
        self.policy, self.critic = torch.nn.Linear(16, 2), torch.nn.Linear(16, 1)

    def forward(self, observations):
        x = torch.relu(self.body(observations))
        return self.policy(x), self.critic(x).squeeze(-1)


def test_own_modules_train_and_keep_their_seeds_apart():
    network = from_module(Tiny)
    _, together = first(dataclasses.replace(SMALL, seeds=2, seed=3), network=network)
    _, alone = first(dataclasses.replace(SMALL, seed=4), network=network)
    difference = together["policy"]["parameters"][1] - alone["policy"]["parameters"][0]
    assert difference.abs().max() <= 1e-6
    policy = Policy(dataclasses.replace(SMALL, seed=4), alone["policy"], network=network)
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    logits = network.apply(policy.agent.layout.unflatten(policy.parameters[0]), torch.from_numpy(observations))[0]
    np.testing.assert_array_equal(policy.act(observations), logits.argmax(-1))


def test_a_module_whose_statistics_are_those_of_the_batch_is_refused():
    with pytest.raises(ValueError, match="BatchNorm1d in training mode"):
        from_module(lambda: torch.nn.Sequential(torch.nn.BatchNorm1d(4)))

"""Quantile critics: the loss, the targets and the weights against plain loops; GAE of their mean; risk that is avoided.

Leaves out what holds of every trainer (`test_laws.py`, the row "ppo with quantiles") and `distributional_gae` itself.
"""

import dataclasses
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import oracle
from telescope.algorithms.ppo import PPO, Learner, preset, train
from telescope.control.agents.critics import critic_loss
from telescope.control.agents.networks import from_module
from telescope.control.experience.credit import judged_again, samples, with_advantages
from telescope.control.experience.quantiles import quantile_credit
from telescope.control.risk import risk_weights
from telescope.control.training import Session
from telescope.losses import huber_loss, quantile_huber_loss
from telescope.policy import Policy
from worlds import Forever

SMALL = PPO(
    env="Pendulum-v1",
    env_kwargs={"max_episode_steps": 9},
    seeds=2,
    num_envs=2,
    num_steps=16,
    minibatch_size=8,
    epochs=2,
    total_steps=64,
    hidden=(8,),
    gamma=0.9,
    lam=0.8,
    critic="quantile",
    quantiles=5,
    threads=1,
    compile="off",
)


# The loss


@pytest.mark.parametrize("kappa", [0.1, 1.0, 3.0])
def test_the_quantile_loss_is_the_plain_double_sum(kappa):
    rng = np.random.default_rng(0)
    quantiles, targets = rng.normal(size=(6, 4)), rng.normal(size=(6, 7))
    wanted = np.zeros(6)
    for m in range(6):
        for i in range(4):
            for j in range(7):
                u = targets[m, j] - quantiles[m, i]
                huber = 0.5 * u * u if abs(u) <= kappa else kappa * (abs(u) - 0.5 * kappa)
                wanted[m] += abs((i + 0.5) / 4 - (u < 0)) * huber / (4 * 7)
    found = quantile_huber_loss(torch.tensor(quantiles), torch.tensor(targets), kappa)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_one_quantile_of_one_target_is_half_a_huber_loss():
    x, y = torch.randn(2, 50, dtype=torch.float64)
    torch.testing.assert_close(quantile_huber_loss(x[:, None], y[:, None], 0.7), 0.5 * huber_loss(x, y, 0.7))


def test_what_has_no_loss_left_are_the_quantiles():
    """The minimum over a sample lies where a share τ of it is below, up to κ."""
    sample = torch.tensor(np.random.default_rng(1).exponential(size=2000))
    found = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([found], lr=0.02)
    for _ in range(600):
        optimiser.zero_grad()
        quantile_huber_loss(found, sample, 0.01).backward()
        optimiser.step()
    wanted = np.quantile(sample, [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(found.detach(), wanted, atol=0.05)


@pytest.mark.parametrize("targets", [torch.zeros(3, 4, 1), torch.zeros(4, 2), torch.zeros(3, 0), np.zeros((3, 4))])
def test_shapes_that_do_not_fit_are_refused(targets):
    with pytest.raises(ValueError, match=r"targets|quantiles"):
        quantile_huber_loss(torch.zeros(3, 4), targets)


# Weights


def test_cvar_is_the_mean_of_the_lowest_share():
    outcomes = np.sort(np.random.default_rng(2).normal(size=8))
    for k in range(1, 9):
        assert np.dot(risk_weights(f"cvar:{k / 8}", 8), outcomes) == pytest.approx(outcomes[:k].mean())
    half = (outcomes[0] + 0.5 * outcomes[1]) / 1.5
    assert np.dot(risk_weights(f"cvar:{1.5 / 8}", 8), outcomes) == pytest.approx(half)
    assert risk_weights("cvar:0.01", 4) == (1, 0, 0, 0)


def test_asymmetric_weights_take_away_half_the_mean_difference_of_two_outcomes():
    outcomes = np.sort(np.random.default_rng(3).normal(size=9))
    difference = np.abs(outcomes[:, None] - outcomes[None]).mean()
    for eta in (-1.0, -0.3, 0.0, 0.5, 1.0):
        found = np.dot(risk_weights(f"asymmetric:{eta}", 9), outcomes)
        assert found == pytest.approx(outcomes.mean() - 0.5 * eta * difference)


def test_weights_sum_to_one_and_neutral_ones_are_the_mean():
    for kind in ("mean", "cvar:1", "asymmetric:0"):
        assert risk_weights(kind, 7) == pytest.approx((1 / 7,) * 7)
    for kind in ("cvar:0.3", "asymmetric:-0.7"):
        assert sum(risk_weights(kind, 32)) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["", "median", "cvar", "cvar:0", "cvar:1.5", "cvar:x", "asymmetric:2", "mean:1"])
def test_other_weights_are_refused_by_name(kind):
    with pytest.raises(ValueError, match="quantile_weights is"):
        dataclasses.replace(SMALL, quantile_weights=kind)


# Advantages and targets


def credit(config):
    """A session with its first rollout as samples with advantages."""
    session = Session(config, None, Learner)
    rollout = session.collect()
    session.close()
    return session, rollout, with_advantages(config, session, rollout, samples(session, rollout))


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
def test_equal_weights_give_gae_of_the_mean_quantile(autoreset):
    config = dataclasses.replace(SMALL, autoreset=autoreset)
    session, rollout, batch = credit(config)
    assert batch.outputs.shape == (2, 32, 5)
    torch.testing.assert_close(batch.values, batch.outputs.mean(-1))
    plain = dataclasses.replace(config, critic="value", quantiles=32)
    wanted = with_advantages(plain, session, rollout, batch._replace(advantages=batch.returns))
    for found, expected in ((batch.advantages, wanted.advantages), (batch.returns, wanted.returns)):
        rounded = 5 * torch.finfo(torch.float32).eps * float(expected.abs().max())  # a mean of 5 quantiles
        torch.testing.assert_close(found, expected, rtol=0, atol=rounded)


@pytest.mark.parametrize("weights", ["cvar:0.3", "asymmetric:-0.5"])
def test_advantages_weigh_the_quantiles(weights):
    """They are GAE of Σ w G: each residual telescopes from it, also over time limits, where the final state counts."""
    config = dataclasses.replace(SMALL, env=Forever, env_kwargs={}, num_envs=1, quantile_weights=weights)
    _, _, batch = credit(config)
    for s in range(2):  # one state: its quantiles are the same at every step
        v = float(torch.dot(torch.tensor(risk_weights(weights, 5)), batch.outputs[s, 0]))
        delta, wanted = 1 + 0.9 * v - v, []
        for t in range(16):
            left = min(5 - t % 5, 16 - t)  # steps to the time limit, or to the end of the rollout
            wanted.append(sum((0.9 * 0.8) ** k * delta for k in range(left)))
        np.testing.assert_allclose(batch.advantages[s], wanted, rtol=1e-5)


def made(rewards, terminated, truncated, quantiles, successors, *, lam, seeds=(0,), iteration=0):
    """Targets [S, T·B, Q] from arrays [T, S, B, …], by a stand-in for session and rollout."""
    t, s, b, q = quantiles.shape
    config = dataclasses.replace(SMALL, seeds=s, seed=seeds[0], num_envs=b, quantiles=q)
    rollout = SimpleNamespace(
        rewards=torch.tensor(rewards), last_observations=torch.tensor(successors[-1]), last_memory=None, frames=None
    )
    places = np.stack(np.nonzero(truncated))
    rollout.finals = places, successors[tuple(places)], None
    session = SimpleNamespace(critic=lambda x, *_: x, iteration=iteration)
    ends = {"terminated": torch.tensor(terminated), "truncated": torch.tensor(truncated), "mask": None}
    outputs = torch.tensor(quantiles).transpose(0, 1).reshape(s, t * b, q)
    return quantile_credit(config, session, rollout, outputs, ends, lam)["targets"]


def steps(t=12, s=2, b=3, q=2):
    rng = np.random.default_rng(4)
    quantiles = rng.normal(size=(t, s, b, q)).astype(np.float32)
    terminated = rng.random((t, s, b)) < 0.15
    truncated = (rng.random((t, s, b)) < 0.15) & ~terminated
    rewards = rng.normal(size=(t, s, b)).astype(np.float32)
    successors = np.concatenate([quantiles[1:], rng.normal(size=(1, s, b, q)).astype(np.float32)])
    successors[truncated] = rng.normal(size=successors[truncated].shape)
    return rewards, terminated, truncated, quantiles, successors


def test_targets_at_lambda_0_are_bellmans_and_at_1_the_sampled_return():
    rewards, terminated, truncated, quantiles, successors = steps()

    def each(x):
        return np.broadcast_to(x[..., None], quantiles.shape)

    def time_first(x):
        return x.reshape(2, 12, 3, -1).transpose(0, 1).numpy()

    bellman = each(rewards) + 0.9 * np.where(each(terminated), 0, successors)
    found = time_first(made(*steps(), lam=0.0))
    np.testing.assert_allclose(found, bellman, rtol=1e-5, atol=1e-6)
    live = np.ones(quantiles.shape, bool)
    arrays = map(np.float64, (each(rewards), quantiles, successors))
    plain = oracle.Rollout(*arrays, each(terminated), each(truncated), live)
    sampled = oracle.advantages(plain, 0.9, 1.0) + quantiles
    np.testing.assert_allclose(time_first(made(*steps(), lam=1.0)), sampled, rtol=1e-4, atol=1e-5)


def test_a_target_stops_after_n_steps_as_often_as_the_mixture_of_n_step_returns_says():
    count = 20_000
    clock = np.broadcast_to(np.arange(6, dtype=np.float32)[:, None, None, None], (6, 1, 1, count))
    never = np.zeros((6, 1, 1), bool)
    rewards = np.zeros((6, 1, 1), np.float32)
    [first, *_] = made(rewards, never, never, clock, clock + 1, lam=0.6)[0]
    for n in range(1, 7):
        stopped = torch.isclose(first, torch.tensor(0.9**n * n)).double().mean()
        assert stopped == pytest.approx(0.4 * 0.6 ** (n - 1) if n < 6 else 0.6**5, abs=0.01)


def test_every_seed_and_iteration_throws_its_own_coins():
    found = made(*steps(q=50), lam=0.5, seeds=(3, 4))
    assert torch.equal(made(*(x[:, 1:] for x in steps(q=50)), lam=0.5, seeds=(4,))[0], found[1])
    assert not torch.equal(made(*steps(q=50), lam=0.5, seeds=(3, 4), iteration=1), found)


# Training


def test_the_critic_learns_from_its_targets_and_a_value_critic_from_returns():
    batch = SimpleNamespace(targets=torch.randn(6, 5), returns=torch.randn(6), values=torch.randn(6))
    outputs = torch.randn(6, 5)
    config = dataclasses.replace(SMALL, quantile_huber=0.3)
    found = critic_loss(config, outputs, batch)
    torch.testing.assert_close(found, quantile_huber_loss(outputs, batch.targets, 0.3))
    value = dataclasses.replace(SMALL, critic="value", quantiles=32)
    torch.testing.assert_close(critic_loss(value, outputs[:, 0], batch), 0.5 * (outputs[:, 0] - batch.returns) ** 2)
    clipped = critic_loss(dataclasses.replace(value, value_clip=0.1), outputs[:, 0], batch)
    near = batch.values + (outputs[:, 0] - batch.values).clamp(-0.1, 0.1)
    worst = 0.5 * torch.maximum((outputs[:, 0] - batch.returns) ** 2, (near - batch.returns) ** 2)
    torch.testing.assert_close(clipped, worst)


class Gamble(gym.Env):
    """Action 0 leads to a room that pays 0.4, action 1 to one that pays 0 or 2: more on average, less at worst."""

    observation_space = gym.spaces.Discrete(3)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.room = 0
        return 0, {}

    def step(self, action):
        if self.room == 0:
            self.room = 1 + int(action)
            return self.room, 0.0, False, False, {"room": self.room}
        reward = 0.4 if self.room == 1 else 2.0 * self.np_random.integers(2)
        return 0, reward, True, False, {}


GAMBLER = PPO(
    env=Gamble,
    total_steps=6000,
    num_envs=8,
    num_steps=32,
    minibatch_size=128,
    epochs=8,
    learning_rate=1e-2,
    hidden=(16,),
    lam=0.0,
    gamma=1.0,
    critic="quantile",
    quantiles=8,
    quantile_huber=0.1,
    threads=1,
    compile="off",
)


@pytest.mark.parametrize(("weights", "gambles"), [("mean", True), ("cvar:0.25", False), ("asymmetric:-1", True)])
def test_who_fears_the_worst_does_not_gamble(weights, gambles):
    *_, last = train(dataclasses.replace(GAMBLER, quantile_weights=weights))
    policy = Policy(GAMBLER, last.policy)
    assert policy.act(np.array(0)) == int(gambles)
    if weights == "mean":  # the critic knows the distribution, not only its mean: its lower half is 0, its upper 2
        session = Session(GAMBLER, None, Learner, start=last.state)
        quantiles = session.critic(torch.eye(3)[None])[0, 2]
        session.close()
        np.testing.assert_allclose(quantiles, [0, 0, 0, 0, 2, 2, 2, 2], atol=0.35)
        assert policy.value(np.array(2)) == pytest.approx(1, abs=0.2)


def test_a_seed_alone_is_that_of_the_population():
    *_, together = train(SMALL)
    for s in range(2):
        *_, alone = train(dataclasses.replace(SMALL, seeds=1, seed=s))
        difference = together.policy["parameters"][s] - alone.policy["parameters"][0]
        assert difference.abs().max() < 1e-4


def test_recomputed_samples_have_the_present_critics_quantiles():
    session, rollout, batch = credit(SMALL)
    _, again = judged_again(session, rollout, batch._replace(outputs=None, values=torch.zeros_like(batch.values)))
    torch.testing.assert_close(again.outputs, batch.outputs)
    torch.testing.assert_close(again.values, batch.values)


def test_the_preset_is_that_of_ppo_with_a_quantile_critic():
    config = preset("Hopper-v5", name="distributional_ppo")
    assert config == dataclasses.replace(preset("Hopper-v5"), critic="quantile")
    assert (config.quantiles, config.quantile_huber, config.quantile_weights) == (32, 1.0, "mean")


def test_what_a_quantile_critic_does_not_use_is_refused_by_name():
    with pytest.raises(ValueError, match=r"value_clip is 0\.1, but critic is 'quantile'"):
        dataclasses.replace(SMALL, value_clip=0.1)
    for field, value in {"quantiles": 8, "quantile_huber": 0.5, "quantile_weights": "cvar:0.1"}.items():
        with pytest.raises(ValueError, match=f"{field} is .* set critic to 'quantile'"):
            PPO(**{field: value})


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.policy, self.quantiles = nn.Linear(3, 2), nn.Linear(3, width)

    def forward(self, x):
        return self.policy(x), self.quantiles(x)


def test_a_network_of_ones_own_returns_its_quantiles():
    *_, last = train(SMALL, network=from_module(lambda: Net(5)))
    assert np.isfinite(last.rows[0]["value_loss"])
    with pytest.raises(ValueError, match=r"values have shape \(3, 4\).*expected \(3, 5\)"):
        next(train(SMALL, network=from_module(lambda: Net(4))))
    value = dataclasses.replace(SMALL, critic="value", quantiles=32)
    with pytest.raises(ValueError, match=r"expected \(3,\); or set critic to 'quantile' and quantiles to 5"):
        next(train(value, network=from_module(lambda: Net(5))))

"""SAC: log-probabilities are densities, an update is that of plain torch, and what a critic's statistics are worth.

Leaves out what holds of every trainer: `test_laws.py`.
"""

import dataclasses
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import distributions as D

import telescope
from telescope.algorithms import sac
from telescope.algorithms.sac import SAC, Beginning, preset, train, update_agent
from telescope.control.agents.choices import chosen, sampling_noise, usual_entropy
from telescope.control.agents.distributions import (
    categorical,
    log_tanh_slope,
    squashed_gaussian,
    squashed_sample,
    uniform_actor,
)
from telescope.control.agents.layout import Layout
from telescope.control.agents.networks import mlp
from telescope.control.agents.twins import BATCH_EPS, MOMENTUM, batch_renormalised, with_twins
from telescope.control.execution import threads_that_pay
from telescope.control.experience.draws import Draws
from telescope.control.experience.rollout import no_episodes
from telescope.control.training import Session
from telescope.losses import soft_value, temperature_loss
from telescope.optimisers import polyak
from telescope.randomness import SAMPLES, generator
from worlds import Edge, Forced, Forever, Masked

SMALL = SAC(
    env="Pendulum-v1",
    env_kwargs={"max_episode_steps": 7},
    total_steps=400,
    num_steps=40,
    learning_starts=8,
    replay_capacity=1000,
    minibatch_size=16,
    hidden=(6, 5),
    compile="off",
    threads=1,
)
DISCRETE = dataclasses.replace(SMALL, env=Masked, env_kwargs={})


# Log-probabilities


def test_the_density_of_a_squashed_action_integrates_to_1_and_is_the_slope_of_its_distribution():
    head = squashed_gaussian((1,))
    outputs = torch.tensor([0.4, -0.3], dtype=torch.float64)
    actions = torch.linspace(-1, 1, 200_001, dtype=torch.float64)[1:-1]
    density = head.log_prob(outputs.expand(len(actions), 2), actions[:, None]).exp()
    assert torch.trapezoid(density, actions) == pytest.approx(1, abs=1e-6)
    cumulative = D.Normal(0.4, math.exp(-0.3)).cdf(torch.atanh(actions))  # P(tanh u ≤ a)
    slope = (cumulative[2:] - cumulative[:-2]) / (actions[2:] - actions[:-2])
    torch.testing.assert_close(density[1:-1], slope, rtol=1e-4, atol=1e-6)


def test_a_sample_has_the_log_probability_of_its_action():
    head, rng = squashed_gaussian((3,)), np.random.default_rng(0)
    outputs = torch.tensor(0.5 * rng.normal(size=(50, 6)))
    noise = torch.tensor(rng.normal(size=(50, 3)))
    actions, log_probs = squashed_sample(outputs, noise)
    mean, log_std = outputs.chunk(2, -1)
    reference = D.TransformedDistribution(D.Normal(mean, log_std.exp()), D.TanhTransform())
    torch.testing.assert_close(log_probs, reference.log_prob(actions).sum(-1), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(log_probs, head.log_prob(outputs, actions), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(actions, head.sample(outputs, noise))
    np.testing.assert_allclose(head.sample(outputs.numpy(), noise.numpy()), actions, rtol=1e-12)
    torch.testing.assert_close(head.mode(outputs), torch.tanh(mean))
    assert head.kl(outputs, outputs + 0.1) == pytest.approx(
        D.kl_divergence(D.Normal(mean + 0.1, (log_std + 0.1).exp()), D.Normal(mean, log_std.exp())).sum(-1)
    )


def test_where_tanh_rounds_to_1_log_probabilities_and_gradients_are_finite():
    outputs = torch.tensor([[60.0, 3.0], [-60.0, -90.0], [0.0, 90.0]], requires_grad=True)
    actions, log_probs = squashed_sample(outputs, torch.tensor([[1.0], [-1.0], [0.5]]))
    (actions.sum() + log_probs.sum()).backward()
    assert torch.isfinite(log_probs).all()
    assert torch.isfinite(outputs.grad).all()
    x = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(log_tanh_slope(x), torch.log(1 - torch.tanh(x) ** 2))
    assert torch.isfinite(squashed_gaussian((1,)).log_prob(torch.zeros(2, 2), torch.tensor([[1.0], [-1.0]]))).all()


@pytest.mark.parametrize("shape", [(), (2,), (2, 2)])
def test_actions_have_the_shape_of_the_space(shape):
    head, rng = squashed_gaussian(shape), np.random.default_rng(0)
    outputs = rng.normal(size=(5, head.outputs)).astype(np.float32)
    assert head.sample(outputs, head.noise(rng, (5,))).shape == head.mode(outputs).shape == (5, *shape)
    assert uniform_actor(head)(None, None, head.noise(rng, (5,)), None)[0].shape == (5, *shape)


def test_random_actions_are_uniform_over_what_is_allowed():
    rng = np.random.default_rng(1)
    drawn, _ = uniform_actor(squashed_gaussian((1,)))(None, None, rng.standard_normal((20_000, 1), np.float32), None)
    np.testing.assert_allclose(np.histogram(drawn, 8, (-1, 1))[0] / 20_000, 1 / 8, atol=0.01)
    head, masks = categorical(3), np.array([True, False, True])
    drawn, _ = uniform_actor(head)(None, None, head.noise(rng, (20_000,)), masks)
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 20_000, [0.5, 0, 0.5], atol=0.015)


# Formulas


def test_a_mean_over_discrete_actions_is_their_sum_and_forbidden_ones_have_no_part():
    rng = np.random.default_rng(2)
    logits, q = torch.tensor(rng.normal(size=(4, 3))), torch.tensor(rng.normal(size=(4, 3)))
    masks = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [True, True, False]])
    choice = chosen(logits, None, masks)
    found = choice.mean(soft_value(q, choice.log_probs, 0.3))
    for i in range(4):
        allowed = [a for a in range(3) if masks[i, a]]
        weights = torch.softmax(logits[i, allowed], 0)
        expected = sum(float(p) * (float(q[i, a]) - 0.3 * math.log(p)) for a, p in zip(allowed, weights, strict=True))
        assert found[i] == pytest.approx(expected)
        assert choice.entropy[i] == pytest.approx(float(D.Categorical(weights).entropy()))
    np.testing.assert_allclose(usual_entropy(categorical(3), 0.5, masks), 0.5 * np.log([3, 2, 1, 2]), atol=1e-7)
    assert usual_entropy(categorical(3), 0.5, None) == pytest.approx(0.5 * math.log(3))
    assert usual_entropy(squashed_gaussian((4,)), 0.5, None) == -4


def test_the_temperature_falls_while_the_entropy_is_above_its_target():
    log_alpha = torch.tensor(0.3, requires_grad=True)
    temperature_loss(log_alpha, torch.tensor([1.0, 2.0]), -1.0).mean().backward()
    assert float(log_alpha.grad) == pytest.approx(2.5)  # a step of descent lowers it


def test_a_running_average_moves_by_its_share():
    torch.testing.assert_close(
        polyak(torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0]), 0.25), torch.tensor([1.5, 1])
    )


def test_batch_normalisation_is_torchs_and_renormalisation_is_by_the_running_statistics():
    rng = np.random.default_rng(3)
    x = torch.tensor(rng.normal(1.0, 2.0, size=(2, 20, 3)))
    mean, variance = torch.tensor(rng.normal(1.0, 0.3, size=(2, 1, 3))), torch.tensor(rng.uniform(3, 5, size=(2, 1, 3)))
    weights, no, yes = torch.full((20,), 1 / 20, dtype=torch.float64), torch.tensor(False), torch.tensor(True)
    y, new_mean, new_variance = batch_renormalised(x, mean, variance, weights, no)
    again, *_ = batch_renormalised(x, mean, variance, weights, yes)
    for i in range(2):
        running = mean[i, 0].clone(), variance[i, 0].clone()
        expected = torch.nn.functional.batch_norm(x[i], *running, training=True, momentum=MOMENTUM, eps=BATCH_EPS)
        torch.testing.assert_close(y[i], expected)
        torch.testing.assert_close(new_mean[i, 0], running[0])
        biased = variance[i, 0] + MOMENTUM * (x[i].var(0, correction=0) - variance[i, 0])  # torch's is unbiased
        torch.testing.assert_close(new_variance[i, 0], biased)
        torch.testing.assert_close(again[i], (x[i] - mean[i]) / (variance[i] + BATCH_EPS).sqrt())
    far, *_ = batch_renormalised(x, mean + 1000, variance / 1e6, weights, yes)
    torch.testing.assert_close(far, 3 * y - 5)
    x.requires_grad_()
    batch_renormalised(x, mean, variance, weights, yes)[0].sum().backward()
    torch.testing.assert_close(x.grad, torch.zeros_like(x), atol=1e-12, rtol=0)  # a batch's sum is constant: r, d too


def test_renormalisation_has_the_gradient_of_normalisation_times_r():
    generator = torch.Generator().manual_seed(4)
    x, slope = (torch.randn(1, 9, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    mean, variance = torch.zeros(1, 1, 2), torch.full((1, 1, 2), 1.5)
    weights, gradients = torch.full((9,), 1 / 9), {}
    for how in (False, True):
        leaf = x.clone().requires_grad_()
        batch_renormalised(leaf, mean, variance, weights, torch.tensor(how))[0].backward(slope)
        gradients[how] = leaf.grad
    r = ((x.var(1, correction=0, keepdim=True) + BATCH_EPS) / (1.5 + BATCH_EPS)).sqrt()
    torch.testing.assert_close(gradients[True], r * gradients[False], rtol=1e-5, atol=1e-7)


def test_twins_begin_apart():
    network = with_twins(mlp(3, 2), 3, 1, continuous=True, hidden=(4,), norm="batch")
    named = network.init(np.random.default_rng(0))
    assert not torch.equal(*named["value.0.weight"])
    assert named["value.0.weight"].shape == (2, 4, 4)
    assert (named["statistics.1.variance"] == 1).all()


def test_samples_that_do_not_count_have_no_part_in_statistics():
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    mean, variance, no = torch.zeros(2, 1, 3), torch.ones(2, 1, 3), torch.tensor(False)
    weights = torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0, 0.0])
    y, *new = batch_renormalised(x, mean, variance, weights, no)
    few, *expected = batch_renormalised(x[:, :4], mean, variance, weights[:4], no)
    torch.testing.assert_close(y[:, :4], few)
    torch.testing.assert_close(new, expected)
    _, *same = batch_renormalised(x, mean, variance, 0 * weights, no)
    torch.testing.assert_close(same, [mean, variance])


# Updates


def one_update(config, *, policy=True, warm=False):
    """The learner of one agent before and after an update on a batch, the batch, its noise and the statistics."""
    session = Session(config, None, Beginning(config))
    session._episodes = no_episodes(1)
    noise = session.rollouts.noise(0)
    for t in range(config.num_steps):
        session.play(noise[t], t)
    _, batch = next(Draws(session).after(config.num_steps - 1))
    drawn = sampling_noise(session.agent.distribution, [generator(0, SAMPLES, 0)], config.minibatch_size)
    moved = session.parameters + 0.3 * torch.randn(session.parameters.shape, generator=torch.Generator().manual_seed(1))
    statistics = session.agent.layout.sections(sac.SECTIONS)[2].size
    if statistics:
        moved[:, -statistics:] = moved[:, -statistics:].abs()
    learner = session._first_learner(moved)
    targets = learner.targets + 0.1 * torch.rand(learner.targets.shape, generator=torch.Generator().manual_seed(2))
    learner = learner._replace(targets=targets, log_alpha=torch.tensor([-1.3]))
    update = session.lift(update_agent(config, session.agent, policy=policy), (0, 0, 0, None, None))
    after, *rows = update(learner, batch, drawn, torch.tensor(1e-2), torch.tensor(warm))
    session.close()
    return session.agent, learner, batch, drawn, after, rows


class Plain:
    """The same networks as two critics and a policy of plain torch, with a leaf for each parameter."""

    def __init__(self, config, layout: Layout, vector):
        self.config = config
        self.named = {k: v.detach().clone().requires_grad_() for k, v in layout.unflatten(vector).items()}

    def policy(self, x):
        for layer in range(len(self.config.hidden)):
            x = torch.relu(x @ self.named[f"policy.{layer}.weight"] + self.named[f"policy.{layer}.bias"])
        return x @ self.named["policy.out.weight"] + self.named["policy.out.bias"]

    def q(self, i, x, training=False):
        norm = self.config.critic_norm
        depth = len(self.config.critic_hidden or self.config.hidden)
        for layer in range(depth + 1):
            part = lambda name, layer=layer: self.named[f"value.{layer}.{name}"][i, 0]  # noqa: E731
            if norm == "batch":
                running = [self.named[f"statistics.{layer}.{name}"][i, 0].detach() for name in ("mean", "variance")]
                scales = part("scale"), part("shift")
                x = torch.nn.functional.batch_norm(x, *running, *scales, training=training, momentum=0.0, eps=1e-3)
            x = x @ self.named[f"value.{layer}.weight"][i] + part("bias")
            if layer < depth and norm == "layer":
                x = torch.nn.functional.layer_norm(x, x.shape[-1:], part("scale"), part("shift"))
            x = torch.relu(x) if layer < depth else x
        return x

    def vector(self, prefix):
        return torch.cat([x.flatten() for name, x in self.named.items() if name.startswith(prefix)]).detach()

    def step(self, prefix, loss, config):
        leaves = [x for name, x in self.named.items() if name.startswith(prefix)]
        for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
            leaf.grad = gradient
        if config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(leaves, config.max_grad_norm)
        torch.optim.Adam(leaves, lr=1e-2, betas=(config.adam_beta, 0.999)).step()


def by_plain_torch(config, agent, learner, batch, drawn, *, policy=True):
    """One update as the papers write it, with torch.optim and torch.distributions."""
    batch = type(batch)(*(None if x is None else x[0] for x in batch))
    online = Plain(config, agent.layout, learner.parameters[0])
    alpha, sizes = float(learner.log_alpha.exp()), [part.size for part in agent.layout.sections(sac.SECTIONS)]
    head = learner.targets[0] if config.tau < 1 else learner.parameters[0, sizes[0] :]
    target = Plain(config, agent.layout, torch.cat([learner.parameters[0, : sizes[0]], head]))
    box = agent.distribution.continuous

    def action(outputs, z):
        mean, log_std = outputs.chunk(2, -1)
        std = log_std.clamp(-20, 2).exp()
        before, squash = mean + std * z, D.TanhTransform()
        slope = squash.log_abs_det_jacobian(before, squash(before))
        return squash(before), (D.Normal(mean, std).log_prob(before) - slope).sum(-1)

    def soft(outputs, masks, z, observations, critics):
        if box:
            a, log_prob = action(outputs, z)
            pair = [critic(torch.cat([observations, a], -1))[:, 0] for critic in critics]
            return torch.min(*pair) - alpha * log_prob, -log_prob
        law = D.Categorical(logits=outputs if masks is None else outputs.masked_fill(~masks, -1e9))
        values = torch.min(*[critic(observations) for critic in critics]) - alpha * law.logits
        return (law.probs * values).sum(-1), law.entropy()

    def twins(net, training=False):
        return [lambda x, i=i: net.q(i, x, training) for i in range(2)]

    here, there = drawn[0] if box else (None, None)
    inputs = torch.cat([batch.observations, batch.actions], -1) if box else batch.observations
    joint = config.tau == 1 and config.critic_norm == "batch"
    count = len(batch.rewards)
    with torch.no_grad():
        outputs = online.policy(batch.next_observations)
        critics = twins(target)
        if joint:
            critics = [lambda x, i=i: online.q(i, torch.cat([inputs, x]), training=True)[count:] for i in range(2)]
        ahead, _ = soft(outputs, batch.next_masks, there, batch.next_observations, critics)
        wanted = batch.rewards + config.gamma * torch.where(batch.terminated, 0.0, ahead)
        following = torch.cat([batch.next_observations, action(outputs, there)[0]], -1) if box else None
    total = 0.0
    for i in range(2):
        q = online.q(i, torch.cat([inputs, following]) if joint else inputs, training=True)[:count]
        q = q[:, 0] if box else q[torch.arange(count), batch.actions]
        total = total + 0.5 * ((q - wanted) ** 2).mean()
    online.step("value.", total, config)
    found = {"value_loss": float(total.detach())}
    if policy:
        value, entropy = soft(online.policy(batch.observations), batch.masks, here, batch.observations, twins(online))
        online.step("policy.", -value.mean(), config)
        bonus = float(entropy.mean().detach())
        found |= {"policy_loss": alpha * bonus - float(value.mean().detach()), "entropy": bonus}
    return online, found


CASES = {
    "box": SMALL,
    "layers": dataclasses.replace(SMALL, critic_norm="layer", critic_hidden=(4,), adam_beta=0.5),
    "no target": dataclasses.replace(SMALL, tau=1.0),
    "discrete": dataclasses.replace(DISCRETE, entropy_share=0.7),
    "discrete, layers": dataclasses.replace(DISCRETE, critic_norm="layer"),
    "batch": dataclasses.replace(SMALL, critic_norm="batch"),
    "clipped": dataclasses.replace(SMALL, max_grad_norm=1e-6, critic_hidden=(4,)),
}


@pytest.mark.parametrize("case", CASES)
def test_an_update_is_that_of_plain_torch(case):
    config = CASES[case]
    agent, learner, batch, drawn, after, rows = one_update(config)
    if config.critic_norm == "batch":  # the policy is judged by running statistics that have moved already
        learner = learner._replace(
            parameters=torch.cat([learner.parameters[:, :-STATISTICS], after.parameters[:, -STATISTICS:]], 1)
        )
    online, found = by_plain_torch(config, agent, learner, batch, drawn)
    names = (*sac.CRITIC_STATISTICS, *sac.POLICY_STATISTICS)
    row = dict(zip(names, torch.cat([rows[0][0], rows[1][0]]).tolist(), strict=True))
    for name, value in found.items():
        assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    sizes = [part.size for part in agent.layout.sections(sac.SECTIONS)]
    acting, judging, _ = after.parameters[0].split(sizes)
    for prefix, mine in (("policy.", acting), ("value.", judging)):
        moved = online.vector(prefix)
        assert (mine - moved).abs().max() < 2e-4, prefix
    head = usual_entropy(agent.distribution, config.entropy_share, None if batch.masks is None else batch.masks[0])
    sign = np.sign(row["entropy"] - float(torch.as_tensor(head).float().mean()))
    assert float(after.log_alpha - learner.log_alpha) == pytest.approx(-1e-2 * sign, rel=1e-3)
    if config.tau < 1:
        expected = 0.995 * learner.targets + 0.005 * after.parameters[:, sizes[0] :]
        torch.testing.assert_close(after.targets, expected)


STATISTICS = 2 * 2 * (4 + 6 + 5)
"""Numbers of the running statistics of Pendulum's critics: mean and variance, of two critics, of each input."""


def test_in_crossq_steps_and_those_that_follow_share_their_statistics():
    config = dataclasses.replace(SMALL, tau=1.0, critic_norm="batch")
    agent, learner, batch, drawn, after, rows = one_update(config, policy=False)
    online, found = by_plain_torch(config, agent, learner, batch, drawn, policy=False)
    assert float(rows[0][0, 0]) == pytest.approx(found["value_loss"], rel=1e-4)
    sizes = [part.size for part in agent.layout.sections(sac.SECTIONS)]
    assert sizes[2] == STATISTICS
    assert after.targets.shape == (1, 0)
    acting, judging, statistics = after.parameters[0].split(sizes)
    torch.testing.assert_close(acting, learner.parameters[0, : sizes[0]])
    assert (judging - online.vector("value.")).abs().max() < 2e-4
    assert not torch.equal(statistics, learner.parameters[0, -STATISTICS:])


def test_between_its_own_steps_a_delayed_policy_and_its_temperature_rest():
    config = dataclasses.replace(SMALL, policy_delay=2)
    agent, learner, *_, after, rows = one_update(config, policy=False)
    size = agent.layout.sections(sac.SECTIONS)[0].size
    assert len(rows) == 1
    assert torch.equal(after.parameters[:, :size], learner.parameters[:, :size])
    assert torch.equal(after.log_alpha, learner.log_alpha)
    rows = [row for step in train(config) for row in step.rows if row["value_loss"] is not None]
    one, two = (
        [
            p["policy"]["parameters"][0, :size]
            for p in states(dataclasses.replace(config, policy_delay=d, num_steps=9, total_steps=9))
        ]
        for d in (1, 2)
    )
    assert not torch.equal(one[-1], two[-1])


def states(config):
    return [step.state for step in train(config)]


# Worlds


def test_a_time_limit_bootstraps():
    """Reward 1 for ever, cut every 5 steps: Q = 1 / (1 − γ) = 5. Taken for terminations it would be below 3.4."""
    config = dataclasses.replace(
        DISCRETE, env=Forever, total_steps=800, gamma=0.8, alpha=1e-6, learning_rate=1e-2, tau=0.1
    )
    *_, last = train(config)
    assert last.rows[0]["q_mean"] == pytest.approx(5.0, rel=0.05)


def test_entropy_is_worth_its_temperature():
    """One reward and two actions for ever: V = (1 + α log 2) / (1 − γ), and Q = 1 + γ V."""
    config = dataclasses.replace(
        DISCRETE, env=Forever, total_steps=800, gamma=0.8, alpha=0.5, learning_rate=1e-2, tau=0.1
    )
    *_, last = train(config)
    assert last.rows[0]["entropy"] == pytest.approx(math.log(2), abs=0.02)
    assert last.rows[0]["q_mean"] == pytest.approx(1 + 0.8 * (1 + 0.5 * math.log(2)) / 0.2, rel=0.05)


@pytest.mark.parametrize("env", [Masked, Forced])
def test_action_masks_reach_the_update(env):
    for step in train(dataclasses.replace(DISCRETE, env=env, learning_rate=1e-2)):
        entropy = step.rows[0]["entropy"]
        assert entropy is None or entropy <= (math.log(2) if env is Masked else 0) + 1e-6


def test_a_learned_temperature_brings_the_entropy_to_its_target(tmp_path):
    config = dataclasses.replace(SMALL, env=Edge, env_kwargs={}, total_steps=1200, gamma=0.1, learning_rate=1e-2)
    *_, last = train(config)
    assert last.rows[0]["entropy"] == pytest.approx(-1.0, abs=0.3)
    assert last.rows[0]["alpha"] < 1


def test_a_loaded_policy_acts_by_the_tanh_of_its_mean_in_the_units_of_the_environment(tmp_path):
    config = dataclasses.replace(SMALL, env=Edge, env_kwargs={}, total_steps=120)
    run = telescope.train(config, tmp_path / "run")
    policy = telescope.load(run.path, trust=True)
    seen = np.array([[0.3, -0.2], [0.9, 0.1]], np.float32)
    outputs = policy.agent.network.apply(policy.agent.layout.unflatten(policy.parameters[0]), torch.from_numpy(seen))[0]
    expected = -1 + 2 * torch.tanh(outputs[:, :1]).detach().numpy()  # −3 … 1
    np.testing.assert_allclose(policy.act(seen), expected, rtol=1e-5)
    assert policy.action_space.contains(policy.act(seen[0], rng=np.random.default_rng(0)))
    named = policy.agent.layout.unflatten(policy.parameters[0])
    plain = Plain(config, policy.agent.layout, policy.parameters[0])
    both = torch.cat([torch.from_numpy(seen), torch.tanh(outputs[:, :1])], -1)
    least = torch.min(plain.q(0, both), plain.q(1, both))[:, 0].detach()
    np.testing.assert_allclose(policy.value(seen), least, rtol=1e-4)
    assert set(named) >= {"policy.out.weight", "value.2.weight"}


def test_it_starts_at_random_whatever_it_starts_from(tmp_path):
    config = dataclasses.replace(SMALL, total_steps=40, learning_starts=1000)
    *_, last = train(config)
    sure = last.state
    sure["policy"]["parameters"] += 50.0  # a policy at its upper bound
    kept = {}
    for random in (False, True):
        *_, last = train(dataclasses.replace(config, random_start=random), start=sure)
        kept[random] = last.state["replay"]["chunks"][0]["actions"]
    assert (kept[False] > 0.99).all()
    assert (kept[True] < 0).any()


# Settings


def test_any_policy_takes_critics():
    policy = mlp(3, 2, hidden=(4,))
    config = dataclasses.replace(SMALL, total_steps=80)
    *_, last = train(config, network=with_twins(policy, 3, 1, continuous=True, hidden=(4,)))
    assert last.rows[0]["value_loss"] > 0
    with pytest.raises(ValueError, match="pass with_twins"):
        next(train(config, network=policy))
    with pytest.raises(ValueError, match="flat observations"):
        with_twins(policy._replace(shaped=True), 3, 1, continuous=True)


def test_action_spaces_that_it_cannot_act_in_are_refused():
    with pytest.raises(ValueError, match="sac expects Box or Discrete"):
        SMALL.head(gym.spaces.MultiDiscrete([2, 2]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"alpha": 0.1, "entropy_target": -2.0}, "entropy_target is -2.0, but alpha is 0.1"),
        ({"alpha": 0.1, "entropy_share": 0.1}, "entropy_share is 0.1, but alpha is 0.1"),
        ({"entropy_target": 0.2, "entropy_share": 0.1}, "entropy_share is 0.1, but entropy_target is set"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"tau": 1.5}, "tau is 1.5"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"adam_beta": 1.0}, "adam_beta is 1"),
        ({"critic_hidden": (0,)}, "critic_hidden is"),
        ({"critic_norm": "group"}, "critic_norm is 'group'"),
    ],
)
def test_settings_that_cannot_work_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changed)


def test_wide_networks_are_worth_threads(monkeypatch):
    monkeypatch.setattr("telescope.control.execution.processors", lambda: 4)
    monkeypatch.setattr("telescope.control.execution.most_threads", lambda: 8)
    config = SAC(env="Pendulum-v1")
    assert threads_that_pay(config, 1) == 4
    assert threads_that_pay(dataclasses.replace(config, seeds=4), 4) == 1
    assert threads_that_pay(dataclasses.replace(config, hidden=(64, 64)), 1) == 1
    assert threads_that_pay(dataclasses.replace(config, hidden=(64, 64), critic_hidden=(256,)), 1) == 4


def test_presets():
    assert preset("HalfCheetah-v5") == SAC(env="HalfCheetah-v5")
    assert preset("Nothing-v0") == SAC(env="Nothing-v0")
    crossq = preset("Pendulum-v1", "crossq")
    assert (crossq.tau, crossq.critic_norm, crossq.policy_delay, crossq.adam_beta) == (1.0, "batch", 3, 0.5)
    with pytest.raises(ValueError, match="expected names that begin with"):
        Layout(("q", "policy.a"), ((1,), (1,))).sections(sac.SECTIONS)

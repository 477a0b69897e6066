"""TRPO: Fisher products, the policy's step and both fits of values against dense algebra and plain loops.

Leaves out what holds of every trainer (`test_laws.py`) and the steps themselves (`test_second_order.py`).
"""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import distributions as D
from torch import nn

from telescope.algorithms import trpo
from telescope.algorithms.trpo import TRPO, Learner, policy_functions, policy_step, preset, train
from telescope.control.agents.actor import ActorCritic
from telescope.control.agents.distributions import distribution
from telescope.control.agents.layout import create
from telescope.control.agents.networks import from_module, mlp
from telescope.control.experience.credit import Batch, samples, whitened_rollout, with_advantages
from telescope.control.experience.minibatches import minibatch_indices
from telescope.control.training import Session
from telescope.control.value_fits import FITS
from worlds import Chain, Masked

SMALL = TRPO(
    env="CartPole-v1",
    vectorization="sync",  # every row counts
    seeds=2,
    num_envs=2,
    num_steps=32,
    minibatch_size=16,
    epochs=2,
    total_steps=128,
    hidden=(8,),
    cg_iterations=40,
    damping=1e-2,
    threads=1,
    compile="off",
)
PENDULUM = dataclasses.replace(SMALL, env="Pendulum-v1", log_std=-0.5)
SPACES = {
    "Discrete": gym.spaces.Discrete(3),
    "MultiDiscrete": gym.spaces.MultiDiscrete([3, 2]),
    "MultiBinary": gym.spaces.MultiBinary(2),
    "Box": gym.spaces.Box(-1, 1, (2,)),
}


class Bandit(gym.Env):
    """One state, one step, and a reward that is the number of the arm squared."""

    observation_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), float(action) ** 2, True, False, {}


def begun(config, **more):
    """A session, and its first rollout with advantages as `train` makes them."""
    session = Session(config, None, Learner, **more)
    rollout = next(iter(session.collect() for _ in session.iterations()))
    batch = with_advantages(config, session, rollout, samples(session, rollout))
    return session, batch._replace(advantages=whitened_rollout(batch.advantages, batch.live))


def agent_of(space, *, dtype=torch.float64):
    """An agent with random parameters in double precision, and its vector."""
    head = distribution(space)
    network = mlp(3, head.outputs, hidden=(4,), log_std=-0.3 if head.continuous else None)
    vectors, layout = create(network, [0])
    noise = torch.randn(vectors.shape[1], generator=torch.Generator().manual_seed(1), dtype=dtype)
    return ActorCritic(network, head, layout), vectors[0].to(dtype) + 0.3 * noise


def rows(agent, vector, *, count=10, masks=None, live=None):
    """A batch of random observations, with actions of the agent's own."""
    generator = torch.Generator().manual_seed(2)
    observations = torch.randn(count, 3, generator=generator, dtype=vector.dtype)
    outputs = agent.policy(agent.layout.unflatten(vector), observations)
    noise = torch.tensor(agent.distribution.noise(np.random.default_rng(0), (count,)), dtype=vector.dtype)
    actions = agent.distribution.sample(outputs, noise, masks)
    log_probs = agent.distribution.log_prob(outputs, actions, masks)
    advantages = torch.randn(count, generator=generator, dtype=vector.dtype)
    zeros = torch.zeros_like(advantages)
    live = torch.ones(count, dtype=torch.bool) if live is None else live
    return Batch(observations, actions, log_probs, zeros, advantages, zeros, live, masks), outputs


def scores(agent, vector, observations, actions, masks):
    """∇ log π(a|s) of each row, [N, P]."""

    def log_probs(x):
        outputs = agent.policy(agent.layout.unflatten(x), observations)
        return agent.distribution.log_prob(outputs, actions, masks)

    return torch.func.jacrev(log_probs)(vector)


# The Fisher matrix


@pytest.mark.parametrize("name", SPACES)
def test_a_fisher_product_is_the_difference_of_gradients_of_the_kl(name):
    agent, vector = agent_of(SPACES[name])
    batch, old = rows(agent, vector)
    _, kl, product = policy_functions(SMALL, agent)
    slope = torch.func.grad(lambda x: kl(agent.policy(agent.layout.unflatten(x), batch.observations), old, batch))
    v = torch.randn(len(vector), generator=torch.Generator().manual_seed(3), dtype=vector.dtype)
    difference = (slope(vector + 1e-5 * v) - slope(vector - 1e-5 * v)) / 2e-5
    torch.testing.assert_close(product(vector, old, batch, v), difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("masked", [False, True])
def test_a_fisher_product_is_that_of_the_mean_of_outer_products_of_scores(masked):
    """Over all actions by their probabilities, as Fisher has it: no KL, no Hessian. Dead rows do not count."""
    agent, vector = agent_of(gym.spaces.Discrete(3))
    live = torch.arange(10) < 7
    masks = torch.arange(3) != torch.arange(10)[:, None] % 3 if masked else None
    batch, old = rows(agent, vector, masks=masks, live=live)
    fisher = torch.zeros(len(vector), len(vector), dtype=vector.dtype)
    for action in range(3):
        chosen = torch.full((10,), action)
        weights = agent.distribution.log_prob(old, chosen, masks).exp() * live / 7
        found = scores(agent, vector, batch.observations, chosen, masks)
        fisher += (found * weights[:, None]).T @ found
    _, _, product = policy_functions(SMALL, agent)
    for v in torch.eye(len(vector), dtype=vector.dtype):
        torch.testing.assert_close(product(vector, old, batch, v), fisher @ v)


def test_a_fisher_product_of_a_gaussian_is_that_of_its_known_fisher_matrix():
    """1/σ² for means, 2 for log σ, by the Jacobian of the outputs."""
    agent, vector = agent_of(SPACES["Box"])
    batch, old = rows(agent, vector)
    jacobian = torch.func.jacrev(lambda x: agent.policy(agent.layout.unflatten(x), batch.observations))(vector)
    metric = torch.cat([torch.exp(-2 * old[:, 2:]), torch.full_like(old[:, 2:], 2.0)], dim=1) / 10  # [N, K]
    fisher = torch.einsum("nkp,nk,nkq->pq", jacobian, metric, jacobian)
    _, _, product = policy_functions(SMALL, agent)
    for v in torch.eye(len(vector), dtype=vector.dtype):
        torch.testing.assert_close(product(vector, old, batch, v), fisher @ v)


# The policy's step


def dense_fisher(session, batch, s):
    """The Fisher matrix of one seed in double precision, by scores or by the known one of a Gaussian."""
    agent, vector = session.agent, session.parameters[s].double()
    observations = batch.observations[s].double()

    def outputs(x):
        return agent.policy(agent.layout.unflatten(x), observations)

    jacobian, found = torch.func.jacrev(outputs)(vector), outputs(vector)
    if agent.distribution.continuous:
        mean, log_std = found.chunk(2, -1)
        metric = torch.diag_embed(torch.cat([torch.exp(-2 * log_std), torch.full_like(mean, 2.0)], -1))
    else:
        p = found.softmax(-1)
        metric = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nkp,nkl,nlq->pq", jacobian, metric, jacobian) / len(observations)


def policy_of(session, vector, observations):
    outputs = session.agent.policy(session.agent.layout.unflatten(vector), observations)
    if session.agent.distribution.continuous:
        mean, log_std = outputs.chunk(2, -1)
        return D.Independent(D.Normal(mean, log_std.exp()), 1)
    return D.Categorical(logits=outputs)


@pytest.mark.parametrize("entropy_coefficient", [0.0, 0.1])
@pytest.mark.parametrize("config", [SMALL, PENDULUM], ids=["Discrete", "Box"])
def test_a_step_is_that_of_dense_algebra(config, entropy_coefficient):
    """(F + λI)⁻¹g by a solver, its length from xᵀ(F + λI)x, and the first of the fractions that keeps the bound."""
    config = dataclasses.replace(config, entropy_coefficient=entropy_coefficient, max_kl=0.02)
    session, batch = begun(config)
    new, statistics = policy_step(config, session)(session.parameters, batch)
    for s in range(2):
        old, observations = session.parameters[s].double().requires_grad_(), batch.observations[s].double()
        before = policy_of(session, old.detach(), observations)

        def surrogate(vector, s=s, before=before, observations=observations):
            policy = policy_of(session, vector, observations)
            ratio = (policy.log_prob(batch.actions[s]) - before.log_prob(batch.actions[s])).exp()
            return (ratio * batch.advantages[s]).mean() + entropy_coefficient * policy.entropy().mean()

        (gradient,) = torch.autograd.grad(surrogate(old), old)
        damped = dense_fisher(session, batch, s) + config.damping * torch.eye(len(gradient), dtype=torch.float64)
        x = torch.linalg.solve(damped, gradient)
        step, fraction = (2 * 0.02 / (x @ damped @ x)).sqrt() * x, 1.0
        for _ in range(10):
            vector = old.detach() + fraction * step
            kl = D.kl_divergence(before, policy_of(session, vector, observations)).mean()
            if kl <= 0.02 and surrogate(vector) > surrogate(old.detach()):
                break
            fraction *= 0.8
        assert statistics["step_fraction"][s].item() == pytest.approx(fraction)
        torch.testing.assert_close(new[s].double(), vector, rtol=1e-3, atol=1e-4)
        assert (vector - old).abs().max() > 1e-2, "it is a step"
        assert statistics["kl"][s].item() == pytest.approx(kl.item(), rel=1e-2)
        gain = surrogate(vector) - surrogate(old)
        assert statistics["surrogate_gain"][s].item() == pytest.approx(gain.item(), rel=1e-2)
        assert statistics["gradient_norm"][s].item() == pytest.approx(gradient.norm().item(), rel=1e-4)
        assert statistics["entropy"][s].item() == pytest.approx(before.entropy().mean().item(), rel=1e-4)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_bound_on_the_kl_is_kept(env):
    config = dataclasses.replace(SMALL, env=env, total_steps=640, max_kl=0.003, damping=1e-4)
    session = Session(config, None, Learner)
    improve, measured = policy_step(config, session), []
    for _ in session.iterations():
        rollout = session.collect()
        batch = with_advantages(config, session, rollout, samples(session, rollout))
        old = session.parameters
        new, statistics = improve(old, batch)
        for s in range(2):
            before, after = (policy_of(session, x[s], batch.observations[s]) for x in (old, new))
            measured.append(D.kl_divergence(before, after).mean().item())
            assert statistics["kl"][s].item() == pytest.approx(measured[-1], rel=1e-3, abs=1e-7)
        session.learner = session.learner._replace(parameters=new)
        session.finish({})
    assert max(measured) <= 0.003 * (1 + 1e-4)
    assert max(measured) > 0.002, "it is used"


def test_a_step_of_natural_gradient_on_a_softmax_bandit():
    """The Fisher matrix of p is diag(p) − ppᵀ, so F⁺g = g / p up to a constant, and the step follows by hand."""
    config = dataclasses.replace(
        SMALL, env=Bandit, hidden=(), num_steps=64, max_kl=0.05, damping=1e-7, line_search_steps=0
    )
    session, batch = begun(config)
    new, statistics = policy_step(config, session)(session.parameters, batch)
    for s in range(2):
        before, after = (
            policy_of(session, x[s].double(), torch.ones(1, 1).double()) for x in (session.parameters, new)
        )
        p = before.probs[0]
        chosen = torch.nn.functional.one_hot(batch.actions[s], 3).double()
        g = (batch.advantages[s].double()[:, None] * (chosen - p)).mean(0)
        natural = g / p - (g / p).mean()
        step = (2 * 0.05 / (g @ natural)).sqrt() * natural
        moved = after.logits[0] - before.logits[0]
        torch.testing.assert_close(moved - moved.mean(), step, rtol=1e-2, atol=1e-3)
        assert statistics["step_fraction"][s] == 1


def test_npg_has_no_bound_and_trpo_has():
    config = dataclasses.replace(PENDULUM, seeds=6, max_kl=0.5, damping=1e-4, normalise_rewards=True)
    session, batch = begun(config)
    _, bounded = policy_step(config, session)(session.parameters, batch)
    _, free = policy_step(dataclasses.replace(config, line_search_steps=0), session)(session.parameters, batch)
    assert (free["step_fraction"] == 1).all()
    assert (bounded["kl"] <= 0.5).all()
    assert preset("CartPole-v1", "npg") == dataclasses.replace(preset("CartPole-v1"), line_search_steps=0)


def test_only_policies_move_in_their_step_and_only_values_in_their_fit():
    for value_fit in FITS:
        config = dataclasses.replace(PENDULUM, value_fit=value_fit)
        session, batch = begun(config)
        layout, old = session.agent.layout, session.learner
        policy, value = layout.part("policy."), layout.part("value.")
        new, _ = policy_step(config, session)(old.parameters, batch)
        assert torch.equal(new[:, value], old.parameters[:, value])
        assert (new[:, policy] != old.parameters[:, policy]).float().mean() > 0.9
        (fitted, _), _ = FITS[value_fit](config, session)((new, old.adam), batch, 0, 1e-3)
        assert torch.equal(fitted[:, policy], new[:, policy])
        assert (fitted[:, value] != new[:, value]).float().mean() > 0.9


def test_where_the_line_search_fails_the_policy_stays_bit_for_bit():
    """One attempt, which goes too far for some seeds and not for others."""
    config = dataclasses.replace(SMALL, seeds=8, line_search_steps=1, damping=1e-3)
    session, _ = begun(config)
    policy, old = session.agent.layout.part("policy."), session.parameters.clone()
    rows = next(train(config)).rows
    first = next(train(config)).policy["parameters"]
    failed = [row["step_fraction"] == 0 for row in rows]
    assert 0 < sum(failed) < 8
    for s, row in enumerate(rows):
        assert torch.equal(first[s, policy], old[s, policy]) == failed[s]
        assert not torch.equal(first[s], old[s]), "values are fitted all the same"
        assert (row["kl"] == 0) == failed[s]
        assert (row["surrogate_gain"] == 0) == failed[s]


def test_rows_that_do_not_count_change_nothing():
    config = dataclasses.replace(SMALL, autoreset="next_step", num_steps=64)
    session, batch = begun(config)
    assert not batch.live.all()
    garbage = torch.full_like(batch.values, 1e3)
    spoiled = batch._replace(
        observations=torch.where(batch.live[..., None], batch.observations, 7.0),
        advantages=torch.where(batch.live, batch.advantages, garbage),
        returns=torch.where(batch.live, batch.returns, garbage),
        values=torch.where(batch.live, batch.values, -garbage),
    )
    for value_fit in FITS:
        changed = dataclasses.replace(config, value_fit=value_fit)
        found = []
        for one in (batch, spoiled):
            new, _ = policy_step(changed, session)(session.parameters, one)
            found.append(FITS[value_fit](changed, session)((new, session.learner.adam), one, 0, 1e-3)[0][0])
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


# The value function


def linear(**changes):
    """A linear critic, whose fit has a closed form, and what it is to learn: features with a 1, values, returns."""
    config = dataclasses.replace(
        PENDULUM, hidden=(), value_fit="trust_region", damping=1e-9, cg_iterations=60, gamma=0.9, **changes
    )
    session, batch = begun(config)
    (new, _), loss = FITS["trust_region"](config, session)(session.learner, batch, 0, 0.0)
    for s in range(2):
        features = np.column_stack([batch.observations[s], np.ones(64)]).astype(np.float64)
        old, returns = (x[s].double().numpy() for x in (batch.values, batch.returns))
        fitted = session.agent.value(new[s], batch.observations[s]).double().numpy()
        assert loss[s].item() == pytest.approx(np.mean((old - returns) ** 2) / 2, rel=1e-4)
        yield features, old, returns, fitted


def test_without_a_bound_the_fit_of_a_linear_critic_is_least_squares():
    for features, _, returns, fitted in linear(max_value_change=1e6):
        wanted = features @ np.linalg.lstsq(features, returns, rcond=None)[0]
        np.testing.assert_allclose(fitted, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


def test_a_bounded_fit_of_a_linear_critic_is_that_of_equation_29():
    """Its Lagrangian has the same matrix twice, so the step is that of least squares, shortened to the border."""
    for features, old, returns, fitted in linear(max_value_change=0.02):
        whole = features @ np.linalg.lstsq(features, returns - old, rcond=None)[0]
        border = 2 * 0.02 * np.mean((old - returns) ** 2)  # mean (V − V_old)² ≤ 2εσ²
        assert np.mean(whole**2) > border
        wanted = old + np.sqrt(border / np.mean(whole**2)) * whole
        np.testing.assert_allclose(fitted, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("normalised", [False, True])
def test_the_bound_on_the_change_of_values_is_kept(normalised):
    """Also by critics that are not linear, whatever the units of the reward."""
    config = dataclasses.replace(
        PENDULUM, value_fit="trust_region", max_value_change=0.05, total_steps=640, normalise_rewards=normalised
    )
    session, found = Session(config, None, Learner), []
    fit = FITS["trust_region"](config, session)
    for iteration in session.iterations():
        rollout = session.collect()
        batch = with_advantages(config, session, rollout, samples(session, rollout))
        session.learner = Learner(*fit(session.learner, batch, iteration, 0.0)[0])
        new = session.value(batch.observations)
        variance = ((batch.values - batch.returns) ** 2).mean(1)
        found.append(((new - batch.values) ** 2).mean(1) / (2 * variance))
        assert (((new - batch.returns) ** 2).mean(1) < variance).all()
        session.finish({})
    assert torch.stack(found).max() <= 0.05 * (1 + 1e-4)
    assert torch.stack(found).max() > 0.03, "it is used"


def test_the_regression_is_torchs_adam():
    config = dataclasses.replace(SMALL, normalise_rewards=True, value_coefficient=0.7, max_grad_norm=0.05, epochs=3)
    session, batch = begun(config)
    (new, _), loss = FITS["regression"](config, session)(session.learner, batch, 4, 1e-2)
    order, losses = list(minibatch_indices(config, 4)), []
    for s in range(2):
        vector = session.parameters[s].clone().requires_grad_()
        adam = torch.optim.Adam([vector], lr=1e-2, eps=config.adam_eps)
        for indices in order:
            for rows in indices[s]:
                error = 0.5 * (session.agent.value(vector, batch.observations[s, rows]) - batch.returns[s, rows]) ** 2
                losses.append(error.mean().item())
                adam.zero_grad()
                (0.7 * error.mean()).backward()
                torch.nn.utils.clip_grad_norm_([vector], 0.05)
                adam.step()
        torch.testing.assert_close(new[s], vector.detach(), rtol=1e-4, atol=1e-5)
    assert loss.mean().item() == pytest.approx(np.mean(losses), rel=1e-4)
    assert len(losses) == 2 * 3 * 4


def test_advantages_are_those_of_the_old_values_and_the_fit_comes_after():
    """The policy's step is the same, however values are fitted."""
    found = []
    for value_fit in FITS:
        config = dataclasses.replace(SMALL, value_fit=value_fit)
        session = Session(config, None, Learner)
        policy = session.agent.layout.part("policy.")
        session.close()
        found.append(next(train(config)).policy["parameters"][:, policy])
    assert torch.equal(*found)


# Networks, settings


class Apart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        self.critic = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.actor(x), self.critic(x).squeeze(-1)


class Shared(Apart):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 4)

    def forward(self, x):
        return super().forward(torch.tanh(self.trunk(x)))


def test_any_network_learns_whose_policy_and_value_are_apart():
    *_, last = train(dataclasses.replace(SMALL, value_fit="trust_region"), network=from_module(Apart))
    assert all(0 < row["kl"] <= 0.01 and row["value_change"] > 0 for row in last.rows)


def test_a_network_with_common_layers_is_refused_by_their_names():
    with pytest.raises(ValueError, match=r"trunk\.bias, trunk\.weight"):
        next(train(SMALL, network=from_module(Shared)))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"shared_network": True}, "shared_network is True, but trpo"),
        ({"memory": "gru", "shared_memory": True}, "shared_memory is True, but trpo"),
        ({"memory": "gru", "minibatch_size": 12}, "minibatch_size is 12, but a policy with a memory learns from whole"),
        ({"line_search_shrink": 1.0}, "line_search_shrink is 1.0"),
        ({"minibatch_size": 65}, "minibatch_size is 65"),
        ({"max_kl": 0.0}, "max_kl"),
        ({"damping": -1.0}, "damping"),
        ({"max_value_change": 0.3}, "trust_region"),
        ({"value_fit": "trust_region", "critic": "quantile"}, "quantile"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(SMALL, **changes)


def test_a_quantile_critic_is_fitted_by_regression():
    *_, last = train(
        dataclasses.replace(SMALL, critic="quantile", quantiles=4, normalise_rewards=True, total_steps=640)
    )
    assert all(row["value_change"] > 0 and 0 < row["kl"] <= 0.01 for row in last.rows)


@pytest.mark.parametrize("env", ["CartPole-v1", "HalfCheetah-v5", "Swimmer-v5", "ALE/Pong-v5", "Unknown-v0"])
def test_presets_are_of_their_environment(env):
    assert preset(env).env == env
    assert (preset(env).max_kl, preset(env).gamma) == {
        "HalfCheetah-v5": (0.01, 0.99),
        "Swimmer-v5": (0.01, 0.9999),
    }.get(env, (0.01, 0.99))


def test_compiled_steps_are_the_eager_ones():
    config = dataclasses.replace(PENDULUM, total_steps=128, value_fit="trust_region", cg_iterations=5)
    eager, compiled = (list(train(dataclasses.replace(config, compile=how))) for how in ("off", "on"))
    for one, other in zip(eager, compiled, strict=True):
        for a, b in zip(one.rows, other.rows, strict=True):
            assert a["kl"] == pytest.approx(b["kl"], rel=1e-2)
            assert a["value_change"] == pytest.approx(b["value_change"], rel=1e-2)


# Learning


@pytest.mark.parametrize("name", ["trpo", "npg"])
@pytest.mark.parametrize("value_fit", FITS)
def test_it_finds_the_way_past_a_lure(name, value_fit):
    config = dataclasses.replace(
        SMALL, env=Chain, seeds=4, num_envs=8, gamma=0.9, cg_iterations=10, total_steps=7_680, value_fit=value_fit
    )
    config = dataclasses.replace(config, max_kl=0.03, line_search_steps=0 if name == "npg" else 10)
    *_, last = train(config)
    assert [row["return_mean"] for row in last.rows] == pytest.approx([1.0] * 4, abs=0.1)


def test_masks_reach_policies_and_line_search():
    config = dataclasses.replace(SMALL, env=Masked, total_steps=1280)
    *_, last = trpo.train(config)
    assert all(row["return_mean"] > 7 for row in last.rows)

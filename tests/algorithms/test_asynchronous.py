"""A3C, IMPALA and APPO without actors: what they are where rollouts are new, and what V-trace corrects elsewhere.

Leaves out actors in other processes (tests/control/test_actors.py), and what holds of every trainer: `test_laws.py`.
"""

import dataclasses

import numpy as np
import pytest
import torch

from telescope import lambda_return
from telescope.algorithms import a2c, a3c, appo, impala, ppo
from telescope.control.asynchronous import ActorSession
from telescope.control.experience.corrected import behaviour, clipped_share, packed, unpacked, with_vtrace
from telescope.control.experience.samples import final_values, per_seed
from worlds import Chain, Forever

SMALL = {
    "env": "CartPole-v1",
    "seeds": 2,
    "num_envs": 3,
    "num_steps": 20,
    "total_steps": 60 * 6,
    "hidden": (8,),
    "learning_rate": 1e-2,
    "normalise_rewards": True,
    "threads": 1,
    "compile": "off",
}
ASYNCHRONOUS = [(a3c, a3c.A3C), (impala, impala.IMPALA), (appo, appo.APPO)]


def parameters_of(module, config):
    *_, last = module.train(config)
    return last.policy["parameters"]


@pytest.mark.parametrize("optimiser", ["rmsprop", "adam"])
@pytest.mark.parametrize("lam", [1.0, 0.9])
def test_a3c_with_one_worker_is_a2c(lam, optimiser):
    settings = SMALL | {"lam": lam, "optimiser": optimiser, "normalise_advantages": True, "entropy_coefficient": 0.1}
    ours, theirs = parameters_of(a3c, a3c.A3C(**settings)), parameters_of(a2c, a2c.A2C(**settings))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_impala_at_ratio_1_is_a2c():
    settings = SMALL | {"lam": 1.0, "entropy_coefficient": 0.1, "optimiser_eps": 1e-4}
    ours, theirs = parameters_of(impala, impala.IMPALA(**settings)), parameters_of(a2c, a2c.A2C(**settings))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_appo_at_ratio_1_is_ppo():
    """The target is then the policy that acted, and PPO's advantages are V-trace's at λ = 1."""
    settings = SMALL | {"lam": 1.0, "minibatch_size": 16, "epochs": 3, "entropy_coefficient": 0.1}
    theirs = ppo.PPO(**settings, normalise_advantages=False)
    torch.testing.assert_close(
        parameters_of(appo, appo.APPO(**settings)), parameters_of(ppo, theirs), rtol=1e-4, atol=1e-5
    )


def session_of(config, **more):
    kind = impala.Beginning(config) if isinstance(config, impala.IMPALA) else appo.Learner
    return ActorSession(config, None, kind, behaviour, **more)


def gathered(config):
    """The session of a run, its first rollout, and log μ."""
    session = session_of(config)
    rollout, log_probs = next(iter(unpacked(session.gather()) for _ in session.iterations()))
    return session, rollout, log_probs


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_targets_at_ratio_1_are_lambda_returns(lam):
    config = impala.IMPALA(**SMALL | {"env": Forever, "lam": lam})
    session, rollout, log_probs = gathered(config)
    batch, clipped = with_vtrace(config, session, rollout, log_probs, session.parameters)
    values = batch.values.unflatten(1, (20, 3)).transpose(0, 1)  # [T, S, B]
    last = session.value(rollout.last_observations)
    reached = torch.where(rollout.truncated, values, torch.cat([values[1:], last[None]]))  # one state: V(s') = V(s)
    ends = {"terminated": rollout.terminated, "truncated": rollout.truncated}
    expected = lambda_return(rollout.rewards, reached, gamma=0.99, lam=lam, **ends)
    torch.testing.assert_close(batch.returns, per_seed(expected))
    assert all((share == 0).all() for share in clipped.values())


def naive_vtrace(rewards, values, reached, ratios, ends, stops, config):
    """Espeholt et al. 2018, equation 1, one column at a time: a sum over later TD errors with products of ratios."""
    targets = values.copy()
    for t in range(len(rewards)):
        weight = 1.0
        for k in range(t, len(rewards)):
            bootstrap = 0.0 if ends[k] else reached[k]
            delta = min(config.rho_clip, ratios[k]) * (rewards[k] + config.gamma * bootstrap - values[k])
            targets[t] += weight * delta
            if ends[k] or stops[k]:
                break
            weight *= config.gamma * config.lam * min(config.c_clip, ratios[k])
    later = [
        0.0 if ends[t] else reached[t] if stops[t] or t + 1 == len(rewards) else targets[t + 1]
        for t in range(len(rewards))
    ]
    weights = np.minimum(config.rho_clip, ratios)
    return targets, weights * (rewards + config.gamma * np.array(later) - values)


@pytest.mark.parametrize("changed", [{}, {"rho_clip": 1.2, "c_clip": 0.8}, {"lam": 0.7, "rho_clip": 1.1}])
def test_older_rollouts_have_v_trace_targets(changed):
    config = impala.IMPALA(
        **SMALL | {"seeds": 1, "num_envs": 2, "env_kwargs": {"max_episode_steps": 12}, "vectorization": "sync"}
        | changed
    )  # fmt: skip
    session, rollout, log_probs = gathered(config)
    newer = session.parameters + 0.3 * torch.randn(session.parameters.shape, generator=torch.Generator().manual_seed(1))
    batch, clipped = with_vtrace(config, session, rollout, log_probs, newer)
    present, values = session.agents.evaluate(newer, per_seed(rollout.observations), per_seed(rollout.actions), None)
    ratios = torch.exp(present - log_probs)
    assert torch.equal(batch.log_probs, log_probs), "a clip is against the behaviour"
    assert clipped["rho_clipped"] == pytest.approx((ratios > config.rho_clip).float().mean(1).numpy())
    assert clipped["c_clipped"] == pytest.approx((ratios > config.c_clip).float().mean(1).numpy())
    assert 0 < clipped["rho_clipped"][0] < 1
    reached = torch.cat([rollout.observations[1:], rollout.last_observations[None]])  # [T, 1, 2, 4]
    places, finals, _ = rollout.finals
    reached[tuple(map(torch.from_numpy, places))] = torch.from_numpy(finals)
    assert len(finals), "an episode is cut, so that its last state counts"
    following = session.agents.value(newer, per_seed(reached))

    def columns(x):  # [1, N] → [T, B]
        return x[0].unflatten(0, (20, 2)).double().numpy()

    for b in range(2):
        flags = rollout.terminated[:, 0, b].numpy(), rollout.truncated[:, 0, b].numpy()
        mine = (columns(x)[:, b] for x in (values, following, ratios))
        targets, advantages = naive_vtrace(rollout.rewards[:, 0, b].double().numpy(), *mine, *flags, config)
        np.testing.assert_allclose(columns(batch.returns)[:, b], targets, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(columns(batch.advantages)[:, b], advantages, rtol=1e-4, atol=1e-5)
    uncorrected = dataclasses.replace(config, correction="none", rho_clip=1.0, c_clip=1.0)
    plain, shares = with_vtrace(uncorrected, session, rollout, log_probs, newer)
    assert not torch.allclose(plain.returns, batch.returns)
    assert shares["rho_clipped"][0] == 0


@pytest.mark.parametrize(("module", "kind"), ASYNCHRONOUS)
def test_a_delay_is_the_age_of_rollouts(module, kind):
    config = kind(**SMALL | ({"minibatch_size": 60} if module is appo else {}), delay=2)
    rows = [row for iteration in module.train(config) for row in iteration.rows[:1]]
    assert [row["staleness"] for row in rows] == [0, 1, 2, 2, 2, 2]
    assert [row["step"] for row in rows] == [60 * i for i in range(1, 7)]


def test_rollouts_ahead_survive_a_resume_and_none_is_left_at_the_end():
    config = impala.IMPALA(**SMALL, delay=2)
    states = [iteration.state for iteration in impala.train(config)]
    assert [len(state["actors"]["ready"]) for state in states] == [2, 2, 2, 2, 1, 0]
    assert [state["actors"]["tickets"] for state in states] == [3, 4, 5, 6, 6, 6]
    for state in states[1:5]:
        *_, last = impala.train(config, state)
        assert torch.equal(last.policy["parameters"], states[-1]["policy"]["parameters"])


def test_the_target_stays_for_some_iterations():
    config = appo.APPO(**SMALL, minibatch_size=60, epochs=1, target_iterations=3)
    states = [iteration.state for iteration in appo.train(config)]
    targets = [state["learner"]["target"] for state in states]
    acting = [state["policy"]["parameters"] for state in states]
    assert torch.equal(targets[0], targets[1])
    assert not torch.equal(targets[1], targets[2])
    assert torch.equal(targets[2], acting[2])
    assert torch.equal(targets[2], targets[4])
    assert torch.equal(targets[5], acting[5])


def test_appo_judges_by_the_target_and_clips_against_the_behaviour():
    config = appo.APPO(**SMALL, vectorization="sync", minibatch_size=60, clip=0.1, value_coefficient=0.7)
    session, rollout, log_probs = gathered(config)
    batch, _ = with_vtrace(config, session, rollout, log_probs, session.learner.target)
    acted = session.learner
    moved = acted._replace(parameters=acted.parameters + 0.1)
    new, rows = session.lift(appo.update_agent(config, session.agent), (0, 0, None))(moved, batch, torch.tensor(0.01))
    assert torch.equal(new.target, acted.target)
    for s in range(2):
        vector = moved.parameters[s].clone().requires_grad_()
        logits, values = session.agent.network.apply(session.agent.layout.unflatten(vector), batch.observations[s])
        ratio = torch.exp(torch.distributions.Categorical(logits=logits).log_prob(batch.actions[s]) - log_probs[s])
        gain = torch.minimum(ratio * batch.advantages[s], ratio.clamp(0.9, 1.1) * batch.advantages[s])
        loss = -gain.mean() + 0.7 * ((values - batch.returns[s]) ** 2).mean() / 2
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([vector], config.max_grad_norm)
        torch.optim.Adam([vector], lr=0.01, eps=1e-5).step()
        torch.testing.assert_close(new.parameters[s], vector.detach(), rtol=1e-4, atol=1e-4)  # steps of 0.01
        assert rows[s, 5] == pytest.approx(norm.item(), rel=1e-4)
        assert rows[s, 4] == pytest.approx(((ratio - 1).abs() > 0.1).float().mean().item())


def test_a_rollout_is_the_same_after_its_journey():
    config = impala.IMPALA(**SMALL | {"env_kwargs": {"max_episode_steps": 9}, "vectorization": "sync"})
    session = session_of(config)
    rollout, _ = next(iter(session.play_rollout(0) for _ in session.iterations()))
    sent = packed(rollout)
    for array in (*sent["finals"].values(), *sent.values()):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False  # as in the object store
    again, _ = unpacked({"rollout": sent, "log_probs": np.zeros((2, 60), np.float32)})
    final_values(again, lambda observations, _: observations[..., 0])  # without a warning
    for one, other in zip(rollout, again, strict=True):
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other)
    assert all(np.array_equal(a, b) for a, b in zip(rollout.finals[:2], again.finals[:2], strict=True))


def test_ratios_that_nothing_bounds_are_never_clipped():
    ratios, live = torch.tensor([[1.0, -1.0, 5.0]]), torch.tensor([[True, True, False]])
    assert clipped_share(ratios, live, 1.0) == pytest.approx([0.5])
    assert clipped_share(ratios, live, None) == [0.0]


@pytest.mark.parametrize(("module", "kind"), ASYNCHRONOUS)
def test_they_find_the_way_past_a_lure(module, kind):
    settings = {"env": Chain, "seeds": 4, "num_envs": 8, "num_steps": 8, "gamma": 0.9, "lam": 0.95, "hidden": (8,)}
    more = {"minibatch_size": 64} if module is appo else {"entropy_coefficient": 0.0}
    config = kind(**settings, **more, total_steps=19_200, learning_rate=5e-3, delay=2, threads=1, compile="off")
    *_, last = module.train(config)
    assert [row["return_mean"] for row in last.rows] == pytest.approx([1.0] * 4, abs=0.1)


@pytest.mark.parametrize(("module", "kind"), ASYNCHRONOUS)
@pytest.mark.parametrize("env", ["CartPole-v1", "Hopper-v5", "Unknown-v0"])
def test_presets_are_of_their_environment(module, kind, env):
    assert module.preset(env).env == env
    assert isinstance(module.preset(env), kind)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"actors": -1}, "actors is -1"),
        ({"delay": -1}, "delay is -1"),
        ({"correction": "none", "rho_clip": 2.0}, "rho_clip"),
        ({"rho_clip": 0.0}, "rho_clip"),
    ],
)
def test_settings_that_cannot_work_are_refused(changed, told):
    with pytest.raises(ValueError, match=told):
        impala.IMPALA(**changed)

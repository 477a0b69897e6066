"""Which λ a rollout's advantages take: `lam_rule`, `lam_low` and `returns_lam` of every actor–critic on rollouts.

Leaves out the rules themselves (`tests/estimators/test_lambdas.py`), and that each field acts and that runs resume
(`tests/algorithms/test_laws.py`).
"""

import dataclasses

import numpy as np
import pytest
import torch

from telescope import gae
from telescope.algorithms.ppo import PPO, Learner, samples, train, with_advantages
from telescope.control.experience.credit import critic_statistics
from telescope.control.experience.lambdas import chosen_lam
from telescope.control.training import Session
from worlds import Forever

SMALL = PPO(
    env="CartPole-v1",
    seeds=2,
    num_envs=3,
    num_steps=16,
    minibatch_size=24,
    total_steps=96,
    epochs=2,
    gamma=0.9,
    lam=0.8,
    learning_rate=1e-2,
    compile="off",
)
ADAPTIVE = dataclasses.replace(SMALL, lam_rule="adaptive", lam_low=0.3)


def credit(config, **replaced):
    """The samples of one rollout, with advantages."""
    session = Session(config, None, Learner)
    rollout = session.collect()
    batch = with_advantages(config, session, rollout, samples(session, rollout)._replace(**replaced))
    session.close()
    return batch


def arrays(time=30, seeds=2, envs=3):
    """Rewards, values and next values [T, S, B] of a critic that is good for seed 0 and useless for seed 1."""
    random = np.random.default_rng(0)
    returns = np.cumsum(random.normal(size=(time + 1, seeds, envs)), 0)[::-1]
    rewards = returns[:-1] - 0.9 * returns[1:]
    values = returns + 0.1 * random.normal(size=returns.shape)
    values[:, 1] = random.normal(size=(time + 1, envs))
    found = rewards, values[:-1], np.concatenate([values[1:-1], returns[-1:]])
    return [torch.tensor(np.ascontiguousarray(x), dtype=torch.float32) for x in found], torch.tensor(
        returns[:-1].copy()
    )


NO_ENDS = {"terminated": None, "truncated": None, "mask": None}


# The rules


def test_a_constant_is_a_number_so_that_gae_stays_one_pass():
    assert chosen_lam(SMALL, *arrays()[0], NO_ENDS) == 0.8
    assert credit(SMALL).lam is None


def test_end_corrected_counts_what_remains_of_each_episode():
    """An environment without end but its time limit of 5 steps; the rollout's own end counts too."""
    config = dataclasses.replace(SMALL, env=Forever, seeds=1, num_envs=1, minibatch_size=16, lam_rule="end_corrected")
    batch = credit(config)
    left = np.array([min(5 - t % 5, 16 - t) for t in range(16)])
    np.testing.assert_allclose(batch.lam[0], 0.8 * (1 - 0.8 ** (left - 1)) / (1 - 0.8**left), rtol=1e-5)
    v = float(batch.values[0, 0])  # there is but one state
    delta = 1 + 0.9 * v - v
    wanted = [
        sum(0.8**k * delta * sum(0.9**i for i in range(k + 1)) for k in range(n)) / sum(0.8**k for k in range(n))
        for n in left
    ]
    np.testing.assert_allclose(batch.advantages[0], wanted, rtol=1e-5)
    np.testing.assert_allclose(batch.returns[0], np.array(wanted) + v, rtol=1e-5)


def test_adaptive_trusts_each_seeds_critic_as_far_as_it_explains():
    steps, returns = arrays()
    lam = chosen_lam(ADAPTIVE, *steps, NO_ENDS)
    assert lam.shape == (30, 2, 3)
    for s in range(2):
        values, truth = steps[1][:, s].double(), returns[:, s]
        share = 1 - (truth - values).var() / truth.var()
        np.testing.assert_allclose(lam[:, s], 0.8 - 0.5 * max(0.0, float(share)), rtol=1e-4)
    assert lam[0, 0, 0] < 0.35
    assert lam[0, 1, 0] == pytest.approx(0.8)


def test_adaptive_sees_live_rows_only():
    steps, _ = arrays()
    mask = torch.ones(30, 2, 3, dtype=torch.bool)
    mask[20:] = False
    spoilt = [torch.where(mask, x, 1e9) for x in steps]
    lam = chosen_lam(ADAPTIVE, *spoilt, NO_ENDS | {"mask": mask})
    kept = chosen_lam(ADAPTIVE, *(x[:20] for x in steps), NO_ENDS)
    torch.testing.assert_close(lam[:20], kept)


def test_a_seed_alone_takes_the_lambda_that_it_takes_in_company():
    together = credit(ADAPTIVE)
    alone = credit(dataclasses.replace(ADAPTIVE, seeds=1, seed=1))
    torch.testing.assert_close(alone.lam[0], together.lam[1])
    torch.testing.assert_close(alone.advantages[0], together.advantages[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["end_corrected", "adaptive"])
def test_lambda_stays_while_values_are_recomputed(rule):
    """It is that of the critic that acted: later critics have learned from this very rollout."""
    low = {"lam_low": 0.3} if rule == "adaptive" else {}
    config = dataclasses.replace(SMALL, lam_rule=rule, **low)
    session = Session(config, None, Learner)
    rollout = session.collect()
    batch = with_advantages(config, session, rollout, samples(session, rollout))
    again = with_advantages(config, session, rollout, batch._replace(values=batch.values * 3 + 1))
    session.close()
    assert torch.equal(again.lam, batch.lam)
    assert not torch.equal(again.advantages, batch.advantages)


# The targets


@pytest.mark.parametrize("rule", ["constant", "end_corrected", "adaptive"])
def test_targets_have_a_lambda_of_their_own(rule):
    low = {"lam_low": 0.3} if rule == "adaptive" else {}
    config = dataclasses.replace(SMALL, lam_rule=rule, **low)
    same, other = credit(config), credit(dataclasses.replace(config, returns_lam=0.1))
    plain = credit(dataclasses.replace(SMALL, lam=0.1))
    torch.testing.assert_close(other.advantages, same.advantages, rtol=0, atol=1e-6)
    torch.testing.assert_close(other.returns, plain.returns, rtol=0, atol=1e-5)
    sums = torch.where(same.live, same.values + same.advantages, 0.0)
    torch.testing.assert_close(same.returns, sums, rtol=0, atol=1e-5)


def test_targets_of_quantiles_have_one_too():
    config = dataclasses.replace(SMALL, critic="quantile", quantiles=4)
    same, other = credit(config), credit(dataclasses.replace(config, returns_lam=1.0))
    plain = credit(dataclasses.replace(config, lam=1.0))
    torch.testing.assert_close(other.advantages, same.advantages, rtol=0, atol=1e-6)
    torch.testing.assert_close(other.targets, plain.targets, rtol=0, atol=1e-5)
    assert not torch.equal(same.targets, plain.targets)


@pytest.mark.parametrize("rule", ["end_corrected", "adaptive"])
def test_quantiles_take_the_rule(rule):
    low = {"lam_low": 0.3} if rule == "adaptive" else {}
    config = dataclasses.replace(SMALL, critic="quantile", quantiles=4, lam_rule=rule, **low)
    session = Session(config, None, Learner)
    rollout = session.collect()
    batch = with_advantages(config, session, rollout, samples(session, rollout))
    plain = dataclasses.replace(config, critic="value", quantiles=32)
    wanted = with_advantages(plain, session, rollout, batch._replace(lam=None))
    session.close()
    torch.testing.assert_close(batch.advantages, wanted.advantages, rtol=0, atol=1e-5)


# What is logged and refused


def test_the_mean_lambda_is_logged_where_a_rule_chose_it():
    *_, last = train(dataclasses.replace(SMALL, lam_rule="end_corrected", autoreset="next_step"))
    assert all(0.5 < row["lam_mean"] < 0.8 for row in last.rows)
    *_, last = train(SMALL)
    assert "lam_mean" not in last.rows[0]


def test_masked_rows_do_not_count_in_the_mean():
    batch = credit(ADAPTIVE)
    live = torch.ones_like(batch.live)
    live[:, 5:] = False
    lam = torch.where(live, 0.25, 100.0)
    np.testing.assert_allclose(critic_statistics(batch._replace(lam=lam, live=live))["lam_mean"], 0.25)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lam_low": 0.5}, "lam_low is 0.5, but lam_rule is 'constant', so nothing would read it"),
        ({"lam_low": 0.5, "lam_rule": "end_corrected"}, "lam_low is 0.5, but lam_rule is 'end_corrected'"),
        ({"lam_low": 0.9, "lam_rule": "adaptive"}, "lam_low is 0.9, above lam 0.8; lower lam_low, or raise lam"),
        ({"returns_lam": 1.5}, "returns_lam is 1.5"),
        ({"lam_rule": "by length"}, "lam_rule is 'by length'"),
    ],
)
def test_settings_that_would_not_act_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **settings)


def test_a_constant_through_arrays_is_the_constant():
    """The slower path of `gae` gives the same advantages as the fused one that a number takes."""
    steps, _ = arrays()
    found = gae(*steps, terminated=None, truncated=None, gamma=0.9, lam=torch.full((30, 2, 3), 0.8))
    for one, other in zip(found, gae(*steps, terminated=None, truncated=None, gamma=0.9, lam=0.8), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

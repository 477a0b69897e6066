"""Groups of episodes: one start state each, advantages against NumPy, the update against the papers' losses."""

import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

from telescope.algorithms import meant
from telescope.algorithms.group_episodes import (
    Batch,
    GroupEpisodes,
    Learner,
    episodes,
    preset,
    row,
    train,
    update_agent,
)
from telescope.control.agents.actor import ActorCritic, Agents
from telescope.control.agents.distributions import distribution
from telescope.control.agents.layout import create
from telescope.control.agents.lifting import lift
from telescope.control.episodes import EpisodeSession
from telescope.control.experience.minibatches import group_indices
from telescope.control.experience.rollout import Finals, Rollout
from telescope.objectives.rows import ROWS

SMALL = {"num_envs": 6, "group": 3, "hidden": (5,), "seeds": 2, "gamma": 0.9, "num_steps": 50}
NAMES = [name for name, objective in ROWS.items() if not objective.critic]


def random_rollout(seed=0, length=7, environments=6):
    """Episodes of random lengths in random order, rubbish after their ends."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length + 1, (2, environments))
    lengths[0, 0] = length
    time = np.arange(length)[:, None, None]
    mask = torch.from_numpy(time < lengths)
    ended = torch.from_numpy(time == lengths - 1)
    shape = (length, 2, environments)
    rewards = torch.tensor(rng.normal(size=shape), dtype=torch.float32)
    observations = torch.tensor(rng.normal(size=(*shape, 3)), dtype=torch.float32)
    actions = torch.tensor(rng.integers(2, size=shape))
    nothing = Finals(np.zeros((3, 0), np.int64), np.zeros((0, 3), np.float32))
    late = torch.from_numpy(rng.random(shape) < 0.5) & ended  # some end by a time limit
    return Rollout(observations, actions, rewards, ended & ~late, late, mask, None, observations[-1], nothing)


def session_of(config):
    network = config.network(3, gym.spaces.Discrete(2))
    parameters, layout = create(network, config.seed_values)
    agent = ActorCritic(network, distribution(gym.spaces.Discrete(2)), layout)
    return SimpleNamespace(
        agent=agent,
        agents=Agents(agent),
        parameters=parameters,
        learner=Learner.begin(parameters),
        to_device=lambda x: x,
    )


def made(**changes):
    config = GroupEpisodes(**SMALL | changes)
    session, rollout = session_of(config), random_rollout()
    return config, session, rollout, *episodes(config, row(config), session, rollout)


def scores_of(rollout, gamma):
    discounts = gamma ** np.arange(len(rollout.rewards))[:, None, None]
    return (rollout.rewards.double().numpy() * discounts * rollout.mask.numpy()).sum(0)  # [S, B]


def test_advantages_of_grpo_are_scores_against_their_group():
    _, _, rollout, batch, seen = made()
    grouped = scores_of(rollout, 0.9).reshape(2, 2, 3)
    wanted = (grouped - grouped.mean(2, keepdims=True)) / (grouped.std(2, ddof=1, keepdims=True) + 1e-4)
    live = rollout.mask.permute(1, 2, 0).numpy()
    found = batch.advantages.numpy()[..., : live.shape[2]]
    np.testing.assert_allclose(found, wanted.reshape(2, 6, 1) * live, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen["score_std"], grouped.std(2, ddof=1).mean(1), rtol=1e-4)
    assert seen["equal_groups"].tolist() == [0, 0]
    assert not batch.live[..., live.shape[2] :].any(), "padding does not count"


def test_advantages_of_rloo_are_scores_against_the_others():
    _, _, rollout, batch, _ = made(objective="rloo")
    grouped = scores_of(rollout, 0.9).reshape(2, 2, 3)
    wanted = grouped - (grouped.sum(2, keepdims=True) - grouped) / 2
    live = rollout.mask.permute(1, 2, 0).numpy()
    np.testing.assert_allclose(
        batch.advantages.numpy()[..., : live.shape[2]], wanted.reshape(2, 6, 1) * live, rtol=1e-4, atol=1e-5
    )


def first(batch):
    return Batch(*(None if x is None else x[0] for x in batch))


def gradient_of(config, session, batch, parameters=None):
    """The gradient of one update, from the first moments of Adam."""
    vector = session.parameters[0] if parameters is None else parameters
    begun = Learner.begin(session.parameters)
    old = Learner(vector, begun.reference[0], type(begun.adam)(*(part[0] for part in begun.adam)))
    new, statistics = update_agent(config, row(config), session.agent)(old, first(batch), torch.tensor(1e-3))
    return new.adam.first_moment / 0.1, statistics, new


def moved(session):
    generator = torch.Generator().manual_seed(1)
    vector = session.parameters[0]
    return vector + 0.05 * torch.randn(vector.shape, generator=generator)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "rloo"])
def test_the_update_is_the_papers_loss_of_loops_over_steps(name):
    """Away from the policy that acted, so that ratios and clips differ."""
    config, session, _, batch, _ = made(objective=name, max_grad_norm=1e9, **({} if name == "rloo" else {"clip": 0.02}))
    vector = moved(session)
    found, _, _ = gradient_of(config, session, batch, vector)
    one = first(batch)
    parameters = vector.clone().requires_grad_()
    loss, tokens, rows = 0.0, int(one.live.sum()), len(one.live)
    weights = {"dr_grpo": 1 / (rows * config.num_steps), "dapo": 1 / tokens, "rloo": 1 / rows}
    for m in range(rows):
        n = int(one.live[m].sum())
        now = session.agent.evaluate(parameters, one.observations[m, :n], one.actions[m, :n], None)[0]
        old, advantage = one.log_probs[m, :n], one.advantages[m, :n]
        ratio = torch.exp((now - old).mean()).expand(n) if name == "gspo" else torch.exp(now - old)
        each = -torch.minimum(ratio * advantage, ratio.clamp(0.98, 1.02) * advantage)
        if name == "rloo":
            each = -advantage * now
        loss = loss + weights.get(name, 1 / (rows * n)) * each.sum()
    (exact,) = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-6)
    assert exact.norm() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_every_row_without_a_critic_runs_lifted_and_steps_that_do_not_count_have_no_effect(name):
    config, session, rollout, batch, _ = made(objective=name, beta=0.3)
    dead = ~rollout.mask
    worse = rollout._replace(
        rewards=rollout.rewards.masked_fill(dead, 1e5),
        actions=1 - (1 - rollout.actions).masked_fill(dead, 0),
        observations=rollout.observations.masked_fill(dead[..., None], 9.0),
    )
    other, _ = episodes(config, row(config), session, worse)
    lifted = lift(update_agent(config, row(config), session.agent), (0, 0, None), compiled=False)
    begun = session.learner._replace(parameters=session.parameters + 0.01)
    one, two = (lifted(begun, x, torch.tensor(1e-2))[0].adam.first_moment for x in (batch, other))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)
    assert one.norm(dim=1).min() > 1e-6


def test_a_kl_pulls_towards_the_policy_that_the_run_began_with():
    """Without a score that differs, only the KL is left, and it is least where the run began."""
    config, session, _, batch, _ = made(beta=1.0, max_grad_norm=1e9)
    batch = batch._replace(advantages=torch.zeros_like(batch.advantages))
    at_start, _, _ = gradient_of(config, session, batch)
    away, one = moved(session), first(batch)
    found = session.agent.evaluate(away, one.observations.flatten(0, 1), one.actions.flatten(0, 1), None)[0]
    acted = batch._replace(log_probs=found.detach().unflatten(0, one.live.shape)[None])  # this policy acted, too
    gradient, _, _ = gradient_of(config, session, acted, away)
    assert at_start.norm() < 1e-5
    assert float(gradient @ (away - session.parameters[0])) > 0


def test_a_group_begins_from_one_start_state():
    config = dataclasses.replace(preset("CartPole-v1"), num_envs=8, group=4, seeds=2, hidden=(4,), threads=1)
    session, begins = EpisodeSession(config, None, Learner), []
    for _ in session.iterations():
        begins.append(session.collect().observations[0])  # [S, B, D]
        session.finish({})
        if len(begins) == 2:
            break
    session.close()
    groups = torch.stack(begins).unflatten(2, (2, 4))  # [2, S, 2, G, D]
    assert torch.equal(groups, groups[..., :1, :].expand_as(groups))
    assert len({tuple(x.tolist()) for x in groups[..., 0, :].flatten(0, 2)}) == 8, "each has another start"


def test_minibatches_have_whole_groups_and_epochs_all_of_them():
    config = GroupEpisodes(num_envs=24, group=4, minibatches=3, epochs=2, seeds=2)
    orders = list(group_indices(config, np.array([5, 9])))
    assert len(orders) == 2
    for indices in orders:
        assert indices.shape == (2, 3, 8)
        for s in range(2):
            assert sorted(indices[s].flatten().tolist()) == list(range(24))
            for minibatch in indices[s]:
                assert len({int(i) // 4 for i in minibatch}) == 2
    assert not torch.equal(*orders)
    alone = dataclasses.replace(config, seeds=1, seed=1)
    assert torch.equal(next(group_indices(alone, np.array([9]))), orders[0][1:])


def test_cartpole_is_learned_in_seconds():
    config = dataclasses.replace(preset("CartPole-v1"), total_steps=30_000, num_envs=16, learning_rate=1e-2, threads=1)
    rows = [one.rows[0] for one in train(config)]
    assert rows[-1]["return_mean"] > 3 * rows[0]["return_mean"]


def test_names_go_by_their_subject():
    assert meant("grpo", "CartPole-v1") == ("group_episodes", {"name": "grpo"})
    assert meant("gspo", "CartPole-v1") == ("group_episodes", {"name": "gspo"})
    assert meant("grpo", "lm/addition") == ("grpo", {})
    assert meant("gspo", "data.jsonl") == ("grpo", {"name": "gspo"})
    assert meant("reinforce", "CartPole-v1") == ("reinforce", {})
    assert meant("reinforce", "lm/addition") == ("grpo", {"name": "reinforce"})


def test_a_run_goes_by_the_name_of_its_objective(tmp_path):
    words = ["gspo", "CartPole-v1", "--total-steps", "200", "--num-envs", "8", "--hidden", "4", "--out", "run"]
    done = subprocess.run(
        [sys.executable, "-m", "telescope", "train", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "training gspo on CartPole-v1" in done.stderr
    assert 'objective = "gspo"' in (tmp_path / "run" / "config.toml").read_text()


@pytest.mark.parametrize(
    ("clips", "expected"),
    [
        ((None, None), (0.2, 0.28)),
        ((0.1, None), (0.1, 0.1)),
        ((None, 0.3), (0.2, 0.3)),
        ((0.1, 0.3), (0.1, 0.3)),
    ],
)
def test_clip_ranges_replace_those_of_the_row(clips, expected):
    assert row(GroupEpisodes(objective="dapo", clip=clips[0], clip_high=clips[1])).clip == expected


def test_a_row_may_be_that_of_another_framework():
    assert row(GroupEpisodes(objective="open_instruct/grpo")).kl_bounds == (40.0, float("inf"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "ppo"}, "objective is 'ppo', which needs a critic"),
        ({"objective": "wrong"}, "objective is 'wrong'; expected"),
        ({"objective": "rloo", "clip_high": 0.1}, "clip_high is 0.1, but rloo has no ratio to clip"),
        ({"objective": "rloo", "clip": 0.1}, "clip is 0.1, but rloo has no ratio to clip"),
        ({"num_envs": 12}, "num_envs is 12, but a minibatch has whole groups"),
        ({"group": 1, "num_envs": 8}, "group is 1, but grpo compares episodes"),
        ({"vectorization": "auto"}, "vectorization is 'auto', which cannot reset"),
        ({"value_coefficient": 0.1}, "value_coefficient is 0.1, but groups need no critic"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GroupEpisodes(**settings)

"""Laws that a mutant once slipped through (`make mutants`); each test is named for the bug it kills.

What belongs to a file of tests with a subject of its own is tested there.
"""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

import telescope
from telescope.algorithms import ppo
from telescope.algorithms.ppo import (
    PPO,
    Learner,
    minibatch_indices,
    minibatches,
    samples,
    train,
    update_agent,
    with_advantages,
)
from telescope.control.agents.lifting import lift
from telescope.control.experience.normalisation import ObservationNormaliser
from telescope.control.experience.samples import per_seed
from telescope.control.training import Session
from telescope.randomness import generator
from telescope.recurrence import linear_recurrence, naive

SMALL = PPO(num_envs=3, num_steps=16, minibatch_size=48, epochs=1, total_steps=192, compile="off")


class Counter(gym.Env):
    """Every row tells where it came from: from state c, action a pays 10c + a and leads to c + 1.

    Action 1 in state 2 terminates, the clock stops in state 4, and action 1 there is both at once.
    """

    observation_space = gym.spaces.Box(0.0, 9.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        terminated, truncated = self.count in (2, 4) and action == 1, self.count == 4
        reward = 10.0 * self.count + action
        self.count += 1
        return np.full(1, self.count, np.float32), reward, bool(terminated), truncated, {}


def session(**settings):
    return Session(dataclasses.replace(SMALL, **{"env": Counter, **settings}), None, Learner)


# What a rollout holds


@pytest.mark.parametrize("autoreset", ["next_step", "same_step", "disabled"])
def test_rows_hold_one_transition_each_and_finals_the_state_it_led_to(autoreset):
    run = session(seeds=2, autoreset=autoreset)
    rollout = run.collect()
    state, action, live = rollout.observations[..., 0], rollout.actions, rollout.mask
    torch.testing.assert_close(rollout.rewards[live], (10 * state + action)[live])
    assert torch.equal(rollout.terminated[live], (((state == 2) | (state == 4)) & (action == 1))[live])
    assert torch.equal(rollout.truncated[live], (state == 4)[live])
    ended = rollout.terminated | rollout.truncated
    resets = torch.zeros_like(live)
    resets[1:] = ended[:-1] & (autoreset == "next_step")
    assert torch.equal(live, ~resets)
    following = torch.cat([state[1:], rollout.last_observations[None, ..., 0]])
    assert torch.equal(following[live & ~ended], (state + 1)[live & ~ended])
    stopped = rollout.truncated & ~rollout.terminated
    assert sorted(zip(*rollout.finals.places.tolist(), strict=True)) == [tuple(i) for i in stopped.nonzero().tolist()]
    assert (rollout.finals.observations == 5).all()
    run.close()


def test_samples_stay_with_their_seed():
    x = torch.arange(2 * 3 * 4).reshape(2, 3, 4)  # [T, S, B]
    for s, of_seed in enumerate(per_seed(x)):
        assert of_seed.tolist() == [*x[0, s].tolist(), *x[1, s].tolist()]


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_episodes_are_counted_each_by_itself(autoreset):
    run = session(autoreset=autoreset, num_steps=64, minibatch_size=192)
    rollout = run.collect()
    [returns], [lengths] = run._episodes.returns, run._episodes.lengths
    found = []
    for b in range(3):
        total, length = 0.0, 0
        for t in torch.nonzero(rollout.mask[:, 0, b]).flatten().tolist():
            total, length = total + float(rollout.rewards[t, 0, b]), length + 1
            if rollout.terminated[t, 0, b] or rollout.truncated[t, 0, b]:
                found.append((total, length))
                total, length = 0.0, 0
    assert sorted(zip(returns, lengths, strict=True)) == sorted(found)
    assert len(set(found)) > 1
    run.close()


def test_statistics_of_observations_are_of_what_the_policy_acts_on():
    run = session(autoreset="next_step", normalise_observations=True, num_steps=32, minibatch_size=96)
    rollout = run.collect()
    ends = (rollout.terminated | rollout.truncated)[-1]
    acted = int(rollout.mask.sum()) + int((~ends).sum())
    assert run.rollouts.normaliser.moments.count.item() == pytest.approx(acted, abs=1e-3)
    run.close()


def test_scaled_rewards_are_what_is_learned_from():
    run = session(normalise_rewards=True, clip_rewards=0.5)
    assert run.collect().rewards.abs().max() <= 0.5
    run.close()


def test_a_restored_normaliser_normalises_as_the_one_that_was_saved():
    saved, restored = (ObservationNormaliser(2, (3,), enabled=True, clip=5.0) for _ in range(2))
    observations = np.random.default_rng(0).normal(3.0, 2.0, (2, 40, 3))
    saved.update(observations)
    restored.restore(saved.state())
    np.testing.assert_array_equal(restored(observations), saved(observations))


# Random numbers


def test_every_seed_purpose_and_iteration_has_random_numbers_of_its_own():
    keys = [(seed, stream, iteration) for seed in range(3) for stream in range(3) for iteration in range(3)]
    draws = {key: generator(*key).random() for key in keys}
    assert len(set(draws.values())) == len(keys)
    assert all(generator(*key).random() == drawn for key, drawn in draws.items())


def test_actions_and_minibatches_are_drawn_anew_in_every_iteration():
    run = session(num_steps=64, minibatch_size=192, env="CartPole-v1")
    noise = [run.rollouts.noise(iteration) for iteration in (0, 1, 0)]
    assert np.array_equal(noise[0], noise[2])
    assert not np.array_equal(noise[0], noise[1])
    run.close()
    shuffles = [next(minibatch_indices(SMALL, iteration)) for iteration in (0, 1, 0)]
    assert torch.equal(shuffles[0], shuffles[2])
    assert not torch.equal(shuffles[0], shuffles[1])


def test_random_numbers_belong_to_the_seeds_value_not_to_its_place():
    several, alone = (dataclasses.replace(SMALL, seed=seed, seeds=seeds) for seed, seeds in ((5, 3), (7, 1)))
    assert torch.equal(next(minibatch_indices(several, 1))[2], next(minibatch_indices(alone, 1))[0])


# Schedules


@pytest.mark.parametrize("anneal_clip", [False, True])
@pytest.mark.parametrize("anneal_learning_rate", [False, True])
def test_step_size_and_clip_fall_from_whole_to_almost_nothing(anneal_learning_rate, anneal_clip, monkeypatch):
    seen = []

    def recording(session, function, in_dims):
        lifted = lift(function, in_dims, compiled=False)

        def call(*arguments):
            seen.append([float(number) for number in arguments[-2:]])
            return lifted(*arguments)

        return call

    monkeypatch.setattr(Session, "lift", recording)
    annealing = {"anneal_learning_rate": anneal_learning_rate, "anneal_clip": anneal_clip}
    config = dataclasses.replace(SMALL, env=Counter, learning_rate=8e-3, clip=0.4, **annealing)
    logged = [metrics.rows[0]["learning_rate"] for metrics in train(config)]
    falling = np.array([1, 0.75, 0.5, 0.25])
    steps, clips = np.array(seen).T
    np.testing.assert_allclose(steps, 8e-3 * (falling if anneal_learning_rate else 1), rtol=1e-6)
    np.testing.assert_allclose(clips, 0.4 * (falling if anneal_clip else 1), rtol=1e-6)
    np.testing.assert_allclose(logged, steps, rtol=1e-6)


def test_advantages_are_computed_anew_only_on_request(monkeypatch):
    for anew, times in ((False, 4), (True, 12)):
        calls = []
        monkeypatch.setattr(ppo, "with_advantages", lambda *a, calls=calls: (calls.append(1), with_advantages(*a))[1])
        config = dataclasses.replace(SMALL, env=Counter, epochs=3, recompute_advantages=anew)
        assert len([None for _ in train(config)]) == 4
        assert len(calls) == times


# One update


def objective(config, run, batch, rows, vector):
    """PPO's loss over the live samples alone, by torch.distributions and plain means; its statistics, and the clip."""
    outputs, values = run.agent.network.apply(run.agent.layout.unflatten(vector), batch.observations[0, rows])
    policy = torch.distributions.Categorical(logits=outputs)
    log_ratio = policy.log_prob(batch.actions[0, rows]) - batch.log_probs[0, rows]
    ratio, advantages, targets = log_ratio.exp(), batch.advantages[0, rows], batch.returns[0, rows]
    clip = (ratio - 1).abs().mean().item()  # some of the ratios are beyond it, some are not
    if config.normalise_advantages:
        advantages = (advantages - advantages.mean()) / (advantages.std(unbiased=False) + 1e-8)
    gain = torch.min(ratio * advantages, torch.clamp(ratio, 1 - clip, 1 + clip) * advantages).mean()
    squared = (values - targets) ** 2
    if config.value_clip is not None:
        old = batch.values[0, rows]
        near = old + torch.clamp(values - old, -config.value_clip, config.value_clip)
        squared = torch.max(squared, (near - targets) ** 2)
    fit, entropy = 0.5 * squared.mean(), policy.entropy().mean()
    outside = ((ratio < 1 - clip) | (ratio > 1 + clip)).float().mean()
    total = -gain + config.value_coefficient * fit - config.entropy_coefficient * entropy
    return total, [-gain, fit, entropy, (ratio - 1 - log_ratio).mean(), outside], clip


@pytest.mark.parametrize("max_grad_norm", [1e-2, 1e3])
@pytest.mark.parametrize("value_clip", [None, 0.05])
@pytest.mark.parametrize("normalise_advantages", [False, True])
def test_an_update_is_the_objective_of_the_paper_on_the_live_samples(normalise_advantages, value_clip, max_grad_norm):
    settings = {"normalise_advantages": normalise_advantages, "value_clip": value_clip}
    run = session(
        **settings,
        max_grad_norm=max_grad_norm,
        value_coefficient=0.3,
        entropy_coefficient=0.2,
        adam_eps=0.1,
        autoreset="next_step",
    )
    config, rollout = run.config, run.collect()
    batch = with_advantages(config, run, rollout, samples(run, rollout))
    indices = torch.cat([torch.arange(40), torch.full((8,), -1)])  # 40 samples, some of them dead, and 8 empty slots
    rows = indices[:40][batch.live[0, :40]]
    assert len(rows) < 40
    acted = run.learner.parameters[0]
    vector = acted + 0.03 * torch.randn(len(acted), generator=torch.Generator().manual_seed(0))
    total, statistics, clip = objective(config, run, batch, rows, vector.requires_grad_())
    (gradient,) = torch.autograd.grad(total, vector)
    norm = gradient.norm()
    gradient = gradient * min(1.0, max_grad_norm / float(norm))
    update = lift(update_agent(config, run.agent), (0, 0, 0, None, None), compiled=False)
    before, schedule = run.learner._replace(parameters=vector.detach()[None]), torch.tensor([1e-2, clip])
    (minibatch,) = minibatches(batch, indices[None, None])
    after, _, row = update(before, torch.ones(1, dtype=torch.bool), minibatch, *schedule)
    torch.testing.assert_close(row[0, :-1], torch.stack([*statistics, norm]).detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(after.adam.first_moment[0], 0.1 * gradient, rtol=1e-3, atol=1e-6)
    step = 1e-2 * gradient / (gradient.abs() + config.adam_eps)  # Adam's first one
    torch.testing.assert_close(after.parameters[0], vector.detach() - step, rtol=1e-4, atol=1e-6)
    run.close()


# Estimators


def test_flags_of_masked_steps_are_not_even_checked():
    rows, mask = np.ones(3, np.float32), np.array([True, False, True])
    flags = {"terminated": np.array([0.0, 7.0, 1.0]), "truncated": np.array([0.0, np.nan, 0.0])}
    advantages, _ = telescope.gae(rows, rows, rows, **flags, mask=mask, gamma=1.0, lam=1.0)
    np.testing.assert_array_equal(advantages, [1, 0, 0])


def test_the_loop_that_kernels_are_judged_by_is_cut_before_nan():
    x, a = np.array([1.0, 2.0, np.nan]), np.array([0.5, 0.0, 1.0])
    np.testing.assert_array_equal(naive.linear_recurrence(x, a), [2, 2, np.nan])


@pytest.mark.parametrize("steps", [4, 600])
def test_nothing_crosses_a_cut_in_any_of_the_four_chains_of_a_batch_major_array(steps):
    x, a = np.ones((2, 7, steps), np.float32)  # [B, T], read as [T, B]
    a[:, 1], x[:, 2:] = 0, np.nan
    assert (linear_recurrence(x.T, a.T)[:2] == [[2], [1]]).all()

"""A sample alone in its minibatch still teaches: whitened by itself its advantage would be 0, without a word."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

from telescope.algorithms.grpo import GRPO
from telescope.algorithms.ppo import (
    PPO,
    Learner,
    minibatch_indices,
    minibatches,
    train,
    whitened_minibatch,
    with_advantages,
)
from telescope.algorithms.ppo import samples as samples_of
from telescope.algorithms.rlhf import RLHF
from telescope.control.training import Session


class Bandit(gym.Env):
    """Two arms, the second pays; every episode is one step."""

    observation_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), float(action), True, False, {}


BASE = PPO(env=Bandit, epochs=1, hidden=(4,), seeds=2, learning_rate=0.1, anneal_learning_rate=False, compile="off")


def sized(num_steps, minibatch_size, **more):
    settings = {"num_steps": num_steps, "minibatch_size": minibatch_size, "total_steps": num_steps, **more}
    return dataclasses.replace(BASE, **settings)


def minibatches_of(config):
    session = Session(config, None, Learner)
    rollout = session.collect()
    batch = with_advantages(config, session, rollout, samples_of(session, rollout))
    session.close()
    return batch, list(minibatches(batch, next(minibatch_indices(config, 0))))


@pytest.mark.parametrize(
    "config",
    [sized(8, 1), sized(9, 4), sized(16, 2, autoreset="next_step")],
    ids=["minibatches of one", "one left over", "one live beside reset rows"],
)
def test_it_is_whitened_within_the_rollout(config):
    batch, parts = minibatches_of(config)
    for s in range(config.seeds):
        live = batch.live[s].numpy()
        advantages = batch.advantages[s].numpy().astype(np.float64)
        expected = {float(a): (a - advantages[live].mean()) / advantages[live].std() for a in advantages[live]}
        alone = [part for part in parts if part.live[s].sum() == 1]
        assert alone
        for part in alone:
            one = whitened_minibatch(type(part)(*(None if x is None else x[s] for x in part)))
            (place,) = part.live[s].nonzero()[0]
            assert one[place].item() == pytest.approx(expected[part.advantages[s][place].item()], abs=1e-4)


def test_others_are_whitened_within_their_minibatch():
    _, parts = minibatches_of(sized(9, 4))
    for part in parts[:-1]:
        found = whitened_minibatch(type(part)(*(None if x is None else x[0] for x in part)))
        assert found.mean().item() == pytest.approx(0, abs=1e-5)
    assert minibatches_of(sized(8, 4))[0].alone is None, "where none can be alone, nothing more is computed"


@pytest.mark.parametrize("settings", [{"minibatch_size": 1}, {"minibatch_size": 2, "autoreset": "next_step"}])
def test_the_better_arm_is_found(settings):
    config = dataclasses.replace(BASE, num_steps=16, total_steps=192, **settings)
    rows = [metrics.rows for metrics in train(config)]
    assert min(row["return_mean"] for row in rows[-1]) > 0.9


def test_a_rollout_of_one_live_sample_keeps_its_advantage():
    batch, _ = minibatches_of(sized(2, 1, autoreset="next_step"))
    assert batch.live.sum(1).tolist() == [1, 1]
    assert torch.equal(batch.alone[batch.live], batch.advantages[batch.live])


def test_a_rollout_of_one_sample_has_nothing_to_be_whitened_with():
    with pytest.raises(ValueError, match="normalise_advantages is True, but a rollout has one sample"):
        sized(1, 1)
    sized(1, 1, normalise_advantages=False)


@pytest.mark.parametrize(
    "make", [RLHF, lambda **settings: GRPO(objective="reinforce++", **settings)], ids=["ppo", "reinforce++"]
)
def test_nor_has_a_single_completion(make):
    with pytest.raises(ValueError, match="prompts is 1 and group is 1, but advantages are whitened"):
        make(prompts=1, group=1, minibatches=1)
    make(prompts=2, group=1, minibatches=1)

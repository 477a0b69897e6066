"""Rollouts of our own runs: what the explorer shows is what the run's own update would learn from.

Leaves out the page (`test_explorer.py`), and that every algorithm can be explored
(`tests/algorithms/test_laws_of_runs.py`).
"""

import dataclasses

import numpy as np
import pytest

import telescope
from narrow import narrow
from telescope.algorithms import grpo, reinforce, rlhf
from telescope.algorithms.ppo import PPO
from telescope.control.environments.population import Environments
from telescope.lab.completing import completed
from telescope.lab.playing import played
from telescope.language.models import causal as models
from telescope.language.models.tokenizer import EOS
from telescope.randomness import EVALUATION_ENVIRONMENTS

SMALL = PPO(env="Pendulum-v1", num_envs=2, num_steps=16, minibatch_size=32, epochs=1, total_steps=96, threads=1)
SMALL = dataclasses.replace(SMALL, env_kwargs={"max_episode_steps": 9}, hidden=(8,), compile="off")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two seeds that normalise observations and rewards."""
    config = dataclasses.replace(SMALL, seeds=2, normalise_observations=True, normalise_rewards=True)
    return telescope.train(config, tmp_path_factory.mktemp("runs") / "ppo").path


def test_the_values_are_those_of_the_critic_at_the_states_that_were_reached(run):
    rollout, extras = played(run, steps=20, envs=3, seed=1)
    assert rollout.rewards.shape == (20, 3)
    assert (rollout.gamma, rollout.lam) == (SMALL.gamma, SMALL.lam)
    assert list(extras.columns) == ["seed 1, environment 0", "seed 1, environment 1", "seed 1, environment 2"]
    assert "Rewards are divided" in extras.notes[0]
    times = np.flatnonzero(rollout.truncated[:, 0])
    np.testing.assert_array_equal(times, [8, 17])
    inside = ~rollout.truncated[:-1, 0]
    np.testing.assert_array_equal(rollout.next_values[:-1, 0][inside], rollout.values[1:, 0][inside])
    assert (rollout.next_values[:-1, 0][~inside] != rollout.values[1:, 0][~inside]).all()


@pytest.fixture
def first(run):
    """The observations [3, D] in which a rollout of the second agent begins."""
    environments = Environments.of(telescope.load(run).config, seeds=[1], num_envs=3, stream=EVALUATION_ENVIRONMENTS)
    observations, _ = environments.reset()
    environments.close()
    return observations[0]


def test_the_agent_is_the_one_that_was_asked_for(run, first):
    rollout, _ = played(run, steps=1, envs=3, seed=1)
    np.testing.assert_allclose(rollout.values[0], telescope.load(run).value(first, seed=1), rtol=1e-5)


def test_rewards_are_scaled_as_in_training(run, first):
    """Pendulum's reward is −(θ² + 0.1 θ'² + 0.001 u²) with |u| ≤ 2."""
    rollout, _ = played(run, steps=1, envs=3, seed=1)
    raw = -(np.arctan2(first[:, 1], first[:, 0]) ** 2 + 0.1 * first[:, 2] ** 2)
    scaler = telescope.runs.RunFolder.open(run).load_checkpoint()["rollouts"]["scaler"]
    wanted = raw / np.sqrt(scaler["variance"][1])  # which three more returns change a little
    np.testing.assert_allclose(rollout.rewards[0], wanted, rtol=0.1, atol=0.01)


def test_agents_of_other_seeds_and_the_best_play_otherwise(run):
    first, _ = played(run, steps=8, envs=1)
    again, _ = played(run, steps=8, envs=1)
    other, _ = played(run, steps=8, envs=1, seed=1)
    np.testing.assert_array_equal(first.values, again.values)
    assert (first.values != other.values).any()
    with pytest.raises(ValueError, match="seed is 7; this run has the seeds 0 to 1"):
        played(run, steps=8, envs=1, seed=7)


def test_rows_of_a_reset_do_not_count(tmp_path):
    config = dataclasses.replace(SMALL, autoreset="next_step")
    rollout, _ = played(telescope.train(config, tmp_path / "run").path, steps=30, envs=1)
    assert np.flatnonzero(~rollout.mask[:, 0]).tolist() == [9, 19, 29]


def test_a_run_without_a_critic_has_no_values(tmp_path):
    config = reinforce.Reinforce(env="CartPole-v1", total_steps=100, num_envs=2, episodes=2, num_steps=500, threads=1)
    rollout, extras = played(telescope.train(config, tmp_path / "run").path, steps=30, envs=1)
    assert rollout.values is None
    assert rollout.next_values is None
    assert "no critic" in extras.notes[0]


# Language models


@pytest.fixture(scope="module", autouse=True)
def smaller():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "tiny_config", lambda: narrow(32))
        patch.setattr("telescope.language.data.tasks.HELD_OUT", 200)
        yield


REWARD = "def digit(completions, **_):\n    return [float(sum(map(ord, text)) % 10) for text in completions]\n"
LANGUAGE = {"total_steps": 1, "prompts": 4, "eval_prompts": 4, "max_tokens": 3, "warm_start": 0.0, "threads": 1}


@pytest.mark.parametrize("truncation", ["bootstrap", "terminal"])
def test_completions_have_the_advantages_that_ppo_learns_from(tmp_path, truncation):
    config = rlhf.RLHF(task="lm/sort", group=2, beta=0.1, whiten=False, truncation=truncation, **LANGUAGE)
    rollout, extras = completed(telescope.train(config, tmp_path / "run").path, prompts=3)
    assert rollout.rewards.shape[1] == 6
    assert rollout.truncated.any() == (truncation == "bootstrap")  # three tokens are too few to end
    numbers = {name: getattr(rollout, name).astype(np.float64) for name in ("rewards", "values", "next_values")}
    ends = {name: getattr(rollout, name) != 0 for name in ("terminated", "truncated", "mask")}
    found, returns = telescope.gae(**numbers, **ends, gamma=rollout.gamma, lam=rollout.lam)
    np.testing.assert_allclose(rollout.advantages, found, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rollout.returns, returns, rtol=1e-4, atol=1e-5)
    assert len(extras.prompts) == len(extras.columns) == 6
    assert extras.columns[3].startswith("prompt 2, completion 2: score ")
    assert all(text for text in extras.tokens[rollout.mask])
    assert not any(text for text in extras.tokens[~rollout.mask])


def test_completions_of_grpo_have_their_score_at_the_last_token(tmp_path):
    (tmp_path / "rewards.py").write_text(REWARD)
    longer = {**LANGUAGE, "max_tokens": 12}  # some end before
    config = grpo.GRPO(task="lm/addition", group=4, reward=f"{tmp_path / 'rewards.py'}:digit", **longer)
    rollout, extras = completed(telescope.train(config, tmp_path / "run").path, prompts=2)
    assert rollout.values is None
    last = rollout.terminated.astype(bool)
    np.testing.assert_array_equal(last.argmax(0), rollout.mask.sum(0) - 1)
    assert len(set(rollout.mask.sum(0))) > 1
    assert (last.sum(0) == 1).all()
    scores = [float(name.rpartition(" ")[2]) for name in extras.columns]
    np.testing.assert_allclose(rollout.rewards.T[last.T], scores, rtol=1e-2)
    assert len(set(scores)) > 1
    assert not rollout.rewards[~last].any()


def test_conversations_skip_what_the_environment_says_and_show_it_behind_the_turn(tmp_path, monkeypatch):
    """Values follow each other over its tokens; rewards are those of the turns."""
    monkeypatch.setattr(models, "ends_of", lambda *_: [EOS, *range(10, 60)])  # an untrained model ends its turns
    few = {**LANGUAGE, "max_tokens": 8, "task": "lm/guess"}
    found = rlhf.RLHF(beta=0.0, group=2, whiten=False, **few)
    rollout, extras = completed(telescope.train(found, tmp_path / "ppo").path, prompts=4)
    numbers = {name: getattr(rollout, name).astype(np.float64) for name in ("rewards", "values", "next_values")}
    ends = {name: getattr(rollout, name) != 0 for name in ("terminated", "truncated", "mask")}
    advantages, _ = telescope.gae(**numbers, **ends, gamma=rollout.gamma, lam=rollout.lam)
    np.testing.assert_allclose(rollout.advantages, advantages, rtol=1e-4, atol=1e-5)
    gaps = rollout.mask[1:] & ~rollout.mask[:-1]
    assert gaps.any(), "an environment answered"
    assert (rollout.rewards[rollout.mask] == np.float32(-0.1)).any()
    assert any(text.endswith(" ?") for text in extras.tokens.flat)
    assert not any(text for text in extras.tokens[~rollout.mask])
    found = grpo.GRPO(group=2, **few)
    rollout, _ = completed(telescope.train(found, tmp_path / "grpo").path, prompts=4)
    scores = rollout.rewards.sum(0)
    assert ((scores >= -0.41) & (scores <= 1)).all()
    assert len(np.unique(rollout.rewards)) > 1

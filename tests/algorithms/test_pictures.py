"""Every algorithm on pictures: it learns, it resumes exactly, a seed alone is that seed in company, and bytes stay.

Leaves out the encoders themselves (`tests/control/test_encoders.py`).
"""

import csv
import dataclasses

import numpy as np
import pytest
import torch
from roster import ROSTER, smaller  # noqa: F401
from test_laws import comparable

import telescope
from telescope.algorithms import LANGUAGE, dqn, ppo, sac
from telescope.control.experience.rollout import Rollouts
from worlds import Lit

READERS = [name for name in ROSTER if name not in LANGUAGE and name != "bc" and hasattr(ROSTER[name].small, "encoder")]
STATES = {"env": Lit, "env_kwargs": {}, "eval_every": 0, "normalise_observations": False}


def small(name, **more):
    return dataclasses.replace(ROSTER[name].small, **STATES | more)


def rows_of(name, config, **more):
    rows, state = [], None
    for step in ROSTER[name].module.train(config, **more):
        rows += step.rows
        state = step.state if state is None else state
    return rows, state


@pytest.mark.parametrize("name", READERS)
def test_a_run_on_pictures_resumes_exactly(name):
    rows, state = rows_of(name, small(name))
    again, _ = rows_of(name, small(name), resume=state)
    assert len(again)
    assert comparable(again) == comparable(rows)[-len(again) :]


@pytest.mark.parametrize("encoder", ["cnn", "impala"])
def test_two_threads_give_equal_bits_and_an_exact_resume(encoder):
    """Threads share the sums of large convolutions; a run on pictures has two where there are processors for them."""
    sizes = {"num_envs": 4, "num_steps": 16, "minibatch_size": 32, "epochs": 1, "total_steps": 3 * 64, "hidden": ()}
    config = small("ppo", env_kwargs={"size": 40}, encoder=encoder, seeds=1, threads=2, **sizes)
    *_, last = ppo.train(config)
    *_, twice = ppo.train(config)
    states = [step.state for step in ppo.train(config) if step.step == 64]
    *_, resumed = ppo.train(config, states[0])
    for other in (twice, resumed):
        assert torch.equal(other.policy["parameters"], last.policy["parameters"])


@pytest.mark.parametrize("name", READERS)
def test_a_seed_alone_is_that_seed_in_company_on_pictures(name):
    config = small(name)
    together, _ = rows_of(name, config)
    alone, _ = rows_of(name, dataclasses.replace(config, seeds=1, seed=config.seed + 1))
    mine = [row for row in together if row["seed"] == config.seed + 1]
    for one, other in zip(alone, mine, strict=True):
        for column, value in one.items():
            if not column.startswith(("time_", "cg_residual")):  # what conjugate gradient leaves is mostly rounding
                expected = other[column]
                close = expected if expected is None else pytest.approx(expected, rel=1e-3, abs=1e-5, nan_ok=True)
                assert value == close, column


@pytest.mark.parametrize(
    ("encoder", "dtype", "first"), [("auto", "uint8", False), ("cnn", "bool", True), ("mlp", "bool", False)]
)
def test_ppo_learns_from_pictures(encoder, dtype, first):
    more = {"num_steps": 32, "minibatch_size": 64, "epochs": 4, "clip": 0.2, "value_clip": None}
    config = small("ppo", total_steps=1600, shared_network=True, encoder=encoder, **more)
    env_kwargs = {"dtype": dtype, "first": first, "size": 6}
    *_, last = ppo.train(dataclasses.replace(config, env_kwargs=env_kwargs))
    assert all(row["return_mean"] > 5 for row in last.rows)


@pytest.mark.parametrize("name", ["dqn", "pqn", "sac with discrete actions"])
def test_algorithms_of_q_learn_from_pictures(name):
    more = {k: v for k, v in ROSTER[name].learns.items() if k not in ("env", "env_kwargs")}
    rows, _ = rows_of(name, small(name, **more))
    assert np.mean([row["return_mean"] for row in rows[-4:]]) > 4.5


@pytest.mark.parametrize(("dtype", "kept"), [("uint8", torch.uint8), ("bool", torch.bool)])
def test_pictures_stay_as_they_are_in_rollouts_and_in_replay(dtype, kept, monkeypatch):
    seen, collect = [], Rollouts.collect
    monkeypatch.setattr(Rollouts, "collect", lambda *given: seen.append(collect(*given)) or seen[-1])
    config = small("ppo", env_kwargs={"dtype": dtype})
    for _ in ppo.train(config):
        pass
    rollout, _ = seen[0]
    assert rollout.observations.dtype == rollout.last_observations.dtype == kept
    assert rollout.observations.shape[3:] == (5, 5, 1)
    state = next(dqn.train(small("dqn", env_kwargs={"dtype": dtype}))).state
    assert state["replay"]["chunks"][0]["observations"].dtype == np.dtype(dtype)


def test_what_was_found_out_is_said():
    step = next(ppo.train(small("ppo", env_kwargs={"first": True})))
    assert (
        "observation [1, 5, 5] is a picture of 5 × 5 pixels with channels first; its encoder is one convolution "
        "(128 features)"
    ) in step.notes


def test_a_loaded_policy_acts_as_in_training(tmp_path):
    """On one picture and on a batch, of bytes and of bools; evaluations find what training measured."""
    for dtype in ("uint8", "bool"):
        config = small("ppo", env_kwargs={"dtype": dtype}, eval_every=64, total_steps=64)
        run = telescope.train(dataclasses.replace(config, env="worlds:Lit"), tmp_path / dtype)
        policy = telescope.load(run.path)
        env = Lit(dtype)
        pictures = [env.reset(seed=seed)[0] for seed in range(4)]
        batch = policy.act(np.stack(pictures))
        assert [policy.act(one) for one in pictures] == list(batch)
        found = policy.evaluate(config.eval_episodes, max_steps=config.eval_max_steps).returns.mean(1)
        rows = list(csv.DictReader((run.path / "metrics.csv").read_text().splitlines()))[-2:]
        np.testing.assert_allclose(found, [float(row["eval_return_mean"]) for row in rows])


def test_target_critics_have_their_encoder():
    """The targets of a soft actor–critic hold the critics' encoder, and follow it."""
    config = small("sac with discrete actions")
    state = next(sac.train(config)).state
    network = config.network_for(Lit().observation_space, Lit().action_space)
    size = sum(x.numel() for name, x in network.init(np.random.default_rng(0)).items() if name.startswith("value."))
    assert state["learner"]["targets"].shape == (2, size)

"""Actors in other processes: one of them is the synchronous algorithm; those that die cost time, and nothing else.

Leaves out what an update does with their rollouts: tests/algorithms/test_impala.py, test_appo.py and test_a3c.py.
"""

import collections
import dataclasses
import os
import signal
import sys

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch

from telescope.algorithms import a3c, appo, impala
from telescope.control.experience.normalisation import RunningMoments, joined, removed
from telescope.control.workers import actors as engine
from telescope.control.workers.cluster import connected

SMALL = {
    "env": "CartPole-v1",
    "seeds": 2,
    "num_envs": 3,
    "num_steps": 20,
    "total_steps": 60 * 8,
    "hidden": (8,),
    "learning_rate": 1e-2,
    "normalise_observations": True,
    "normalise_rewards": True,
    "threads": 1,
    "compile": "off",
}
CONFIGS = {
    "a3c": (a3c, a3c.A3C(**SMALL)),
    "impala": (impala, impala.IMPALA(**SMALL)),
    "appo": (appo, appo.APPO(**SMALL, minibatch_size=30, epochs=2, target_iterations=2)),
}


@pytest.fixture(scope="module")
def ray():
    with connected(None, 3) as library:
        yield library
    assert not [process for process in psutil.Process().children(recursive=True) if "ray" in process.name()]


def run(module, config, **more):
    rows = []
    for iteration in module.train(config, **more):
        rows += iteration.rows
    return rows, iteration.state


class Counting(gym.Env):
    """Every step shows two numbers that no other step shows, whoever plays it: they follow from the episode's seed."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._drawn(), {}

    def step(self, action):
        return self._drawn(), 0.0, bool(self.np_random.random() < 0.05), False, {}

    def _drawn(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


class Broken(Counting):
    def step(self, action):
        if "AT_HOME" not in os.environ:
            raise RuntimeError("the arm has fallen off")
        return super().step(action)


class Deadly(Counting):
    def step(self, action):
        if "AT_HOME" not in os.environ:
            os._exit(3)
        return super().step(action)


def counted(monkeypatch):
    """Every observation that an IMPALA learner learns from, as bytes."""
    found = []

    def unpacked(sent):
        rollout, log_probs = original(sent)
        found.extend(row.numpy().tobytes() for row in rollout.observations.flatten(0, -2))
        return rollout, log_probs

    original = impala.unpacked
    monkeypatch.setattr(impala, "unpacked", unpacked)
    return found


@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_one_actor_is_the_synchronous_algorithm(name, delay, ray):
    """Also if it is some rollouts ahead: the learner's process then is as many ahead, apart from its statistics."""
    module, config = CONFIGS[name]
    config = dataclasses.replace(config, delay=delay, normalise_observations=delay == 0, normalise_rewards=delay == 0)
    here, state = run(module, config)
    there, other = run(module, dataclasses.replace(config, actors=1))
    torch.testing.assert_close(other["policy"]["parameters"], state["policy"]["parameters"], rtol=1e-4, atol=1e-5)
    for one, two in zip(here, there, strict=True):
        for column, value in one.items():
            if not column.startswith("time_"):
                assert two[column] == (value if value is None else pytest.approx(value, rel=1e-3, abs=1e-5)), column
    assert [row["staleness"] for row in here[::2]] == [min(delay, i) for i in range(8)]
    statistics = other["policy"]["normaliser"]
    for kind, values in state["policy"]["normaliser"].items():
        np.testing.assert_allclose(statistics[kind], values, rtol=1e-9)


def test_two_actors_never_play_the_same_step(ray, monkeypatch):
    found = counted(monkeypatch)
    config = impala.IMPALA(**SMALL | {"env": Counting, "normalise_observations": False}, actors=2)
    rows, state = run(impala, config)
    assert len(found) == len(set(found)) == 2 * 480
    assert [row["step"] for row in rows[::2]] == list(range(60, 481, 60))
    assert {row["actor"] for row in rows} == {0.0, 1.0}
    assert max(row["staleness"] for row in rows) >= 1
    assert all(np.isfinite(row["time_wait"]) and row["time_queue"] >= 0 for row in rows)
    run(impala, dataclasses.replace(config, total_steps=720), resume=state)
    assert len(found) == len(set(found)) == 2 * 720, "nor after a resume"


def test_an_actor_that_dies_is_begun_anew_and_no_step_counts_twice(ray, monkeypatch):
    found, killed = counted(monkeypatch), []
    config = impala.IMPALA(
        **SMALL | {"env": Counting, "normalise_observations": False, "total_steps": 60 * 40}, actors=2, delay=1
    )
    rows = []
    for number, iteration in enumerate(impala.train(config)):
        rows += iteration.rows
        if number in (3, 9):
            family = psutil.Process().children(recursive=True)
            busy = [one for one in family if one.status() != "zombie" and "ray::Actor" in " ".join(one.cmdline())]
            killed.append(busy[number % len(busy)].pid)
            os.kill(killed[-1], signal.SIGKILL)
    assert rows[-1]["actor_restarts"] == len(killed) == 2
    assert rows[-1]["step"] == 60 * 40
    assert len(found) == len(set(found)) == 2 * 60 * 40


def test_rollouts_on_their_way_are_bounded(ray, monkeypatch):
    most = collections.Counter()

    class Watched(engine.RayActors):
        def gather(self):
            most["all"] = max(most["all"], len(self.waiting))
            most["one"] = max(most["one"], *collections.Counter(self.waiting.values()).values())
            return super().gather()

    monkeypatch.setattr(engine, "RayActors", Watched)
    rows, _ = run(impala, impala.IMPALA(**SMALL, actors=2, delay=2))
    assert (most["all"], most["one"]) == (6, 3)
    assert len(rows) == 2 * 8


def test_an_actors_error_is_the_run_s(ray, monkeypatch):
    monkeypatch.setenv("AT_HOME", "1")  # not in the actors: Ray has started before
    with pytest.raises(RuntimeError, match="the arm has fallen off"):
        run(impala, impala.IMPALA(**SMALL | {"env": Broken}, actors=1))


def test_actors_that_all_die_end_the_run(ray, monkeypatch):
    monkeypatch.setattr(engine, "MOST_DEATHS", 1)
    monkeypatch.setenv("AT_HOME", "1")  # not in the actors: Ray has started before
    with pytest.raises(ChildProcessError, match="2 actors have died"):
        run(impala, impala.IMPALA(**SMALL | {"env": Deadly}, actors=1))


def test_without_ray_a_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "telescope-rl\[ray\]"'):
        run(impala, impala.IMPALA(**SMALL, actors=1))
    run(impala, impala.IMPALA(**SMALL | {"total_steps": 60}))


def test_actors_and_processes_exclude_each_other():
    with pytest.raises(ValueError, match="processes is 2, but actors is 1"):
        impala.IMPALA(seeds=2, processes=2, actors=1)


@pytest.mark.parametrize("kept", [0, 1, 7])
def test_moments_can_be_joined_and_removed(kept):
    generator = np.random.default_rng(kept)
    first, second = generator.normal(3, 2, (2, 5, 3)), generator.normal(-1, 0.5, (2, kept, 3))
    moments = RunningMoments(2, (3,))
    moments.update(first)
    before = moments.state()
    if kept:
        moments.update(second)
    rest = removed(moments.state(), before)
    assert (rest["count"] == pytest.approx(kept)) if kept else (rest["count"] == 0).all()
    if kept:
        np.testing.assert_allclose(rest["mean"], second.mean(1), rtol=1e-9)
        np.testing.assert_allclose(rest["variance"], second.var(1), atol=1e-9)
    again = joined(before, rest)
    for name, values in moments.state().items():
        np.testing.assert_allclose(again[name], values, rtol=1e-12)

"""A run's environments are tried before it begins: what cannot be seeded or restored is said, and resumes start anew.

The oracle is the world itself: each is built to break one promise, at a place that is known.
"""

import dataclasses
import random

import gymnasium as gym
import numpy as np
import pytest

from telescope.algorithms.ppo import PPO, train
from telescope.control.environments.population import Environments
from telescope.control.environments.rehearsal import rehearse

SMALL = PPO(num_envs=2, num_steps=16, minibatch_size=16, epochs=1, total_steps=96, compile="off")


class World(gym.Env):
    """A random walk whose numbers come from where `source` says; episodes last 7 steps."""

    observation_space, action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64), gym.spaces.Discrete(2)

    def __init__(self, source="np_random", where="observation"):
        self.own, self.source, self.where = np.random.default_rng(0), source, where
        self.episodes = self.steps = 0

    def draw(self, where):
        if where != self.where:
            return 0.0
        return {
            "np_random": lambda: self.np_random.normal(),
            "unseeded": lambda: self.np_random.normal(),
            "numpy": np.random.normal,
            "random": random.random,
            "own": self.own.normal,
            "space": lambda: self.observation_space.sample()[0],
            "steps": lambda: self.steps,
            "episodes": lambda: self.episodes,
            "every other": lambda: self.episodes % 2,
            "nothing": lambda: 0.0,
        }[self.source]()

    def reset(self, *, seed=None, options=None):
        if self.source != "unseeded":
            super().reset(seed=seed)
        self.time, self.episodes = 0, self.episodes + 1
        return np.array([self.draw("observation")]), {}

    def step(self, action):
        self.time, self.steps = self.time + 1, self.steps + 1
        done = self.time >= 7 or (self.where == "end" and self.draw("end") > 0)
        return np.array([self.draw("observation")]), float(self.draw("reward")), done, False, {}


def notes_of(config):
    metrics = next(iter(train(config)))
    return [note for note in metrics.notes[1:] if "cannot be imported by name" not in note], metrics.state


SOURCES = ("numpy", "random", "own", "space", "unseeded", "steps", "episodes", "every other")
PLACES = [(source, where) for source in SOURCES for where in ("observation", "reward")] + [("numpy", "end")]


@pytest.mark.parametrize(("source", "where"), PLACES)
def test_what_no_seed_or_replay_brings_back_is_noted_and_resumes_with_new_episodes(source, where):
    """Each source of numbers that survives a reset, wherever it enters a step."""
    config = dataclasses.replace(SMALL, env=World, env_kwargs={"source": source, "where": where})
    notes, state = notes_of(config)
    assert len(notes) == 1
    assert "ignore their seed, or some of their state survives a reset" in notes[0]
    assert "--allow-inexact" in notes[0]
    metrics = None
    for _ in range(2):  # a resume, and one more from where that led to
        iterations = train(config, resume=state)
        metrics = next(iterations)
        assert notes[0] in metrics.notes
        state = metrics.state
        iterations.close()
    assert metrics.step == 96


@pytest.mark.parametrize("where", ["observation", "reward", "end"])
@pytest.mark.parametrize("source", ["np_random", "nothing"])
def test_what_keeps_the_promise_is_not_noted(source, where):
    notes, _ = notes_of(dataclasses.replace(SMALL, env=World, env_kwargs={"source": source, "where": where}))
    assert notes == []


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "HalfCheetah-v5"])
def test_gymnasiums_own_are_not_noted(env):
    assert [note for note in notes_of(dataclasses.replace(SMALL, env=env))[0] if "seed" in note] == []


def test_a_rehearsal_leaves_no_trace():
    """Neither in the run's environments nor in the process's generators."""
    made = []

    class Both(World):
        def draw(self, where):
            return np.random.normal() + random.random()

    def make():
        made.append(Both())
        return made[-1]

    environments = Environments(make, seeds=[0], num_envs=2)
    random.seed(0)
    np.random.seed(0)
    assert rehearse(environments, lambda: Environments(make, seeds=[0], num_envs=1))
    assert [world.episodes for world in made] == [0, 0, made[2].episodes]
    assert (random.random(), np.random.random()) == (random.Random(0).random(), np.random.RandomState(0).random())
    environments.close()


def test_where_no_second_environment_can_be_had_the_first_is_tried():
    for source, count in (("np_random", 0), ("numpy", 1)):
        world = World(source)
        config = dataclasses.replace(SMALL, env=lambda world=world: world, num_envs=1, total_steps=32)
        assert len(notes_of(config)[0]) == count


class Noisy(World):
    """Looks restorable in a few steps: the foreign numbers come in late, in an episode of 40 steps."""

    def draw(self, where):
        return np.random.normal() if self.time > 20 and where == self.where else 0.0

    def step(self, action):
        observation, reward, *_ = super().step(action)
        return observation, reward, self.time >= 40, False, {}


@pytest.mark.parametrize("where", ["observation", "reward"])
def test_what_shows_late_is_refused_on_resume_unless_inexact_is_allowed(where):
    """Also where the rewards alone differ; a later resume is no worse off."""
    config = dataclasses.replace(SMALL, env=Noisy, env_kwargs={"where": where}, total_steps=192)
    iterations = train(config)
    for _ in range(2):
        state = next(iterations).state
    iterations.close()
    with pytest.raises(ValueError, match=r"cannot be restored: replaying the .* --allow-inexact"):
        next(train(config, resume=state))
    for _ in range(2):
        iterations = train(config, resume=state, allow_inexact=True)
        assert any("new episodes" in note for note in next(iterations).notes)
        state = next(iterations).state
        iterations.close()


class Normalised(gym.ObservationWrapper):
    """A normalising wrapper of one's own: a record with mean, variance and count."""

    class Record:
        mean, var, count = np.zeros(1), np.ones(1), 1e-4

    def __init__(self, env):
        super().__init__(env)
        self.record = self.Record()

    def observation(self, observation):
        return observation


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (gym.wrappers.NormalizeObservation, "NormalizeObservation"),
        (gym.wrappers.NormalizeReward, "NormalizeReward"),
        (lambda env: gym.wrappers.TimeLimit(Normalised(env), 5), "Normalised"),
    ],
)
def test_statistics_inside_the_environment_are_noted(wrap, name):
    config = dataclasses.replace(SMALL, env=lambda: wrap(World()))
    assert any(
        note.startswith(f"{name} inside the environment keeps separate running statistics")
        for note in notes_of(config)[0]
    )


def test_observations_beyond_the_bounds_are_noted_and_taken():
    class Beyond(World):
        observation_space = gym.spaces.Box(-1, 1, (1,), np.float64)

        def reset(self, **arguments):
            return super().reset(**arguments)[0] + 50, {}

    notes, state = notes_of(dataclasses.replace(SMALL, env=Beyond, env_kwargs={"source": "nothing"}))
    assert len(notes) == 1
    assert "outside the bounds" in notes[0]
    assert (state["rollouts"]["environments"]["lanes"]["0"]["observations"] <= 50).all()

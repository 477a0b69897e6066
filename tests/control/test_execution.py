"""How many processes and threads a run takes is decided once, from its work, and kept when it goes on.

Leaves out what spread seeds learn (`test_spread.py`) and how long anything takes.
"""

import dataclasses
import functools
import json

import gymnasium as gym
import numpy as np
import pytest

from telescope import processors
from telescope.algorithms import ppo
from telescope.algorithms.ppo import PPO
from telescope.cli import main
from telescope.control import execution as decisions
from telescope.control.execution import MOST_PROCESSES, STEPS_WORTH_SPREADING, execution

LONG = dataclasses.replace(ppo.CARTPOLE, seeds=8, total_steps=100_000, processes=0)
SMALL = ["--num-envs", "1", "--num-steps", "16", "--minibatch-size", "16", "--epochs", "1", "--eval-every", "0"]


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with so many processors; the container's quota and OMP_NUM_THREADS on request."""

    def of(count, quota="max", threads=None):
        monkeypatch.setattr(processors.os, "sched_getaffinity", lambda _: set(range(count)), raising=False)
        monkeypatch.setattr(processors, "QUOTA", tmp_path / "cpu.max")
        (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if threads is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", threads)

    return of


def decided(**changes):
    found = execution(dataclasses.replace(LONG, **changes))
    return found["processes"], found["threads"]


def test_a_long_run_takes_a_process_per_processor_with_one_thread_each(machine):
    machine(2)
    assert decided() == (2, 1)
    machine(4)
    assert decided() == (4, 1)
    assert decided(seeds=3)[0] == 3
    machine(1)
    assert decided() == (1, 1)
    machine(500)
    assert decided(seeds=100)[0] == MOST_PROCESSES


def test_a_short_run_takes_one_process(machine):
    machine(2)
    enough = STEPS_WORTH_SPREADING // 8
    assert decided(total_steps=enough)[0] == 2
    assert decided(total_steps=enough - 1)[0] == 1
    assert decided(seeds=1, total_steps=10**6)[0] == 1


def test_work_that_is_done_elsewhere_is_not_spread(machine):
    machine(2)
    assert decided(device="cuda")[0] == 1
    assert decided(vectorization="async")[0] == 1


def test_what_is_asked_for_is_done(machine):
    machine(8, threads="1")
    assert decided(processes=3, threads=2) == (3, 2)
    assert PPO().processes == 1  # a script has one process unless it asks for more


@pytest.mark.parametrize(
    ("count", "more", "threads"),
    [
        (2, {}, 2),
        (8, {}, 4),
        (8, {"threads": "2"}, 2),
        (8, {"threads": "3,1"}, 3),
        (2, {"threads": "64"}, 2),
        (2, {"threads": "many"}, 2),
        (8, {"quota": "150000"}, 2),
        (8, {"quota": "10000"}, 1),
    ],
)
def test_threads_of_large_steps_are_as_many_as_there_is_room_for(machine, count, more, threads):
    machine(count, **more)
    assert decided(processes=1) == (1, threads)
    assert processors.most_threads() >= threads


def test_threads_are_shared_out_among_processes(machine):
    machine(8)
    assert decided(seeds=16, processes=4)[1] == 2


class Screen(gym.Env):
    """Pictures of so many pixels along each side."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, size):
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 4), np.uint8)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.low, {}

    def step(self, action):
        return self.observation_space.low, 0.0, False, True, {}


def test_pictures_count_as_work_and_are_compiled_sooner(machine):
    machine(2)

    def of(size, **more):
        shape = {"num_envs": 1, "num_steps": 64, "minibatch_size": 64, "epochs": 1, "processes": 1}
        return execution(PPO(env=functools.partial(Screen, size), **(shape | more)))

    # 84 × 84: 1,683,456 weights in each of two encoders, so 15,000 / (1 + 2 · 1,683,456 / 110,000) gradient steps
    assert of(84, total_steps=64 * 474)["compiled"]
    assert not of(84, total_steps=64 * 473)["compiled"]
    assert not of(84, total_steps=64 * 919, shared_network=True)["compiled"]
    assert not of(84, total_steps=64 * 474, encoder="mlp")["compiled"]
    assert of(84, total_steps=64)["threads"] == 2
    assert of(84, total_steps=64, threads=1)["threads"] == 1
    # 6 × 6: 41,984 products in each of two encoders, as in eight more small networks
    assert of(6, total_steps=64)["threads"] == 1
    assert of(6, total_steps=128, num_steps=128, minibatch_size=128)["threads"] == 2


@pytest.mark.parametrize("flags", [[], ["--processes", "1"]])
def test_the_command_line_spreads_long_runs_says_so_and_resumes_so(flags, tmp_path, capfd, machine, monkeypatch):
    machine(2)
    monkeypatch.setattr(decisions, "STEPS_WORTH_SPREADING", 64)
    run, count = tmp_path / "run", 1 if flags else 2
    said = "the seeds are spread over 2 processes: 2 + 1 (--processes)"
    assert (
        main(["train", "ppo", "CartPole-v1", "--seeds", "3", "--total-steps", "32", *SMALL, *flags, "--out", str(run)])
        == 0
    )
    assert (said in capfd.readouterr().err) == (not flags)
    assert json.loads((run / "run.json").read_text())["execution"]["processes"] == count
    machine(8)  # goes on as it began, wherever that is
    assert main(["train", "--resume", str(run), "--total-steps", "64", "--allow-inexact"]) == 0
    assert (said in capfd.readouterr().err) == (not flags)
    assert json.loads((run / "run.json").read_text())["execution"]["processes"] == count

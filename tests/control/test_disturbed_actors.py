"""Runs with actors that are disturbed for long: many actors die, the learner is slow, the driver is killed.

Leaves out one death at a time (`test_actors.py`), and machines that leave (`test_cluster.py`).
"""

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import psutil
import pytest

from folders import rows as rows_of
from telescope.algorithms import impala
from telescope.control.workers.cluster import connected
from telescope.metrics import iqm
from telescope.runs import RunFolder

CARTPOLE = dataclasses.replace(
    impala.preset("CartPole-v1"),
    seeds=8,
    total_steps=256 * 390,
    eval_every=256 * 390,
    eval_episodes=20,
    threads=1,
    compile="off",
)
KILLS = 50
MINUTES = float(os.environ.get("MINUTES", "0.5"))
"""How long the memory of a driver is watched: `MINUTES=10 python -m pytest -m slow -k memory` takes longer."""


class Wide(gym.Env):
    """Steps at once, and shows much: the rollouts of one second fill a gigabyte."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2_000,), np.float32), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2_000, np.float32), {}

    def step(self, action):
        return np.full(2_000, action, np.float32), 1.0, False, False, {}


def own_actors():
    """The processes that act for this one, now."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != "zombie" and "ray::Actor" in " ".join(process.cmdline()):
                found.append(process)
    return found


class Killer(threading.Thread):
    """Kills an actor some milliseconds after each time that `due` grows."""

    def __init__(self):
        super().__init__(daemon=True)
        self.rng, self.due, self.killed, self.over = random.Random(1), 0, 0, False

    def run(self):
        while not self.over:
            time.sleep(self.rng.uniform(0, 0.02))
            family = own_actors() if self.killed < self.due else []
            if family:
                with contextlib.suppress(psutil.Error):
                    self.rng.choice(family).kill()
                    self.killed += 1


@pytest.mark.slow
def test_fifty_deaths_cost_time_and_nothing_else(monkeypatch):
    """Every transition that is learned from is counted once, and the curve ends where undisturbed ones do."""
    learned, dead, original = [], [], impala.unpacked

    def unpacked(sent):
        rollout, log_probs = original(sent)
        learned.extend(row.numpy().tobytes() for row in rollout.observations[rollout.mask])
        dead.append(int((~rollout.mask).sum()))  # rows between two episodes, of which nothing is learned
        return rollout, log_probs

    as_old = dataclasses.replace(CARTPOLE, delay=3)  # as the rollouts of two actors that are one ahead
    *_, undisturbed = impala.train(as_old)
    monkeypatch.setattr(impala, "unpacked", unpacked)
    rng, killer, rows = random.Random(0), Killer(), []
    config = dataclasses.replace(CARTPOLE, actors=2, delay=1)
    moments = set(rng.sample(range(5, config.iterations - 20), KILLS))
    with connected(None, 2):
        killer.start()
        for number, iteration in enumerate(impala.train(config)):
            rows += iteration.rows
            killer.due += number in moments
            while killer.killed < killer.due - 2:  # a new actor takes as long as many iterations
                time.sleep(0.01)
        killer.over = True
    assert rows[-1]["actor_restarts"] >= KILLS - 2, "those of the last moments may not have been noticed"
    steps = CARTPOLE.num_envs * CARTPOLE.num_steps
    assert [row["step"] for row in rows[::8]] == [steps * i for i in range(1, CARTPOLE.iterations + 1)]
    assert len(learned) == len(set(learned)) == 8 * rows[-1]["step"] - sum(dead)
    ends, usual = ends_of(iteration.rows), ends_of(undisturbed.rows)
    print(f"restarts {rows[-1]['actor_restarts']:.0f}, end {iqm(ends):.1f}, undisturbed {sorted(usual)}")
    assert min(usual) <= iqm(ends) <= max(usual)


def ends_of(rows):
    """The last evaluation of each seed. Episodes of the training would mislead: a death ends the long ones unseen."""
    return [row["eval_return_mean"] for row in rows]


@pytest.mark.slow
def test_the_memory_of_a_driver_stays_where_its_learner_is_slower_than_its_actors():
    config = impala.IMPALA(
        env=Wide, num_envs=4, num_steps=64, hidden=(8,), total_steps=10**9, actors=2, delay=2, threads=1, compile="off"
    )
    me, found, loop = psutil.Process(), [], impala.train(config)
    began, pause = time.monotonic(), 0.1
    for iteration in loop:
        waited = iteration.rows[0]["time_wait"]
        pause *= 1.5 if waited > 0.01 else 1  # until all rollouts that may be on their way are there
        time.sleep(pause)
        memory = me.memory_info()
        found.append((time.monotonic() - began, memory.rss - memory.shared, waited))
        if found[-1][0] > 60 * MINUTES:
            break
    loop.close()
    own = np.array([one[1] for one in found]) / 2**20
    waited = float(np.median([one[2] for one in found]))
    third = len(own) // 3
    first, last = np.median(own[third : 2 * third]), np.median(own[2 * third :])
    tenths = [round(float(part.mean()), 1) for part in np.array_split(own, 10)]
    print(f"{len(own)} updates, each waited {waited:.4f} s; MiB, a number per tenth of the time: {tenths}")
    assert waited < 0.05, "the learner is the slower side"
    assert last - first < 16, "MiB; each rollout has two, and actors collect many times as many"


TOTAL = 32 * 500
FLAGS = ("--num-envs", "2", "--num-steps", "16", "--hidden", "8", "--actors", "2", "--checkpoint-seconds", "0",
         "--eval-every", "0", "--threads", "1", "--seeds", "2")  # fmt: skip


def telescope(*arguments, log):
    """A command in a process of its own."""
    with Path(log).open("w") as file:
        return subprocess.Popen([sys.executable, "-m", "telescope", *map(str, arguments)], stdout=file, stderr=file)


def shared_memory():
    return {name for name in os.listdir("/dev/shm") if name.startswith(("plasma", "ray"))}


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /dev/shm")
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)], ids=["SIGTERM", "SIGKILL"]
)
def test_a_driver_that_is_killed_resumes_and_leaves_nothing_behind(number, tmp_path):
    folder, log, before = tmp_path / "run", tmp_path / "log", shared_memory()
    driver = telescope("train", "impala", "CartPole-v1", *FLAGS, "--total-steps", TOTAL, "--out", folder, log=log)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    family = psutil.Process(driver.pid).children(recursive=True)
    assert [one for one in family if "ray" in one.name()], log.read_text()
    driver.send_signal(number)
    assert driver.wait(60) == (128 + number if number == signal.SIGTERM else -number), log.read_text()
    _, alive = psutil.wait_procs(family, timeout=90 if number == signal.SIGKILL else 10)
    assert alive == []
    assert shared_memory() <= before
    state = RunFolder.open(folder).load_checkpoint()
    left = (TOTAL - int(state["step"])) // 32
    assert left > 0, "it was killed on its way"
    assert telescope("train", "--resume", folder, log=log).wait(120) == 0, log.read_text()
    assert [int(row["step"]) for row in rows_of(folder)[::2]] == list(range(32, TOTAL + 1, 32))
    after = RunFolder.open(folder).load_checkpoint()
    assert after["actors"]["tickets"] >= state["actors"]["tickets"] + left, "no number of a rollout is used twice"
    assert shared_memory() <= before

"""Steps per second of IMPALA and APPO with actors against RLlib's: `python -m benchmarks.actors`.

RLlib admits only a Gymnasium of its own, so it has a Python environment of its own: `--rllib PYTHON`, which
`make bench-actors` makes. Both sides train with the same settings, in turns; a row is the median of `--repeats` rounds.
"Busy" is the number of processors in use; on a machine with other work, compare the steps per busy processor.
Leaves out what was learned, and age: docs/asynchrony.md has it.
"""

import argparse
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

ROLLOUT: dict[str, int] = {"num_envs": 8, "num_steps": 32}
"""Environments of an actor, and steps of each in a rollout. One rollout is one batch of the learner."""
PASSES = {"impala": 1, "appo": 2}
"""Gradient steps on each batch; two are the default of RLlib's APPO."""
WARM, TIMED = 8.0, 12.0
"""Seconds that are left out at the beginning, and those that are timed."""


class Task(NamedTuple):
    """An algorithm on an environment with so many actors. 0: the learner acts, which RLlib cannot do here."""

    algorithm: str
    env: str
    actors: int


TASKS = [Task(name, env, n) for name in PASSES for env in ("CartPole-v1", "HalfCheetah-v5") for n in (0, 1, 2)]


class Rate(NamedTuple):
    """How fast a run was."""

    steps: float
    """Environment steps per second."""
    busy: float
    """Processors that its processes had. Fewer than there are, where other programs used the machine."""


class Counter:
    """What happens between the first report after the warm-up and the last one."""

    def __init__(self, seconds: tuple[float, float]) -> None:
        self.warm, self.timed = seconds
        self.began = time.perf_counter()
        self.first: tuple[float, float, float] | None = None
        self.rate = Rate(0.0, 0.0)

    def over(self, steps: float) -> bool:
        """Take note of the steps so far. True when the time is over."""
        now = time.perf_counter()
        if self.first is None:
            if now - self.began >= self.warm and steps > 0:
                self.first = time.perf_counter(), steps, processor_seconds()
            return False
        if now - self.first[0] < self.timed:
            return False
        passed = now - self.first[0]
        self.rate = Rate((steps - self.first[1]) / passed, (processor_seconds() - self.first[2]) / passed)
        return True


def processor_seconds() -> float:
    """What this process and its children have used so far, Ray's own processes too."""
    import psutil  # type: ignore[import-untyped]

    used = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            used += times.user + times.system
    return used


def ours(task: Task, seconds: tuple[float, float]) -> Rate:
    """Of the environment steps that the learner learns from, with one seed."""
    from telescope.algorithms import config_class, find

    more: dict[str, Any] = {}
    if task.algorithm == "appo":
        more = {"epochs": PASSES["appo"], "minibatch_size": ROLLOUT["num_envs"] * ROLLOUT["num_steps"], "lam": 1.0}
    config = config_class(task.algorithm)(
        env=task.env, actors=task.actors, delay=1 if task.actors else 0, total_steps=10**9, **ROLLOUT, **more
    )
    counter = Counter(seconds)
    for iteration in find(task.algorithm).train(config):
        if counter.over(iteration.step):
            break
    return counter.rate


def theirs(task: Task, seconds: tuple[float, float]) -> Rate:
    """The same of RLlib. Its learner is a thread of the driver, which is faster here than a process of its own."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray.rllib.algorithms.appo import APPOConfig
    from ray.rllib.algorithms.impala import IMPALAConfig

    ray.init(num_cpus=task.actors + 1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    appo: dict[str, Any] = {"circular_buffer_iterations_per_batch": PASSES["appo"]} if task.algorithm == "appo" else {}
    config = (APPOConfig if appo else IMPALAConfig)()
    config = (
        config.environment(task.env)
        .env_runners(
            num_env_runners=task.actors,
            num_envs_per_env_runner=ROLLOUT["num_envs"],
            rollout_fragment_length=ROLLOUT["num_steps"],
        )
        .learners(num_learners=0)
        .training(train_batch_size_per_learner=ROLLOUT["num_envs"] * ROLLOUT["num_steps"], **appo)
        .rl_module(model_config={"fcnet_hiddens": [64, 64], "fcnet_activation": "tanh", "vf_share_layers": False})
        .reporting(min_time_s_per_iteration=1)
    )
    algorithm, counter = config.build_algo(), Counter(seconds)
    while True:
        found = algorithm.train()
        sampled = found["env_runners"].get("num_env_steps_sampled_lifetime", 0)
        if counter.over(float(sampled)):
            break
    algorithm.stop()
    ray.shutdown()
    return counter.rate


def measured(python: str, who: str, task: Task, seconds: tuple[float, float]) -> Rate:
    """A measurement in a process of its own."""
    command = [python, "-m", "benchmarks.actors", "--one", who, json.dumps([task, seconds])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return Rate(*json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("words", nargs="*", help="only tasks whose algorithm or environment has one of these")
    parser.add_argument("--rllib", default=sys.executable, help="the Python that has ray[rllib]")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short round: try the script out")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        task, seconds = json.loads(chosen.one[1])
        print(json.dumps((theirs if chosen.one[0] == "theirs" else ours)(Task(*task), tuple(seconds))))
        return
    seconds, repeats = ((2.0, 3.0), 1) if chosen.quick else ((WARM, TIMED), chosen.repeats)
    print("| | actors | RLlib | busy | ours | busy | × | × per busy processor |\n|---|" + "---:|" * 7)
    for task in TASKS:
        if chosen.words and not any(word in f"{task.algorithm} {task.env}" for word in chosen.words):
            continue
        pairs = [("theirs", chosen.rllib)] * bool(task.actors) + [("ours", sys.executable)]
        rounds = [[measured(python, who, task, seconds) for who, python in pairs] for _ in range(repeats)]
        print(line(task, [median(column) for column in zip(*rounds, strict=True)]), flush=True)


def median(rates: Sequence[Rate]) -> Rate:
    return Rate(*(statistics.median(column) for column in zip(*rates, strict=True)))


def line(task: Task, rates: Sequence[Rate]) -> str:
    """A row of the table, from theirs (if there is one) and ours."""
    cells = [f"{rate.steps:,.0f} | {rate.busy:.1f}" for rate in rates]
    if len(rates) == 1:
        return f"| {task.algorithm} {task.env} | {task.actors} | | | {cells[0]} | | |"
    theirs, ours = rates
    fast, frugal = ours.steps / theirs.steps, (ours.steps / ours.busy) / (theirs.steps / theirs.busy)
    return f"| {task.algorithm} {task.env} | {task.actors} | {' | '.join(cells)} | {fast:.1f} | {frugal:.1f} |"


if __name__ == "__main__":
    main()

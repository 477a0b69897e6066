"""One training in a process of its own: `python -m benchmarks.train_rivals JOB.json RESULT.json`.

Every contestant trains under the same watch and is evaluated by the same function. What the numbers mean together is
`benchmarks.train`'s business.
"""

import dataclasses
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import train_settings
from benchmarks.train_settings import CARTPOLE, Task

Act = Callable[[np.ndarray], np.ndarray]  # observations [E, …] as the environment gives them → actions
EPISODES = 10


class Job(NamedTuple):
    """One measurement."""

    trainer: str
    task: Task
    seed: int
    seeds: int
    backend: str
    processes: int
    threads: int
    steps: int  # per seed; schedules, and what `auto` chooses, are planned over them
    compile: str = "auto"  # ours: on, off or auto
    until_solved: bool = False  # evaluate every `task.every` steps, and stop when every seed has reached the threshold
    iterations: int = 10**9  # stop after so many, in any case
    started: float = 0.0  # time.monotonic() just before the process was begun

    @classmethod
    def read(cls, path: str) -> "Job":
        fields = json.loads(Path(path).read_text())
        task = fields.pop("task")
        return cls(task=Task(**task | {"hidden": tuple(task["hidden"])}), **fields)


class Watch:
    """Seconds since the process was begun, at each lap; it stands still while a policy is evaluated."""

    def __init__(self, job: Job) -> None:
        self.job, self.paused = job, np.zeros(2)  # seconds, and seconds of processors
        self.laps: list[tuple[int, float, float]] = []  # steps per seed, seconds, seconds of processors
        self.evaluations: list[tuple[int, float, list[float]]] = []  # steps per seed, seconds, mean return per seed
        self.best = np.full(job.seeds, -np.inf)

    def seconds(self) -> tuple[float, float]:
        """Of the clock and of processors, so far."""
        used = time.process_time() + sum(map(processor_seconds, multiprocessing.active_children()))
        clock, used = np.array([time.monotonic() - self.job.started, used]) - self.paused
        return float(clock), float(used)

    def lap(self, steps: int, policies: Callable[[], list[Act]]) -> bool:
        """An iteration is over; True if training may stop."""
        self.laps.append((steps, *self.seconds()))
        every = self.job.task.every
        if self.job.until_solved and steps // every > (steps - self.job.task.batch) // every:
            self.evaluate(steps, policies())
        return bool((self.best >= self.job.task.threshold).all()) or len(self.laps) >= self.job.iterations

    def evaluate(self, steps: int, policies: list[Act]) -> None:
        """Outside the seconds that count."""
        began = self.seconds()
        returns = [evaluate(self.job.task, act) for act in policies]
        self.evaluations.append((steps, began[0], returns))
        self.best = np.maximum(self.best, returns)
        self.paused += np.subtract(self.seconds(), began)


def processor_seconds(process: Any) -> float:
    """Of a child that is still running; 0 where there is no /proc to ask."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def evaluate(task: Task, act: Act) -> float:
    """Mean return of the first episode of each of so many environments, the same for every contestant."""
    import gymnasium as gym

    mode = gym.vector.AutoresetMode.NEXT_STEP
    envs = gym.vector.SyncVectorEnv([lambda: gym.make(task.env)] * EPISODES, autoreset_mode=mode)
    observations, _ = envs.reset(seed=1_000_000)
    returns, going = np.zeros(EPISODES), np.ones(EPISODES, dtype=bool)
    while going.any():
        observations, rewards, terminated, truncated, _ = envs.step(act(observations))
        returns += rewards * going
        going &= ~(terminated | truncated)
    envs.close()
    return float(returns.mean())


def telescope(job: Job, watch: Watch) -> dict[str, Any]:
    """Ours, and where its time went."""
    from telescope.algorithms.ppo import PPO, train

    config, rows = PPO(**train_settings.for_telescope(job.task, **of_the_run(job))), []
    for metrics in train(config):
        rows.append([metrics.rows[0][f"time_{part}"] for part in ("env", "policy", "update", "other")])
        if watch.lap(metrics.step, lambda: policies(config, metrics.policy)):  # noqa: B023 (called at once)
            break
    return {"times": rows}


def of_the_run(job: Job) -> dict[str, Any]:
    """The fields of a config of ours that are not the task's."""
    names = ("seed", "seeds", "backend", "processes", "compile")
    return {
        "threads": max(1, job.threads // job.processes),
        "total_steps": job.steps,
        **{name: getattr(job, name) for name in names},
    }


def policies(config: Any, state: dict[str, Any]) -> list[Act]:
    """One per seed."""
    from functools import partial

    from telescope.policy import Policy

    policy = Policy(config, state)
    return [partial(policy.act, seed=seed) for seed in config.seed_values]


def stable_baselines3(job: Job, watch: Watch) -> dict[str, Any]:
    from stable_baselines3 import PPO

    return baselines(PPO, job, watch, {**train_settings.for_stable_baselines3(job.task), "device": "cpu"})


def sbx(job: Job, watch: Watch) -> dict[str, Any]:
    from sbx import PPO

    return baselines(PPO, job, watch, train_settings.for_stable_baselines3(job.task))


def baselines(kind: Any, job: Job, watch: Watch, settings: dict[str, Any]) -> dict[str, Any]:
    """Stable-Baselines3 and SBX: both have its environments, callbacks and `learn`."""
    from stable_baselines3.common.callbacks import BaseCallback

    model = baselines_model(kind, job.task, job.seed, settings)

    class Laps(BaseCallback):
        """A rollout begins where an iteration has ended."""

        finished = False

        def _on_rollout_start(self) -> None:
            self.finished = bool(self.num_timesteps) and watch.lap(self.num_timesteps, lambda: [acting(model)])

        def _on_step(self) -> bool:
            return not self.finished

    laps = Laps()
    model.learn(job.steps // job.task.batch * job.task.batch, callback=laps)
    if not laps.finished:
        watch.lap(model.num_timesteps, lambda: [acting(model)])
    return {}


def baselines_model(kind: Any, task: Task, seed: int, settings: dict[str, Any]) -> Any:
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    envs: Any = make_vec_env(task.env, task.num_envs, seed=seed)
    if task.normalise:
        envs = VecNormalize(envs, gamma=task.gamma, clip_obs=10.0, clip_reward=10.0)
    return kind("MlpPolicy", envs, seed=seed, **settings)


def acting(model: Any) -> Act:
    normaliser = model.get_vec_normalize_env()

    def act(observations: np.ndarray) -> np.ndarray:
        inputs = observations if normaliser is None else normaliser.normalize_obs(observations)
        return model.predict(inputs, deterministic=True)[0]  # type: ignore[no-any-return]

    return act


def cleanrl(job: Job, watch: Watch) -> dict[str, Any]:
    from benchmarks.cleanrl_loop import train

    for steps, act in train(job.task, seed=job.seed, steps=job.steps):
        if watch.lap(steps, lambda: [act]):  # noqa: B023 (called at once)
            break
    return {}


def telescope_preset(job: Job, watch: Watch) -> dict[str, Any]:
    """Ours as the command line trains it; on CartPole until the trainer's own evaluation finds every seed solved."""
    from telescope.algorithms.ppo import preset, train

    every = 10_000 if job.until_solved else 0
    config = dataclasses.replace(preset(job.task.env), **of_the_run(job), eval_every=every)
    for metrics in train(config):
        watch.laps.append((metrics.step, *watch.seconds()))
        found = [row["eval_return_mean"] for row in metrics.rows]
        if None not in found:
            watch.evaluations.append((metrics.step, watch.seconds()[0], found))
            if job.until_solved and min(found) >= job.task.threshold:
                break
    return {"final": [evaluate(job.task, act) for act in policies(config, metrics.policy)]}


def stable_baselines3_zoo(job: Job, watch: Watch) -> dict[str, Any]:
    """One seed with rl-baselines3-zoo's settings for CartPole."""
    from stable_baselines3 import PPO

    model = baselines_model(PPO, CARTPOLE, job.seed, {**train_settings.zoo_cartpole(), "device": "cpu"})
    model.learn(job.steps)
    watch.laps.append((model.num_timesteps, *watch.seconds()))
    return {"final": [evaluate(job.task, acting(model))]}


TRAINERS = {
    function.__name__: function
    for function in (telescope, stable_baselines3, sbx, cleanrl, telescope_preset, stable_baselines3_zoo)
}


def main(job_path: str, result_path: str) -> None:
    import torch

    job = Job.read(job_path)
    torch.set_num_threads(job.threads)
    watch = Watch(job)
    more = TRAINERS[job.trainer](job, watch)
    found = {"laps": watch.laps, "evaluations": watch.evaluations, **more}
    Path(result_path).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

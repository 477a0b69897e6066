"""Steps per second of A2C, TRPO, DQN, SAC and PPO on pictures against other libraries: `python -m benchmarks.ladder`.

Each contestant trains with the same settings in a process of its own, in turns; a row is the median of `--repeats`
rounds. Ours trains one seed, then eight (of pictures four; two processes, if there are two cores), and the steps of all
seeds count.
Leaves out what was learned: docs/results.md has it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple


class Task(NamedTuple):
    """An algorithm on an environment, and how much of it is timed, in iterations per seed."""

    algorithm: str
    env: str
    num_envs: int
    num_steps: int
    warm: int
    timed: int
    library: str
    settings: str = ""


TASKS = (
    Task("a2c", "CartPole-v1", 16, 16, 100, 300, "Stable-Baselines3"),
    Task("a2c", "HalfCheetah-v5", 16, 16, 100, 100, "Stable-Baselines3"),
    Task("trpo", "CartPole-v1", 2, 1024, 3, 10, "sb3-contrib"),
    Task("trpo", "HalfCheetah-v5", 2, 1024, 3, 6, "sb3-contrib"),
    Task("dqn", "CartPole-v1", 1, 256, 16, 32, "Stable-Baselines3", "zoo"),
    Task("dqn", "CartPole-v1", 1, 256, 16, 32, "SBX", "zoo"),
    Task("dqn", "CartPole-v1", 1, 256, 16, 32, "Stable-Baselines3", "small"),
    Task("dqn", "CartPole-v1", 1, 256, 16, 32, "SBX", "small"),
    Task("ppo", "ALE/Pong-v5", 8, 128, 1, 2, "Stable-Baselines3"),
    Task("sac", "HalfCheetah-v5", 1, 100, 4, 8, "Stable-Baselines3"),
    Task("sac", "HalfCheetah-v5", 1, 100, 4, 8, "SBX"),
)
TOTAL = 1_000_000
"""Steps per seed of the run that is timed at its beginning: what ours compiles is decided for the whole run."""


class Off(NamedTuple):
    """Settings of DQN: a network's widths, and gradient steps in blocks between environment steps."""

    widths: tuple[int, int]
    every: int
    updates: int


OFF = {"zoo": Off((256, 256), 256, 128), "small": Off((64, 64), 4, 1)}
"""Those of rl-baselines3-zoo for CartPole, and Stable-Baselines3's default network and frequencies."""
DQN: dict[str, Any] = {"learning_rate": 2.3e-3, "learning_starts": 1000, "gamma": 0.99}
"""Settings of DQN that have one name everywhere."""

PICTURES = {"learning_rate": 2.5e-4, "clip": 0.1, "entropy_coefficient": 0.01, "epochs": 4, "minibatch_size": 256}
"""Of PPO on Atari, with the Nature paper's convolutions, shared by policy and critic, on stacks of four frames."""

SAC = {"learning_starts": 200}
"""Of SAC, where a timing may begin early; all else is the default of everybody."""


def ours(task: Task, seeds: int) -> float:
    """Environment steps per second of all seeds together, after the first iterations."""
    from telescope.algorithms import config_class, find

    config = config_class(task.algorithm)(
        env=task.env,
        seeds=seeds,
        processes=min(seeds, len(os.sched_getaffinity(0))),
        num_envs=task.num_envs,
        num_steps=task.num_steps,
        total_steps=TOTAL,
        **settings_of(task),
    )
    batch = task.num_envs * task.num_steps
    for metrics in find(task.algorithm).train(config):
        if metrics.step == task.warm * batch:
            began = time.perf_counter()
        if metrics.step == (task.warm + task.timed) * batch:
            return seeds * task.timed * batch / (time.perf_counter() - began)
    raise AssertionError("the run ended before the time was taken")


def settings_of(task: Task) -> dict[str, Any]:
    """Our names of the settings that are not our defaults."""
    if task.algorithm == "ppo":
        seen: dict[str, Any] = {"env_kwargs": {"preprocessed": True}, "frame_stack": 4}
        return {**seen, **PICTURES, "shared_network": True, "hidden": ()}
    return of_dqn(task) if task.algorithm == "dqn" else SAC if task.algorithm == "sac" else {}


def of_dqn(task: Task) -> dict[str, Any]:
    """Our names of DQN's settings."""
    widths, every, updates = OFF[task.settings]
    learned = {"minibatch_size": 64, "train_every": every, "updates_per_step": updates / every, "target_every": 128}
    return {**DQN, **learned, "hidden": widths, "exploration_fraction": 0.16, "exploration_end": 0.04}


def their_dqn(task: Task, environments: Any, more: dict[str, Any]) -> Any:
    """The same settings by their names. Their target network follows between two blocks of gradient steps."""
    if task.library == "SBX":
        from sbx import DQN as Model
    else:
        from stable_baselines3 import DQN as Model
    widths, every, updates = OFF[task.settings]
    learned = {"buffer_size": 100_000, "batch_size": 64, "train_freq": every, "gradient_steps": updates}
    explored = {"exploration_fraction": 0.16, "exploration_final_eps": 0.04}
    shape = {"policy_kwargs": {"net_arch": list(widths)}, "target_update_interval": 128 * every // updates}
    return Model("MlpPolicy", environments, **DQN, **learned, **explored, **shape, **more)


def their_sac(task: Task, environments: Any, more: dict[str, Any]) -> Any:
    """Both have our defaults: two layers of 256, minibatches of 256, a gradient step for each environment step."""
    if task.library == "SBX":
        from sbx import SAC as Model
    else:
        from stable_baselines3 import SAC as Model
    return Model("MlpPolicy", environments, **SAC, **more)


def their_pictures(task: Task, more: dict[str, Any]) -> Any:
    """Their CnnPolicy has the same convolutions, which policy and critic share, and no layer behind them."""
    import ale_py
    import gymnasium as gym
    from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    gym.register_envs(ale_py)

    def make() -> gym.Env:
        return FrameStackObservation(AtariPreprocessing(gym.make(task.env, frameskip=1), noop_max=0), 4)

    environments = make_vec_env(make, n_envs=task.num_envs, seed=0)
    learned = {"learning_rate": 2.5e-4, "clip_range": 0.1, "ent_coef": 0.01, "n_epochs": 4, "batch_size": 256}
    return PPO("CnnPolicy", environments, n_steps=task.num_steps, **learned, **more)


def theirs(task: Task) -> float:
    """The same of one model, which is all that they train at once."""
    import torch
    from stable_baselines3 import A2C
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    # one is faster than more for small networks; those of SAC and of pictures are wide enough for all
    torch.set_num_threads(len(os.sched_getaffinity(0)) if task.algorithm in ("sac", "ppo") else 1)
    more: dict[str, Any] = {"device": "cpu", "seed": 0}
    environments = None if task.algorithm == "ppo" else make_vec_env(task.env, n_envs=task.num_envs, seed=0)
    if task.algorithm == "ppo":
        model: Any = their_pictures(task, more)
    elif task.algorithm == "dqn":
        model = their_dqn(task, environments, more)
    elif task.algorithm == "sac":
        model = their_sac(task, environments, more)
    elif task.algorithm == "a2c":
        model = A2C("MlpPolicy", environments, ent_coef=0.01, n_steps=task.num_steps, **more)
    else:
        from sb3_contrib import TRPO

        model = TRPO("MlpPolicy", environments, n_critic_updates=20, n_steps=task.num_steps, **more)  # as many as ours
    batch = task.num_envs * task.num_steps
    marks: list[float] = []

    class Watch(BaseCallback):
        def _on_rollout_start(self) -> None:
            if self.num_timesteps >= task.warm * batch:  # a rollout of DQN may be shorter than an iteration of ours
                marks.append(time.perf_counter())

        def _on_step(self) -> bool:
            return True

    model.learn((task.warm + task.timed) * batch, callback=Watch())
    return task.timed * batch / (time.perf_counter() - marks[0])


def measured(who: str, task: Task) -> float:
    """A measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ladder", "--one", who, json.dumps(task)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("words", nargs="*", help="only tasks whose algorithm or environment has one of these")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short round: try the script out")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        who, task = chosen.one[0], Task(*json.loads(chosen.one[1]))
        print(theirs(task) if who == "theirs" else ours(task, int(who)))
        return
    if chosen.quick:
        chosen.repeats = 1
    print("| | theirs | one seed | × | eight seeds (four of ppo) | × |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for task in TASKS:
        if chosen.words and not any(word in f"{task.algorithm} {task.env}" for word in chosen.words):
            continue
        if chosen.quick:
            task = task._replace(warm=1, timed=2)
        many = "4" if task.algorithm == "ppo" else "8"
        rounds = [[measured(who, task) for who in ("theirs", "1", many)] for _ in range(chosen.repeats)]
        rival, one, eight = (statistics.median(column) for column in zip(*rounds, strict=True))
        how = f"{task.num_envs} × {task.num_steps}, {task.library} {task.settings}".strip()
        name = f"{task.algorithm} {task.env}, {how}"
        print(
            f"| {name} | {rival:,.0f} | {one:,.0f} | {one / rival:.1f} | {eight:,.0f} | {eight / rival:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""Train the rows of docs/results.md, evaluate them, print the table: `make results`, or `make results ARGS="trpo"`.

A row is an algorithm on an environment, with its preset and 8 seeds. Words select rows; without any, all are made. A
run that was stopped continues, a finished one is only evaluated, and what was evaluated is read from its folder. Two
metrics, because published tables use one or the other: the maximum over training of a seed's mean evaluation return
(mean ± deviation over seeds), and the final deterministic evaluation (interquartile mean over seeds with its 95 %
bootstrap interval).
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import telescope
from telescope.metrics import summarise
from telescope.runs import RunFolder, read_metrics

EPISODES = 100
"""Episodes per seed of the final evaluation."""
EVALUATIONS = 20
"""Evaluations on the way, each of 10 episodes per seed."""
CLASSIC = {
    "CartPole-v1": 500_000,
    "Acrobot-v1": 500_000,
    "MountainCar-v0": 1_000_000,
    "Pendulum-v1": 1_000_000,
    "LunarLander-v3": 1_000_000,
}
"""Environment → steps per seed."""
MUJOCO = dict.fromkeys(
    ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Swimmer-v5", "InvertedDoublePendulum-v5", "Ant-v5"), 1_000_000
)
OFF_POLICY_MUJOCO = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5")
SHORTER = {name: {"CartPole-v1": 100_000, "Pendulum-v1": 100_000} for name in ("ppo", "distributional_ppo")}
"""Where published figures are of fewer steps."""
ALGORITHMS = {
    "reinforce": {env: CLASSIC[env] for env in ("CartPole-v1", "Acrobot-v1", "MountainCar-v0")},
    "actor_critic": CLASSIC,
    "grpo": {"CartPole-v1": 500_000},
    "gspo": {"CartPole-v1": 500_000},
    "a2c": CLASSIC | MUJOCO,
    "a3c": {"CartPole-v1": 500_000},
    "impala": {"CartPole-v1": 500_000},
    "appo": {"CartPole-v1": 500_000, "HalfCheetah-v5": 1_000_000},
    "trpo": CLASSIC | MUJOCO,
    "npg": CLASSIC | MUJOCO,
    "ppo": CLASSIC | MUJOCO | {"BipedalWalker-v3": 5_000_000},
    "distributional_ppo": CLASSIC | MUJOCO,
    "sac": {"Pendulum-v1": 20_000} | dict.fromkeys(OFF_POLICY_MUJOCO, 300_000),
    "crossq": {"Pendulum-v1": 20_000} | dict.fromkeys(OFF_POLICY_MUJOCO, 300_000),
    "dqn": {"CartPole-v1": 50_000, "MountainCar-v0": 120_000, "LunarLander-v3": 300_000},
    "qr_dqn": {"Acrobot-v1": 100_000},
    "pqn": {"CartPole-v1": 200_000},
    "sarsa_lambda": {"CartPole-v1": 100_000, "Acrobot-v1": 100_000, "MountainCar-v0": 40_000},
    "stream_ac": CLASSIC | {env: MUJOCO[env] for env in ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5")},
    "stream_q": {env: CLASSIC[env] for env in ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "LunarLander-v3")},
    "gradient_ppo": {"CartPole-v1": 100_000, "HalfCheetah-v5": 1_000_000, "Hopper-v5": 1_000_000},
}


class Row(NamedTuple):
    """One run: an algorithm's preset on an environment."""

    algorithm: str
    env: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.algorithm}-{self.env}"

    def is_meant(self, word: str) -> bool:
        """Whether its name or its environment begins with this word: `ppo` is not `distributional_ppo`."""
        return self.name.startswith(word) or self.env.startswith(word)

    def command(self, folder: str, seeds: int = 8) -> list[str]:
        every = str(max(self.steps // EVALUATIONS, 1))
        flags = ["--seeds", str(seeds), "--total-steps", str(self.steps), "--eval-every", every]
        return ["telescope", "train", self.algorithm, self.env, *flags, "--out", folder]


def rows() -> Iterator[Row]:
    for algorithm, environments in ALGORITHMS.items():
        for env, steps in environments.items():
            yield Row(algorithm, env, SHORTER.get(algorithm, {}).get(env, steps))


def train(row: Row, folder: Path) -> None:
    """Begin the run or continue it; nothing if it is finished."""
    if (folder / "run.json").exists():
        command = ["telescope", "train", "--resume", str(folder)]
    else:
        command = row.command(str(folder))
    print(f"$ {' '.join(command)}", flush=True)
    subprocess.run([sys.executable, "-m", "telescope.cli", *command[1:]], check=True)


def measured(folder: Path) -> dict[str, Any]:
    """Both metrics of a finished run; measured once, then read from its folder."""
    kept = folder / "results.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    run = RunFolder.open(folder)
    table = read_metrics(run)
    best = np.array([np.nanmax(table["eval_return_mean"][table["seed"] == seed]) for seed in run.seeds])
    final = summarise(telescope.load(folder).evaluate(EPISODES).returns)
    found = {
        "max": [float(best.mean()), float(best.std())],
        "iqm": float(final["iqm"]),
        "ci95": [float(x) for x in final["ci95"]],
        "per_seed": [float(x) for x in final["per_seed"]],
        "minutes": float(table["time_total"].max()) / 60,
    }
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def line(row: Row, found: dict[str, Any]) -> str:
    """A row of the table."""
    digits = 1 if max(abs(x) for x in found["per_seed"]) < 1000 else 0

    def number(x: float) -> str:
        return f"{x:,.{digits}f}".replace("-", "−")

    cells = [
        f"`{row.algorithm}`",
        row.env,
        f"{row.steps:,}",
        f"{number(found['max'][0])} ± {number(found['max'][1])}",
        f"{number(found['iqm'])} [{number(found['ci95'][0])}, {number(found['ci95'][1])}]",
        f"{number(min(found['per_seed']))}",
        f"{found['minutes']:.1f} min",
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| algorithm | environment | steps | max over training | final, IQM [95 % interval] | worst seed | time |\n"
    "|---|---|---|---|---|---|---|"
)


def table(place: Path) -> str:
    """The table of all rows that are finished."""
    done = [row for row in rows() if (place / row.name / "results.json").exists()]
    return "\n".join([HEAD, *(line(row, measured(place / row.name)) for row in done)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "words",
        nargs="*",
        help="only rows that begin with one of these: ALGORITHM, ALGORITHM-ENVIRONMENT or ENVIRONMENT",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/results"), help="where the run folders are")
    parser.add_argument("--list", action="store_true", help="only print the commands")
    chosen = parser.parse_args()
    wanted = [row for row in rows() if not chosen.words or any(row.is_meant(word) for word in chosen.words)]
    if chosen.list:
        print("\n".join(" ".join(row.command(str(chosen.runs / row.name))) for row in wanted))
        return
    for row in wanted:
        train(row, chosen.runs / row.name)
        print(line(row, measured(chosen.runs / row.name)), flush=True)
    print(table(chosen.runs))


if __name__ == "__main__":
    main()

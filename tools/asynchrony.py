"""What V-trace buys where rollouts are old: train with artificial delays and draw docs/images/asynchrony.png.

Every row is an algorithm, every column a delay. Nothing is left to chance: without actors a delay is exact, so equal
commands draw equal curves. Leaves out actors in other processes, whose ages nobody chooses.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from telescope.algorithms import a3c, appo, impala
from telescope.metrics import summarise

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "asynchrony.png"
STEPS, SEEDS, DELAYS = 100_000, 8, (0, 2, 8, 32)


class Contestant(NamedTuple):
    """An algorithm with its settings."""

    name: str
    module: Any
    settings: dict[str, Any]


SAME: dict[str, Any] = {"num_envs": 8, "num_steps": 32, "normalise_rewards": True}
"""Equal rollouts."""
LEARNING_RATE = 1e-3
"""Large enough that the policy moves within a delay."""
CONTESTANTS = (
    Contestant("A3C, λ = 1", a3c, {"lam": 1.0}),
    Contestant("A3C, λ = 0.96", a3c, {"lam": 0.96}),
    Contestant("IMPALA without V-trace", impala, {"lam": 0.96, "correction": "none"}),
    Contestant("IMPALA", impala, {"lam": 0.96}),
    Contestant("IMPALA, ratios without bounds", impala, {"lam": 0.96, "rho_clip": None, "c_clip": None}),
    Contestant("APPO", appo, {"lam": 0.96, "minibatch_size": 256, "epochs": 1}),
)


def returns(contestant: Contestant, delay: int, steps: int, seeds: int, learning_rate: float) -> np.ndarray:
    """The mean return [S, 1] of each seed over the last fifth of its run."""
    changed = SAME | contestant.settings | {"entropy_coefficient": 0.0, "threads": 1, "compile": "off"}
    changed["learning_rate"] = learning_rate
    config = dataclasses.replace(
        contestant.module.preset("CartPole-v1"), seeds=seeds, total_steps=steps, delay=delay, **changed
    )
    found: list[list[float]] = [[] for _ in range(seeds)]
    for iteration in contestant.module.train(config):
        if iteration.step > 0.8 * steps:
            for row, mine in zip(iteration.rows, found, strict=True):
                mine += [] if row["return_mean"] is None else [row["return_mean"]] * row["episodes"]
    return np.array([[np.mean(mine)] for mine in found])


def main() -> None:
    """Train, print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--delays", type=int, nargs="+", default=DELAYS)
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--only", default="", help="contestants with this word; prints the table and draws nothing")
    options = parser.parse_args()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    print("| | " + " | ".join(f"delay {delay}" for delay in options.delays) + " |")
    print("|---|" + "---:|" * len(options.delays))
    for contestant in CONTESTANTS:
        if options.only not in contestant.name:
            continue
        runs = [
            returns(contestant, delay, options.steps, options.seeds, options.learning_rate) for delay in options.delays
        ]
        found = [summarise(run) for run in runs]
        means, (low, high) = [one["iqm"] for one in found], np.array([one["ci95"] for one in found]).T
        cells = [f"{mean:.0f} [{a:.0f}, {b:.0f}]" for mean, a, b in zip(means, low, high, strict=True)]
        print(f"| {contestant.name} | " + " | ".join(cells) + " |", flush=True)
        places = range(len(options.delays))
        (line,) = axes.plot(places, means, marker="o", label=contestant.name)
        axes.fill_between(places, low, high, alpha=0.15, color=line.get_color())
    axes.set_xticks(range(len(options.delays)), [str(delay) for delay in options.delays])
    axes.set_xlabel("age of a rollout, in updates (--delay)")
    axes.set_ylabel(f"return on CartPole-v1 after {options.steps:,} steps")
    axes.legend()
    if not options.only:
        figure.savefig(IMAGE, dpi=120)


if __name__ == "__main__":
    main()

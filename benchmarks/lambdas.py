"""The table of docs/lambda_rules.md: PPO with three rules for λ, 8 seeds each: `python -m benchmarks.lambdas CartPole`.

Each row is a run folder. A run that was stopped continues; a finished one is only evaluated. Words select rows by
name (ENVIRONMENT-RULE); without any, all are made, which takes days. `--quick` tries everything out in a minute.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tools.results import EVALUATIONS, measured, train

from telescope.runs import RunFolder, read_metrics

RULES: dict[str, tuple[str, ...]] = {
    "constant": (),
    "end_corrected": ("--lam-rule", "end_corrected"),
    "adaptive": ("--lam-rule", "adaptive", "--lam", "0.99", "--lam-low", "0.9"),
}
"""Rule → flags. The first two take the preset's λ."""
ENVIRONMENTS = {
    "CartPole-v1": 100_000,
    "LunarLander-v3": 1_000_000,
    "HalfCheetah-v5": 1_000_000,
    "Hopper-v5": 1_000_000,
}
"""Environment → steps per seed."""
QUICK = ("--num-envs", "2", "--num-steps", "64", "--minibatch-size", "64", "--eval-episodes", "1")
HEAD = (
    "| environment | rule | flags | final, IQM [95 % interval] | max over training "
    "| mean over training | worst seed | λ |\n"
    "|---|---|---|---|---|---|---|---|"
)


class Row(NamedTuple):
    """One run: PPO's preset on an environment, with a rule."""

    env: str
    rule: str
    quick: bool = False

    @property
    def name(self) -> str:
        return f"{self.env}-{self.rule}"

    def command(self, folder: str) -> list[str]:
        steps, seeds = (256, 2) if self.quick else (ENVIRONMENTS[self.env], 8)
        size = ["--seeds", str(seeds), "--total-steps", str(steps), "--eval-every", str(steps // EVALUATIONS)]
        flags = [*size, *RULES[self.rule], *(QUICK if self.quick else ())]
        return ["telescope", "train", "ppo", self.env, *flags, "--out", folder]


def line(row: Row, folder: Path) -> str:
    """A row of the table, of a finished run."""
    found, table = measured(folder), read_metrics(RunFolder.open(folder))
    run: dict[str, Any] = {name: np.asarray(column) for name, column in table.items()}
    curve = [np.nanmean(run["eval_return_mean"][run["seed"] == seed]) for seed in np.unique(run["seed"])]
    lam = f"{np.nanmean(run['lam_mean']):.3f}" if "lam_mean" in run else "preset"
    digits = 1 if max(map(abs, found["per_seed"])) < 1000 else 0

    def number(x: float) -> str:
        return f"{x:,.{digits}f}".replace("-", "−")

    low, high = map(number, found["ci95"])
    cells = [
        row.env,
        row.rule,
        f"`{' '.join(RULES[row.rule])}`" if RULES[row.rule] else "",
        f"{number(found['iqm'])} [{low}, {high}]",
        f"{number(found['max'][0])} ± {number(found['max'][1])}",
        f"{number(float(np.mean(curve)))} ± {number(float(np.std(curve)))}",
        number(min(found["per_seed"])),
        lam,
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only rows whose name has one of these: ENVIRONMENT-RULE")
    parser.add_argument("--runs", type=Path, default=Path("runs/lambda"), help="where the run folders are")
    parser.add_argument("--quick", action="store_true", help="two seeds and a few hundred steps, to try it out")
    parser.add_argument("--list", action="store_true", help="only print the commands")
    chosen = parser.parse_args()
    place = chosen.runs / "quick" if chosen.quick else chosen.runs
    rows = [Row(env, rule, chosen.quick) for env in ENVIRONMENTS for rule in RULES]
    wanted = [row for row in rows if not chosen.words or any(word in row.name for word in chosen.words)]
    if chosen.list:
        print("\n".join(" ".join(row.command(str(place / row.name))) for row in wanted))
        return
    for row in wanted:
        train(row, place / row.name)
        measured(place / row.name)
    print("\n".join([HEAD, *(line(row, place / row.name) for row in wanted)]))


if __name__ == "__main__":
    main()

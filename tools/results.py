"""Print the table of docs/results.md from finished run folders: python tools/results.py RUN [RUN …].

Two metrics per run, because published tables use one or the other: the maximum over training of a seed's mean
evaluation return (mean ± deviation over seeds), and the final deterministic evaluation (interquartile mean over seeds
with its 95 % bootstrap interval).
"""

import argparse

import numpy as np

import telescope
from telescope.metrics import summarise
from telescope.runs import RunFolder, read_metrics


def best_over_training(folder: RunFolder) -> np.ndarray:
    """The highest evaluation mean of each seed [S]."""
    table = read_metrics(folder)
    return np.array([np.nanmax(table["eval_return_mean"][table["seed"] == seed]) for seed in folder.seeds])


def row(path: str, episodes: int) -> str:
    folder = RunFolder.open(path)
    best = best_over_training(folder)
    final = summarise(telescope.load(path).evaluate(episodes).returns)
    seconds = read_metrics(folder)["time_total"].max()
    cells = [
        folder.config_mapping()["env"],
        f"{best.mean():,.0f} ± {best.std():,.0f}",
        f"{final['iqm']:,.0f} [{final['ci95'][0]:,.0f}, {final['ci95'][1]:,.0f}]",
        f"{final['worst']:,.0f}",
        ", ".join(f"{x:,.0f}" for x in final["per_seed"]),
        f"{seconds / 60:.0f} min",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--episodes", type=int, default=100, help="episodes per seed of the final evaluation")
    arguments = parser.parse_args()
    print("| environment | max over training | final, IQM [95 % interval] | worst seed | each seed | time |")
    print("|---|---|---|---|---|---|")
    for path in arguments.runs:
        print(row(path, arguments.episodes), flush=True)


if __name__ == "__main__":
    main()

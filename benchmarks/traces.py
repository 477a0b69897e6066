"""The textbook's two experiments on λ and α: `python -m benchmarks.traces` draws both, and prints their tables.

The random walk of 19 states (Sutton & Barto 2018, figures 12.3 and 12.8): error of the values over 10 episodes, by
TD(λ) and by true online TD(λ). MountainCar without a time limit (figure 12.10): steps per episode over the first 50
episodes of SARSA(λ) with replacing traces and 8 tilings of 8 × 8. All settings and runs are rows of one batch of the
array functions in `telescope.estimators.eligibility`. Leaves out the trainer (`telescope train sarsa_lambda`).
"""

# R rows: a pair (λ, α), or a run of one
import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from telescope.control.agents.features import of_pair, tile_coding
from telescope.estimators.eligibility import td_lambda_step, true_online_step
from telescope.quiet import quiet

STATES, EPISODES = 19, 10
TRUTH = np.arange(-9, 10) / 10  # v(s) of the walk with −1 at the left end and 1 at the right
WALK_LAMS = (0.0, 0.4, 0.8, 0.9, 0.95, 0.975, 0.99, 1.0)
WALK_ALPHAS = tuple(round(0.05 * i, 2) for i in range(1, 21))
CAR_LAMS = (0.0, 0.68, 0.84, 0.92, 0.96, 0.98, 0.99)
CAR_ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.4)  # times the number of tilings
CAR_EPISODES, MOST_STEPS = 50, 20_000
LOW, HIGH = np.array([-1.2, -0.07], np.float32), np.array([0.6, 0.07], np.float32)


def walk(random: np.random.Generator) -> list[int]:
    """The states of one episode, with −1 or STATES at the end."""
    states = [STATES // 2]
    while 0 <= states[-1] < STATES:
        states.append(states[-1] + int(random.choice([-1, 1])))
    return states


@quiet
def walk_errors(runs: int, lams: Any = WALK_LAMS, alphas: Any = WALK_ALPHAS) -> dict[str, np.ndarray]:
    """RMS error of the values, mean over states, episodes and runs: method → [λ, α]. What diverges counts as 10."""
    lam, alpha = (x.reshape(-1, 1) for x in np.meshgrid(lams, alphas, indexing="ij"))  # [R, 1]
    one_hot = np.vstack([np.eye(STATES), np.zeros((2, STATES))])  # the last row, −1 and STATES: no state
    total = {"TD(λ)": np.zeros(len(lam)), "true online TD(λ)": np.zeros(len(lam))}
    for run in range(runs):
        episodes = [walk(np.random.default_rng([run, episode])) for episode in range(EPISODES)]
        for name, error in total.items():
            w = trace = np.zeros((len(lam), STATES))
            old = np.zeros_like(lam)
            for states in episodes:
                for t, (s, following) in enumerate(itertools.pairwise(states)):
                    over = following in (-1, STATES)
                    reward = np.full_like(lam, over * (1 if following > 0 else -1))
                    place = (one_hot[s][None], one_hot[following][None], reward)
                    how: dict[str, Any] = {"discount": 1.0 - over, "decay": lam * (t > 0), "step_size": alpha}
                    if name == "TD(λ)":
                        w, trace, _ = td_lambda_step(w, trace, *place, **how)
                    else:
                        w, trace, _, old = true_online_step(w, trace, old, *place, **how)
                error += np.fmin(np.sqrt(((w - TRUTH) ** 2).mean(1)), 10) / (EPISODES * runs)
    return {name: error.reshape(len(lams), len(alphas)) for name, error in total.items()}


def car_steps(runs: int, lams: Any = CAR_LAMS, alphas: Any = CAR_ALPHAS, kind: str = "replacing") -> np.ndarray:
    """Steps per episode over the first 50 episodes of SARSA(λ), mean over runs: [λ, α]. ε = 0, γ = 1, weights from 0.

    A run that has not ended 50 episodes after 20,000 steps counts as 400 steps an episode.
    """
    features, random = tile_coding(LOW, HIGH, tilings=8, tiles=8), np.random.default_rng(0)
    lam, alpha, _ = (x.reshape(-1, 1).astype(np.float32) for x in np.meshgrid(lams, alphas, range(runs), indexing="ij"))
    row = np.arange(len(lam))
    used, left = np.full(len(lam), float(MOST_STEPS)), np.full(len(lam), CAR_EPISODES)
    weights = trace = np.zeros((len(lam), features.size * 3), np.float32)
    place = start(random, len(lam))
    phi = features.apply(place)
    action = best(weights, phi)
    fresh = np.ones((len(lam), 1), bool)
    for step in range(1, MOST_STEPS + 1):
        place, over = drive(place, action)
        reached = features.apply(place)
        following = best(weights, reached)
        here, ahead = (of_pair(x, np.eye(3, dtype=np.float32)[a]) for x, a in ((phi, action), (reached, following)))
        how: dict[str, Any] = {"discount": np.where(over, np.float32(0), np.float32(1))[:, None], "kind": kind}
        decay = np.where(fresh, np.float32(0), lam)
        rewards = np.full_like(lam, -1.0)
        weights, trace, _ = td_lambda_step(
            weights, trace, here, ahead, rewards, decay=decay, step_size=alpha / 8, **how
        )
        fresh = over[:, None]
        if over.any():
            left[row[over]] -= 1
            place = np.where(over[:, None], start(random, len(place)), place)
            reached = features.apply(place)
            following = np.where(over, best(weights, reached), following)
            used[row[(left[row] == 0)]] = step
            keep = left[row] > 0
            if not keep.all():
                row, lam, alpha, fresh, weights, trace, place, reached, following = (
                    x[keep] for x in (row, lam, alpha, fresh, weights, trace, place, reached, following)
                )
            if not len(row):
                break
        phi, action = reached, following
    return (used / CAR_EPISODES).reshape(len(lams), len(alphas), runs).mean(2)


def start(random: np.random.Generator, count: int) -> np.ndarray:
    return np.stack([random.uniform(-0.6, -0.4, count), np.zeros(count)], 1).astype(np.float32)


def best(weights: np.ndarray, phi: np.ndarray) -> np.ndarray:
    return (phi[:, None] @ weights.reshape(len(phi), -1, 3))[:, 0].argmax(1)


def drive(place: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """MountainCar's dynamics: the next position and velocity, and whether the car is up."""
    x, v = place.T
    v = np.clip(v + (action - 1) * 0.001 - 0.0025 * np.cos(3 * x), -0.07, 0.07)
    x = np.clip(x + v, -1.2, 0.6)
    v = np.where((x <= -1.2) & (v < 0), 0, v)
    return np.stack([x, v], 1).astype(np.float32), x >= 0.5


def table(found: np.ndarray, lams: Any, alphas: Any, digits: int) -> str:
    """The best α of each λ, as rows of Markdown."""
    rows = [
        f"| {lam} | {alphas[row.argmin()]} | {row.min():.{digits}f} |" for lam, row in zip(lams, found, strict=True)
    ]
    return "\n".join(["| λ | best α | there |", "|---|---|---|", *rows])


def draw(
    panels: dict[str, np.ndarray], lams: Any, alphas: Any, labels: tuple[str, str], top: float, path: Path
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (title, found) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for lam, row in zip(lams, found, strict=True):
            axes.plot(alphas, row, label=f"λ = {lam}")
        axes.set(title=title, xlabel=labels[0], ylabel=labels[1], ylim=(found.min() * 0.9, top))
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30, help="runs of each pair of λ and α")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the two pictures")
    options = parser.parse_args()
    errors = walk_errors(options.runs)
    labels = ("α", "RMS error, mean of 10 episodes")
    draw(errors, WALK_LAMS, WALK_ALPHAS, labels, 0.55, options.out / "traces-walk.png")
    for name, found in errors.items():
        print(
            f"{name} on the random walk, {options.runs} runs\n{table(found, WALK_LAMS, WALK_ALPHAS, 3)}\n", flush=True
        )
    steps = car_steps(options.runs)
    labels = ("α × 8 tilings", "steps per episode, first 50 episodes")
    draw({"SARSA(λ) on MountainCar": steps}, CAR_LAMS, CAR_ALPHAS, labels, 300, options.out / "traces-mountain-car.png")
    print(f"SARSA(λ) on MountainCar, {options.runs} runs\n{table(steps, CAR_LAMS, CAR_ALPHAS, 0)}")


if __name__ == "__main__":
    main()

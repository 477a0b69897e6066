"""`telescope lab WORD`: a table of words, and `study`, every estimator against the truth of a small world.

Leaves out what is measured (`telescope.lab.study`), `explore` (`explore.py`) and `gae-paper` (`gae_paper.py`).
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from telescope.commands.arguments import HELP, parse, positionals
from telescope.commands.explore import ExploreOptions, explore
from telescope.commands.gae_paper import MapOptions, gae_paper


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """Measure bias, variance and error of every estimator on a world whose truth is known."""

    world: Literal["garnet", "chain", "random_walk", "grid_world"] = "garnet"
    """A random process, a corridor, the random walk of Sutton and Barto's textbook, or a grid."""
    gamma: float = 0.95
    """Discount factor γ."""
    time_limit: int = 20
    """Steps after which an episode is truncated."""
    steps: int = 64
    """Steps of each rollout (T in formulas)."""
    rollouts: int = 2000
    """Number of rollouts."""
    batch: int = 32
    """Rollouts per gradient, for the table: more of them make noise smaller, but not bias."""
    seed: int = 0
    """Random seed of world, policy and rollouts."""
    out: str = "lab"
    """Folder for study.png and study.csv."""

    def __post_init__(self) -> None:
        for name in ("time_limit", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.rollouts < 25:
            raise ValueError(f"rollouts is {self.rollouts}; expected at least 25, or nothing can be told")
        if not 0 <= self.gamma < 1:
            raise ValueError(f"gamma is {self.gamma}; expected a number from 0 on and below 1")


def _study(paths: list[str], options: StudyOptions) -> int:
    if paths:
        raise ValueError(f"telescope lab study takes no arguments but flags, got {' '.join(paths)}")
    import numpy as np

    from telescope.lab import worlds
    from telescope.lab.demonstrations import two_turns
    from telescope.lab.figures import draw
    from telescope.lab.mdp import softmax
    from telescope.lab.study import case, study

    rng = np.random.default_rng(options.seed)
    limit: dict[str, Any] = {"time_limit": options.time_limit}
    world = (
        worlds.garnet(rng, ending=0.05, **limit)
        if options.world == "garnet"
        else getattr(worlds, options.world)(**limit)
    )
    policy = softmax(rng.normal(size=(world.states, world.actions)))
    sizes: dict[str, Any] = {"gamma": options.gamma, "steps": options.steps, "rollouts": options.rollouts}
    lines = study(world, policy, seed=options.seed, **sizes)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    hasty = world._replace(time_limit=min(4, options.time_limit))  # mistakes at time limits show where there are many
    draw(lines, case(hasty, policy, kind="exact", gamma=options.gamma, rng=rng, rollouts=6400), folder / "study.png")
    with open(folder / "study.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["values", "estimator", "parameter", "setting", *lines[0].measured._fields])
        writer.writerows([*line[:4], *line.measured] for line in lines)
    _print(lines, options.batch)
    turns = two_turns(rng)
    print(f"\ntwo turns: the gradient towards a second turn is {turns.right:+.3f}; with the mean of all samples as the")
    print(f"baseline {turns.group:+.3f}, with that of the samples that stopped at the same turn {turns.per_turn:+.3f}")
    print(f"\n{folder / 'study.png'} and {folder / 'study.csv'}")
    return 0


def _print(lines: Any, batch: int) -> None:
    """The table: of each estimator and value function the setting with the least error of the gradient."""
    print(
        f"policy gradient of {batch} rollouts: bias / noise in units of its length, at the setting with the least error"
    )
    kinds, names = (list(dict.fromkeys(getattr(line, x) for line in lines)) for x in ("values", "estimator"))
    print(f"{'':<20}" + "".join(f"{kind + ' V':>23}" for kind in kinds))
    for name in names:
        cells = []
        for kind in kinds:
            rows = [line for line in lines if (line.values, line.estimator) == (kind, name)]
            best = min(rows, key=lambda line: line.measured.gradient_bias**2 + noise(line, batch) ** 2)
            setting = f"{best.parameter} {best.setting:g}: " if best.parameter else ""
            cells.append(f"{setting}{best.measured.gradient_bias:.2f} / {noise(best, batch):.2f}")
        print(f"{name:<20}" + "".join(f"{cell:>23}" for cell in cells))


def noise(line: Any, batch: int) -> float:
    """The deviation of the mean gradient of so many rollouts."""
    return float(line.measured.gradient_deviation) / batch**0.5


class Word(NamedTuple):
    """What follows `telescope lab`."""

    arguments: str
    options: type[Any]
    run: Callable[[list[str], Any], int]
    """run(the arguments that are no flags, the options) → exit status"""


WORDS = {
    "study": Word("", StudyOptions, _study),
    "explore": Word(" RUN|rollout.npz", ExploreOptions, explore),
    "gae-paper": Word("", MapOptions, gae_paper),
}


def lab(arguments: list[str]) -> int:
    """`telescope lab WORD …`."""
    free, _ = positionals(arguments, *(word.options for word in WORDS.values()))
    usage = "\n".join(f"  telescope lab {name}{word.arguments} [flags]" for name, word in WORDS.items())
    if not free:
        if HELP & set(arguments):
            print(f"usage:\n{usage}\n\nEach word explains its flags with --help.")
            return 0
        raise ValueError(f"telescope lab needs a word: {', '.join(WORDS)}")
    if free[0] not in WORDS:
        raise ValueError(f"telescope lab knows {', '.join(WORDS)}, got {free[0]}")
    word = WORDS[free[0]]
    (name, *rest), flags = positionals(arguments, word.options)
    return word.run(rest, parse(word.options, flags, f"telescope lab {name}{word.arguments}"))

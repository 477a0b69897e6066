"""`telescope lab gae-paper`: the GAE paper's map over λ and γ on its cart-pole, or of PPO on another environment.

Leaves out what is learned (`telescope.lab.gae_paper`) and the map (`telescope.lab.maps`).
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class MapOptions:
    """Learn the GAE paper's cart-pole with every λ and γ, and draw its figure 2."""

    env: str = "cart-pole"
    """cart-pole: the paper's experiment, with TRPO. A Gymnasium id: the same map of PPO with its preset."""
    seeds: int | None = None
    """Number of seeds of each cell. none: 21 as in the paper, 8 of PPO, 4 with --quick."""
    lams: tuple[float | None, ...] | None = ()
    """Values of λ, and none for no value function (cart-pole only). Without this flag: ten of them, and none."""
    gammas: tuple[float, ...] = ()
    """Values of the discount factor γ. Without this flag: seven of them from 0.9 to 1."""
    iterations: int | None = None
    """Iterations of each run. none: 20 as in the paper, as many as PPO's preset has, a few with --quick."""
    whiten: bool = False
    """Whiten the advantages of each batch of cart-pole. The paper does not say that it did."""
    jobs: int = 0
    """Processes that share the cells. 0: one per processor."""
    quick: bool = False
    """A small map: 4 seeds, λ 0, 0.95 and 1, γ 0.99, 12 iterations, where other flags do not say otherwise."""
    out: str | None = None
    """Folder for picture, table and curves, where a stopped map goes on. none: lab/gae-paper, or one of its kin."""

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("iterations", 1), ("jobs", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; expected at least {least}")
        for name in ("lams", "gammas"):
            for value in getattr(self, name) or ():
                if value is not None and not 0 <= value <= 1:
                    raise ValueError(f"{name} has {value:g}; expected numbers between 0 and 1")


LAMS = (0.0, 0.5, 0.8, 0.9, 0.92, 0.95, 0.96, 0.98, 0.99, 1.0)
GAMMAS = (0.9, 0.95, 0.96, 0.98, 0.99, 0.995, 1.0)


def gae_paper(paths: list[str], options: MapOptions) -> int:
    """`telescope lab gae-paper [flags]`."""
    if paths:
        raise ValueError(f"telescope lab gae-paper takes no arguments but flags, got {' '.join(paths)}")
    from telescope.lab import map_figures, maps
    from telescope.processors import processors

    task, wanted = chosen(options)
    folder, found, started = folder_of(options), dict[Any, Any](), time.monotonic()
    for cell, curve in maps.measure(folder, task, wanted, options.jobs or processors()):
        found[cell] = curve
        print(
            f"{len(found)} of {len(wanted)}, {(time.monotonic() - started) / 60:.1f} min: {line(task, cell, curve)}",
            flush=True,
        )
    map_figures.draw(task, found, folder / "gae-paper.png")
    map_figures.write_table(task, found, folder / "gae-paper.csv")
    print(f"\n{map_figures.names(task)[1]}, mean of {task.seeds} seeds ± standard error\n")
    print(map_figures.table(task, found))
    print(f"\n{folder / 'gae-paper.png'} and {folder / 'gae-paper.csv'}")
    return 0


def folder_of(options: MapOptions) -> Path:
    """The folder that was asked for, or one for each kind of map."""
    if options.out is not None:
        return Path(options.out)
    env = "" if options.env == MapOptions.env else f"-{options.env.replace('/', '-')}"
    return Path("lab", f"gae-paper{env}{'-whitened' * options.whiten}{'-quick' * options.quick}")


def line(task: Any, cell: Any, curve: Any) -> str:
    """A cell that is done, in words."""
    from telescope.lab.maps import summary

    lam, numbers = "no value function" if cell.lam is None else f"λ {cell.lam:g}", summary(task, curve)
    return f"{lam}, γ {cell.gamma:g}: {numbers.final:.0f} at the end, {numbers.whole:.0f} on the way"


def chosen(options: MapOptions) -> tuple[Any, list[Any]]:
    """The task of these options, and the cells of its map."""
    from telescope.lab import maps

    paper, quick = options.env == maps.PAPER, options.quick
    given = (None,) if options.lams is None else options.lams  # a lonely `--lams none`
    lams = given or ((0.0, 0.95, 1.0) if quick else (*LAMS, None) if paper else LAMS)
    gammas = options.gammas or ((0.99,) if quick else GAMMAS)
    seeds = options.seeds or (4 if quick else 21 if paper else 8)
    iterations = options.iterations or (12 if quick else 20)
    if options.iterations is None and not paper:
        from telescope.algorithms.ppo import preset

        iterations = preset(options.env).iterations // (10 if quick else 1)
    if not paper and options.whiten:
        raise ValueError(f"whiten is for cart-pole, but env is {options.env}, where PPO's preset decides; leave it out")
    if not paper and None in lams:
        raise ValueError(f"lams has none, but PPO on {options.env} always has a value function; leave none out")
    return maps.Task(options.env, seeds, iterations, options.whiten), maps.cells(lams, gammas)

"""`telescope sweep FILE.toml`: a grid or random draws of settings × seeds, on Ray Tune.

Leaves out the sweep itself (`telescope.sweep`).
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from telescope.algorithms import config_class, find, meant
from telescope.commands.arguments import HELP, parse
from telescope.commands.tune import space_of

KEYS = ("algorithm", "config", "space", "samples", "grace")
"""What stands in a file: the algorithm, its settings, the space, random draws (0: the grid), and ASHA's first share."""


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """Where to sweep."""

    out: str | None = None
    """New folder for the table, the plot and the best settings. Default: sweeps/FILE-DATE-TIME."""
    ray_address: str | None = None
    """Ray cluster to run trials on: its address, or auto. none: this machine."""
    at_once: int = 0
    """Trials that run side by side. 0: one per processor."""


def sweep(arguments: list[str]) -> int:
    """`telescope sweep FILE.toml [flags]`."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: telescope sweep FILE.toml [--out FOLDER] [--ray-address ADDRESS] [--at-once N]")
        return 0 if HELP & set(arguments) else 2
    file, flags = arguments[0], arguments[1:]
    options: SweepOptions = parse(SweepOptions, flags, f"telescope sweep {file}")
    config, space, more = read(file)
    from telescope.sweep import BEST, PICTURE, TABLE
    from telescope.sweep import sweep as run

    out = options.out or Path("sweeps") / f"{Path(file).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    found = run(config, space, out, ray_address=options.ray_address, at_once=options.at_once, **more)
    best = found.rows[0]
    print(f"best of {len(found.rows)} trials: {best['score']:.6g} [{best['low']:.6g}, {best['high']:.6g}]")
    print(", ".join(f"{name} {best[name]}" for name in space))
    print(f"table: {found.path / TABLE}\nplot: {found.path / PICTURE}\nsettings: {found.path / BEST}")
    return 0


def read(file: str) -> tuple[Any, Any, dict[str, Any]]:
    """The config, the space, and further arguments of a sweep from its file."""
    from telescope.runs.formats.config import from_mapping, read_toml, to_mapping

    asked = read_toml(file)
    if unknown := asked.keys() - set(KEYS):
        raise ValueError(f"{file} has {min(unknown)!r}; expected {', '.join(KEYS)}")
    for name in ("algorithm", "config", "space"):
        if name not in asked:
            raise ValueError(f"{file} has no {name}; expected {', '.join(KEYS)}")
    settings = asked["config"]
    if "env" not in settings:
        raise ValueError(f"{file} names no env; expected one under [config]")
    algorithm, preset = meant(asked["algorithm"], settings["env"])
    default = to_mapping(find(algorithm).preset(settings["env"], **preset))
    config = from_mapping(config_class(algorithm), default | settings, source=file)
    more: dict[str, Any] = {name: asked[name] for name in ("samples", "grace") if name in asked}
    return config, space_of(asked["space"], file), more

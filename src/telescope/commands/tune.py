"""`telescope tune`: search for settings, several seeds in each trial.

Leaves out the search itself (`telescope.tuning`).
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from telescope.algorithms import PRESETS, algorithm_of
from telescope.algorithms.spaces import SPACES, Choice, Range, Space
from telescope.commands.arguments import HELP
from telescope.commands.train import train_arguments

SEEDS = 4
"""Seeds of a trial, unless --seeds says another number."""
FRESH = 1_000
"""How far the seeds of the suggested run are from those of the search, which chose by them."""

MENTIONED = 5
"""Settings whose importance is printed; the picture has all."""


@dataclasses.dataclass(frozen=True)
class TuneOptions:
    """Search options."""

    trials: int = 50
    """Trials that the folder shall hold. The first has the preset's settings; a search goes on if there are fewer."""
    out: str | None = None
    """Folder of the search. The same folder again continues it. Default: tuning/ALGORITHM-ENV-DATE-TIME."""
    config: str | None = None
    """TOML file with settings, such as a run's config.toml. Flags override it."""
    only: tuple[str, ...] = ()
    """Search these settings only, such as learning_rate gamma. Default: the whole space of the algorithm."""
    space: str | None = None
    """TOML file with a space of your own, with lines such as clip = [0.1, 0.2] or lam = {low = 0.8, high = 1.0}."""


def tune(arguments: list[str]) -> int:
    """`telescope tune ALGORITHM ENV [flags]`."""
    if not arguments or arguments[0].startswith("-"):
        print(f"usage: telescope tune ALGORITHM ENV [flags]\nALGORITHM is one of: {', '.join((*SPACES, *PRESETS))}")
        return 0 if HELP & set(arguments) else 2
    name, rest = arguments[0], arguments[1:]
    subject = rest.pop(0) if rest and not rest[0].startswith("-") else None
    config, options = train_arguments(name, subject, rest, TuneOptions, "tune", {"seeds": SEEDS})
    from telescope.tuning import PICTURE, TABLE, in_words  # loads NumPy
    from telescope.tuning import tune as search

    found = search(config, options.out, trials=options.trials, space=_space(config, options), say=_say)
    low, high = found.interval
    print(f"best of {len(found.trials)} trials: {found.score:.6g} [{low:.6g}, {high:.6g}], IQM of {config.seeds} seeds")
    if found.preset is not None:
        print(f"the settings it began with: {found.preset:.6g}")
    if found.importances:
        shares = [f"{one} {share:.0%}" for one, share in list(found.importances.items())[:MENTIONED]]
        print(f"what mattered: {', '.join(shares)}")
    changed = {one: value for one, value in found.settings.items() if value != getattr(config, one)}
    print(f"settings that changed: {in_words(changed) or 'none'}")
    print(f"table: {found.path / TABLE}\npicture: {found.path / PICTURE}")
    print(f"next, with seeds that the search has not seen:\n  {_next(name, found, config)}")
    return 0


def _next(name: str, found: Any, config: Any) -> str:
    """A command that trains the best settings with other seeds."""
    from telescope.tuning import BEST

    words = ["telescope", "train", name, config.env, "--config", str(found.path / BEST)]
    return shlex.join([*words, "--seeds", "8", "--seed", str(config.seed + FRESH)])


def _space(config: Any, options: TuneOptions) -> Space:
    """The space of the algorithm or of --space, and of that the settings of --only."""
    space = SPACES.get(algorithm_of(config), {}) if options.space is None else _read(options.space)
    for name in options.only:
        if name not in space:
            raise ValueError(f"--only names {name!r}; expected some of {', '.join(space)}, or a --space with it")
    return {name: space[name] for name in options.only or space}


def _read(file: str) -> Space:
    """A search space from a TOML file."""
    from telescope.runs.formats.config import read_toml

    return space_of(read_toml(file), file)


def space_of(mapping: Mapping[str, Any], file: str) -> Space:
    """A search space from the tables of a TOML file."""
    space: dict[str, Choice | Range] = {}
    for name, values in mapping.items():
        if isinstance(values, list):
            space[name] = Choice(tuple(tuple(one) if isinstance(one, list) else one for one in values))
        elif isinstance(values, dict) and {"low", "high"} <= values.keys() <= set(Range._fields):
            space[name] = Range(**values)
        else:
            raise ValueError(
                f"{file}: {name} is {values!r}; expected a list of values, or a table with low and high, and log, "
                "below_one or whole"
            )
    return space


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)

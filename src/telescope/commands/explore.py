"""`telescope lab explore`: a rollout as one HTML page in which you move γ and λ.

Leaves out the page (`telescope.lab.explorer`), and where its rollouts come from (`telescope.lab.files`, `playing`,
`completing`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from telescope.commands.arguments import notes

if TYPE_CHECKING:
    from telescope.lab.evidence import Rollout
    from telescope.lab.explorer import Extras

STEPS, ENVS, PROMPTS = 512, 4, 8
FILES = ("convention",)
AGENTS = ("steps", "envs", "seed", "best", "trust", "device")
MODELS = ("prompts", "trust", "device")


@dataclasses.dataclass(frozen=True)
class ExploreOptions:
    """Write one HTML page in which you move γ and λ and see advantages and targets change. It needs no network.

    From a run of ours, whose agent plays or whose language model answers; or from an npz file, as for the doctor.
    """

    out: str | None = None
    """HTML file to write. Default: the name of the run or file with .html, in this folder."""
    convention: Literal["telescope", "sb3", "cleanrl", "torchrl", "rlax", "tianshou", "trl", "verl"] | None = None
    """npz files: the library whose names, time axis and flags the file has. Default: telescope."""
    steps: int | None = None
    """Agents: steps of each environment to play. Default: 512."""
    envs: int | None = None
    """Agents: environments to play in, each a column of the page. Default: 4."""
    seed: int | None = None
    """Agents: the seed whose agent plays. Default: the run's first."""
    best: bool = False
    """Agents: take the agent with the best evaluation during training, instead of the final one."""
    prompts: int | None = None
    """Language models: prompts to answer, each with a group of completions. Default: 8."""
    device: str | None = None
    """Runs: device of the networks. Default: the one they were trained on, or the CPU if this machine lacks it."""
    trust: bool = False
    """Runs: run the code that the run names (an environment, a reward file), even if somebody else began the run."""

    def __post_init__(self) -> None:
        for name in ("steps", "envs", "prompts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")


def explore(paths: list[str], options: ExploreOptions) -> int:
    """`telescope lab explore RUN|rollout.npz [flags]`."""
    if len(paths) != 1:
        raise ValueError(f"telescope lab explore takes one run folder or npz file, got {len(paths)}: {' '.join(paths)}")
    from telescope.lab.explorer import write

    source = Path(paths[0])
    with notes():
        rollout, extras = _rollout(source, options)
    name = source.resolve().name.removesuffix(".npz")
    out = Path(f"{name}.html" if options.out is None else options.out)
    write(out, rollout, title=f"{name}: advantages", extras=extras)
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB); open it in a browser")
    return 0


def _rollout(source: Path, options: ExploreOptions) -> tuple[Rollout, Extras]:
    if not source.is_dir():
        _require_unset(options, "an npz file", FILES)
        from telescope.lab.explorer import from_file

        return from_file(source, options.convention or "telescope")
    from telescope.algorithms import LANGUAGE
    from telescope.runs.folder import RunFolder

    loading: dict[str, Any] = {"trust": options.trust, "device": options.device}
    if RunFolder.open(source).algorithm in LANGUAGE:
        _require_unset(options, "a run of a language model", MODELS)
        from telescope.lab.completing import completed

        return completed(source, prompts=options.prompts or PROMPTS, **loading)
    _require_unset(options, "a run of agents", AGENTS)
    from telescope.lab.playing import played

    steps, envs = options.steps or STEPS, options.envs or ENVS
    return played(source, steps=steps, envs=envs, seed=options.seed, best=options.best, **loading)


def _require_unset(options: ExploreOptions, kind: str, meant: tuple[str, ...]) -> None:
    """A ValueError for a flag that this kind of source does not read."""
    for field in dataclasses.fields(options):
        if field.name not in ("out", *meant) and getattr(options, field.name) != field.default:
            raise ValueError(f"--{field.name} has no effect on {kind}; leave it out")

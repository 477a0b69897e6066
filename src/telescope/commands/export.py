"""`telescope export`: write a trained agent as an ONNX graph, or as arrays for a reader that needs only NumPy."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from telescope.algorithms import LANGUAGE
from telescope.commands.arguments import HELP, notes, parse, positionals
from telescope.runner import wait_asleep


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Write an agent of a run for use without telescope, and check the file against the agent."""

    out: tuple[str, ...] = ("policy.onnx",)
    """Files to write: policy.onnx for ONNX Runtime and others, policy.npz for NumPy."""
    seed: int | None = None
    """Seed of the agent. none: the run's first, or with --best the one with the best evaluation."""
    best: bool = False
    """The seed's best agent by its evaluations in training (--eval-every), instead of the final agent."""
    reader: bool = False
    """With a .npz: write reader.py beside it, the one file that acts with it and needs nothing but NumPy."""
    trust: bool = False
    """Run the code that the run names (a network's module), even if somebody else began the run."""


def export(arguments: list[str]) -> int:
    """`telescope export RUN --out FILE`."""
    from telescope.runs.folder import RunFolder

    runs, flags = positionals(arguments, ExportOptions)
    options: ExportOptions = parse(ExportOptions, flags, "telescope export RUN", {})
    if len(runs) != 1 and not HELP & set(flags):
        raise ValueError(f"telescope export takes one run folder, got {len(runs)}")
    arrays = [one for one in options.out if one.endswith(".npz")]
    if options.reader and not arrays:
        raise ValueError(f"--reader reads arrays, but --out is {' '.join(options.out)}; expected a policy.npz")
    if RunFolder.open(runs[0]).algorithm in LANGUAGE:
        raise ValueError(
            f"{runs[0]} is a run of a language model, which is a transformers folder already: {Path(runs[0], 'model')}"
        )
    wait_asleep()
    from telescope.deploy import exporting
    from telescope.policy import load

    for one in options.out:
        exporting.require_out(one)
    exporting.require_packages()
    with notes():
        policy = load(runs[0], best=options.best, trust=options.trust)
    seed = policy.best_seed if options.seed is None and options.best else options.seed
    which = policy.seeds[policy.position(seed)]
    for file, difference in exporting.export(policy, *options.out, seed=seed).items():
        print(f"seed {which}: {file}, largest difference from the agent {difference:.1e}", file=sys.stderr)
    if options.reader:
        print(f"reader: {exporting.write_reader(Path(arrays[0]).parent)}", file=sys.stderr)
    return 0

"""`telescope record`: play episodes with the agents of a run, and write them as demonstrations.

Leaves out what is learned from them (`algorithms/bc.py`).
"""

from __future__ import annotations

import dataclasses
import sys

from telescope.commands.arguments import notes, parse, positionals
from telescope.runner import wait_asleep


@dataclasses.dataclass(frozen=True)
class RecordOptions:
    """Play whole episodes with the agents of a run, and write their steps into an npz file."""

    out: str = "demonstrations.npz"
    """File to write."""
    episodes: int = 100
    """Number of episodes, of all agents together."""
    agent: int | None = None
    """Seed of the agent that plays. none: those of all seeds, in turn, which are harder to imitate."""
    stochastic: bool = False
    """Sample actions, instead of the most probable ones."""
    best: bool = False
    """Each seed's best agent by its evaluations in training, instead of the latest."""
    seed: int = 0
    """Random seed of the episodes."""
    max_steps: int | None = None
    """Cut an episode after this many steps. none: the run's eval_max_steps."""
    trust: bool = False
    """Run the code that the run names (an environment's module), even if somebody else began it."""


def record(arguments: list[str]) -> int:
    """`telescope record RUN --out FILE`."""
    runs, flags = positionals(arguments, RecordOptions)
    options: RecordOptions = parse(RecordOptions, flags, "telescope record RUN", {})
    if len(runs) != 1:
        raise ValueError(f"telescope record takes one run folder, got {len(runs)}")
    if options.episodes < 1:
        raise ValueError(f"episodes is {options.episodes}; expected at least 1")
    wait_asleep()
    from telescope.control.experience.demonstrations import write
    from telescope.policy import load

    with notes():
        policy = load(runs[0], best=options.best, trust=options.trust)
    arrays = policy.record(
        options.episodes,
        agent=options.agent,
        stochastic=options.stochastic,
        seed=options.seed,
        max_steps=options.max_steps,
    )
    write(options.out, arrays)
    ends = int((arrays["terminated"] | arrays["truncated"]).sum())
    mean = arrays["rewards"].sum() / ends
    print(f"{ends} episodes, {len(arrays['rewards']):,} steps, mean return {mean:,.1f}: {options.out}", file=sys.stderr)
    if options.agent is None and len(policy.seeds) > 1:
        note = f"{len(policy.seeds)} agents played in turn; one alone (--agent {policy.seeds[0]}) is easier to imitate"
        print(note, file=sys.stderr)
    return 0

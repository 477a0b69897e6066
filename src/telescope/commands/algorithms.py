"""`telescope algorithms`: what can be trained, as a table or as JSON.

Leaves out the table itself (`telescope.algorithms.catalogue`).
"""

from __future__ import annotations

import dataclasses
import json
from itertools import groupby

from telescope.algorithms.catalogue import CATALOGUE
from telescope.commands.arguments import parse


@dataclasses.dataclass(frozen=True)
class AlgorithmOptions:
    """List the algorithms: paper, where samples come from, action spaces, one measured result."""

    json: bool = False
    """Print a list of objects as JSON."""


def algorithms(arguments: list[str]) -> int:
    """`telescope algorithms [--json]`."""
    options: AlgorithmOptions = parse(AlgorithmOptions, arguments, "telescope algorithms")
    if options.json:
        print(json.dumps([entry._asdict() for entry in CATALOGUE], indent=2, ensure_ascii=False))
        return 0
    for subject, entries in groupby(CATALOGUE, lambda entry: entry.subject):
        print(f"On {subject}s: telescope train ALGORITHM {'ENV' if subject == 'environment' else 'TASK'}")
        for entry in entries:
            print(f"  {entry.name:<20} {entry.experience:<11} {entry.actions:<43} {entry.paper}")
            print(f"  {'':<20} {entry.measured or 'not measured yet'} (docs/{entry.page})")
        print()
    return 0

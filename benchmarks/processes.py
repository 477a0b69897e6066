"""A process under watch: the most memory that it and its children held.

It leaves out what is run.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

SAMPLE = 0.05  # seconds between two looks at the memory


def watched(worker: subprocess.Popen[bytes]) -> tuple[float | None, bytes]:
    """Waits for the process, looking at its memory meanwhile."""
    most = 0.0
    while True:
        try:
            _, stderr = worker.communicate(timeout=SAMPLE)
            return most or None, stderr
        except subprocess.TimeoutExpired:
            most = max(most, resident(worker.pid))


def resident(root: int) -> float:
    """Bytes that a process and its descendants hold; 0 where there is no /proc to ask."""
    parents, held = dict[int, int](), dict[int, float]()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it is gone
            continue
        parents[int(entry.name)] = int(fields[1])
        held[int(entry.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return sum(size for process, size in held.items() if root in ancestry(process, parents))


def ancestry(process: int, parents: dict[int, int]) -> Iterator[int]:
    while process:
        yield process
        process = parents.get(process, 0)

"""How many processors this process may use: what the system, a container and OMP_NUM_THREADS leave it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of a container: microseconds of processor time in each period, such as `150000 100000`, or `max`."""


def processors() -> int:
    """The processors of this machine that this process may run on, at most as many as its container is given."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a quota
        quota, period = map(int, QUOTA.read_text().split())
        allowed = min(allowed, -(-quota // period))
    return max(1, allowed)


def most_threads() -> int:
    """Threads that a process may have where nobody asks for a number: the processors, or OMP_NUM_THREADS if less."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list is for nested regions
    return min(processors(), int(first)) if first.isdecimal() and int(first) > 0 else processors()

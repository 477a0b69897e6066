"""The number of processors that this process may use, as the system, a container and OMP_NUM_THREADS allow."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""A container's quota: microseconds of processor time and of the period, such as `150000 100000`, or `max`."""


def processors() -> int:
    """The number of processors that this process may run on, at most its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a quota
        quota, period = map(int, QUOTA.read_text().split())
        allowed = min(allowed, -(-quota // period))
    return max(1, allowed)


def most_threads() -> int:
    """The default maximum of threads: the number of processors, or OMP_NUM_THREADS if that is less."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list is for nested regions
    return min(processors(), int(first)) if first.isdecimal() and int(first) > 0 else processors()

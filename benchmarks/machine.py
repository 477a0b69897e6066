"""What a number was measured on: hardware, versions, date and command.

It leaves out the numbers.
"""

import os
import platform
import re
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "telescope-rl", "numpy", "numba", "torch", "triton", "jax", "rlax", "stable-baselines3", "torchrl", "tianshou",
    "scipy",
)  # fmt: skip


def facts() -> dict[str, str]:
    """Name → value, for the head of the report."""
    versions = (f"{package} {installed(package)}" for package in PACKAGES)
    return {
        "processor": f"{processor()}, {cores()} cores for this process",
        "memory": f"{memory() / 2**30:.0f} GiB",
        **({"accelerator": accelerator()} if accelerator() else {}),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(versions),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": f"python -m benchmarks.estimators {shlex.join(sys.argv[1:])}".strip(),
    }


def name() -> str:
    """A file name for this machine."""
    words = f"{accelerator() or processor()} {cores()} cores"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def processor() -> str:
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else float("nan")


def accelerator() -> str:
    """The GPU's name; empty without one, or without torch."""
    try:
        import torch
    except ImportError:
        return ""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""

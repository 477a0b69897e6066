"""How a run on environments computes: compiled or eager, with how many threads, in how many processes.

Decided once, from the work of the whole run, and kept with it: these decide the last bits of its results.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from telescope.control.config import ControlConfig
from telescope.processors import most_threads, processors

UPDATES_THAT_PAY = 15_000
"""Gradient steps from which compiling saves time: it costs tens of seconds once, a compiled step is shorter."""
SAMPLES_WORTH_SHARING = 1024
"""Samples of a gradient step, of all seeds, from which two threads are clearly faster than one."""
STEPS_WORTH_SPREADING = 200_000
"""Environment steps, of all seeds, from which worker processes save more time than the seconds that they start in."""
MOST_PROCESSES = 16
"""Each holds a few hundred megabytes, and beyond these a share of the seeds hardly gets faster."""


def execution(config: ControlConfig) -> dict[str, Any]:
    """What must stay the same for a resumed run to be bit-exact; decided once, from the whole run's work."""
    pays = getattr(config, "updates", 0) >= UPDATES_THAT_PAY
    missing = missing_for_compiling(config.device)
    if config.compile == "on" and missing:
        raise ValueError(f"compile is 'on', but {missing}; install it, or train with compile 'off'")
    processes = config.processes or processes_that_pay(config)
    return {
        "compiled": config.compile == "on" or (config.compile == "auto" and pays and not missing),
        "cuda_graph": config.compile != "off" and config.device.startswith("cuda"),
        "threads": config.threads or threads_that_pay(config, processes),
        "processes": processes,
        "device": config.device,
        "backend": config.backend,
    }


def in_words(execution: dict[str, Any], config: ControlConfig) -> str:
    """How this run's arithmetic is done, and why, as a sentence for its user."""
    how = "compiled" if execution["compiled"] else "captured in CUDA graphs" if execution["cuda_graph"] else "eager"
    why = f"--compile {config.compile}"
    if config.compile == "auto":
        missing = missing_for_compiling(config.device)
        steps = getattr(config, "updates", 0)
        pays = f"{steps:,} gradient steps, and it pays from {UPDATES_THAT_PAY:,} on"
        why += f": {missing if missing and steps >= UPDATES_THAT_PAY else pays}"
    threads = execution["threads"]
    return f"updates are {how} ({why}), {threads} thread{'s' * (threads > 1)}"


def processes_that_pay(config: ControlConfig) -> int:
    """One for a short run; else as many as there are processors, each of which gets one seed or more."""
    apart = config.device != "cpu" or config.vectorization == "async"  # others than these processors do the work
    if apart or config.seeds * config.total_steps < STEPS_WORTH_SPREADING:
        return 1
    return min(processors(), config.seeds, MOST_PROCESSES)


def threads_that_pay(config: ControlConfig, processes: int) -> int:
    """One where a gradient step is so short that waking others takes as long; else a share of the processors, up to 4.

    OMP_NUM_THREADS is an upper bound.
    """
    samples = -(-config.seeds // processes) * getattr(config, "minibatch_size", 0)
    share = processors() // processes if samples >= SAMPLES_WORTH_SHARING else 1
    return max(1, min(share, 4, most_threads()))


def missing_for_compiling(device: str) -> str:
    """What torch.compile would lack on this machine, in words; empty if nothing. It writes C++ for the CPU."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device == "cpu" and shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler}) for torch.compile to use"
    if device == "cpu" and not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Python's headers (Python.h) are missing, which torch.compile needs"
    return ""

"""The execution mode of a run on environments: compiled or eager, the number of threads and processes.

It is decided once, from the work of the whole run, and stored with the run, because it affects the last bits of
results.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym

from telescope.checks import require_device
from telescope.control.config import AgentConfig, ControlConfig, LearnerConfig
from telescope.control.environments.described import described
from telescope.control.environments.factory import find_source, makes_batches
from telescope.control.environments.population import Environments
from telescope.control.experience.draws import require_memory
from telescope.control.off_policy import OffPolicyConfig
from telescope.control.starting import require_fit
from telescope.control.workers.cluster import processors_of
from telescope.processors import most_threads, processors

UPDATES_THAT_PAY = 15_000
"""From this number of gradient steps of a small network on, compiling saves time. It costs tens of seconds once."""
WEIGHTS_LIKE_A_STEP = 110_000
"""Compiling saves as much time on so many weights of an encoder as on all else of a gradient step."""
SAMPLES_WORTH_SHARING = 1024
"""From this number of samples per gradient step of small networks on (of all seeds), two threads are clearly faster."""
PRODUCTS = 10_000
"""Multiplications for one sample in small networks: a policy and a critic with two layers of 64 units."""
STEPS_WORTH_SPREADING = 200_000
"""From this number of environment steps on (of all seeds), worker processes save more time than they take to start."""
MOST_PROCESSES = 16
"""The maximum number of processes. Each needs a few hundred megabytes, and more hardly make a run faster."""


class Pictures(NamedTuple):
    """What reading the pictures of one sample takes in policy and critic together; zeros without pictures."""

    weights: int = 0
    products: int = 0


NO_PICTURES = Pictures()


def pictures_in(config: ControlConfig, space: gym.Space | None = None) -> Pictures:
    """The work on the pictures of an observation. Without its space, open an environment for it."""
    chosen = config.compile != "auto" and config.threads
    if chosen or not isinstance(config, AgentConfig) or config.encoder == "mlp" or config.network_module:
        return NO_PICTURES
    if space is None:
        environments = Environments.of(config, seeds=[config.seed], num_envs=1)
        environments.close()
        space = environments.observation_space
    encoders = [one.encoder for one in config.inputs(space) if one.encoder is not None]
    networks = 1 if getattr(config, "shared_network", False) or not config.learns_values else 2
    weights, products = (sum(getattr(one, name) for one in encoders) for name in Pictures._fields)
    return Pictures(networks * weights, networks * products)


def updates_that_pay(pictures: Pictures) -> int:
    """From this number of gradient steps on, compiling saves time."""
    return int(UPDATES_THAT_PAY / (1 + pictures.weights / WEIGHTS_LIKE_A_STEP))


def execution(config: ControlConfig, space: gym.Space | None = None) -> dict[str, Any]:
    """The settings that must stay the same for an exact resume, decided from the work of the whole run.

    It depends on the observation space; without it, an environment is opened.
    """
    pictures = pictures_in(config, space)
    pays = getattr(config, "updates", 0) >= updates_that_pay(pictures)
    missing = missing_for_compiling(config.device)
    if config.compile == "on" and missing:
        raise ValueError(f"compile is 'on', but {missing}; install it, or set compile to 'off'")
    processes = config.processes or processes_that_pay(config)
    return {
        "compiled": config.compile == "on" or (config.compile == "auto" and pays and not missing),
        "cuda_graph": config.compile != "off" and config.device.startswith("cuda"),
        "threads": config.threads or threads_that_pay(config, processes, pictures),
        "processes": processes,
        "device": config.device,
        "backend": config.backend,
    }


def in_words(execution: dict[str, Any], config: ControlConfig, space: gym.Space) -> str:
    """A sentence for the user: how this run computes, and why."""
    if hasattr(config, "arithmetic"):
        return f"updates are {config.arithmetic}, 1 thread"
    how = "compiled" if execution["compiled"] else "captured in CUDA graphs" if execution["cuda_graph"] else "eager"
    why = f"--compile {config.compile}"
    if config.compile == "auto":
        missing = missing_for_compiling(config.device)
        steps = getattr(config, "updates", 0)
        known = f"{steps:,} gradient steps, and" if steps else "the number of gradient steps depends on the episodes;"
        enough = updates_that_pay(pictures_in(config, space))
        pays = f"{known} it pays from {enough:,} on"
        why += f": {missing if missing and steps >= enough else pays}"
    threads = execution["threads"]
    return f"updates are {how} ({why}), {threads} thread{'s' * (threads > 1)}"


def processes_that_pay(config: ControlConfig) -> int:
    """1 for a short run; otherwise one process per processor, here or of the cluster, with at least one seed each."""
    actors = getattr(config, "actors", 0) > 0
    if config.ray_address is not None and not actors:
        return min(processors_of(config.ray_address), config.seeds)
    apart = config.device != "cpu" or config.vectorization == "async" or actors  # the work happens elsewhere
    if makes_batches(None if config.backend == "envpool" else find_source(config.env), config.env_kwargs):
        return 1  # one simulator steps all environments together
    if apart or config.seeds * config.total_steps < STEPS_WORTH_SPREADING:
        return 1
    return min(processors(), config.seeds, MOST_PROCESSES)


def threads_that_pay(config: ControlConfig, processes: int, pictures: Pictures = NO_PICTURES) -> int:
    """1 if a gradient step takes less time than waking other threads; otherwise a share of the processors, up to 4.

    OMP_NUM_THREADS is an upper bound.
    """
    minibatch = getattr(config, "samples_to_share", getattr(config, "minibatch_size", 0))
    samples = -(-config.seeds // processes) * minibatch * (1 + pictures.products // PRODUCTS)
    share = processors() // processes if samples >= SAMPLES_WORTH_SHARING else 1
    return max(1, min(share, 4, most_threads()))


def missing_for_compiling(device: str) -> str:
    """A clause that says what torch.compile lacks on this machine; empty if nothing. It compiles C++ for the CPU."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device == "cpu" and shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler}) for torch.compile to use"
    if device == "cpu" and not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Python's headers (Python.h) are missing, which torch.compile needs"
    return ""


def try_out(config: LearnerConfig, start: dict[str, Any] | None = None) -> dict[str, Any]:
    """Raise a ValueError if the device or environment does not exist, or its spaces do not fit (also to `start`).

    Return the spaces as plain data, for the run folder.
    """
    require_device(config)
    environments = Environments.of(config, seeds=[config.seed], num_envs=1)
    environments.close()
    config.bound(environments.action_space)
    config.head(environments.action_space)
    config.try_out(environments.observation_space, environments.action_space)
    if isinstance(config, OffPolicyConfig):
        require_memory(config, environments)
    if start is not None:
        require_fit(start, config, environments)
    found = {"observation": environments.observation_space, "action": environments.action_space}
    return {name: described(space) for name, space in found.items()}

"""A Ray cluster for the length of a run: this machine alone, or the one at an address.

No other file imports Ray, apart from `actors.py` beside it. Leaves out what runs there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import warnings
from collections.abc import Iterator
from typing import Any

OBJECT_STORE = 400_000_000
"""Bytes of shared memory for objects on a machine where we start Ray. Rollouts on their way need a small part of it."""
QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_local_fs_capacity_threshold": "1",
}
"""Ray's environment variables: no warnings about a new default and a full disk, and no report of its use."""


def ray() -> Any:
    """The library, without what its import does to signals. An ImportError names the extra that installs it."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
    except ImportError as error:
        raise ImportError(
            'actors and clusters need Ray: pip install "telescope-rl[ray]"; actors 0 acts without it', name="ray"
        ) from error
    finally:
        with contextlib.suppress(ValueError):  # not the main thread, so nothing was changed
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return ray


def processors_of(address: str) -> int:
    """How many processors the cluster at this address has."""
    with connected(address, 0) as library:
        return int(library.cluster_resources().get("CPU", 0)) or 1


@contextlib.contextmanager
def connected(address: str | None, processors: int) -> Iterator[Any]:
    """Ray, connected to the cluster at `address`; without one, started on this machine with so many processors.

    It ends with the block, and so does everything that we started, even if this process is killed. A connection that
    the caller's program already has is used, and stays.
    """
    library = ray()
    if library.is_initialized():
        yield library
        return
    _require_reachable(address)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    own: dict[str, Any] = {"address": address}
    if address is None:  # "local", because Ray would otherwise join any cluster that this machine belongs to
        own = {"address": "local", "num_cpus": processors, "object_store_memory": OBJECT_STORE}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library.init(**own, include_dashboard=False, log_to_driver=True, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ValueError(_nobody(address, error)) from error
    finally:
        with contextlib.suppress(ValueError):
            for number, handler in handlers.items():
                signal.signal(number, handler)
    try:
        yield library
    finally:
        library.shutdown()


def _require_reachable(address: str | None) -> None:
    """Raise a ValueError if nobody listens at HOST:PORT. Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ValueError(_nobody(address, error)) from error


def _nobody(address: str | None, error: Exception) -> str:
    return f"there is no Ray cluster at ray_address {address!r} ({error}); start one: ray start --head"

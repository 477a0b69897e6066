"""Every estimator from four Python threads at once, in a process forked after use, and without a place for its cache.

Leaves out the threads of our own, whose number `test_recurrence.py` varies.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_invalid_calls import CALLS

import oracle
import telescope
from problems import FUNCTIONS, plain, told

BIG = (400, 200)  # more than the elements from which on our own threads take part


def every(library: str) -> list[np.ndarray]:
    """All results of all functions, on small arrays; and of two kernels on arrays that are shared out."""
    results = []
    for name in FUNCTIONS if library != "jax" else ("gae", "vtrace"):  # JAX takes seconds for all of them
        arguments = {key: told(value, library) for key, value in CALLS[name][1].items() if key != "out"}
        results += plain(CALLS[name][0](**arguments))
    return results + ([] if library == "jax" else shared_out(library))


def shared_out(library: str) -> list[np.ndarray]:
    steps = {name: told(array, library) for name, array in oracle.rollout(BIG, np.float32)._asdict().items()}
    fused = telescope.gae(**steps, gamma=0.97, lam=0.9, returns_lam=0.5)
    pair = telescope.gae(**steps, gamma=told(np.full(BIG[1], 0.97, "f4"), library), lam=0.9)
    turned = {
        name: told(array, library, "fortran") for name, array in oracle.rollout(BIG, np.float32)._asdict().items()
    }
    return [*plain(fused), *plain(pair), *plain(telescope.gae(**turned, gamma=0.97, lam=0.9))]


def same(results: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    pairs = list(zip(results, expected, strict=True))
    return all(np.array_equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_four_python_threads_at_once(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELESCOPE_NUM_THREADS", "2")
    expected, start, outcomes = every(library), threading.Barrier(4), []

    def work() -> None:
        start.wait()
        outcomes.append([same(every(library), expected) for _ in range(2)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [[True] * 2] * 4


def ended(child: int, patience: float = 60) -> int:
    """The exit status of a process, which is ended by force if it does not end by itself."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -1


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_plain_fork_after_use(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child computes on, with threads of its own, and so does its own child; JAX does not fork."""
    monkeypatch.setenv("TELESCOPE_NUM_THREADS", "2")
    expected = every(library)
    child = os.fork()
    if child == 0:
        right = same(every(library), expected)
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(0 if same(shared_out(library), expected[-6:]) else 3)
        os._exit(0 if right and ended(grandchild, 30) == 0 else 3)
    assert ended(child) == 0
    assert same(every(library), expected)


@pytest.mark.parametrize("place", ["a file", "read-only"])
def test_without_a_place_for_the_cache_it_only_takes_longer(place: str, tmp_path: Path) -> None:
    where = tmp_path / "place"
    if place == "a file":
        where.write_text("")
    else:
        where.mkdir(mode=0o555)
    script = (
        "import numpy as np, telescope; x = np.ones((3, 2), 'f4')\n"
        "for gamma in 1.0, np.ones(2):\n"
        "    print(telescope.gae(x, x, x, terminated=None, truncated=None, gamma=gamma, lam=1.0).advantages.sum())"
    )
    environment: dict[str, Any] = {**os.environ, "NUMBA_CACHE_DIR": str(where)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "12.0\n12.0\n", done.stderr

"""How long commands take to start, and a run beside other programs: `python -m benchmarks.start` prints a table.

The run is the README's. Beside it, as many processes as there are cores spin at equal priority. Takes five minutes on
two cores; an idle machine is assumed.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

TELESCOPE = (sys.executable, "-m", "telescope")
RUN = ("train", "ppo", "CartPole-v1", "--seeds", "8", "--total-steps", "100000")
STARTS = (("--version",), ("--help",), ("train", "ppo", "CartPole-v1", "--help"), ("train", "grpo", "--help"))
FIRST = """
import os, sys
import telescope.commands.train as command
import telescope.runner as runner
from telescope.cli import main

begin = runner.begin

def begin_and_end(*arguments, **more):
    from telescope.control.training import Session  # as late as without us
    lift = Session.lift
    def lifted_once(*what):
        update = lift(*what)
        def call(*inputs):
            update(*inputs)
            os._exit(0)
        return call
    Session.lift = lifted_once
    return begin(*arguments, **more)

runner.begin = command.begin = begin_and_end
sys.argv[1:] = ["train", "ppo", "CartPole-v1", "--out", sys.argv[1]]
main()
"""
"""A run of CartPole's preset that ends with its first gradient step."""


def seconds(command: Sequence[str]) -> float:
    """Wall-clock seconds of a command, from the start of its process to its end."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def repeated(name: str, command: Sequence[str], times: int, *, folder: Path | None = None) -> float:
    """Print the median and the range of several runs; with a folder, each gets one of its own as last argument."""
    found = []
    for number in range(times):
        place = [] if folder is None else [str(folder / f"{name}-{number}".replace(" ", "-"))]
        found.append(seconds([*command, *place]))
    median = statistics.median(found)
    print(f"| {name} | {median:.2f} s | {min(found):.2f} – {max(found):.2f} | {times} |", flush=True)
    return median


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute without end, at equal priority."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()


def main() -> None:
    """Measure and print."""
    cores = len(os.sched_getaffinity(0))
    print("| | median | range | runs |\n| --- | ---: | ---: | ---: |")
    for arguments in STARTS:
        repeated(" ".join(("telescope", *arguments)), [*TELESCOPE, *arguments], 7)
    with tempfile.TemporaryDirectory() as folder:
        repeated("process start to first gradient step", [sys.executable, "-c", FIRST], 7, folder=Path(folder))
        alone = repeated("the README's run, alone", [*TELESCOPE, *RUN, "--out"], 3, folder=Path(folder))
        with busy(cores):
            name = f"the README's run beside {cores} busy loops"
            beside = repeated(name, [*TELESCOPE, *RUN, "--out"], 3, folder=Path(folder))
    print(f"\nbeside {cores} busy loops ÷ alone: {beside / alone:.2f}")


if __name__ == "__main__":
    main()

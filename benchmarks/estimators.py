"""GAE against its rivals on this machine: `python -m benchmarks.estimators` writes docs/benchmarks/<machine>.md.

Every contestant is checked against the oracle before it is timed. It leaves out training, which is `telescope train`'s.
"""

# T steps, B columns
import argparse
import gc
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import gpu, machine, report
from benchmarks.contestants import CONTESTANTS, Ready, copies
from benchmarks.problem import ENDS, TOLERANCE, Answer, answer, error, problem
from benchmarks.report import Row
from benchmarks.timing import interleaved, summary

SHAPES = [(8, 128), (1, 2048), (256, 128), (4096, 128), (1024, 1024), (256, 8192), (1, 1_000_000)]  # columns, steps
FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"
IMPORT = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def compared(columns: int, steps: int, rounds: int, budget: float) -> list[Row]:
    """All contestants on one shape, the right ones timed in turns with the copies."""
    given = problem(columns, steps)
    right, found, calls = answer(given), {}, copies(given)
    for name, prepare in CONTESTANTS.items():
        try:
            ready = prepare(given)
        except ImportError as missing:
            found[name] = Row(name, None, None, f"not installed ({missing.name or missing})")
            continue
        found[name] = checked(name, ready, right)
        if not found[name].note:
            calls[name] = ready.call
    times = interleaved(calls, rounds, budget)
    rows = [found[name]._replace(times=times.get(name)) for name in CONTESTANTS]
    return rows + [Row(name, None, times[name]) for name in copies(given)]


def checked(name: str, ready: Ready, right: Answer) -> Row:
    """The error of its result; with a note, which bars it from being timed, if that is too large."""
    found = error(ready.read(ready.call()), right)
    return Row(name, found, None, "" if found <= TOLERANCE else "WRONG, not timed")


def import_times(rounds: int) -> list[Row]:
    """Seconds that an import takes in a fresh process, in turns: what telescope adds to NumPy is the difference."""
    samples: dict[str, list[float]] = {"telescope": [], "numpy": []}
    for _ in range(rounds):
        for name, found in samples.items():
            command = [sys.executable, "-c", IMPORT.format(name)]
            found.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    return [Row(f"import {name}", None, summary(found)) for name, found in samples.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: measures, writes the page, and fails if a contestant of ours was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=31, help="samples of each contestant (default 31)")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of samples per contestant and shape")
    parser.add_argument("--largest", type=int, default=10**8, help="leave out shapes of more elements")
    parser.add_argument("--machine", default=machine.name(), help="name of the page")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the page goes")
    chosen = parser.parse_args(arguments)
    gc.freeze()  # what is loaded by now is not looked through again
    sections: dict[str, list[Row]] = {}
    for columns, steps in SHAPES:
        if columns * steps <= chosen.largest:
            sections[f"{columns} × {steps}"] = compared(columns, steps, chosen.rounds, chosen.budget)
            print(f"{columns} × {steps}\n{report.table(sections[f'{columns} × {steps}'])}\n", flush=True)
    sections["2 × 2, the cost of a call"] = compared(2, 2, chosen.rounds, chosen.budget)
    sections["Import"] = import_times(chosen.rounds)
    sections.update(gpu.sections(chosen.rounds))
    page = report.write(chosen.folder, chosen.machine, machine.facts(), sections, ends=ENDS, tolerance=TOLERANCE)
    print(page.read_text(encoding="utf-8"))
    return any(row.ours and row.note for rows in sections.values() for row in rows)


if __name__ == "__main__":
    raise SystemExit(main())

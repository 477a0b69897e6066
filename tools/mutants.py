"""Breaks the source in many small ways, one at a time: each must make the tests fail (`make mutants`).

The mutants are data, the table in `mutants.toml`. What is broken is a copy in a temporary folder, never the working
tree. It leaves out mutants made by rule: each one here is a bug that somebody has written, or nearly.
"""

import argparse
import difflib
import itertools
import multiprocessing
import os
import queue
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SOURCE = Path("src") / "telescope"
COPIED = ("src", "tests", "docs", "tools", "benchmarks", "pyproject.toml", "README.md")  # what tests read
KERNELS = (
    "recurrence/kernels.py",
    "recurrence/gae_kernels.py",
    "control/experience/loops.py",
)  # numba compiles these: their mutants need a cache of their own
ROOMS = ("algorithms/", "commands/", "control/", "deploy/", "language/", "objectives/")
MODULES = (
    "answers.py",
    "behaviour.py",
    "iteration.py",
    "losses.py",
    "optimisers.py",
    "policy.py",
    "randomness.py",
    "rewards.py",
    "runner.py",
    "second_order.py",
    "seeds.py",
    "sweep.py",
    "trees.py",
    "tuning.py",
)
PARTS = {"training": ROOMS + MODULES}
"""Words that mean a part of the source, by how its files begin."""
PATIENCE = 300  # seconds; a mutant that hangs the tests has been noticed
PASSED, FAILED = 0, 1  # pytest's exit status; any other means that it did not get to judge

# Imported once, by the server from which every run of the tests is forked. Not numba, which reads its settings when
# imported, and no plugins of pytest, whose assertions are rewritten then.
SLOW_IMPORTS = ["numpy", "torch", "torch._dynamo", "gymnasium", "pytest"]
PROCESSES = multiprocessing.get_context("forkserver")
_times = itertools.count(1)


class Mutant(NamedTuple):
    """One small edit of one file, and the tests that are to notice it."""

    name: str
    file: str
    old: str
    new: str
    tests: list[str]

    def applied(self, root: Path) -> str:
        """The text of the file with the edit; ValueError where the old text is not there exactly once."""
        source = (root / SOURCE / self.file).read_text(encoding="utf-8")
        count = source.count(self.old)
        if count != 1:
            raise ValueError(f"mutant {self.name!r}: its old text stands {count} times in {self.file}, expected once")
        return source.replace(self.old, self.new)

    def diff(self, root: Path) -> str:
        before = (root / SOURCE / self.file).read_text(encoding="utf-8").splitlines(keepends=True)
        after = self.applied(root).splitlines(keepends=True)
        return "".join(difflib.unified_diff(before, after, self.file, f"{self.file} ({self.name})", n=1))


class Verdict(NamedTuple):
    """What became of a mutant: killed by the named test, survived, or the tests could not judge it."""

    mutant: Mutant
    status: int
    report: str
    seconds: float


def table(path: Path = ROOT / "tools" / "mutants.toml") -> list[Mutant]:
    """The mutants: for each file (and its usual tests) a list of edits."""
    mutants = []
    for group in tomllib.loads(path.read_text(encoding="utf-8"))["file"]:
        for row in group["mutant"]:
            tests = row.get("tests", group.get("tests"))
            mutants.append(Mutant(row["name"], group["path"], row["old"], row["new"], tests))
    return mutants


def is_meant(mutant: Mutant, word: str) -> bool:
    """Does a word of the command line mean this mutant: a part of the source, or some of its name or file?"""
    if word in PARTS:
        return mutant.file.startswith(PARTS[word])
    return word in f"{mutant.file} {mutant.name}"


def workshop(root: Path, folder: Path) -> Path:
    """A copy of what the tests need. Times are kept, so that compiled kernels stay valid between mutants."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (root / name).exists():
            shutil.copy2(root / name, folder / name)
    return folder


def judged(folder: Path, tests: Sequence[str], cache: Path, patience: float | None = PATIENCE) -> tuple[int, str]:
    """pytest's exit status on the copy in `folder`, and the last lines it printed."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".txt") as output:
        process = PROCESSES.Process(target=_pytest, args=(str(folder), list(tests), str(cache), output.name))
        process.start()
        process.join(patience)
        if process.is_alive():
            process.kill()
            process.join()
            return FAILED, f"still running after {patience} s"
        printed = Path(output.name).read_text(encoding="utf-8", errors="replace")
    return process.exitcode if process.exitcode is not None else -1, "\n".join(printed.strip().splitlines()[-12:])


def _pytest(folder: str, tests: list[str], cache: str, output: str) -> None:
    """In a process of its own: run the tests on the copy, and exit as pytest would."""
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    source = os.path.join(folder, "src")
    os.environ |= {"PYTHONPATH": source, "NUMBA_CACHE_DIR": cache}  # for what tests start, too
    sys.path.insert(0, source)  # before an editable install
    for name in [name for name in sys.modules if name.partition(".")[0] == "telescope"]:
        del sys.modules[name]  # a fork server that others use as well may have imported it already
    os.chdir(folder)
    import pytest

    sys.exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=line", *tests])))


@contextmanager
def edited(folder: Path, mutant: Mutant) -> Iterator[None]:
    """The copy with the edit in place; afterwards as it was, its time too."""
    path = folder / SOURCE / mutant.file
    original, stamp = path.read_bytes(), path.stat()
    path.write_text(mutant.applied(folder), encoding="utf-8")
    # Compiled code is reused by a file's time: no two edits may share one, not even in whole seconds.
    os.utime(path, (stamp.st_atime, int(stamp.st_mtime) + 2 * next(_times)))
    try:
        yield
    finally:
        path.write_bytes(original)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def tried(mutant: Mutant, folders: "queue.SimpleQueue[Path]") -> Verdict:
    """Put the mutant into a free copy and see whether its tests notice."""
    folder, started = folders.get(), time.perf_counter()
    try:
        with edited(folder, mutant), tempfile.TemporaryDirectory(dir=folder) as fresh:
            cache = Path(fresh) if mutant.file in KERNELS else folder / "numba"
            status, report = judged(folder, mutant.tests, cache)
    finally:
        folders.put(folder)
    return Verdict(mutant, status, report, time.perf_counter() - started)


def run(mutants: Sequence[Mutant], root: Path, jobs: int) -> Iterator[Verdict]:
    """Try all of them, `jobs` at a time, once the tests have been seen to pass on unchanged copies."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    folders: queue.SimpleQueue[Path] = queue.SimpleQueue()
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(jobs) as pool:
        copies = [workshop(root, Path(temporary) / str(job)) for job in range(min(jobs, len(tests)))]
        shares = [tests[job :: len(copies)] for job in range(len(copies))]
        for status, report in pool.map(lambda f, t: judged(f, t, f / "numba", None), copies, shares):
            if status != PASSED:
                raise SystemExit(f"the tests must pass before anything is broken:\n{report}")
        for folder in copies:
            folders.put(folder)
        yield from pool.map(lambda mutant: tried(mutant, folders), mutants)


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
    """The command: 0 if every mutant was killed, 1 otherwise, with the diff of each that was not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "words",
        nargs="*",
        help="only mutants whose name or file contains one of these; `training`: exactly those of the training half "
        "(algorithms, commands, control, language, objectives, and the modules beside them that only trainers use)",
    )
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    parser.add_argument("--list", action="store_true", help="only print their names")
    chosen = parser.parse_args(arguments)
    mutants = [
        mutant
        for mutant in table(root / "tools" / "mutants.toml")
        if not chosen.words or any(is_meant(mutant, word) for word in chosen.words)
    ]
    for mutant in mutants:
        mutant.applied(root)  # all of the table is checked before the first is tried
    if chosen.list:
        print("\n".join(f"{mutant.file:32} {mutant.name}" for mutant in mutants))
        return 0
    alive = 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the copies share the cores
    os.environ.setdefault("TRITON_INTERPRET", "1")  # decided for good when it is first imported, which torch does
    for verdict in run(mutants, root, chosen.jobs):
        mutant, killed = verdict.mutant, verdict.status == FAILED
        word = "killed" if killed else "SURVIVED" if verdict.status == PASSED else "NOT JUDGED"
        print(f"{word:10} {verdict.seconds:5.1f} s  {mutant.file}: {mutant.name}", flush=True)
        if not killed:
            alive += 1
            print(mutant.diff(root), verdict.report, sep="\n", flush=True)
    print(f"{len(mutants) - alive} of {len(mutants)} mutants killed")
    return 1 if alive or not mutants else 0


if __name__ == "__main__":
    PROCESSES.set_forkserver_preload(SLOW_IMPORTS)
    raise SystemExit(main())

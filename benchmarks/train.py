"""PPO against its rivals on this machine: `python -m benchmarks.train` writes docs/benchmarks/train-<machine>.md.

Each measurement is a process of its own, one after the other, contestants in turns; the page is made elsewhere.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, train_report
from benchmarks.processes import watched
from benchmarks.train_rivals import Job
from benchmarks.train_settings import CARTPOLE, CHEETAH, REFERENCE, SPEED, THRESHOLD, Contestant, Task, contestants

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "benchmarks"
ITERATIONS = {CARTPOLE.env: 40, CHEETAH.env: 8}  # per seed, of a measurement of speed
WARM = 2  # the first of them, which do not count: compilers are at work
CACHES = (
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "NUMBA_CACHE_DIR",
    "JAX_COMPILATION_CACHE_DIR",
)
DEFAULT = ("speed", "threshold", "cold")
Plan = tuple[Contestant, Task, int, Path, dict[str, Any]]  # who, what, the round, compile cache, fields of its job


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: measures what was asked for and writes the page after each kind of measurement."""
    chosen = parser().parse_args(arguments)
    if chosen.quick:
        chosen.repeats = 1
    folder = chosen.folder or (ROOT / "build" / "benchmarks" if chosen.quick else FOLDER)
    page = folder / f"train-{chosen.machine}.md"
    with tempfile.TemporaryDirectory(prefix="bench-train-") as room:
        for measure in chosen.only or DEFAULT:
            records = [record(plan, measure, Path(room)) for plan in plans(measure, chosen, Path(room))]
            section = {"command": command(), "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M UTC}", "records": records}
            train_report.write(page, machine.facts(), measure, section)
    print(page.read_text(encoding="utf-8"))
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=[*MEASURES], help=f"default: {' '.join(DEFAULT)}")
    parser.add_argument("--repeats", type=int, default=5, help="rounds in which all contestants take turns (default 5)")
    parser.add_argument("--threads", type=int, nargs="+", default=[2], help="of the arithmetic; several are all tried")
    parser.add_argument("--select", default="", help="only contestants whose name contains this")
    parser.add_argument("--quick", action="store_true", help="try the script out: a page in build/ that means nothing")
    parser.add_argument("--machine", default=machine.name(), help="name of the page")
    parser.add_argument("--folder", type=Path, help="where the page goes (default docs/benchmarks)")
    return parser


def command() -> str:
    return f"python -m benchmarks.train {shlex.join(sys.argv[1:])}".strip()


def speed(chosen: argparse.Namespace, room: Path) -> Iterator[Plan]:
    """Everybody on every task; who compiles with an empty cache first, once, and then with what that left behind."""
    for task in SPEED:
        steps = (3 if chosen.quick else ITERATIONS[task.env]) * task.batch
        fields = {"steps": steps, "compile": compiling(chosen, "on")}
        for number in range(0 if chosen.quick else -1, chosen.repeats):
            for one in contestants(task):
                if one.compiles or number >= 0:
                    yield one, task, number, room / "cache" / slug(one, task), fields


def threshold(chosen: argparse.Namespace, room: Path) -> Iterator[Plan]:
    """Everybody until its evaluation reaches the threshold; on HalfCheetah, which takes minutes, a single round."""
    quick = (THRESHOLD[0]._replace(every=CARTPOLE.batch, budget=2 * CARTPOLE.batch),)
    for task in quick if chosen.quick else THRESHOLD:
        fields = {"steps": task.budget, "compile": compiling(chosen, "auto")}
        for number in range(0 if chosen.quick else -1, chosen.repeats if task.env == CARTPOLE.env else 1):
            for one in contestants(task, plain=True):
                if number >= 0:
                    yield one, task, number, room / "cache" / slug(one, task), fields | {"until_solved": True}
                elif one.compiles:  # what the others find in the cache
                    yield one, task, number, room / "cache" / slug(one, task), fields | {"iterations": 2}


def cold(chosen: argparse.Namespace, room: Path) -> Iterator[Plan]:
    """Eight seeds of ours, nothing compiled before, against one seed of the zoo's; both for 100k steps."""
    fields = {"steps": 20_000 if chosen.quick else 100_000, "compile": compiling(chosen, "auto")}
    ours = Contestant("telescope, 8 seeds, preset, until all are solved", "telescope_preset", 8)
    zoo = Contestant(f"{REFERENCE}, 1 seed, zoo's settings, 100k steps", "stable_baselines3_zoo")
    for number in range(chosen.repeats):
        yield ours, CARTPOLE, number, room / f"cold{number}", fields | {"until_solved": True}
        yield zoo, CARTPOLE, number, room / "cache" / "zoo", fields


def million(chosen: argparse.Namespace, room: Path) -> Iterator[Plan]:
    """Eight seeds of HalfCheetah's preset, a million steps each, in one process and in two; once."""
    fields = {"steps": 10_000 if chosen.quick else 1_000_000, "compile": compiling(chosen, "auto")}
    for name, processes in (("one process", 1), ("2 processes", 2)):
        ours = Contestant(f"telescope, 8 seeds × 1M, preset, {name}", "telescope_preset", 8, processes=processes)
        yield ours, CHEETAH, 0, room / "cache" / f"million{processes}", fields


MEASURES = {"speed": speed, "threshold": threshold, "cold": cold, "million": million}


def plans(measure: str, chosen: argparse.Namespace, room: Path) -> Iterator[tuple[Plan, int]]:
    """What is measured, in order, with each number of threads."""
    for plan in MEASURES[measure](chosen, room):
        if chosen.select in plan[0].name:
            yield from ((plan, threads) for threads in chosen.threads)


def compiling(chosen: argparse.Namespace, usual: str) -> str:
    return "off" if chosen.quick else usual


def slug(one: Contestant, task: Task) -> str:
    return f"{one.trainer}-{one.seeds}-{one.backend}-{one.processes}-{task.env}-{task.normalise}"


def record(planned: tuple[Plan, int], measure: str, room: Path) -> dict[str, Any]:
    """Measures it, prints a line and returns what the page needs."""
    (one, task, number, cache, fields), threads = planned
    who = {"seed": max(number, 0) * one.seeds, "seeds": one.seeds, "backend": one.backend, "processes": one.processes}
    job = Job(one.trainer, task, **who, threads=threads, **fields)
    result, whole, memory = run(job, room, cache.with_name(f"{cache.name}-{threads}"))
    laps, warm = result["laps"], min(WARM, len(result["laps"]) - 1)
    found = {
        **{"name": one.name, "task": str(task), "env": task.env, "threads": threads, "seed": job.seed},
        **{"seeds": one.seeds, "cold": number < 0, "steps": laps[-1][0], "seconds": laps[-1][1]},
        **{"whole": whole, "memory": memory, "final": result.get("final"), "evaluations": result["evaluations"]},
        **rates(laps, one.seeds, warm),
        "times": parts(result.get("times", []), warm),
        "reached": reached(result["evaluations"], task.threshold, one.seeds),
    }
    print(train_report.line(measure, found), flush=True)
    return found


def run(job: Job, room: Path, cache: Path) -> tuple[dict[str, Any], float, float | None]:
    """The worker's result, the seconds of its whole process, and the most memory that it and its children held."""
    paths = [room / "job.json", room / "result.json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    environment |= {name: str(cache / name.lower()) for name in CACHES} | {"OMP_NUM_THREADS": str(job.threads)}
    if job.threads == 1:
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    started = time.monotonic()
    paths[0].write_text(json.dumps({**job._asdict(), "task": job.task._asdict(), "started": started}))
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.train_rivals", *map(str, paths)]
    with subprocess.Popen(
        words, cwd=room, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as worker:
        memory, stderr = watched(worker)
    whole = time.monotonic() - started
    if worker.returncode:
        raise RuntimeError(f"{job.trainer} on {job.task} failed:\n{stderr.decode()[-3000:]}")
    return json.loads(paths[1].read_text()), whole, memory


def rates(laps: list[tuple[int, float, float]], seeds: int, warm: int) -> dict[str, float]:
    """Steps per second of all seeds together after so many laps, and how many processors were busy."""
    (first, began, used), (last, ended, use) = (laps[warm - 1] if warm else (0, 0.0, 0.0)), laps[-1]
    return {"rate": (last - first) * seeds / (ended - began), "busy": (use - used) / (ended - began)}


def parts(times: list[list[float]], warm: int) -> list[float]:
    """Seconds in the environment, the policy, the update and the rest, after the first iterations."""
    return [float(x) for x in np.sum(times[warm:], axis=0)] if len(times) > warm else []


def reached(evaluations: list[Any], threshold: float, seeds: int) -> list[list[float] | None]:
    """Per seed the steps and seconds of its first evaluation that reached the threshold; None if there was none."""
    return [
        next(([steps, seconds] for steps, seconds, returns in evaluations if returns[seed] >= threshold), None)
        for seed in range(seeds)
    ]


if __name__ == "__main__":
    raise SystemExit(main())

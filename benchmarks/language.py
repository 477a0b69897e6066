"""GRPO and SFT against TRL: `python -m benchmarks.language` writes docs/benchmarks/language-<machine>.md.

All begin from models that `telescope train sft` makes first. Each measurement is a process of its own, one after the
other, contestants in turns; the page is made elsewhere.
"""

import argparse
import contextlib
import csv
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import language_report, machine
from benchmarks.language_rivals import Job, Size, Step
from benchmarks.processes import watched
from telescope.language.data.tasks import open_task
from telescope.runner import WAITING

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "benchmarks"
WARM = 2  # steps of each process that do not count
LAST = 5  # steps whose mean reward is that at the end, or at the beginning
SIZES = (  # with the steps of one process
    (Size("lm/addition", 2, 256, 8, 4, least=5), 20),
    (Size("lm/addition", 2, 16, 8, 4, learning_rate=1e-4, least=4), 100),
    (Size("lm/sort", 32, 64, 8, 64, learning_rate=1e-4, least=4), 12),
    (Size("lm/addition", 2, 256, 1, 4, method="sft", least=2), 60),
    (Size("lm/sort", 32, 64, 1, 64, method="sft", least=2), 30),
    (Size("lm/sort", 32, 64, 1, 64, method="sft", least=2, lengths=(2, 50)), 30),
)
QUICK = (
    *((Size("lm/addition", 1, prompts, 2, 3, minibatches=2, least=2), 4) for prompts in (4, 2)),
    (Size("lm/addition", 1, 8, 1, 3, method="sft", least=2), 4),
)
FILE_ROWS = 4096
STOP_AT, MOST = 0.25, 1000  # exact match of the models that all begin from, and steps of SFT at most


class Contestant(NamedTuple):
    """Who trains: a name for the page, which trainer, settings of its own, variables of its process, threads."""

    name: str
    trainer: str
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    environment: dict[str, str] = {}  # noqa: RUF012
    threads: int | None = None
    """None: as many as all others; 0: as many as it takes by itself."""


CONTESTANTS = (Contestant("telescope", "telescope", {}, WAITING, threads=0), Contestant("TRL", "trl"))
# What TRL could be told besides; one process each, to see that "TRL" is its best.
CHOICES = (
    Contestant("TRL, static cache", "trl", {"cache_implementation": "static"}),
    Contestant("TRL, compiled model", "trl", {"torch_compile": True}),
    Contestant("TRL, gradient checkpointing, its default", "trl", {"gradient_checkpointing": True}),
    Contestant("TRL, threads wait as ours do", "trl", {}, WAITING),
    Contestant("TRL, one thread", "trl", threads=1),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: makes the models, measures everybody in turns, and writes the page."""
    chosen = parser().parse_args(arguments)
    if chosen.quick:
        chosen.repeats = 1
    folder = chosen.folder or (ROOT / "build" / "benchmarks" if chosen.quick else FOLDER)
    page = folder / f"language-{chosen.machine}.md"
    with contextlib.ExitStack() as stack:
        room = chosen.room or stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-language-"))
        Path(room).mkdir(parents=True, exist_ok=True)
        for size, _ in sizes(chosen):
            write_rows(size, Path(room))
        questions = {size.question: size for size, _ in sizes(chosen)}
        starts = {question: start(size, chosen, Path(room)) for question, size in questions.items()}
        records = [record(*plan, starts[plan[1].question], chosen, Path(room)) for plan in plans(chosen)]
    known = {
        "facts": machine.facts(),
        "command": f"python -m benchmarks.language {shlex.join(sys.argv[1:])}".strip(),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M UTC}",
        "rules": {"threads": chosen.threads, "warm": WARM, "last": LAST},
        "starts": {question: {"exact_match": x["exact_match"], "steps": x["steps"]} for question, x in starts.items()},
        "records": records,
    }
    language_report.write(page, language_report.joined(page, known) if chosen.add else known)
    print(page.read_text(encoding="utf-8"))
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5, help="rounds in which all contestants take turns (default 5)")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="of the arithmetic (default: every core)")
    parser.add_argument("--select", default="", help="only sizes whose description contains this")
    parser.add_argument("--add", action="store_true", help="keep what the page has of other sizes: measure in pieces")
    parser.add_argument("--alone", action="store_true", help="leave out TRL's other settings")
    parser.add_argument("--room", type=Path, help="folder for the models that all begin from, which may be there")
    parser.add_argument("--quick", action="store_true", help="try the script out: a page in build/ that means nothing")
    parser.add_argument("--machine", default=machine.name(), help="name of the page")
    parser.add_argument("--folder", type=Path, help="where the page goes (default docs/benchmarks)")
    return parser


def sizes(chosen: argparse.Namespace) -> Iterator[tuple[Size, int]]:
    yield from (one for one in (QUICK if chosen.quick else SIZES) if chosen.select in str(one[0]))


def plans(chosen: argparse.Namespace) -> Iterator[tuple[Contestant, Size, int, int]]:
    """Who trains on what, for how many steps, in which round; what else TRL could be told comes first."""
    for size, steps in sizes(chosen):
        if not (chosen.quick or chosen.alone or size.method == "sft"):
            yield from ((one, size, WARM + LAST, 0) for one in CHOICES)
        for number in range(chosen.repeats):
            yield from ((one, size, steps, number) for one in CONTESTANTS)


def start(size: Size, chosen: argparse.Namespace, room: Path) -> dict[str, Any]:
    """The model that everybody begins from on a task, made by SFT, and how well it answers held-out prompts."""
    out = room / f"{size.task}-{size.digits}".replace("/", "-")
    if not (out / "model").is_dir():
        make(size, out, chosen, room)
    with (out / "metrics.csv").open(newline="") as file:
        measured = [row for row in csv.DictReader(file) if row["exact_match"]]
    found = {"exact_match": float(measured[-1]["exact_match"]), "steps": int(measured[-1]["step"])}
    print(f"{size.question}: SFT of {found['steps']} steps, {found['exact_match']:.1%} exact match", flush=True)
    return found | {"model": str((out / "model").absolute())}


def make(size: Size, out: Path, chosen: argparse.Namespace, room: Path) -> None:
    """Run SFT until it answers some of the held-out prompts."""
    words = [sys.executable, "-m", "telescope.cli", "train", "sft", size.task, "--digits", str(size.digits)]
    words += ["--stop-at", str(STOP_AT), "--total-steps", str(2 if chosen.quick else MOST), "--out", str(out)]
    words += ["--threads", str(chosen.threads), "--min-lr-ratio", "1"]
    words += ["--eval-prompts", "200"]
    subprocess.run(words, cwd=room, env=environment(chosen.threads), stdout=subprocess.DEVNULL, check=True)


def write_rows(size: Size, room: Path) -> None:
    """The file of a size with texts of many lengths: as many rows between n and 2n digits as between 2n and 4n."""
    if size.lengths is None or (path := room / size.source[0]).is_file():
        return
    rng = np.random.default_rng(0)
    digits = np.exp(rng.uniform(*np.log(size.lengths), FILE_ROWS)).round().astype(int)
    tasks = {n: open_task(size.task, n) for n in set(digits.tolist())}
    rows = [row for n in digits.tolist() for row in tasks[n].draw(rng, 1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def record(
    one: Contestant, size: Size, steps: int, number: int, begin: dict[str, Any], chosen: argparse.Namespace, room: Path
) -> dict[str, Any]:
    """Measures it, prints a line and returns what the page needs."""
    threads = chosen.threads if one.threads is None else one.threads
    job = Job(one.trainer, size, begin["model"], number, threads, steps, one.options)
    found, memory = run(job, environment(chosen.threads) | one.environment, room)
    known = {"name": one.name, "size": str(size), "threads": job.threads, "seed": job.seed, "memory": memory}
    known |= {"least": size.least, "method": size.method}
    known |= summary(found, size.batch, min(WARM, steps - 1))
    print(language_report.line(known), flush=True)
    return known


def run(job: Job, variables: dict[str, str], room: Path) -> tuple[list[Step], float | None]:
    """The worker's steps, and the most memory that it and its children held."""
    paths = [room / "job.json", room / "result.json"]
    paths[0].write_text(json.dumps({**job._asdict(), "size": job.size._asdict()}))
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.language_rivals", *map(str, paths)]
    with subprocess.Popen(words, cwd=room, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as worker:
        memory, stderr = watched(worker)
    if worker.returncode:
        raise RuntimeError(f"{job.trainer} on {job.size} failed:\n{stderr.decode()[-3000:]}")
    return [Step(**step) for step in json.loads(paths[1].read_text())], memory


def environment(threads: int) -> dict[str, str]:
    """Variables of every process: as many threads, which wait as torch has it, and no look at a hub."""
    inherited = {name: value for name, value in os.environ.items() if name not in WAITING}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    return {**inherited, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}


def summary(steps: Sequence[Step], batch: int, warm: int) -> dict[str, float]:
    """Of the steps after the first: rates and shares; of the first steps of all and the last ones the reward."""
    kept = steps[warm:]
    total = {name: float(sum(getattr(step, name) for step in kept)) for name in Step._fields}
    seconds = total["seconds"]
    return {
        "rate": total["tokens"] / seconds,
        "step": seconds / len(kept),
        "length": total["tokens"] / len(kept) / batch,
        "busy": total["used"] / seconds,
        "sampling": total["sampling"] / seconds,
        "rest": total["rest"] / seconds,
        "skipped": total["skipped"] / len(kept),
        "steps": len(steps),
        "first": float(np.mean([step.reward for step in steps[:LAST]])),
        "last": float(np.mean([step.reward for step in steps[-LAST:]])),
    }


if __name__ == "__main__":
    raise SystemExit(main())

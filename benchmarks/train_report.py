"""The page of the training benchmark: a table per kind of measurement, the bars that were set, every number as JSON.

It leaves out measuring; a page is made anew from its JSON, so that one kind of measurement can be repeated alone.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import machine
from benchmarks.timing import summary
from benchmarks.train_settings import CARTPOLE, CHEETAH, REFERENCE

Record = dict[str, Any]
PACKAGES = ("telescope-rl", "torch", "gymnasium", "mujoco", "envpool", "stable-baselines3", "sbx-rl", "jax", "flax",
            "numpy", "numba")  # fmt: skip

HEAD = """# Training with PPO on {processor}

*Written by `make bench-train`; do not edit.*

All libraries train with the same settings (below) in the same environments. One process runs at a time, and the
libraries take turns. Policy and value have separate networks of 64-64 tanh units. The learning rate is 3e-4 (1e-3
for CartPole's time to the threshold), γ 0.99, λ 0.95, clip 0.2, the value loss ½ of the squared error, gradients
are clipped at 0.5, Adam's ε is 1e-5, and advantages are whitened per minibatch. There is no entropy bonus and no
annealing. Some settings cannot be changed: SBX clips the gradients of policy and value separately and has its own
initial weights; CleanRL's loop treats a time limit as a termination. Ours steps CartPole in Gymnasium's own vector
environment for it. The other libraries, and all for HalfCheetah, step one environment after another. CleanRL's loop
is `benchmarks/cleanrl_loop.py`, written from CleanRL's description, without its logging.
"""
SPEED = """Steps per second of the training loop (collecting and updating), of all seeds together, without the first
two iterations, in which compilers run. Ours runs with `--compile on`. The table shows medians (quartiles) over the
given number of processes. × is the ratio to the median of Stable-Baselines3. "Whole process" is the time from its
start to its end for the given steps, including imports and compiling; "empty cache" is the one process without a
compile cache. "Busy" is the number of processors in use; below 1, other programs used the machine. Memory is the
peak of the process and its children."""
THRESHOLD = """Seconds from the start of the process to the first evaluation (the policy's mode, mean return of 10
episodes, the same for all libraries) that reaches the threshold. Evaluations are not counted; imports and compiling
are, with a warm cache. Ours runs with `--compile auto`. The table covers all seeds of all rounds; if a process
trains eight seeds, each counts separately."""
COLD = """Seconds from the start of the process. Ours starts with an empty compile cache and runs until an
evaluation by the trainer (every 10,000 steps, which is counted) finds all eight seeds at {threshold:g} or more.
Stable-Baselines3 runs until its 100k steps are done, without evaluation. "Afterwards" is the benchmark's own
evaluation of each process's worst seed, with 10 more episodes."""
MILLION = """The preset, as in `telescope train ppo HalfCheetah-v5 --seeds 8`: the time from the start of the
process to the end of training, the peak memory of the process and its children, and the median seed's return (10
episodes with the policy's mode)."""


class Bar(NamedTuple):
    """A ratio that was set as a goal, of steps per second to Stable-Baselines3's."""

    env: str
    name: str
    least: float


BARS = (
    Bar(CARTPOLE.env, "telescope, 1 seed", 5),
    Bar(CHEETAH.env, "telescope, 1 seed", 4),
    Bar(CARTPOLE.env, "telescope, 8 seeds", 12),
    Bar(CHEETAH.env, "telescope, 8 seeds", 7),
    Bar(CHEETAH.env, "telescope, 8 seeds, EnvPool", 12),
)


def write(page: Path, facts: dict[str, str], measure: str, section: dict[str, Any]) -> None:
    """Puts one kind of measurement into `<page>.json` and makes the page from all that is there."""
    page.parent.mkdir(parents=True, exist_ok=True)
    stored = page.with_suffix(".json")
    known = json.loads(stored.read_text()) if stored.exists() else {"measures": {}}
    facts = {name: facts[name] for name in facts if name not in ("command", "date")}
    facts["versions"] = ", ".join(f"{package} {machine.installed(package)}" for package in PACKAGES)
    known = {"facts": facts, "measures": {**known["measures"], measure: section}}
    stored.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    page.write_text(text(known), encoding="utf-8")


def text(known: dict[str, Any]) -> str:
    facts, measures = known["facts"], known["measures"]
    blocks = [HEAD.format(**facts), "\n".join(f"- {name}: {value}" for name, value in facts.items())]
    if "speed" in measures:
        blocks.append(f"## The bars\n\n{bars(measures)}")
    for measure, (title, note, table) in SECTIONS.items():
        if measure in measures:
            section = measures[measure]
            blocks += [f"## {title}", note, f"`{section['command']}`, {section['date']}", table(section["records"])]
    return "\n\n".join(block.strip("\n") for block in blocks) + "\n"


def line(measure: str, found: Record) -> str:
    """What is printed while measuring."""
    who = f"{measure:9} {found['task']} | {found['name']}{', cold' if found['cold'] else ''}, seed {found['seed']}"
    seconds = f"{found['seconds']:.1f} s, whole process {found['whole']:.1f} s"
    solved = [f"{there[1]:.1f} s" if there else "not reached" for there in found["reached"]]
    return f"{who}: {found['rate']:,.0f} steps/s, {found['busy']:.2f} busy, {seconds}" + (
        f", solved {', '.join(solved)}" if found["evaluations"] else ""
    )


def speed(records: list[Record]) -> str:
    """For each task who is how fast, then where our time goes."""
    blocks = []
    for task in _distinct(r["task"] for r in records):
        here = [r for r in records if r["task"] == task]
        reference = _reference(here)
        rows = [_speed_row(runs, reference) for runs in _groups(here)]
        head = ["", "threads", "steps/s", "quartiles", "processes", "×", "busy", "whole process", "memory"]
        blocks += [f"### {task}", _table(head, rows), breakdown(here)]
    return "\n\n".join(blocks)


def _speed_row(runs: list[Record], reference: float) -> list[str]:
    first, rate = runs[0], summary([r["rate"] for r in runs])
    busy, whole = (float(np.median([r[key] for r in runs])) for key in ("busy", "whole"))
    quartiles = f"{rate.low:,.0f} – {rate.high:,.0f}"
    steps = f"{whole:.1f} s for {first['steps'] * first['seeds']:,}"
    name = first["name"] + (", empty cache" if first["cold"] else "")
    return [name, str(first["threads"]), f"{rate.median:,.0f}", quartiles, str(rate.samples),
            _ratio(rate.median, reference), f"{busy:.2f}", steps, _memory(runs)]  # fmt: skip


def breakdown(records: list[Record]) -> str:
    """µs per step of all seeds together, and its share; of runs with a warm cache."""
    rows = []
    for runs in _groups(r for r in records if r["times"] and not r["cold"]):
        shares = np.median([np.array(r["times"]) / sum(r["times"]) for r in runs], axis=0)
        step = 1e6 / float(np.median([r["rate"] for r in runs]))
        rows.append([runs[0]["name"], str(runs[0]["threads"]), *(f"{x * step:.1f} ({x:.0%})" for x in shares)])
    head = ["where a step's time goes, µs", "threads", "environment", "policy", "update", "other"]
    return _table(head, rows) if rows else ""


def threshold(records: list[Record]) -> str:
    blocks = []
    for task in _distinct(r["task"] for r in records):
        here = [r for r in records if r["task"] == task and not r["cold"]]
        rows = [_threshold_row(runs) for runs in _groups(here)]
        head = ["", "threads", "seeds that reached it", "median", "first – last", "steps", "memory", "steps/s"]
        blocks += [f"### {task}", _table(head, rows)]
    return "\n\n".join(blocks)


def _threshold_row(runs: list[Record]) -> list[str]:
    seeds = [there for r in runs for there in r["reached"]]
    there = sorted(seconds for _, seconds in filter(None, seeds))
    seconds = float(np.median([s[1] if s else np.inf for s in seeds]))
    steps = float(np.median([s[0] if s else np.inf for s in seeds]))
    most = max(r["steps"] for r in runs)
    middle = [f"{seconds:.1f} s", f"{steps:,.0f}"] if np.isfinite(seconds) else ["not reached", f"> {most:,}"]
    span = f"{there[0]:.1f} – {there[-1]:.1f} s" if there else ""
    rate = f"{np.median([r['rate'] for r in runs]):,.0f}"
    return [runs[0]["name"], str(runs[0]["threads"]), f"{len(there)} of {len(seeds)}", middle[0], span, middle[1],
            _memory(runs), rate]  # fmt: skip


def cold(records: list[Record]) -> str:
    rows = []
    for runs in _groups(records):
        seconds = sorted(_solved(r) for r in runs)
        middle = f"{np.median(seconds):.1f} s" if np.isfinite(np.median(seconds)) else "not solved"
        worst = [min(r["final"]) for r in runs]
        solved = f"{sum(x >= CARTPOLE.threshold for x in worst)} of {len(runs)}"
        span = f"{seconds[0]:.1f} – {seconds[-1]:.1f} s"
        rows.append(
            [runs[0]["name"], str(runs[0]["threads"]), middle, span, f"{min(worst):.0f}", solved, _memory(runs)]
        )
    return _table(["", "threads", "seconds", "first – last", "worst afterwards", "solved afterwards", "memory"], rows)


def _solved(found: Record) -> float:
    """When the evaluation found all seeds solved, ∞ if it never did; the end for who was not evaluated."""
    if not found["evaluations"]:
        return float(found["seconds"])
    *_, (_, seconds, returns) = found["evaluations"]
    return float(seconds) if min(returns) >= CARTPOLE.threshold else float("inf")


def million(records: list[Record]) -> str:
    rows = []
    for runs in _groups(records):
        seconds = float(np.median([r["seconds"] for r in runs]))
        rate = f"{runs[0]['steps'] * runs[0]['seeds'] / seconds:,.0f}"
        final = f"{np.median([np.median(r['final']) for r in runs]):,.0f}"
        rows.append([runs[0]["name"], str(runs[0]["threads"]), f"{seconds / 60:.1f} min", rate, _memory(runs), final])
    return _table(["", "threads", "time", "steps/s, everything counted", "memory", "return"], rows)


SECTIONS: dict[str, tuple[str, str, Callable[[list[Record]], str]]] = {
    "speed": ("Speed", SPEED, speed),
    "threshold": ("Time to the threshold", THRESHOLD, threshold),
    "cold": ("From nothing to CartPole solved", COLD.format(threshold=CARTPOLE.threshold), cold),
    "million": ("Eight seeds, a million steps of HalfCheetah each", MILLION, million),
}


def bars(measures: dict[str, Any]) -> str:
    """What was set as a goal, what was measured, and whether that is enough; each side with its best thread count."""
    rows = []
    for bar in BARS:
        here = [r for r in measures["speed"]["records"] if r["env"] == bar.env]
        ratio = _fastest(here, bar.name) / _fastest(here, REFERENCE)
        words = f"{bar.env}, {bar.name}: × {REFERENCE}"
        rows.append([words, f"≥ {bar.least:g}", f"{ratio:.2f}", _verdict(ratio >= bar.least, ratio)])
    if "cold" in measures:
        ours, zoo = (_soonest(measures["cold"]["records"], who) for who in ("telescope", REFERENCE))
        good = _verdict(ours < zoo, zoo - ours)
        rows.append(["CartPole from nothing to 8 solved seeds", f"< {zoo:.1f} s", f"{ours:.1f} s", good])
    for found in measures.get("million", {"records": []})["records"]:
        minutes, memory = found["seconds"] / 60, found["memory"] or np.nan
        good = _verdict(minutes <= 15 and memory < 2e9, memory)
        rows.append([found["name"], "≤ 15 min, < 2 GB", f"{minutes:.1f} min, {memory / 1e9:.2f} GB", good])
    return _table(["bar", "set", "measured", ""], rows)


def _verdict(good: bool, known: float) -> str:
    return "not measured" if np.isnan(known) else "met" if good else "**missed**"


def _soonest(records: list[Record], who: str) -> float:
    """The best median of the seconds until solved among the thread counts tried; NaN if there is none."""
    groups = [runs for runs in _groups(records) if runs[0]["name"].startswith(who)]
    return min((float(np.median([_solved(r) for r in runs])) for runs in groups), default=np.nan)


def _fastest(records: list[Record], name: str) -> float:
    """The best median among the thread counts tried; NaN if there is none."""
    found = [np.median([r["rate"] for r in runs]) for runs in _groups(records) if _is(runs[0], name)]
    return float(max(found, default=np.nan))


def _is(found: Record, name: str) -> bool:
    return bool(found["name"] == name and not found["cold"])


def _reference(records: list[Record]) -> float:
    return _fastest(records, REFERENCE)


def _groups(records: Iterable[Record]) -> list[list[Record]]:
    """Records of one contestant with one number of threads, warm or cold, together."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for found in records:
        groups.setdefault((found["name"], found["cold"], found["threads"]), []).append(found)
    return [groups[key] for key in sorted(groups, key=lambda key: key[1])]


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _ratio(rate: float, reference: float) -> str:
    return "" if np.isnan(reference) else f"{rate / reference:.2f}"


def _memory(runs: list[Record]) -> str:
    found = [r["memory"] for r in runs if r["memory"]]
    return f"{max(found) / 2**20:,.0f} MiB" if found else "not measured"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

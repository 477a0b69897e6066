"""The page of the language benchmark: a table per size, the bar that was set, every number as JSON beside it.

It leaves out measuring.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.timing import summary

Record = dict[str, Any]
PACKAGES = ("telescope-rl", "trl", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy")
OURS, THEIRS = "telescope", "TRL"

HEAD = """# GRPO and SFT on language models on {processor}

*Written by `make bench-language`; do not edit.*

This page compares `telescope train grpo` with TRL's `GRPOTrainer`. Both have the same initial weights (the built-in
model, a Llama of 0.54 million parameters, after `telescope train sft`), prompts in the same order, reward function
and objective: advantages from the group's mean and standard deviation, ratio clipped at 1 ± 0.2, mean over the
tokens of a completion, then over completions, no KL. SFT is compared with TRL's `SFTTrainer`, on the answers alone;
its speed counts tokens of prompts and answers, and its "reward" is minus the loss. All use AdamW with the same
settings, a constant learning rate after 10 updates, float32, and sampling at temperature 1 from the whole vocabulary.

One process runs at a time, and the two take turns, with {threads} threads each; ours uses one if a step is too
small to share. Our threads wait as the command line sets it, TRL's as torch sets it. TRL samples with `generate`
and processes its whole minibatch at once (`per_device_train_batch_size`, `steps_per_generation`; no gradient
checkpointing, logs or checkpoints). Rows with a comma are other settings of TRL, one process each.

The speed is the number of sampled completion tokens, including the end token, per second of the training loop after
the first {warm} steps. Loading is not counted. The tables show medians (quartiles) of the processes; × is the ratio
to the median of TRL. "Rollout" is sampling and scoring; in TRL it includes the log-probabilities of the policy, for
which ours uses the sampler's. "Rest" is fetching prompts and bookkeeping. "Left out" is the share of groups with
equal rewards: they have no gradient, so ours does not run them. Ours also runs equal completions of a group once.
Memory is the peak of the process, including libraries. The reward is the share of correct answers, in the first
{last} steps and in the last {last}.
"""


def write(page: Path, known: dict[str, Any]) -> None:
    """`<page>.json` and the page made from it."""
    page.parent.mkdir(parents=True, exist_ok=True)
    facts = {name: value for name, value in known["facts"].items() if name not in ("command", "date")}
    facts["versions"] = ", ".join(f"{package} {machine.installed(package)}" for package in PACKAGES)
    known = {**known, "facts": facts}
    page.with_suffix(".json").write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    page.write_text(text(known), encoding="utf-8")


def text(known: dict[str, Any]) -> str:
    facts, records = known["facts"], known["records"]
    run = {"command": f"`{known['command']}`", "date": known["date"]}
    blocks = [HEAD.format(**facts, **known["rules"])]
    blocks += ["\n".join(f"- {name}: {value}" for name, value in {**facts, **run}.items())]
    blocks += ["## The bar", bar(records), "## Where all begin", starts(known["starts"])]
    for size in distinct(r["size"] for r in records):
        here = records_of(records, size)
        blocks += [f"## {size}", speed(here), rewards(here)]
    return "\n\n".join(block.strip("\n") for block in blocks) + "\n"


def line(found: Record) -> str:
    """What is printed while measuring."""
    what = f"{found['rate']:,.0f} tokens/s, {found['step']:.2f} s per step, {found['busy']:.2f} busy"
    reward = f"reward {found['first']:.3f} → {found['last']:.3f}"
    return f"{found['size']} | {found['name']}, seed {found['seed']}: {what}, {memory([found])}, {reward}"


def bar(records: list[Record]) -> str:
    """Ours to TRL's tokens per second, and the memory of both, size by size."""
    rows = []
    for size in distinct(r["size"] for r in records):
        ours, theirs = ([r for r in records if (r["name"], r["size"]) == (name, size)] for name in (OURS, THEIRS))
        ratio = middle(ours, "rate") / middle(theirs, "rate")
        least = records_of(records, size)[0]["least"]
        verdict = "met" if ratio >= least else "**missed**"
        rows.append([size, f"≥ {least:g}", f"{ratio:.2f}", verdict, memory(ours), memory(theirs)])
    return table(["tokens per second × TRL", "set", "measured", "", "our memory", "TRL's memory"], rows)


def records_of(records: list[Record], size: str) -> list[Record]:
    return [r for r in records if r["size"] == size]


def joined(page: Path, known: dict[str, Any]) -> dict[str, Any]:
    """With the records that the page has of sizes which were not measured now."""
    place = page.with_suffix(".json")
    old = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {"records": [], "starts": {}}
    now = {record["size"] for record in known["records"]}
    kept = [record for record in old["records"] if record["size"] not in now]
    return known | {"records": kept + known["records"], "starts": old["starts"] | known["starts"]}


def starts(found: dict[str, Record]) -> str:
    rows = [[task, str(one["steps"]), f"{one['exact_match']:.1%}"] for task, one in found.items()]
    return table(["task", "steps of SFT", "exact match on held-out prompts"], rows)


def speed(records: list[Record]) -> str:
    """Who is how fast on one size, and where the time goes."""
    theirs = middle([r for r in records if r["name"] == THEIRS], "rate")
    rows = []
    for runs in by_name(records):
        rate = summary([r["rate"] for r in runs])
        sampling, rest, skipped = (middle(runs, name) for name in ("sampling", "rest", "skipped"))
        rows.append(
            [
                runs[0]["name"],
                f"{rate.median:,.0f}",
                f"{rate.low:,.0f} – {rate.high:,.0f}",
                str(rate.samples),
                f"{rate.median / theirs:.2f}",
                f"{middle(runs, 'step'):.3f} s",
                f"{middle(runs, 'busy'):.2f}",
                *(f"{share:.0%}" for share in (sampling, 1 - sampling - rest, rest, skipped)),
                memory(runs),
            ]
        )
    head = ["", "tokens/s", "quartiles", "processes", "×", "a step", "processors busy", "rollout", "update", "rest"]
    return table([*head, "left out", "memory"], rows)


def rewards(records: list[Record]) -> str:
    """What was learned meanwhile: medians over processes."""
    rows = [
        [
            runs[0]["name"],
            str(runs[0]["steps"]),
            *(f"{middle(runs, name):.3f}" for name in ("first", "last")),
            f"{middle(runs, 'length'):.2f}",
        ]
        for runs in by_name(records)
    ]
    return table(["", "steps", "reward at first", "at last", "tokens of a row"], rows)


def by_name(records: Iterable[Record]) -> list[list[Record]]:
    """The records of each contestant together, those of several processes first."""
    groups: dict[str, list[Record]] = {}
    for found in records:
        groups.setdefault(found["name"], []).append(found)
    return sorted(groups.values(), key=lambda runs: runs[0]["name"] not in (OURS, THEIRS))


def distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def middle(runs: list[Record], name: str) -> float:
    return float(np.median([r[name] for r in runs])) if runs else np.nan


def memory(runs: list[Record]) -> str:
    found = [r["memory"] for r in runs if r["memory"]]
    return f"{max(found) / 2**20:,.0f} MiB" if found else "not measured"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

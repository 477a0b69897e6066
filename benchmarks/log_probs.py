"""Memory of token log-probabilities and their gradient (`python -m benchmarks.log_probs`), in chunks and all at once.

Each contestant runs in a process of its own, whose peak is read from the operating system (resident set, CPU), so that
none inherits another's freed memory. Gradients are compared before anything is printed. It leaves out the model before
the last layer.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from telescope.language.log_probs import token_log_probs

GIB = 2**30
TOLERANCE = 1e-5  # of the largest number, between two ways to sum in float32
ARRAYS = 4  # of full size at a time, at most, in the plain formula; more than that must be free


def plain(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """log_softmax, then gather; no entropy, which would need more."""
    return (hidden @ weight.T).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


def logsumexp(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """The logit of the token minus the logsumexp of its row."""
    logits = hidden @ weight.T
    return logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)


def chunked(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """Ours; the entropy is computed with it."""
    return token_log_probs(hidden, weight, tokens).log_probs


CONTESTANTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "telescope": chunked,
    "gather − logsumexp": logsumexp,
    "log_softmax": plain,
}


def step(name: str, tokens: int, vocabulary: int, width: int, folder: Path) -> dict[str, float]:
    """One forward and backward pass; gradients go to the folder, memory and seconds are returned."""
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=rng).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=rng).div_(width**0.5).requires_grad_()
    drawn = torch.randint(0, vocabulary, (tokens,), generator=rng)
    slopes = torch.randn(tokens, generator=rng) / tokens
    (slopes[:8] * CONTESTANTS[name](hidden[:8], weight, drawn[:8])).sum().backward()  # libraries are loaded by now
    hidden.grad = weight.grad = None
    before, started = peak(), time.perf_counter()
    loss = (slopes * CONTESTANTS[name](hidden, weight, drawn)).sum()
    loss.backward()
    seconds, after = time.perf_counter() - started, peak()
    for kind, leaf in (("hidden", hidden), ("weight", weight)):
        np.save(folder / f"{list(CONTESTANTS).index(name)}-{kind}.npy", leaf.grad.numpy())
    return {"loss": loss.item(), "seconds": seconds, "step": after - before, "process": after}


def peak() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available() -> int:
    """Bytes that can be had without swapping (Linux)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024


def difference(folder: Path, index: int) -> float:
    """The largest difference of a gradient from the plain formula's, relative to its largest number."""
    pairs = [
        [np.load(folder / f"{i}-{kind}.npy") for i in (index, len(CONTESTANTS) - 1)] for kind in ("hidden", "weight")
    ]
    return max(float(abs(one - other).max() / abs(other).max()) for one, other in pairs)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)  # in the process of a contestant
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    sizes = (chosen.tokens, chosen.vocabulary, chosen.width)
    if chosen.only:
        print(json.dumps(step(chosen.only, *sizes, chosen.folder)))
        return 0
    full = 4 * chosen.tokens * chosen.vocabulary
    if ARRAYS * full > available():
        print(f"{ARRAYS * full / GIB:.1f} GiB must be free for the plain formula; take fewer --tokens", file=sys.stderr)
        return 1
    print(f"{chosen.tokens} tokens × {chosen.vocabulary} vocabulary, width {chosen.width}, float32: "
          f"one array of that size is {full / GIB:.2f} GiB")  # fmt: skip
    return compared(sizes)


def compared(sizes: tuple[int, int, int]) -> int:
    """Run them all, check the gradients, print a table."""
    flags = [f"--{name}={size}" for name, size in zip(("tokens", "vocabulary", "width"), sizes, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name in CONTESTANTS:
            command = [sys.executable, "-m", "benchmarks.log_probs", *flags, "--only", name, "--folder", folder]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        differences = [difference(Path(folder), index) for index in range(len(rows))]
    print("\n| | memory of the step | of the process | seconds | gradients differ by |\n|---|---:|---:|---:|---:|")
    for name, row, other in zip(CONTESTANTS, rows, differences, strict=True):
        memory = f"{row['step'] / GIB:.2f} GiB | {row['process'] / GIB:.2f} GiB"
        print(f"| {name} | {memory} | {row['seconds']:.1f} | {other:.1e} |")
    print(f"\ntelescope's step takes {rows[0]['step'] / rows[-1]['step']:.3f} of the plain formula's memory")
    return 0 if max(differences) < TOLERANCE else 1


if __name__ == "__main__":
    raise SystemExit(main())

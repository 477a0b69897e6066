"""GAE against its rivals on an NVIDIA GPU: `python -m benchmarks.gpu` writes docs/benchmarks/<gpu>.md and .json.

Every contestant is checked against the oracle before it is timed: many calls queued, which is what a caller pays, and
many in one CUDA graph, which is what the device needs. It leaves out the CPU (`estimators.py`), and does nothing
without torch.cuda.
"""

# T steps, B columns
import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import telescope
from benchmarks import machine, report
from benchmarks.contestants import Pair, Ready, as_is, queued_associative
from benchmarks.problem import ENDS, GAMMA, LAM, TOLERANCE, Problem, answer, error, problem
from benchmarks.report import Row
from benchmarks.timing import Call, Times, interleaved

SHAPES = [
    (4096, 2048),
    (4096, 128),
    (1024, 1024),
    (1001, 999),
    (64, 512),
    (8, 65_536),
    (1, 1_000_000),
]  # columns, steps
QUEUED = 1000  # calls per sample: what one call costs when many wait in the queue
SLOW = 2e-3  # seconds: whoever takes longer keeps the device busy without a queue
IN_GRAPH = 20  # calls captured in one graph
BUDGET = 1.5  # seconds of samples per contestant and shape
SUMS = [(2048, 4096, 0.99, 0.95), (65_536, 8, 0.99, 0.95), (1_000_000, 1, 0.99, 0.95), (1_000_000, 1, 1.0, 1.0)]
FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"
HEAD = "# GAE on {accelerator}\n\n*Written by `{command}`; do not edit.*\n"
RULES = """
Each contestant computes advantages and returns of the same rollout (float32, {ends:.0%} of the steps terminate), from
arrays of its own, contiguous in its own layout, compiled and warm. It is timed only if both results differ from a
float64 oracle by at most {tolerance:g} of the largest number. Times are medians (quartiles) per call, in rounds in
which all take turns: of calls that wait in a queue, at least {queued} of them where a call takes less than {slow} (what
a caller pays: the host's part and the device's overlap), and of calls inside one CUDA graph of {in_graph} (what the
device alone needs). "copy" is a copy on the device that reads and writes, together, as many bytes as GAE must:
rewards, values, next values, two flags, advantages and returns.
"""


def sections(rounds: int, shapes: Sequence[tuple[int, int]] = SHAPES) -> dict[str, list[Row]]:
    """The tables of this machine's GPU; none where there is no GPU, or no torch to ask."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else JAX takes what the others need
    found: dict[str, list[Row]] = {}
    for columns, steps in shapes:
        title = f"{columns} × {steps}"
        found[f"GPU, {title}"], found[f"GPU, {title}, in a CUDA graph"] = compared(columns, steps, rounds)
        print("\n\n".join(f"{name}\n{report.table(rows)}" for name, rows in list(found.items())[-2:]), flush=True)
    return found


def compared(columns: int, steps: int, rounds: int) -> tuple[list[Row], list[Row]]:
    """All contestants on one shape, queued; and those that torch can capture, a call's share of a replay."""
    given, rows, calls = problem(columns, steps), [], {}
    right = answer(given)
    for name, prepare in contestants(columns, steps).items():
        try:
            ready = prepare(given, "cuda")
            found = error(ready.read(ready.call()), right)
        except ImportError as missing:
            rows.append(Row(name, None, None, f"not installed ({missing.name or missing})"))
            continue
        rows.append(Row(name, found, None, "" if found <= TOLERANCE else "WRONG, not timed"))
        if found <= TOLERANCE:
            calls[name] = ready.call
    calls["copy, out="] = copy(given, "cuda")
    rows.append(Row("copy, out=", None, None))
    graphs = {name: captured(call) for name, call in calls.items() if "JAX" not in name and "graphs" not in name}
    share = {name: Times(t.median / IN_GRAPH, t.low / IN_GRAPH, t.high / IN_GRAPH, t.samples)
             for name, t in interleaved(graphs, rounds, BUDGET, finish=finish).items()}  # fmt: skip
    times = queued(calls, rounds)
    return [row._replace(times=times.get(row.name)) for row in rows], [
        row._replace(times=share[row.name]) for row in rows if row.name in share
    ]


def queued(calls: dict[str, Call], rounds: int) -> dict[str, Times]:
    """QUEUED calls a sample; but one is enough of a call that takes long."""
    single = interleaved(calls, 3, BUDGET, finish=finish)
    quick = {name: call for name, call in calls.items() if single[name].median < SLOW}
    slow = {name: call for name, call in calls.items() if name not in quick}
    return interleaved(quick, rounds, BUDGET, least=QUEUED, finish=finish) | interleaved(
        slow, rounds, BUDGET, finish=finish
    )


LAST: list[Any] = []  # JAX's newest result: its queue is not torch's to wait for


def finish() -> None:
    import torch

    if LAST:
        import jax

        jax.block_until_ready(LAST)
        LAST.clear()
    torch.cuda.synchronize()


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """The replay of a CUDA graph of IN_GRAPH such calls."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # torch's rule: warm up on a stream of its own before capturing
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(IN_GRAPH):
            call()
    return graph.replay


def tensors(given: Problem, device: str) -> list[Any]:
    import torch

    return [torch.from_numpy(array).to(device) for array in given[:5]]


def to_numpy(result: Any) -> Pair:
    advantages, returns = result
    return advantages.cpu().numpy(), returns.cpu().numpy()


def telescope_with(layout: str, *, out: bool = False) -> Callable[[Problem, str], Ready]:
    def prepare(given: Problem, device: str) -> Ready:
        import torch

        axis = 0 if layout == "time-major" else 1
        arrays = [array.T.contiguous() if axis else array for array in tensors(given, device)]
        room = (torch.empty_like(arrays[0]), torch.empty_like(arrays[0])) if out else None
        *floats, terminated, truncated = arrays

        def call() -> Any:
            return telescope.gae(
                *floats, terminated=terminated, truncated=truncated, gamma=GAMMA, lam=LAM, axis=axis, out=room
            )

        return Ready(call, lambda result: to_numpy(tensor.T if axis else tensor for tensor in result))

    return prepare


def telescope_in_jax(given: Problem, device: str) -> Ready:
    """Ours on JAX arrays, jitted: the pair (x, a) in an associative scan."""
    jax = jax_on(device)
    arrays = [jax.numpy.asarray(array) for array in given[:5]]
    jitted = jax.jit(lambda r, v, n, e, c: telescope.gae(r, v, n, terminated=e, truncated=c, gamma=GAMMA, lam=LAM))
    return Ready(kept(lambda: jitted(*arrays)), as_is)


def doubling(mode: str | None = None) -> Callable[[Problem, str], Ready]:
    """torch.compile of log₂ T rounds, in each of which a step takes in twice as many that follow it."""

    def prepare(given: Problem, device: str) -> Ready:
        import torch

        def both(rewards: Any, values: Any, ahead: Any, terminated: Any) -> Any:
            a = torch.where(terminated, 0.0, GAMMA * LAM)
            x, reach = rewards + torch.where(terminated, 0.0, GAMMA * ahead) - values, 1
            while reach < len(x):
                x = torch.cat([x[:-reach] + a[:-reach] * x[reach:], x[-reach:]])
                a = torch.cat([a[:-reach] * a[reach:], a[-reach:]])
                reach *= 2
            return x, x + values

        torch._dynamo.reset()
        compiled, arrays = torch.compile(both, dynamic=False, mode=mode), tensors(given, device)[:4]
        for _ in range(3):  # with CUDA graphs: warm up, record, replay
            compiled(*arrays)
        return Ready(lambda: compiled(*arrays), to_numpy)

    return prepare


def thread_per_row(given: Problem, device: str) -> Ready:
    import torch

    from benchmarks import row_kernel

    *arrays, _ = tensors(given, device)
    steps, columns = given.values.shape
    arrays[3] = arrays[3].view(torch.uint8)
    width = 32  # a warp: more blocks for the GPU to spread than wider ones

    def call() -> Any:
        out = torch.empty_like(arrays[0]), torch.empty_like(arrays[0])
        blocks = (-(-columns // width),)
        row_kernel.gae[blocks](*arrays, *out, steps, columns, GAMMA, GAMMA * LAM, WIDTH=width, num_warps=1)
        return out

    return Ready(call, to_numpy)


def jax_associative(given: Problem, device: str) -> Ready:
    """As on the CPU, where JAX sees the GPU."""
    jax_on(device)
    return Ready(kept(queued_associative(given)), as_is)


def jax_on(device: str) -> Any:
    import jax

    if device == "cuda" and jax.default_backend() != "gpu":
        raise ImportError("jax with a GPU")
    return jax


def kept(call: Callable[[], Any]) -> Callable[[], Any]:
    def and_kept() -> Any:
        LAST[:] = [call()]
        return LAST[0]

    return and_kept


def copy(given: Problem, device: str) -> Callable[[], Any]:
    """The limit: a copy that reads and writes together as many bytes as GAE reads and writes."""
    import torch

    size = sum(array.nbytes for array in given[:5]) + 2 * given.values.nbytes
    source = torch.randint(0, 255, (size // 2,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def contestants(columns: int, steps: int) -> dict[str, Callable[[Problem, str], Ready]]:
    """Who can take part: compiling 20 rounds of doubling takes minutes, and a thread that walks 1 000 000 steps too."""
    every: dict[str, Callable[[Problem, str], Ready]] = {
        "telescope, time-major": telescope_with("time-major"),
        "telescope, time-major, out=": telescope_with("time-major", out=True),
        "telescope, batch-major": telescope_with("batch-major"),
        "telescope, batch-major, out=": telescope_with("batch-major", out=True),
        "telescope, JAX arrays": telescope_in_jax,
        "torch.compile of a doubling scan": doubling(),
        "torch.compile of a doubling scan, CUDA graphs": doubling("reduce-overhead"),
        "Triton, one thread per row": thread_per_row,
        "JAX associative_scan": jax_associative,
    }
    if columns * steps > 1 << 20:
        every.pop("torch.compile of a doubling scan, CUDA graphs")  # nothing to gain where the device is busy anyway
    if steps > 65_536:
        every = {name: prepare for name, prepare in every.items() if "telescope" in name or "JAX" in name}
    return every


def precision() -> list[dict[str, Any]]:
    """The largest errors of the advantages, absolute: ours, and the plain loop's in float32 on the same numbers."""
    found = []
    for steps, columns, gamma, lam in SUMS:
        random = np.random.default_rng(steps)
        rewards, values, ahead = random.standard_normal((3, steps, columns), dtype=np.float32)
        right = summed(rewards.astype("f8") + gamma * ahead.astype("f8") - values, gamma * lam)
        loop = summed(rewards + np.float32(gamma) * ahead - values, np.float32(gamma * lam))
        unit = np.finfo(np.float32).eps * np.abs(right).max()
        row = {"shape": f"{columns} × {steps}", "γ": gamma, "λ": lam, "loop": float(np.abs(loop - right).max())}
        for layout, axis in (("time-major", 0), ("batch-major", 1)):
            ours = on_gpu((rewards, values, ahead), gamma, lam, axis)
            row[layout] = float(np.abs(ours - right).max())
        found.append({**row, "one unit of the largest": float(unit)})
    return found


def summed(x: np.ndarray, decay: Any) -> np.ndarray:
    y, later = np.empty_like(x), np.zeros_like(x[0])
    for t in range(len(x) - 1, -1, -1):
        later = x[t] + decay * later
        y[t] = later
    return y


def on_gpu(floats: tuple[np.ndarray, ...], gamma: float, lam: float, axis: int) -> np.ndarray:
    import torch

    arrays = (torch.from_numpy(np.ascontiguousarray(array.T) if axis else array).cuda() for array in floats)
    found = telescope.gae(*arrays, terminated=None, truncated=None, gamma=gamma, lam=lam, axis=axis).advantages
    return (found.T if axis else found).double().cpu().numpy()


def overview(found: dict[str, list[Row]]) -> str:
    """Ours against the copy and the fastest rival, on the device alone and as a caller sees it."""
    lines = ["| columns × steps | on the device | of the copy's bandwidth | fastest rival there | × ours "
             "| a queued call | fastest rival queued | × ours |",
             "|---|---:|---:|---|---:|---:|---|---:|"]  # fmt: skip
    for title, rows in found.items():
        if title.endswith("graph"):
            continue
        queue, device = medians(rows), medians(found[f"{title}, in a CUDA graph"])
        copied = device["copy, out="]
        inside, outside = both(device, "telescope, {}, out="), both(queue, "telescope, {}")
        cells = [title.removeprefix("GPU, "), slashed(inside), " / ".join(f"{copied / time:.0%}" for time in inside)]
        cells += rival(device, inside)
        cells += [slashed(outside), *rival(queue, outside)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "Two numbers in one cell: time-major, batch-major."])


def medians(rows: list[Row]) -> dict[str, float]:
    return {row.name: row.times.median for row in rows if row.times}


def both(times: dict[str, float], name: str) -> list[float]:
    return [times[name.format(layout)] for layout in ("time-major", "batch-major")]


def rival(times: dict[str, float], ours: list[float]) -> list[str]:
    others = {name: time for name, time in times.items() if not name.startswith(("telescope", "copy"))}
    if not others:
        return ["", ""]
    best = min(others, key=others.__getitem__)
    return [f"{best} {report.duration(others[best])}", " / ".join(f"{others[best] / time:.2g}" for time in ours)]


def slashed(times: list[float]) -> str:
    return " / ".join(map(report.duration, times))


def page(facts: dict[str, str], found: dict[str, list[Row]], errors: list[dict[str, Any]]) -> str:
    rules = RULES.format(
        ends=ENDS, tolerance=TOLERANCE, queued=QUEUED, slow=report.duration(SLOW), in_graph=IN_GRAPH
    )  # fmt: skip
    head = HEAD.format(**facts) + rules + "\n" + "\n".join(f"- {name}: {fact}" for name, fact in facts.items())
    names = list(errors[0]) if errors else []
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [" | ".join(f"{cell:.2e}" if 0 < _number(cell) < 0.1 else str(cell) for cell in row.values())
              for row in errors]  # fmt: skip
    sums = "Largest absolute error of the advantages of standard normal numbers, without flags, against float64; "
    sums += "the loop is in float32 on the same numbers.\n\n" + "\n".join(f"| {line} |" for line in lines)
    tables = [f"## {title}\n\n{report.table(rows)}" for title, rows in found.items()]
    return "\n\n".join([head, f"## Summary\n\n{overview(found)}", f"## Errors\n\n{sums}", *tables]) + "\n"


def _number(cell: Any) -> float:
    return cell if isinstance(cell, float) else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: measures, writes the page, and fails if a contestant of ours was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=31, help="samples of each contestant (default 31)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the page goes")
    chosen = parser.parse_args(arguments)
    facts = machine.facts() | {"command": f"python -m benchmarks.gpu --rounds {chosen.rounds}"}
    found: dict[str, list[Row]] = {}
    for shape in SHAPES:  # written anew with each, for a machine that may be taken away
        found |= sections(chosen.rounds, [shape])
        if not found:
            parser.error("no CUDA device that torch can see")
        write(chosen.folder, facts, found, [])
    print(write(chosen.folder, facts, found, precision()).read_text(encoding="utf-8"))
    return any(row.ours and row.note for rows in found.values() for row in rows)


def write(folder: Path, facts: dict[str, str], found: dict[str, list[Row]], errors: list[dict[str, Any]]) -> Path:
    """The page and the JSON file beside it; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{machine.accelerator().lower().replace(' ', '-')}.md"
    plain = {title: [{**row._asdict(), "times": row.times and row.times._asdict()} for row in rows]
             for title, rows in found.items()}  # fmt: skip
    text = json.dumps({**facts, "sections": plain, "errors": errors}, indent=1)
    target.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    target.write_text(page(facts, found, errors), encoding="utf-8")
    return target


if __name__ == "__main__":
    raise SystemExit(main())

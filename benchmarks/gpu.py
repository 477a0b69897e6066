"""Who takes part on an NVIDIA GPU, and how: queued calls, calls inside a CUDA graph, and the copy of the same bytes.

Nothing here runs without torch.cuda. Every contestant is checked against the oracle first, as on the CPU.
"""

# T steps, B columns
from collections.abc import Callable
from typing import Any

import numpy as np

import telescope
from benchmarks.contestants import Pair, Ready, as_is, queued_associative
from benchmarks.problem import GAMMA, LAM, TOLERANCE, Problem, answer, error, problem
from benchmarks.report import Row
from benchmarks.timing import interleaved

SHAPES = [(4096, 2048), (4096, 128), (1024, 1024), (64, 512), (8, 65_536)]  # columns, steps
QUEUED = 1000  # calls per sample: what one call costs when many wait in the queue
GRAPHED = (64, 512)
IN_GRAPH = 100  # calls captured in one graph
BUDGET = 5.0  # seconds of samples per contestant and shape


def sections(rounds: int) -> dict[str, list[Row]]:
    """The tables of this machine's GPU; none where there is no GPU, or no torch to ask."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    found = {f"GPU, {columns} × {steps}": compared(columns, steps, rounds) for columns, steps in SHAPES}
    columns, steps = GRAPHED
    return {**found, f"GPU, {columns} × {steps}, inside a CUDA graph": compared(columns, steps, rounds, graph=True)}


def compared(columns: int, steps: int, rounds: int, *, graph: bool = False) -> list[Row]:
    """All contestants on one shape; with `graph`, those that torch can capture, a call's share of a replay."""
    import torch

    given, rows, calls = problem(columns, steps), [], {}
    right = answer(given)
    for name, prepare in CONTESTANTS.items():
        if graph and name.startswith("JAX"):
            continue
        try:
            ready = prepare(given, "cuda")
        except ImportError as missing:
            rows.append(Row(name, None, None, f"not installed ({missing.name or missing})"))
            continue
        found = error(ready.read(ready.call()), right)
        if found <= TOLERANCE:
            calls[name] = captured(ready.call) if graph else ready.call
        rows.append(Row(name, found, None, "" if found <= TOLERANCE else "WRONG, not timed"))
    rows.append(Row("copy, out=", None, None))
    calls["copy, out="] = captured(copy(given, "cuda")) if graph else copy(given, "cuda")
    least = 1 if graph else QUEUED
    times = interleaved(calls, rounds, BUDGET, least=least, finish=torch.cuda.synchronize)
    if graph:
        times = {name: t._replace(**{k: getattr(t, k) / IN_GRAPH for k in ("median", "low", "high")})
                 for name, t in times.items()}  # fmt: skip
    return [row._replace(times=times.get(row.name)) for row in rows]


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
        room = tuple(torch.empty_like(arrays[0]) for _ in range(2)) if out else None
        *floats, terminated, truncated = arrays

        def call() -> Any:
            return telescope.gae(
                *floats, terminated=terminated, truncated=truncated, gamma=GAMMA, lam=LAM, axis=axis, out=room
            )

        return Ready(call, lambda result: to_numpy(tensor.T if axis else tensor for tensor in result))

    return prepare


def doubling(given: Problem, device: str) -> Ready:
    """torch.compile of log₂ T rounds, in each of which a step takes in twice as many that follow it."""
    import torch

    def both(rewards: Any, values: Any, ahead: Any, terminated: Any) -> Any:
        a = torch.where(terminated, 0.0, GAMMA * LAM)
        x, reach = rewards + torch.where(terminated, 0.0, GAMMA * ahead) - values, 1
        while reach < len(x):
            x = torch.cat([x[:-reach] + a[:-reach] * x[reach:], x[-reach:]])
            a = torch.cat([a[:-reach] * a[reach:], a[-reach:]])
            reach *= 2
        return x, x + values

    compiled, arrays = torch.compile(both, dynamic=False), tensors(given, device)[:4]
    return Ready(lambda: compiled(*arrays), to_numpy)


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
    import jax

    if device == "cuda" and jax.default_backend() != "gpu":
        raise ImportError("jax with a GPU")
    return Ready(queued_associative(given), as_is)


def copy(given: Problem, device: str) -> Callable[[], Any]:
    """The limit: a copy that reads and writes together as many bytes as GAE reads and writes."""
    import torch

    size = sum(array.nbytes for array in given[:5]) + 2 * given.values.nbytes
    source = torch.from_numpy(np.zeros(size // 2, np.uint8)).to(device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


CONTESTANTS: dict[str, Callable[[Problem, str], Ready]] = {
    "telescope, time-major": telescope_with("time-major"),
    "telescope, time-major, out=": telescope_with("time-major", out=True),
    "telescope, batch-major": telescope_with("batch-major"),
    "telescope, batch-major, out=": telescope_with("batch-major", out=True),
    "torch.compile of a doubling scan": doubling,
    "Triton, one thread per row": thread_per_row,
    "JAX associative_scan": jax_associative,
}

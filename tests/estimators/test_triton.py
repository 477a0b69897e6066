"""The Triton kernels: on a GPU where there is one, else in Triton's interpreter, on tensors of the CPU.

Collected only where Triton is installed. Tiles and chunks are made small, so that a few rows cross all borders;
the interpreter scans a tile step by step, so what joins stretches out of order is tested by the chunks.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import oracle
from telescope.recurrence import naive

__test__ = importlib.util.find_spec("triton") is not None
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if __test__:
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")
        from telescope.recurrence import triton as kernels

CUTS = {"one tile": (8, 4, 99), "tiles": (2, 2, 99), "chunks": (2, 2, 1)}  # segments, columns, tiles of a chunk
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "rows": lambda x: x,
    "columns": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "every other": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "axes swapped": lambda x: x.movedim(0, 1).contiguous().movedim(0, 1) if x.ndim > 1 else x,
}


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton looks at this again when the first kernel is called."""
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(params=CUTS if __test__ else [])
def cuts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    segments, block_c, most = CUTS[request.param]
    block_t = segments * kernels.ROWS

    def plan(steps: int, columns: int, *, time_first: bool) -> Any:
        tiles = min(most, -(-steps // block_t))
        grid = -(-columns // block_c), -(-steps // (tiles * block_t))
        return kernels.Plan(segments, block_c, 4, 3, tiles, grid)

    monkeypatch.setattr(kernels, "plan", plan)
    return request.param


def solved(x: np.ndarray, a: np.ndarray, layout: str = "rows", forwards: bool = False) -> np.ndarray:
    sides = (LAYOUTS[layout](torch.from_numpy(np.array(array)).to(DEVICE)) for array in (x, a))
    return kernels.linear_recurrence(*sides, forwards=forwards).cpu().numpy()


def pair(shape: tuple[int, ...], dtype: str = "f8") -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    a = random.uniform(-1, 1, shape) * (random.random(shape) < 0.9)
    return random.normal(size=shape).astype(dtype), a.astype(dtype)


@pytest.mark.parametrize("forwards", [False, True])
@pytest.mark.parametrize("shape", [(1,), (11,), (19, 3), (0, 2), (2, 0), (9, 2, 2)], ids=str)
def test_kernel_is_the_loop(shape: tuple[int, ...], forwards: bool, cuts: str) -> None:
    order = -1 if forwards else 1
    for layout, dtype in zip(LAYOUTS, ("f4", "f8", "f4", "f8"), strict=True):
        if 0 in shape and layout != "rows":
            continue
        x, a = pair(shape, dtype)
        y = solved(x, a, layout, forwards)
        assert y.dtype == dtype
        expected = naive.linear_recurrence(*(array[::order].astype("f8") for array in (x, a)))[::order]
        np.testing.assert_allclose(y, expected, rtol=16 * np.finfo(dtype).eps, atol=16 * np.finfo(dtype).eps)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_crosses_a_cut_and_all_else_goes_on(bad: float, cuts: str) -> None:
    """Also where the product of all a is less than any number, or more: a cut is what is 0, not what becomes 0."""
    x, a = np.ones((12, 3), "f4"), np.full((12, 3), 0.5, "f4")
    x[9:, 0], a[9:, 0], a[8, 0] = bad, np.nan, 0
    x[9:, 1], a[:9, 1] = bad, 1e-30
    x[:, 2], a[:, 2] = 0, 1e30
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(solved(x, a), naive.linear_recurrence(x, a))


@pytest.mark.parametrize("layout", ["rows", "columns", "axes swapped"])
@pytest.mark.parametrize("returns_lam", [0.9, 0.5])
def test_gae(returns_lam: float, layout: str, cuts: str) -> None:
    """Against the sums over episodes, with NaN in everything that must not be read."""
    steps = oracle.rollout((9, 2) if layout != "axes swapped" else (5, 2, 2))
    advantages = oracle.advantages(steps, 0.97, 0.9)
    returns = np.where(steps.mask, oracle.advantages(steps, 0.97, returns_lam) + steps.values, 0)
    for array in steps[:3]:
        array[~steps.mask] = np.nan
    steps.next_values[steps.terminated] = np.nan
    arrays = [LAYOUTS[layout](torch.from_numpy(array).to(DEVICE)) for array in steps]
    out = torch.empty_like(arrays[1]), torch.empty_like(arrays[1])
    assert kernels.gae(arrays[:3], arrays[3:], (0.97, 0.97 * 0.9, 0.97 * returns_lam), out)
    np.testing.assert_allclose(out[0].cpu(), advantages, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(out[1].cpu(), returns, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kinds", [("float16", "float16"), ("float64", "float32"), ("int64", "bfloat16")], ids=str)
def test_precisions(kinds: tuple[str, str]) -> None:
    """Rewards of one dtype, values of another; no flags at all; γ = 0 reads no successor; sums in float32."""
    rewards, values = (getattr(torch, kind) for kind in kinds)
    steps = oracle.rollout((7, 3), ends=0)._replace(mask=np.ones((7, 3), bool))
    data = [torch.from_numpy(steps[0]).to(rewards), *(torch.from_numpy(array).to(values) for array in steps[1:3])]
    steps = steps._replace(**dict(zip(steps._fields, (array.double().numpy() for array in data), strict=False)))
    for gamma in 0.97, 0.0:
        out = torch.empty(7, 3, device=DEVICE), torch.empty(7, 3, device=DEVICE)
        data[2] = data[2] if gamma else torch.full_like(data[2], torch.nan)
        kernels.gae([array.to(DEVICE) for array in data], (None,) * 3, (gamma, gamma * 0.9, gamma * 0.9), out)
        expected = oracle.advantages(steps, gamma, 0.9)
        np.testing.assert_allclose(out[0].cpu(), expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(out[1].cpu(), expected + steps.values, rtol=1e-6, atol=1e-6)


def test_nothing_is_written_beside_the_result(cuts: str) -> None:
    steps = [torch.from_numpy(array).to(DEVICE) for array in oracle.rollout((5, 3), np.float32)]
    frames = [torch.full((9, 7), 7.0, device=DEVICE) for _ in range(2)]
    kernels.gae(steps[:3], steps[3:], (0.9, 0.8, 0.8), tuple(frame[2:7, 2:5] for frame in frames))
    for frame in frames:
        assert not (frame[2:7, 2:5] == 7).any()
        frame[2:7, 2:5] = 7
        assert (frame == 7).all()


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("columns", [1, 3, 8, 64, 1000, 4096, 100_000])
@pytest.mark.parametrize("steps", [1, 17, 128, 2048, 65_536, 1_000_000])
def test_a_plan_covers_everything_once(steps: int, columns: int, time_first: bool) -> None:
    plan = kernels.plan(steps, columns, time_first=time_first)
    blocks, chunks = plan.grid
    chunk = plan.tiles * plan.segments * kernels.ROWS
    assert (blocks - 1) * plan.block < columns <= blocks * plan.block
    assert (chunks - 1) * chunk < steps <= chunks * chunk
    assert plan.even(steps, columns) == (steps == chunks * chunk and columns == blocks * plan.block)
    assert {plan.block, plan.segments, plan.warps, plan.padded} <= {2**k for k in range(10)}
    assert plan.passes == ((False,) if chunks == 1 else (True, False))
    if steps * columns >= 1 << 19:
        assert blocks * chunks >= 120  # most of the 132 multiprocessors of an H200 have something to do


def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """What the interpreter accepts the compiler may not: down to machine code, for which no GPU is needed.

    In a process of its own: Triton decides at its import, for good, whether it interprets.
    """
    settings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).parents[1] / "compile_kernels.py"
    run = subprocess.run(
        [sys.executable, script],
        env=settings | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["recurrence", "gae"]


def test_nan_goes_as_far_in_gae_as_in_the_loop(cuts: str) -> None:
    """Up to a cut, and no further; all the way where there is none, although the product of all γλ is 0."""
    rewards, values = torch.ones(12, 2, device=DEVICE), torch.zeros(12, 2, device=DEVICE)
    terminated = torch.zeros(12, 2, dtype=torch.bool, device=DEVICE)
    rewards[9:], terminated[8, 0] = torch.nan, True
    out = torch.empty_like(values), torch.empty_like(values)
    kernels.gae((rewards, values, values), (terminated, None, None), (1.0, 1e-30, 1e-30), out)
    for found in out:
        np.testing.assert_array_equal(found[:9, 0].cpu(), np.ones(9))
        assert found[9:, 0].isnan().all()
        assert found[:, 1].isnan().all()

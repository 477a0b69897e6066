"""The recurrence: every kernel, layout, dtype and thread agrees with the loop in `naive.py`, bit for bit.

Except where few long columns are cut into stretches, which is the subject of test_long_columns.py.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import telescope
from telescope.recurrence import cpu, linear_recurrence, naive
from telescope.recurrence.torch import _loop
from telescope.recurrence.torch import linear_recurrence as on_tensors

SHAPES = [
    (0,),
    (1,),
    (63,),
    (0, 3),
    (2, 0),
    (1, 1),
    (1, 5),
    (2, 3),
    (63, 64),
    (600, 9),
    (1030, 17),
    (255, 1),
    (9, 2, 3),
    (5, 1, 4),
]
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": lambda x: x,
    "batch-major": lambda x: np.ascontiguousarray(x.T).T,
    "every other column": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "rows of a wider array": lambda x: np.concatenate([x, x], axis=-1)[..., : x.shape[-1]],
    "backwards in memory": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "columns backwards": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
    "axes swapped": lambda x: np.ascontiguousarray(np.moveaxis(x, 0, -1)) if x.ndim < 2 else _swapped(x),
}


def _swapped(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(np.ascontiguousarray(np.swapaxes(x, 0, 1)), 0, 1)


def pair(shape: tuple[int, ...], dtype: str = "f4", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    a = random.uniform(-1, 1, shape) * (random.random(shape) < 0.8)
    return random.normal(size=shape).astype(dtype), a.astype(dtype)


def test_naive_is_the_sum_of_products() -> None:
    x, a = pair((7, 3), "f8")
    y = naive.linear_recurrence(x, a)
    for t in range(7):
        expected = sum(np.prod(a[t : t + k], axis=0) * x[t + k] for k in range(7 - t))
        np.testing.assert_allclose(y[t], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_is_the_loop(shape: tuple[int, ...], layout: str, dtype: str) -> None:
    x, a = pair(shape, dtype)
    if layout == "every other column" and shape[-1] == 0:
        return
    expected = naive.linear_recurrence(x, a)
    y = linear_recurrence(LAYOUTS[layout](x), LAYOUTS[layout](a))
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(linear_recurrence(LAYOUTS[layout](x), a), expected)
    if shape[-1] != 0 and 0 not in shape:
        out = LAYOUTS[layout](np.full_like(x, 7))
        np.testing.assert_array_equal(cpu.linear_recurrence(x, a, out=out), expected)


@pytest.mark.parametrize("shape", [(300, 700), (700, 300), (4000, 40), (70, 3, 700)], ids=str)
def test_threads_do_not_change_the_result(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    x, a = pair(shape)
    expected = naive.linear_recurrence(x, a)
    for threads in "1", "2", "3", "nonsense":
        monkeypatch.setenv("TELESCOPE_NUM_THREADS", threads)
        for layout in "contiguous", "batch-major":
            y = linear_recurrence(LAYOUTS[layout](x), LAYOUTS[layout](a))
            np.testing.assert_array_equal(y, expected)


def test_rows_that_are_fetched_ahead() -> None:
    """More memory than caches hold, in short rows; batch-major there is nothing to fetch, and None is one row."""
    x, a = pair((66_000, 16))
    np.testing.assert_array_equal(linear_recurrence(x, a), naive.linear_recurrence(x, a))
    rows: dict[str, Any] = {"rewards": x, "values": a, "next_values": x + a, "terminated": a == 0}
    columns = {name: np.ascontiguousarray(array.T) for name, array in rows.items()}
    given = {"truncated": None, "gamma": 0.9, "lam": 0.9}
    by_rows, by_columns = telescope.gae(**rows, **given), telescope.gae(**columns, **given, axis=1)
    np.testing.assert_array_equal(by_rows.advantages, by_columns.advantages.T)
    np.testing.assert_array_equal(by_rows.returns, by_columns.returns.T)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_crosses_a_cut(bad: float) -> None:
    x, a = pair((6, 40))
    a[3] = 0
    x[4:], a[4:] = bad, bad
    clean = naive.linear_recurrence(x[:4], a[:4])
    for columns in slice(None), slice(0, 1):
        for y in (
            linear_recurrence(x[:, columns], a[:, columns]),
            _loop(torch.from_numpy(x[:, columns]), torch.from_numpy(a[:, columns]), False).numpy(),
        ):
            np.testing.assert_array_equal(y[:4], clean[:, columns])


def test_inputs_may_be_read_only_and_repeated() -> None:
    x, _ = pair((50, 8))
    x.flags.writeable = False
    a = np.broadcast_to(np.float32(0.5), x.shape)
    np.testing.assert_array_equal(linear_recurrence(x, a), naive.linear_recurrence(x, a))


@pytest.mark.parametrize("shape", [(0,), (1, 3), (63, 5), (4, 2, 3)], ids=str)
@pytest.mark.parametrize("forwards", [False, True])
def test_tensors(shape: tuple[int, ...], forwards: bool) -> None:
    x, a = pair(shape)
    step = -1 if forwards else 1
    expected = naive.linear_recurrence(x[::step], a[::step])[::step]
    for compute in on_tensors, lambda x, a, forwards: _loop(x, a, forwards):
        y = compute(torch.from_numpy(x), torch.from_numpy(a), forwards=forwards)
        np.testing.assert_array_equal(y.numpy(), expected)


def test_tensors_are_read_where_they_are() -> None:
    x, a = (torch.from_numpy(array) for array in pair((5, 6)))
    transposed = linear_recurrence(x.T.contiguous().T, a.T.contiguous().T)
    torch.testing.assert_close(transposed, linear_recurrence(x, a), rtol=0, atol=0)
    assert linear_recurrence(x.requires_grad_(), a).requires_grad is False


@pytest.mark.parametrize("shape", [(1,), (6,), (5, 3), (3, 2, 2)], ids=str)
def test_gradient_is_exact(shape: tuple[int, ...]) -> None:
    """Against finite differences, to second order, and against autograd through a loop written here."""
    x, a = (torch.from_numpy(array).requires_grad_() for array in pair(shape, "f8"))
    assert bool((a == 0).any()) or len(shape) == 1

    def function(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return linear_recurrence(x, a, differentiable=True)

    assert torch.autograd.gradcheck(function, (x, a))
    assert torch.autograd.gradgradcheck(function, (x, a))
    carry, rows = torch.zeros(shape[1:], dtype=x.dtype), []
    for t in reversed(range(shape[0])):
        carry = x[t] + a[t] * carry
        rows.insert(0, carry)
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=shape))
    expected = torch.autograd.grad((torch.stack(rows) * weights).sum(), (x, a))
    for ours, theirs in zip(torch.autograd.grad((function(x, a) * weights).sum(), (x, a)), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_four_python_threads_at_once() -> None:
    problems = [pair((100, 2100), seed=seed) for seed in range(4)]
    expected = [naive.linear_recurrence(x, a) for x, a in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            results = pool.map(lambda problem: linear_recurrence(*problem), problems)
            for y, right in zip(results, expected, strict=True):
                np.testing.assert_array_equal(y, right)


def _in_child(queue: "multiprocessing.Queue[bool]") -> None:
    x, a = pair((100, 2100))
    queue.put(bool((linear_recurrence(x, a) == naive.linear_recurrence(x, a)).all()))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_after_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child has none of the parent's threads; a pool that waits for them would hang."""
    monkeypatch.setenv("TELESCOPE_NUM_THREADS", "2")
    linear_recurrence(*pair((100, 2100)))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    child.join(30)
    alive = child.is_alive()
    if alive:
        child.kill()
    assert not alive
    assert child.exitcode == 0
    assert queue.get(timeout=1)


def test_a_missing_cache_only_costs_time(tmp_path: object) -> None:
    script = (
        "import numpy as np, telescope.recurrence as r; print(r.linear_recurrence(*np.ones((2, 3, 1), 'f4')).sum())"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": "/proc/nowhere"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "6.0\n", done.stderr


def test_other_arrays_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"list; supported are numpy.ndarray, torch.Tensor and jax.Array"):
        linear_recurrence([1.0], [0.5])

"""The recurrence on NumPy arrays: finds the kernel that fits their strides, and shares out the columns.

It trusts its caller: shapes agree, floats are all float32 or all float64, flags are bool or None, and results
do not overlap what is read. Columns are independent, so the number of threads never changes a result.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np

SHARE_FROM = 1 << 16  # elements; below, waking a thread costs more than it saves
BLOCK = 16  # columns: a cache line of float32, so that two threads never write to the same one

_kernels: dict[tuple[str, np.dtype], Callable[..., None]] = {}
_pool: tuple[int, ThreadPoolExecutor] | None = None


def linear_recurrence(x: np.ndarray, a: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """y[t] = x[t] + a[t] · y[t+1] over axis 0, for arrays of any strides; see `naive.py`."""
    y = np.empty_like(x) if out is None else out
    layout = "rows" if _layout((x, a, y)) == "rows" else "columns"
    for views in _two_dimensional((x, a, y)):
        _run("recurrence", layout, views)
    return y


def gae(
    floats: tuple[np.ndarray, np.ndarray, np.ndarray],
    flags: tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None],
    discounts: tuple[float, float, float],
    out: tuple[np.ndarray, np.ndarray],
) -> bool:
    """Advantages and returns in one pass, where the arrays fit it; False where the pair (x, a) must do.

    `floats` are rewards, values and next_values; `flags` terminated, truncated and mask; `discounts` γ, γλ
    and the γλ of the returns; `out` receives advantages and returns.
    """
    present = [flag.view(np.uint8) for flag in flags if flag is not None]
    layout = _layout((*floats, *present, *out))
    if layout is None:
        return False
    for views in _two_dimensional((*floats, *present, *out)):
        _run("gae", layout, (*views[:3], *_filled(flags, views, layout), *discounts, *views[-2:]))
    return True


def _filled(flags: tuple[Any, ...], views: tuple[np.ndarray, ...], layout: str) -> Iterator[np.ndarray]:
    """The flags among the views; for None one row (or column) that all others share: False, False, True."""
    steps, columns = views[0].shape
    shape = (1, columns) if layout == "rows" else (steps, 1)
    given = iter(views[3:-2])
    for flag, otherwise in zip(flags, (0, 0, 1), strict=True):
        yield _shared(otherwise, shape) if flag is None else next(given)


@lru_cache(maxsize=64)
def _shared(value: int, shape: tuple[int, int]) -> np.ndarray:
    return np.full(shape, value, np.uint8)


def _layout(arrays: tuple[np.ndarray, ...]) -> str | None:
    """Along which axis all of them are contiguous: time ("columns"), the last one ("rows"), or neither."""
    rows = columns = True
    for array in arrays:
        strides, unit = array.strides, array.itemsize
        rows, columns = rows and strides[-1] == unit, columns and strides[0] == unit
    return "columns" if columns else "rows" if rows else None


def _two_dimensional(arrays: tuple[np.ndarray, ...]) -> Iterator[tuple[np.ndarray, ...]]:
    """Views [T, columns] that together cover the arrays; never a copy: axes that can't merge are walked."""
    shape = arrays[0].shape
    if 0 in shape:
        return
    if len(shape) == 2:
        yield arrays
    elif len(shape) == 1:
        yield tuple(array[:, None] for array in arrays)
    elif all(_mergeable(array) for array in arrays):
        yield tuple(array.reshape(shape[0], -1) for array in arrays)
    else:
        for index in range(shape[1]):
            yield from _two_dimensional(tuple(array[:, index] for array in arrays))


def _mergeable(array: np.ndarray) -> bool:
    inner = range(1, array.ndim - 1)
    return all(array.strides[i] == array.strides[i + 1] * array.shape[i + 1] for i in inner)


def _run(name: str, layout: str, arguments: tuple[Any, ...]) -> None:
    """Call the kernel on all columns: at once, or, if there is enough to do, one block in each thread."""
    steps, columns = arguments[-1].shape
    kernel = _kernel(f"{name}_{layout}", arguments[-1].dtype)
    if steps * columns < SHARE_FROM or columns <= BLOCK or _threads() == 1:
        return kernel(*arguments, 0, columns)
    width = -(-columns // _threads())
    width += -width % BLOCK
    pool = _workers()
    waiting = [pool.submit(kernel, *arguments, lo, min(lo + width, columns)) for lo in range(width, columns, width)]
    kernel(*arguments, 0, min(width, columns))
    for block in waiting:
        block.result()


def _kernel(name: str, dtype: np.dtype) -> Callable[..., None]:
    # No lock: two threads that arrive together both compile, and get the same code.
    kernel = _kernels.get((name, dtype))
    if kernel is None:
        from telescope.recurrence import kernels

        kernel = _kernels[name, dtype] = kernels.compiled(getattr(kernels, name), dtype)
    return kernel


def _workers() -> ThreadPoolExecutor:
    """Our own pool, made when first needed, and again in a forked process: threads do not survive a fork."""
    global _pool
    if _pool is None or _pool[0] != os.getpid():
        _pool = os.getpid(), ThreadPoolExecutor(_threads(), thread_name_prefix="telescope")
    return _pool[1]


def _threads() -> int:
    """TELESCOPE_NUM_THREADS, or the processors this process may use."""
    chosen = os.environ.get("TELESCOPE_NUM_THREADS", "")
    if chosen.isdecimal() and int(chosen) > 0:
        return int(chosen)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

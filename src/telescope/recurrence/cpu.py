"""The recurrence on NumPy arrays: choose the kernel for their strides, and share the columns between threads.

It does not check its arguments: shapes agree, floats are all float32 or all float64, flags are bool or None, and
outputs do not overlap inputs. Columns are independent, so the number of threads never changes a result.
"""

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np

from telescope.processors import most_threads

SHARE_FROM = 1 << 17  # elements; below this, waking a thread costs more than it saves
BLOCK = 16  # columns: a cache line of float32, so that two threads never write to the same one
PAGE = 4096  # bytes of a row; threads on shorter pieces of a row are slower than one thread alone
SHORT = 256  # steps; contiguous columns up to this length are prepared together

Three = Sequence[Any]

_kernels: dict[tuple[str, str, str], Callable[..., None]] = {}
_pool: tuple[int, ThreadPoolExecutor] | None = None


def linear_recurrence(x: np.ndarray, a: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """y[t] = x[t] + a[t] · y[t+1] over axis 0, for arrays of any strides; see `naive.py`."""
    y = np.empty_like(x) if out is None else out
    layout = "rows" if _layout((x, a, y)) == "rows" else "columns"
    for views in _two_dimensional((x, a, y)):
        _run("recurrence", layout, views)
    return y


def gae(floats: Three, flags: Three, discounts: tuple[float, float, float], out: Sequence[np.ndarray]) -> bool:
    """Advantages and returns in one pass. False if the arrays do not fit, so that the pair (x, a) is needed.

    `floats` are rewards, values and next_values. `flags` are terminated, truncated and mask, bool or None. `discounts`
    are γ, γλ and the γλ of the returns. `out` receives advantages and returns.
    """
    arrays = (*floats, *flags, *out)
    layout = _layout(arrays)
    if layout is None:
        return False
    for views in _two_dimensional(arrays):
        gae_plane(views[:3], views[3:6], discounts, views[6:], layout)
    return True


def gae_plane(floats: Three, flags: Three, discounts: Three, out: Sequence[np.ndarray], layout: str) -> None:
    """`gae` for arrays [T, columns] that are known to be contiguous along `layout`."""
    steps, columns = out[0].shape
    terminated, truncated, mask = flags
    if terminated is None or truncated is None or mask is None:
        line = (1, columns) if layout == "rows" else (steps, 1)
        terminated = _shared(False, line) if terminated is None else terminated
        truncated = _shared(False, line) if truncated is None else truncated
        mask = _shared(True, line) if mask is None else mask
    _run("gae", layout, (*floats, terminated, truncated, mask, *discounts, *out))


@lru_cache(maxsize=64)
def _shared(value: bool, shape: tuple[int, int]) -> np.ndarray:
    """An array for a flag that is None: one row (or column) that all others share."""
    steps, columns = shape
    if columns > 1 or steps > SHORT:
        return np.full(shape, value)
    return np.full((BLOCK, steps), value).T[:, :1]  # followed by as many as may be read at once


def _layout(arrays: tuple[Any, ...]) -> str | None:
    """The axis along which all arrays are contiguous: time ("columns"), the last one ("rows"), or neither."""
    rows = columns = True
    for array in arrays:
        if array is None:
            continue
        strides, unit = array.strides, array.itemsize
        rows, columns = rows and strides[-1] == unit, columns and strides[0] == unit
    return "columns" if columns else "rows" if rows else None


def _two_dimensional(arrays: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Views [T, columns] that together cover the arrays. Never a copy: it loops over axes that cannot merge."""
    shape = arrays[0].shape
    if 0 in shape:
        return
    if len(shape) == 2:
        yield arrays
    elif len(shape) == 1:
        yield tuple(array if array is None else array[:, None] for array in arrays)
    elif all(array is None or _mergeable(array) for array in arrays):
        yield tuple(array if array is None else array.reshape(shape[0], -1) for array in arrays)
    else:
        for index in range(shape[1]):
            yield from _two_dimensional(tuple(array if array is None else array[:, index] for array in arrays))


def _mergeable(array: np.ndarray) -> bool:
    inner = range(1, array.ndim - 1)
    return all(array.strides[i] == array.strides[i + 1] * array.shape[i + 1] for i in inner)


def _run(name: str, layout: str, arguments: tuple[Any, ...]) -> None:
    """Call the kernel on all columns: at once, or for large arrays with one block per thread."""
    result = arguments[-1]
    steps, columns = result.shape
    kernel = _kernel(name, layout, result.dtype)
    width = columns if steps * columns < SHARE_FROM else _width(columns, layout, result.itemsize)
    if width == columns:
        kernel(*arguments, 0, columns)
        return
    pool = _workers()
    waiting = [pool.submit(kernel, *arguments, lo, min(lo + width, columns)) for lo in range(width, columns, width)]
    kernel(*arguments, 0, min(width, columns))
    for block in waiting:
        block.result()


def _width(columns: int, layout: str, itemsize: int) -> int:
    """Columns per thread: an equal share, but no pieces of rows that are too short to be read quickly."""
    least = PAGE // itemsize if layout == "rows" else BLOCK
    width = -(-columns // _threads())
    return min(columns, max(width + -width % BLOCK, least))


def _kernel(name: str, layout: str, dtype: np.dtype) -> Callable[..., None]:
    # no lock: two threads that arrive together both compile, and get the same code
    kernel = _kernels.get((name, layout, dtype.char))
    if kernel is None:
        loops = importlib.import_module(f"telescope.recurrence.{'gae_kernels' if name == 'gae' else 'kernels'}")
        kernel = loops.compiled(getattr(loops, f"{name}_{layout}"), dtype)
        _kernels[name, layout, dtype.char] = kernel
    return kernel


def _workers() -> ThreadPoolExecutor:
    """Our own thread pool, made on first use, and again in a forked process because threads do not survive a fork."""
    global _pool
    if _pool is None or _pool[0] != os.getpid():
        _pool = os.getpid(), ThreadPoolExecutor(_threads(), thread_name_prefix="telescope")
    return _pool[1]


def _threads() -> int:
    """TELESCOPE_NUM_THREADS, or the number of available processors, at most OMP_NUM_THREADS."""
    chosen = os.environ.get("TELESCOPE_NUM_THREADS", "")
    if chosen.isdecimal() and int(chosen) > 0:
        return int(chosen)
    return most_threads()

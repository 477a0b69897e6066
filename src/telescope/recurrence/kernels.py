"""The loops of the linear recurrence that numba compiles, for two memory layouts; `gae_kernels.py` fuses GAE into them.

`cpu.py` checks, allocates results and starts threads. It imports this file (and numba, which takes 0.3 to 0.5 s) only
when the first kernel is called.

All arrays are two-dimensional views [T, columns] of any strides; a kernel works on columns lo:hi. A chain of additions
is limited by their latency (about 3 ns per step). So these loops are fast because they run many chains side by side, in
the lanes of a vector register:

- "rows": neighbouring columns are adjacent in memory. The kernel walks row by row, with the carries in an array. Short
  rows that do not fit a cache are first read forwards in blocks, which processors do faster.
- "columns": neighbouring steps are adjacent in memory. A tile with one column per lane is transposed in registers,
  walked as rows, and transposed back. Short contiguous columns are filled into a tile at once.
- few long columns: the lanes are stretches of one column. Each stretch begins with y = 0 and also computes the product
  ∏a. Then y + ∏a · carry is the result with the carry of the next stretch. The cuts depend only on the shape. Where
  this sum is not exact enough (numbers that are not finite, |a| > 1), the stretch is walked again from the right carry,
  one step after the other.

Flags are read as uint8. A select instead of a product with (1 − flag) keeps NaN out. The kernels are slow for 2 to 15
columns in rows, where a row costs as much as 16 columns, and for other strides.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from telescope.recurrence import caching
from telescope.recurrence.cpu import PAGE

REGISTER = 64  # bytes of a vector: 16 lanes of float32; narrower machines use several registers
STEPS = 1024  # maximum steps per lane of a tile: x and a fit the second-level cache, and reads are long enough
BLOCK = 32_768  # elements that rows read at a time; five arrays and two flags of this size fit a 1 MB cache
FEW = 8  # columns; more than these fill the lanes well enough
LONG = 256  # steps; shorter columns are not cut


@intrinsic
def _pointer(_context: Any, _address: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), generate


@njit
def span(array, t, column, count):  # type: ignore[no-untyped-def]
    # `count` numbers from array[t, column] on, along the contiguous axis. Because they are adjacent, the compiler can
    # vectorise. A shared row (column) serves all steps (columns).
    down = t * array.strides[0] if array.shape[0] > 1 else 0
    across = column * array.strides[1] if array.shape[1] > 1 else 0
    return carray(_pointer(array.ctypes.data + down + across), count, array.dtype)  # type: ignore[call-arg]


@njit
def touch(array, start, stop):  # type: ignore[no-untyped-def]
    # Read one byte of each cache line of the rows start:stop, forwards. Processors prefetch for a forward walk through
    # memory, but not all do so for a backward walk, and none across pages.
    seen = np.uint8(0)
    row = array.shape[1] * array.itemsize
    if array.strides[0] == row and array.shape[0] >= stop:
        memory = carray(_pointer(array.ctypes.data + start * row), (stop - start) * row, np.uint8)  # type: ignore[call-arg]
        for i in range(0, memory.size, 64):
            seen |= memory[i]
    return seen


@njit
def rows_at_a_time(array):  # type: ignore[no-untyped-def]
    steps, columns = array.shape
    outside = columns * array.itemsize < PAGE and steps * columns >= 32 * BLOCK  # outside of every cache
    return max(1, BLOCK // columns) if outside else steps


def recurrence_rows(x, a, y, lo, hi):  # type: ignore[no-untyped-def]
    """y[t] = x[t] + a[t] · y[t+1], row by row; neighbouring columns are adjacent in memory."""
    carry, seen, block = np.zeros(hi - lo, y.dtype), np.uint8(0), rows_at_a_time(y)
    for stop in range(x.shape[0], 0, -block):
        start = max(0, stop - block)
        if block < x.shape[0]:
            seen |= touch(x, start, stop) | touch(a, start, stop) | touch(y, start, stop)
        for t in range(stop - 1, start - 1, -1):
            x_row = span(x, t, lo, hi - lo)
            a_row = span(a, t, lo, hi - lo)
            y_row = span(y, t, lo, hi - lo)
            for j in range(hi - lo):
                tail = a_row[j] * carry[j]
                carry[j] = x_row[j] + tail if a_row[j] != 0 else x_row[j]
                y_row[j] = carry[j]
    return seen  # so that the compiler does not remove the reads


def _turned(builder: Any, rows: list[Any]) -> list[Any]:
    # Transpose a square block, with a register per row: swap blocks of half the size, then of a quarter, …
    lanes, rows = len(rows), list(rows)
    order = ir.VectorType(ir.IntType(32), lanes)
    distance = lanes // 2
    while distance:
        near = ir.Constant(order, [j if not j & distance else lanes + j - distance for j in range(lanes)])
        far = ir.Constant(order, [j + distance if not j & distance else lanes + j for j in range(lanes)])
        for i in (i for i in range(lanes) if not i & distance):
            one, other = rows[i], rows[i + distance]
            rows[i] = builder.shuffle_vector(one, other, near)
            rows[i + distance] = builder.shuffle_vector(one, other, far)
        distance //= 2
    return rows


class _Tile:
    """Loads and stores vectors of an array [lanes, n] or [n], from element `start` of each row on."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any, start: Any = None) -> None:
        array = context.make_array(kind)(context, builder, value)
        self.number, self.builder = context.get_value_type(kind.dtype), builder
        self.size = context.get_abi_sizeof(self.number)
        self.lanes = REGISTER // self.size
        self.vector = ir.VectorType(self.number, self.lanes)
        self.base, self.start = array.data, start
        self.width = cgutils.unpack_tuple(builder, array.shape)[-1]

    def at(self, row: int) -> Any:
        start = self.builder.mul(self.width, ir.Constant(self.width.type, row))
        start = start if self.start is None else self.builder.add(start, self.start)
        return self.builder.bitcast(self.builder.gep(self.base, [start]), self.vector.as_pointer())

    def row(self, row: int = 0) -> Any:
        return self.builder.load(self.at(row), align=self.size)

    def put(self, vector: Any, row: int = 0) -> None:
        self.builder.store(vector, self.at(row), align=self.size)

    def block(self) -> list[Any]:
        """A square block: for each of `lanes` steps the vector of all lanes."""
        return _turned(self.builder, [self.row(lane) for lane in range(self.lanes)])

    def put_block(self, steps: list[Any]) -> None:
        for lane, vector in enumerate(_turned(self.builder, steps)):
            self.put(vector, lane)


def _walking(products: bool) -> Any:
    # y[i] = x[i] + a[i] · y[i+1] on a square block of the tiles [lanes, n], from `carry` [lanes], which it updates.
    # With `products` also p[i] = a[i] · p[i+1], from `product`.
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *tiles, start = zip(signature.args, arguments, strict=True)
        x, a, y, p = (_Tile(context, builder, *tile, start[1]) for tile in tiles[:4])
        carry, product = (_Tile(context, builder, *tile) for tile in tiles[4:])
        steps, weights, later, multiplied = x.block(), a.block(), carry.row(), product.row()
        zero = ir.Constant(x.vector, [0.0] * x.lanes)
        for i in reversed(range(x.lanes)):
            goes_on = builder.fcmp_unordered("!=", weights[i], zero)
            later = builder.select(goes_on, builder.fadd(steps[i], builder.fmul(weights[i], later)), steps[i])
            steps[i] = later
            if products:
                multiplied = weights[i] = builder.fmul(weights[i], multiplied)
        carry.put(later)
        y.put_block(steps)
        if products:
            product.put(multiplied)
            p.put_block(weights)
        return context.get_dummy_value()

    def walk(_context: Any, x: Any, a: Any, y: Any, p: Any, carry: Any, product: Any, start: Any) -> Any:
        return types.void(x, a, y, p, carry, product, types.intp), generate

    return intrinsic(walk)


_walk, _walk_and_multiply = _walking(False), _walking(True)


@njit
def cut_of(steps, columns, lanes):  # type: ignore[no-untyped-def]
    # Whether columns are cut into stretches for the lanes, and the number of steps per lane of a tile.
    pieces = lanes if columns <= FEW and steps >= LONG else 1
    return pieces > 1, min(STEPS, (steps + pieces * lanes - 1) // (pieces * lanes) * lanes)


@njit
def place_of(lane, lanes, first, stop, cut, height):  # type: ignore[no-untyped-def]
    # The column, first step and number of steps in a lane of the tile that ends before `stop`.
    end = stop - (lanes - 1 - lane) * height if cut else stop
    start = max(0, end - height)
    return first if cut else first + lane, start, max(0, end - start)


@njit
def _wild(a):  # type: ignore[no-untyped-def]
    # Whether any |a| > 1 or NaN. Then a product may overflow, or underflow to 0 and stay there.
    wild = 0
    for i in range(a.size):
        wild |= 0 if abs(a[i]) <= 1 else 1
    return wild != 0


@njit
def _join(x, a, y, p, carry, product, height, later):  # type: ignore[no-untyped-def]
    # Correct stretches that began with 0 by the carries of later stretches; `later` is the carry after the last one.
    for lane in range(carry.size - 1, -1, -1):
        x_line, a_line, y_line = span(x, lane, 0, height), span(a, lane, 0, height), span(y, lane, 0, height)
        joined = carry[lane] + product[lane] * later
        if np.isfinite(joined):
            p_line = span(p, lane, 0, height)
            for i in range(height):
                y_line[i] += p_line[i] * later
            later = joined
        else:
            for i in range(height - 1, -1, -1):
                later = x_line[i] + a_line[i] * later if a_line[i] != 0 else x_line[i]
                y_line[i] = later
    return later


@njit
def solve(x, a, y, p, carry, product, cut, height, count, later, tame):  # type: ignore[no-untyped-def]
    # The recurrence on a tile, for the last `count` steps of each lane. Columns continue from `carry`. Stretches begin
    # with 0, and `later`, which is returned, passes from tile to tile.
    lanes = carry.size
    if not cut:
        for start in range(height - lanes, height - count - lanes, -lanes):
            _walk(x, a, y, p, carry, product, start)
        return later
    carry[:] = 0
    product[:] = 1
    for start in range(height - lanes, -1, -lanes):
        _walk_and_multiply(x, a, y, p, carry, product, start)
    for lane in range(lanes):
        if not tame and _wild(span(a, lane, 0, height)):
            product[lane] = np.nan
    return _join(x, a, y, p, carry, product, height, later)


@njit
def new_tiles(lanes, cut, height, apart, number):  # type: ignore[no-untyped-def]
    # x, a, y, p, carry, product. Rows are wider than necessary, so that they do not compete for the same cache lines.
    # Columns need no products, and y may share memory with x.
    x = np.empty((lanes, height + apart), number)
    a = np.empty_like(x)
    y, p = (np.empty_like(x), np.empty_like(x)) if cut else (x, a)
    return x, a, y, p, np.zeros(lanes, number), np.ones(lanes, number)


@njit
def clear(x, a, lane, count):  # type: ignore[no-untyped-def]
    # Fill the places before a column's first step with neutral values.
    for i in range(count):
        x[lane, i] = 0
        a[lane, i] = 1


def recurrence_columns(x, a, y, lo, hi):  # type: ignore[no-untyped-def]
    """The recurrence in tiles: for batch-major arrays, few long columns, and unusual strides."""
    lanes = REGISTER // y.itemsize
    cut, height = cut_of(x.shape[0], x.shape[1], lanes)
    x_tile, a_tile, y_tile, p_tile, carry, product = new_tiles(lanes, cut, height, lanes, y.dtype)
    for first in range(lo, hi, 1 if cut else lanes):
        used, later = lanes if cut else min(lanes, hi - first), y.dtype.type(0)
        carry[:] = 0
        for stop in range(x.shape[0], 0, -height * (lanes if cut else 1)):
            for k in range(used):
                column, start, count = place_of(k, lanes, first, stop, cut, height)
                clear(x_tile, a_tile, k, height - count)
                for i in range(count):
                    x_tile[k, height - count + i] = x[start + i, column]
                    a_tile[k, height - count + i] = a[start + i, column]
            longest = min(stop, height)
            later = solve(x_tile, a_tile, y_tile, p_tile, carry, product, cut, height, longest, later, False)
            for k in range(used):
                column, start, count = place_of(k, lanes, first, stop, cut, height)
                for i in range(count):
                    y[start + i, column] = y_tile[k, height - count + i]


def compiled(function: Any, dtype: np.dtype) -> Any:
    """A loop of the recurrence, compiled for one dtype and any strides, or loaded from numba's disk cache."""
    read, _, write = kinds(dtype)
    return caching.compiled(function, (read, read, write, types.intp, types.intp))


def kinds(dtype: np.dtype) -> tuple[Any, Any, Any]:
    """numba's types of an input [T, columns] of this dtype, of a flag and of an output, with any strides."""
    number = types.float32 if dtype == np.float32 else types.float64
    flag = types.Array(types.boolean, 2, "A", readonly=True)
    return types.Array(number, 2, "A", readonly=True), flag, types.Array(number, 2, "A")

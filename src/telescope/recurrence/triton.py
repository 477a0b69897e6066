"""The recurrence and GAE on CUDA: Triton kernels that read every layout [T, columns] by stride, without a copy.

It leaves out what is asked of the arguments: like `cpu.py` it trusts its caller. It launches on the current
stream, never waits for the device, and allocates nothing but results and the small array that carries chunks.

A program owns a block of columns and walks a chunk of time in tiles [BLOCK_T, BLOCK_C], from the end; inside a
tile the steps are joined by an associative scan. Where the columns alone fill the device a chunk is the whole
of time. Where they do not, time is cut into chunks and the kernel runs twice: first every chunk reduces itself
to one pair (∏a, y); then every chunk joins the pairs that come after it, and walks with that to start from.

The scan adds in another order than the loop in `naive.py`, so results agree to rounding, not bit for bit. And
where ∏a over a stretch of a tile or chunk exceeds every number of the dtype (a > 1 for long), what comes after
the stretch counts as 0 if it is 0, and as infinite otherwise.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 256  # about two for each of the 132 multiprocessors of an H200, so that one computes while one loads
TILE = 2048  # elements; with five arrays and three flags about 40 KB are under way for each program
CHUNKS = 512  # at most: every program of the second run joins the pairs of all of them
STAGES = tl.constexpr(3)  # two tiles are being loaded while one is computed
TINY = tl.constexpr(1.1754944e-38)  # the smallest normal float32


@triton.jit
def _join(later_a, later_y, a, y):  # type: ignore[no-untyped-def]
    # Two stretches as one: (∏a, y) of the earlier, continued by the later. A select at cuts, and ∏a is 0 only
    # where there is one, not by underflow: else NaN beyond would vanish along a long chain, unlike in the loop.
    # The other way about, what is 0 stays 0 if ∏a overflowed.
    product = a * later_a
    product = tl.where(product == 0, TINY, product)
    product = tl.where((a == 0) | (later_a == 0), 0.0, product)
    nothing = (a == 0) | ((later_y == 0) & (tl.abs(a) == float("inf")))
    return product, y + tl.where(nothing, 0.0, a * later_y)


@triton.jit
def _add(one, other):  # type: ignore[no-untyped-def]
    return one + other


@triton.jit
def _row(tile, index, at):  # type: ignore[no-untyped-def]
    # The row whose index is `at`, as [1, BLOCK_C].
    return tl.expand_dims(tl.reduce(tl.where(index == at, tile, 0.0), 0, _add), 0)


@triton.jit
def _at(array, t, column, step, stride):  # type: ignore[no-untyped-def]
    return array + t * step + column * stride


@triton.jit
def _flag(array, t, column, step, stride, inside):  # type: ignore[no-untyped-def]
    return tl.load(_at(array, t, column, step, stride), mask=inside, other=0) != 0


@triton.jit
def _number(number, DOUBLE: tl.constexpr):  # type: ignore[no-untyped-def]
    if DOUBLE:
        return tl.load(number)
    else:
        return number


@triton.jit
def _carry(carries, pair, column, columns, FORWARDS: tl.constexpr, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    # y at the near edge of all chunks that come after this one; a chunk that does not is (1, 0), which is neutral.
    chunk, chunks = tl.program_id(1), tl.num_programs(1)
    index = tl.arange(0, COUNT)[:, None]
    counts = index < chunk if FORWARDS else (index > chunk) & (index < chunks)
    inside = counts & (column < columns)
    at = carries + (2 * pair * chunks + index).to(tl.int64) * columns + column
    a = tl.load(at, mask=inside, other=1.0)
    y = tl.load(at + chunks.to(tl.int64) * columns, mask=inside, other=0.0)
    a, y = tl.associative_scan((a, y), 0, _join, reverse=not FORWARDS)
    return _row(y, index, COUNT - 1 if FORWARDS else 0)


@triton.jit
def _publish(carries, pair, column, columns, a, y):  # type: ignore[no-untyped-def]
    chunk, chunks = tl.program_id(1), tl.num_programs(1)
    at = carries + (2 * pair * chunks + chunk).to(tl.int64) * columns + column
    tl.store(at, a, mask=column < columns)
    tl.store(at + chunks.to(tl.int64) * columns, y, mask=column < columns)


@triton.jit
def _recurrence_kernel(  # type: ignore[no-untyped-def]
    x, a, y, carries, steps, columns, tiles,
    x_step, x_stride, a_step, a_stride, y_step, y_stride,
    FORWARDS: tl.constexpr, REDUCE: tl.constexpr, COUNT: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    column = (tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    index = tl.arange(0, BLOCK_T)[:, None]
    start = tl.program_id(1).to(tl.int64) * tiles * BLOCK_T
    carry = tl.full([1, BLOCK_C], 0, y.dtype.element_ty)
    product = carry + 1
    if COUNT > 1 and not REDUCE:
        carry = _carry(carries, 0, column, columns, FORWARDS, COUNT)
    for tile in tl.range(0, tiles, num_stages=STAGES):
        t = start + index + (tile if FORWARDS else tiles - 1 - tile) * BLOCK_T
        inside = (t < steps) & (column < columns)
        x_tile = tl.load(_at(x, t, column, x_step, x_stride), mask=inside, other=0).to(y.dtype.element_ty)
        a_tile = tl.load(_at(a, t, column, a_step, a_stride), mask=inside, other=0).to(y.dtype.element_ty)
        a_tile, y_tile = tl.associative_scan((a_tile, x_tile), 0, _join, reverse=not FORWARDS)
        a_tile, y_tile = _join(product, carry, a_tile, y_tile)
        carry = _row(y_tile, index, BLOCK_T - 1 if FORWARDS else 0)
        if REDUCE:
            product = _row(a_tile, index, BLOCK_T - 1 if FORWARDS else 0)
        else:
            tl.store(_at(y, t, column, y_step, y_stride), y_tile, mask=inside)
    if REDUCE:
        _publish(carries, 0, column, columns, product, carry)


@triton.jit
def _gae_kernel(  # type: ignore[no-untyped-def]
    rewards, values, next_values, terminated, truncated, mask, advantages, returns, carries,
    gamma, decay, returns_decay, steps, columns, tiles,
    rewards_step, rewards_stride, values_step, values_stride, next_values_step, next_values_stride,
    terminated_step, terminated_stride, truncated_step, truncated_stride, mask_step, mask_stride,
    advantages_step, advantages_stride, returns_step, returns_stride,
    DOUBLE: tl.constexpr, SPLIT: tl.constexpr, REDUCE: tl.constexpr, COUNT: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    kind: tl.constexpr = advantages.dtype.element_ty
    gamma = _number(gamma, DOUBLE)
    decay = _number(decay, DOUBLE)
    returns_decay = _number(returns_decay, DOUBLE)
    column = (tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    index = tl.arange(0, BLOCK_T)[:, None]
    start = tl.program_id(1).to(tl.int64) * tiles * BLOCK_T
    carry = tl.full([1, BLOCK_C], 0, kind)
    product = carry + 1
    returns_carry = carry
    returns_product = product
    if COUNT > 1 and not REDUCE:
        carry = _carry(carries, 0, column, columns, False, COUNT)
        if SPLIT:
            returns_carry = _carry(carries, 1, column, columns, False, COUNT)
    for tile in tl.range(0, tiles, num_stages=STAGES):
        t = start + index + (tiles - 1 - tile) * BLOCK_T
        inside = (t < steps) & (column < columns)
        reward = tl.load(_at(rewards, t, column, rewards_step, rewards_stride), mask=inside, other=0).to(kind)
        value = tl.load(_at(values, t, column, values_step, values_stride), mask=inside, other=0).to(kind)
        successor_at = _at(next_values, t, column, next_values_step, next_values_stride)
        successor = tl.load(successor_at, mask=inside, other=0).to(kind)
        live = inside
        if mask is not None:
            live = _flag(mask, t, column, mask_step, mask_stride, inside)
        ends = index < 0
        if terminated is not None:
            ends = _flag(terminated, t, column, terminated_step, terminated_stride, inside)
        cut = ends
        if truncated is not None:
            cut = ends | _flag(truncated, t, column, truncated_step, truncated_stride, inside)
        # The pair: δ and the trace's decay; a masked step is x = 0, a = 1, which lets the trace through.
        weight = tl.where(ends, 0.0, gamma).to(kind)
        x = reward + tl.where(weight == 0, 0.0, weight * successor) - value
        x = tl.where(live, x, 0.0)
        a = tl.where(live, tl.where(cut, 0.0, decay), 1.0).to(kind)
        a, y = tl.associative_scan((a, x), 0, _join, reverse=True)
        a, y = _join(product, carry, a, y)
        carry = _row(y, index, 0)
        returns_y = y
        if REDUCE:
            product = _row(a, index, 0)
        if SPLIT:
            returns_a = tl.where(live, tl.where(cut, 0.0, returns_decay), 1.0).to(kind)
            returns_a, returns_y = tl.associative_scan((returns_a, x), 0, _join, reverse=True)
            returns_a, returns_y = _join(returns_product, returns_carry, returns_a, returns_y)
            returns_carry = _row(returns_y, index, 0)
            if REDUCE:
                returns_product = _row(returns_a, index, 0)
        if not REDUCE:
            advantage_at = _at(advantages, t, column, advantages_step, advantages_stride)
            tl.store(advantage_at, tl.where(live, y, 0.0), mask=inside)
            return_at = _at(returns, t, column, returns_step, returns_stride)
            tl.store(return_at, tl.where(live, returns_y + value, 0.0), mask=inside)
    if REDUCE:
        _publish(carries, 0, column, columns, product, carry)
        if SPLIT:
            _publish(carries, 1, column, columns, returns_product, returns_carry)


def linear_recurrence(x: Tensor, a: Tensor, *, forwards: bool = False) -> Tensor:
    """y[t] = x[t] + a[t] · y[t±1] over axis 0, cut where a[t] = 0; float32 where x is half precision."""
    y = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    with _device_of(y):
        for views in _two_dimensional((x, a, y)):
            _launch_recurrence(views, forwards)
    return y


def _launch_recurrence(views: tuple[Tensor, ...], forwards: bool) -> None:
    steps, columns = views[-1].shape
    if steps == 0 or columns == 0:
        return
    plan = _plan(views[-1])
    carries = _carries(views[-1], plan, 1)
    strides = [stride for view in views for stride in view.stride()]
    for reduce in plan.passes:
        _recurrence_kernel[plan.grid](
            *views, carries, steps, columns, plan.tiles, *strides,
            FORWARDS=forwards, REDUCE=reduce, COUNT=plan.padded, BLOCK_T=plan.block_t, BLOCK_C=plan.block_c,
        )  # fmt: skip


def gae(
    floats: Sequence[Tensor],
    flags: Sequence[Tensor | None],
    discounts: tuple[float, float, float],
    out: Sequence[Tensor],
) -> bool:
    """Advantages and returns in one pass, as `cpu.gae`; True, for there is no layout that it does not take.

    The floats may be of any real dtypes, half precision too: what is computed has the dtype of `out`.
    """
    with _device_of(out[0]):
        for views in _two_dimensional((*floats, *flags, *out)):
            _launch_gae(views, discounts)
    return True


def _launch_gae(views: tuple[Tensor, ...], discounts: tuple[float, float, float]) -> None:
    advantages = views[-1]
    steps, columns = advantages.shape
    if steps == 0 or columns == 0:
        return
    plan, split = _plan(advantages), discounts[1] != discounts[2]
    carries = _carries(advantages, plan, 2 if split else 1)
    strides = [stride for view in views for stride in ((0, 0) if view is None else view.stride())]
    double = advantages.dtype == torch.float64
    for reduce in plan.passes:
        _gae_kernel[plan.grid](
            *views, carries, *_numbers(discounts, advantages), steps, columns, plan.tiles, *strides,
            DOUBLE=double, SPLIT=split, REDUCE=reduce, COUNT=plan.padded,
            BLOCK_T=plan.block_t, BLOCK_C=plan.block_c,
        )  # fmt: skip


def _numbers(discounts: tuple[float, float, float], like: Tensor) -> tuple[float, ...] | tuple[Tensor, ...]:
    """By value; but Triton passes a Python float as float32, so in double precision as arrays of one number."""
    if like.dtype != torch.float64:
        return discounts
    return tuple(torch.full((1,), number, dtype=like.dtype, device=like.device) for number in discounts)


class Plan(NamedTuple):
    """How a problem [steps, columns] is cut up."""

    block_t: int
    block_c: int
    tiles: int  # of a chunk
    grid: tuple[int, int]  # blocks of columns, chunks of time

    @property
    def padded(self) -> int:
        """The number of chunks, rounded up to a power of two."""
        return _power_of_two(self.grid[1])

    @property
    def passes(self) -> tuple[bool, ...]:
        """For each run of the kernel, does it only reduce its chunks?"""
        return (True, False) if self.grid[1] > 1 else (False,)


def _plan(y: Tensor) -> Plan:
    return plan(*y.shape, time_first=y.stride(0) == 1)


@lru_cache(maxsize=256)
def plan(steps: int, columns: int, *, time_first: bool) -> Plan:
    """Blocks no wider than leaves work for all multiprocessors; chunks of time where that is not enough.

    Where neighbouring columns are neighbours in memory, a block has at least 8 of them: a sector of 32 bytes.
    Chunks read everything twice, which fewer than 4 of them do not repay.
    """
    narrow = min(1 if time_first else 8, _power_of_two(columns))
    block_c = min(32, max(narrow, _power_of_two(-(-columns // PROGRAMS))))
    block_t = max(16, min(TILE // block_c, _power_of_two(steps)))
    blocks, tiles = -(-columns // block_c), -(-steps // block_t)
    chunks = min(CHUNKS, PROGRAMS // blocks, tiles)
    tiles_each = -(-tiles // chunks) if chunks >= 4 else tiles
    return Plan(block_t, block_c, tiles_each, (blocks, -(-tiles // tiles_each)))


def _carries(like: Tensor, plan: Plan, pairs: int) -> Tensor | None:
    """Where chunks leave their pairs (∏a, y) for one another."""
    chunks = plan.grid[1]
    return None if chunks == 1 else like.new_empty((pairs, 2, chunks, like.shape[1]))


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def _device_of(array: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the array's."""
    if array.device.type != "cuda" or array.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(array.device)


def _two_dimensional(arrays: tuple[Tensor | None, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Views [T, columns] that together cover the arrays; never a copy: axes that can't merge are walked."""
    shape = arrays[-1].shape  # type: ignore[union-attr]
    if len(shape) == 2:
        yield arrays  # type: ignore[misc]
    elif len(shape) == 1:
        yield tuple(None if array is None else array[:, None] for array in arrays)  # type: ignore[misc]
    elif all(array is None or _mergeable(array) for array in arrays):
        yield tuple(None if array is None else array.flatten(1) for array in arrays)  # type: ignore[misc]
    else:
        axis = min(range(1, len(shape)), key=shape.__getitem__)
        for index in range(shape[axis]):
            yield from _two_dimensional(tuple(None if array is None else array.select(axis, index) for array in arrays))


def _mergeable(array: Tensor) -> bool:
    inner = range(1, array.ndim - 1)
    return all(array.stride(i) == array.stride(i + 1) * array.shape[i + 1] for i in inner)

"""The recurrence and GAE on CUDA: Triton kernels that read every layout [T, columns] by stride, without a copy.

It launches on the current stream, never waits for the device, and allocates only results and the small array between
chunks. Like `cpu.py` it does not check its arguments. Leaves out the kernels (`triton_kernels.py`).

A program owns a block of columns and walks a chunk of time in tiles, from the last to the first. In a tile, a thread
walks the 4 steps of a segment one by one. An associative scan joins the segments, and then every step receives the
result of the segments after its own. If the columns alone fill the device, a chunk is the whole of time. Otherwise time
is cut into chunks and the kernel runs twice: first every chunk reduces itself to one pair (∏a, y); then every chunk
joins the pairs of later chunks and starts from the result.

The scan adds in another order than the loop in `naive.py`, so results agree up to rounding, not bit for bit. If ∏a over
a stretch of a tile or chunk overflows (a > 1 for long), the values after the stretch count as 0 if they are 0, and as
infinite otherwise.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from telescope.recurrence import triton_kernels as kernels

Arrays = Sequence[Any]  # tensors; where there is no such flag, None
Discounts = tuple[float, float, float]  # γ, γλ, and the γλ of the returns

ROWS = kernels.ROWS.value
ALONE = torch.cuda.device_count() <= 1  # then the current device is that of the arrays
REMEMBERED = 1024  # the maximum number of remembered layouts; then all are forgotten


def linear_recurrence(x: Tensor, a: Tensor, *, forwards: bool = False) -> Tensor:
    """y[t] = x[t] + a[t] · y[t±1] over axis 0, cut where a[t] = 0. float32 if x is half precision."""
    y = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    pointers = x.data_ptr(), a.data_ptr(), y.data_ptr()
    aligned = tuple(pointer % 16 for pointer in pointers)
    key = (forwards, aligned, y.device, y.shape, x.dtype, a.dtype, x.stride(), a.stride(), y.stride())
    _launch(kernels.recurrence, key, (x, a, y), pointers, (), forwards)
    return y


def gae(
    floats: Arrays, flags: Arrays, discounts: Discounts, out: Arrays, axis: int = 0, *, fresh: bool = False
) -> bool:
    """Advantages and returns in one pass, like `cpu.gae`. Always True, because it accepts every layout.

    The floats may have any real dtypes, including half precision; it computes in the dtype of `out`. `axis` is the time
    axis, 1 for matrices [columns, T]. `fresh` says that the arguments are checked and `out` was made for them; later
    calls with the same layout may then use `again`.
    """
    advantages, returns = out
    split = discounts[1] != discounts[2]
    signature, pointers = _signature(floats, flags, split, axis)
    pointers = (*pointers, advantages.data_ptr(), returns.data_ptr())
    key = (
        signature, advantages.dtype, advantages.stride(), returns.stride(),
        tuple(pointer % 16 for pointer in pointers[-2:]),
    )  # fmt: skip
    launch = _launch(kernels.gae, key, (*floats, *flags, *out), pointers, discounts, split, axis)
    if fresh and launch is not None:
        _remember(_KNOWN, signature, (launch, _empty(), tuple(advantages.shape), advantages.stride()))
    return True


def again(floats: Arrays, flags: Arrays, discounts: Discounts, axis: int) -> tuple[Tensor, Tensor] | None:
    """Advantages and returns of tensors with a layout that came to `gae` with `fresh` before; otherwise None."""
    try:
        signature, pointers = _signature(floats, flags, discounts[1] != discounts[2], axis)
    except (AttributeError, RuntimeError):  # not tensors, or without memory of their own
        return None
    known = _KNOWN.get(signature)
    rewards, values, successors = floats
    if known is None or rewards.is_neg() or values.is_neg() or successors.is_neg():  # lazy sign flips
        return None
    launch, empty, shape, strides = known
    if not (ALONE or launch.device == torch.cuda.current_device()):
        return None
    advantages, returns = empty(shape, strides, launch.dtype), empty(shape, strides, launch.dtype)
    launch((*pointers, advantages.data_ptr(), returns.data_ptr()), discounts)
    return advantages, returns


def _signature(floats: Sequence[Any], flags: Sequence[Any], split: bool, axis: int) -> tuple[Any, tuple[Any, ...]]:
    """The layout that a launch depends on, as a key, and the addresses."""
    # written out: a small kernel runs for 3 µs, and a loop over the arrays would take as long
    rewards, values, successors = floats
    terminated, truncated, mask = flags
    pointer, value_pointer, successor_pointer = rewards.data_ptr(), values.data_ptr(), successors.data_ptr()
    bits = pointer | value_pointer | successor_pointer
    end = cut = live = ends = cuts = lives = None
    if terminated is not None:
        end = terminated.data_ptr()
        bits |= end
        ends = (type(terminated), terminated.dtype, terminated.get_device(), terminated.shape, terminated.stride())
    if truncated is not None:
        cut = truncated.data_ptr()
        bits |= cut
        cuts = (type(truncated), truncated.dtype, truncated.get_device(), truncated.shape, truncated.stride())
    if mask is not None:
        live = mask.data_ptr()
        bits |= live
        lives = (type(mask), mask.dtype, mask.get_device(), mask.shape, mask.stride())
    pointers = (pointer, value_pointer, successor_pointer, end, cut, live)
    signature = (
        split, axis, bits % 16 == 0 or tuple(each and each % 16 for each in pointers), ends, cuts, lives,
        type(rewards), rewards.dtype, rewards.get_device(), rewards.shape, rewards.stride(),
        type(values), values.dtype, values.get_device(), values.shape, values.stride(),
        type(successors), successors.dtype, successors.get_device(), successors.shape, successors.stride(),
    )  # fmt: skip
    return signature, pointers


def _launch(
    kernel: Any,
    key: tuple[Any, ...],
    arrays: tuple[Tensor | None, ...],
    pointers: tuple[int | None, ...],
    numbers: tuple[float, ...],
    variant: bool,
    axis: int = 0,
) -> "Launch | None":
    """Launch with the preparation of the first call with this layout."""
    launch = _LAUNCHES.get(key)
    if ALONE and launch is not None:
        launch(pointers, numbers)
        return launch
    with _device_of(arrays[-1]):
        if launch is not None:
            launch(pointers, numbers)
            return launch
        if axis == 1:
            arrays = tuple(None if array is None else array.t() for array in arrays)
        launch = _prepare(kernel, arrays, numbers, variant)
    if launch is not None:
        _remember(_LAUNCHES, key, launch)
    return launch


def _remember(memory: dict[Any, Any], key: Any, what: Any) -> None:
    if len(memory) >= REMEMBERED:
        memory.clear()
    memory[key] = what


class Launch(NamedTuple):
    """Compiled kernels, and all arguments that arrays of one layout share.

    Triton's own launch inspects every argument, and looks for profilers, at each call; it takes four times as long.
    """

    passes: tuple[tuple[Any, ...], ...]  # each: its launcher, blocks, chunks, kernel, metadata, the last arguments
    device: int
    stream_of: Callable[[int], int]  # the device's current stream
    carries: tuple[int, ...] | None  # the shape of the array between chunks
    dtype: torch.dtype

    def __call__(self, pointers: tuple[int | None, ...], numbers: tuple[float, ...]) -> None:
        stream = self.stream_of(self.device)
        carries = at = None
        if self.carries is not None:
            carries = torch.empty(self.carries, dtype=self.dtype, device=self.device)
            at = carries.data_ptr()
        for run, blocks, chunks, function, metadata, rest in self.passes:
            run(blocks, chunks, 1, stream, function, metadata, None, None, None, *pointers, at, *numbers, *rest)


_LAUNCHES: dict[Any, Launch] = {}
_KNOWN: dict[Any, tuple[Launch, Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]] = {}


@cache
def _empty() -> Callable[..., Tensor]:
    """Make a tensor (shape, strides, dtype) on the current device, like torch's compiled code, in half the time."""
    try:
        quick: Callable[..., Tensor] = torch._C._dynamo.guards._empty_strided_cuda  # type: ignore[attr-defined]
        if quick((2, 3), (3, 1), torch.float32).is_cuda:
            return quick
    except Exception:  # a private function of torch, which may change
        pass
    return lambda shape, strides, dtype: torch.empty_strided(shape, strides, dtype=dtype, device="cuda")


def _prepare(
    kernel: Any, arrays: tuple[Tensor | None, ...], numbers: tuple[float, ...], variant: bool
) -> Launch | None:
    """Launch through Triton, which compiles if necessary. Return what can be launched again, or None."""
    like: Tensor = arrays[-1]  # type: ignore[assignment]
    if like.numel() == 0:
        return None
    if not all(array is None or _mergeable(array) for array in arrays):
        axis = min(range(1, like.ndim), key=like.shape.__getitem__)
        for index in range(like.shape[axis]):
            slices = tuple(None if array is None else array.select(axis, index) for array in arrays)
            _prepare(kernel, slices, numbers, variant)
        return None
    steps, columns = like.shape[0], like[0].numel()
    cut = plan(steps, columns, time_first=like.stride(0) == 1)
    strides = [stride for array in arrays for stride in ((0, 0) if array is None else _strides(array, columns))]
    shape = (2 if variant and numbers else 1, 2, cut.grid[1], columns) if len(cut.passes) > 1 else None
    carries = None if shape is None else like.new_empty(shape)
    even, launched = cut.even(steps, columns), []
    for reduces in cut.passes:
        fixed = (variant, reduces, cut.padded, cut.segments, cut.block, like.stride(0) == 1, even, cut.stages)
        rest = (steps, columns, cut.tiles, *strides, *fixed)
        launched.append((kernel[cut.grid](*arrays, carries, *numbers, *rest, num_warps=cut.warps), rest))
    try:
        passes = tuple((one.run, *cut.grid, one.function, one.packed_metadata, rest) for one, rest in launched)
        stream_of = triton.runtime.driver.active.get_current_stream
    except AttributeError:  # None, because Triton interprets; or private attributes of Triton, which may change
        return None
    return Launch(passes, like.get_device(), stream_of, shape, like.dtype)


class Plan(NamedTuple):
    """How a problem [steps, columns] is divided."""

    segments: int  # per tile
    block: int  # columns per tile
    warps: int
    stages: int  # tiles in flight at once
    tiles: int  # per chunk
    grid: tuple[int, int]  # blocks of columns, chunks of time

    @property
    def padded(self) -> int:
        """The number of chunks, rounded up to a power of two."""
        return _power_of_two(self.grid[1])

    @property
    def passes(self) -> tuple[bool, ...]:
        """For each run of the kernel, whether it only reduces its chunks."""
        return (True, False) if self.grid[1] > 1 else (False,)

    def even(self, steps: int, columns: int) -> bool:
        """Whether the tiles end exactly where the arrays end."""
        blocks, chunks = self.grid
        return chunks * self.tiles * self.segments * ROWS == steps and blocks * self.block == columns


@lru_cache(maxsize=256)
def plan(steps: int, columns: int, *, time_first: bool) -> Plan:
    """Tile sizes from a benchmark on an H200, with chunks of time if the columns do not fill the device.

    Chunks read everything twice, which pays only for 4 chunks or more.
    """
    longest = _power_of_two(-(-steps // ROWS))
    if time_first:  # a segment per thread for 128 threads, usually of one column
        segments = max(2, longest if longest <= 256 else 128)
        block, warps, programs = max(1, 128 // segments), 4, 1024
    else:  # rows of at least 32 bytes, or of 128 if there are enough columns for all multiprocessors
        block = max(1, min(8 if columns < 2048 else 16 if columns < 4096 else 32, _power_of_two(columns)))
        whole = longest <= (32 if block > 8 else 256)
        segments = max(2, longest if whole else 16 if block == 32 else 64)
        warps, programs = max(1, min(8, segments * block // 128)), 256
    blocks, tiles = -(-columns // block), -(-steps // (segments * ROWS))
    chunks = min(512, programs // blocks, tiles)
    tiles_each = -(-tiles // chunks) if chunks >= 4 else tiles
    return Plan(segments, block, warps, 3 if time_first else 4, tiles_each, (blocks, -(-tiles // tiles_each)))


def _strides(array: Tensor, columns: int) -> tuple[int, int]:
    """The strides of steps and of columns. That of a single column is 0, so that Triton sees the alignment."""
    return array.stride(0), array.stride(-1) if columns > 1 else 0


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def _device_of(array: Any) -> AbstractContextManager[object]:
    """Make the array's device the current one, because Triton launches there."""
    if array.device.type != "cuda" or array.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(array.device)


def _mergeable(array: Tensor) -> bool:
    """Whether all axes except time have one common stride."""
    inner = range(1, array.ndim - 1)
    return all(array.stride(i) == array.stride(i + 1) * array.shape[i + 1] for i in inner)

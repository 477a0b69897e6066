"""The Triton kernels, on tiles of a problem [T, columns]; `naive.py` defines what they compute.

A tile has the axes [segments, columns], or [columns, segments] if time is contiguous in memory. A segment has ROWS
consecutive steps, which one thread walks alone; here it is a tuple of tiles, one per row. Segments and rows are in
walking order: from the last in time to the first, or forwards from the first. (A reversed scan would be possible, but
Triton reverses every element by shuffles, which costs as much as everything else.) Leaves out tiling and launches
(`triton.py`).
"""

# mypy: disable-error-code="no-untyped-def, assignment"
# ruff: noqa: RUF005

import triton
import triton.language as tl

ROWS = tl.constexpr(4)  # 16 bytes of float32, the most that a thread loads at once
TINY = tl.constexpr(1.1754944e-38)  # the smallest normal float32


@triton.jit
def recurrence(
    x, a, y, carries, steps, columns, tiles, x_step, x_stride, a_step, a_stride, y_step, y_stride,
    FORWARDS: tl.constexpr, REDUCE: tl.constexpr, COUNT: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK: tl.constexpr,
    TIME_FIRST: tl.constexpr, EVEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    kind: tl.constexpr = y.dtype.element_ty
    AXIS: tl.constexpr = 1 if TIME_FIRST else 0
    segment, column = _places(SEGMENTS, BLOCK, TIME_FIRST)
    times = _times(segment, SEGMENTS, TIME_FIRST, FORWARDS)
    carry = tl.zeros([BLOCK, SEGMENTS] if TIME_FIRST else [SEGMENTS, BLOCK], kind)
    carry_a = carry + 1
    if COUNT > 1 and not REDUCE:
        carry += _before(carries, 0, column, columns, False, COUNT, AXIS)
    chunk = tl.program_id(1) if FORWARDS else tl.num_programs(1) - 1 - tl.program_id(1)
    start = chunk.to(tl.int64) * tiles * (SEGMENTS * ROWS)
    for tile in tl.range(0, tiles, num_stages=STAGES):
        t = start + (tile if FORWARDS else tiles - 1 - tile) * (SEGMENTS * ROWS) + times
        place = (t, column, steps, columns)
        xs = _load(x, x_step, x_stride, place, kind, TIME_FIRST, FORWARDS, EVEN)
        decays = _load(a, a_step, a_stride, place, kind, TIME_FIRST, FORWARDS, EVEN)
        ys, carry_a, carry = _walk(xs, decays, carry_a, carry, segment, False, AXIS, REDUCE)
        if not REDUCE:
            _store(ys, y, y_step, y_stride, place, TIME_FIRST, FORWARDS, EVEN)
    if REDUCE:
        _publish(carries, 0, column, columns, segment, carry_a, carry)


@triton.jit
def gae(
    rewards, values, next_values, terminated, truncated, mask, advantages, returns, carries,
    gamma: tl.float64, decay: tl.float64, returns_decay: tl.float64, steps, columns, tiles,
    rewards_step, rewards_stride, values_step, values_stride, next_values_step, next_values_stride,
    terminated_step, terminated_stride, truncated_step, truncated_stride, mask_step, mask_stride,
    advantages_step, advantages_stride, returns_step, returns_stride,
    SPLIT: tl.constexpr, REDUCE: tl.constexpr, COUNT: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK: tl.constexpr,
    TIME_FIRST: tl.constexpr, EVEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    kind: tl.constexpr = advantages.dtype.element_ty
    AXIS: tl.constexpr = 1 if TIME_FIRST else 0
    segment, column = _places(SEGMENTS, BLOCK, TIME_FIRST)
    times = _times(segment, SEGMENTS, TIME_FIRST, False)
    carry = tl.zeros([BLOCK, SEGMENTS] if TIME_FIRST else [SEGMENTS, BLOCK], kind)
    gamma = tl.full(carry.shape, gamma, kind)
    decay = tl.full(carry.shape, decay, kind)
    returns_decay = tl.full(carry.shape, returns_decay, kind)
    carry_a = carry + 1
    returns_carry = carry
    returns_carry_a = carry_a
    if COUNT > 1 and not REDUCE:
        carry += _before(carries, 0, column, columns, True, COUNT, AXIS)
        if SPLIT:
            returns_carry += _before(carries, 1, column, columns, True, COUNT, AXIS)
    start = (tl.num_programs(1) - 1 - tl.program_id(1)).to(tl.int64) * tiles * (SEGMENTS * ROWS)
    for tile in tl.range(0, tiles, num_stages=STAGES):
        t = start + (tiles - 1 - tile) * (SEGMENTS * ROWS) + times
        place = (t, column, steps, columns)
        reward = _load(rewards, rewards_step, rewards_stride, place, kind, TIME_FIRST, False, EVEN)
        value = _load(values, values_step, values_stride, place, kind, TIME_FIRST, False, EVEN)
        successor = _load(next_values, next_values_step, next_values_stride, place, kind, TIME_FIRST, False, EVEN)
        if terminated is not None:
            end = _load(terminated, terminated_step, terminated_stride, place, tl.int1, TIME_FIRST, False, EVEN)
        if truncated is not None:
            cut = _load(truncated, truncated_step, truncated_stride, place, tl.int1, TIME_FIRST, False, EVEN)
        if mask is not None:
            live = _load(mask, mask_step, mask_stride, place, tl.int1, TIME_FIRST, False, EVEN)
        # the pair (δ, decay of the trace); a masked step has x = 0, a = 1, which lets the trace through
        xs, decays, returns_decays = (), (), ()
        for row in tl.static_range(ROWS):
            blind = gamma == 0
            stops = segment < 0
            if terminated is not None:
                blind = blind | end[row]
                stops = stops | end[row]
            if truncated is not None:
                stops = stops | cut[row]
            x = reward[row] + gamma * tl.where(blind, 0.0, successor[row]) - value[row]
            a = tl.where(stops, 0.0, decay)
            returns_a = tl.where(stops, 0.0, returns_decay)
            if mask is not None:
                x = tl.where(live[row], x, 0.0)
                a = tl.where(live[row], a, 1.0)
                returns_a = tl.where(live[row], returns_a, 1.0)
            xs, decays, returns_decays = xs + (x,), decays + (a,), returns_decays + (returns_a,)
        ys, carry_a, carry = _walk(xs, decays, carry_a, carry, segment, True, AXIS, REDUCE)
        ahead = ys
        if SPLIT:
            ahead, returns_carry_a, returns_carry = _walk(
                xs, returns_decays, returns_carry_a, returns_carry, segment, True, AXIS, REDUCE
            )
        if not REDUCE:
            found, targets = (), ()
            for row in tl.static_range(ROWS):
                y, target = ys[row], ahead[row] + value[row]
                if mask is not None:
                    y, target = tl.where(live[row], y, 0.0), tl.where(live[row], target, 0.0)
                found, targets = found + (y,), targets + (target,)
            _store(found, advantages, advantages_step, advantages_stride, place, TIME_FIRST, False, EVEN)
            _store(targets, returns, returns_step, returns_stride, place, TIME_FIRST, False, EVEN)
    if REDUCE:
        _publish(carries, 0, column, columns, segment, carry_a, carry)
        if SPLIT:
            _publish(carries, 1, column, columns, segment, returns_carry_a, returns_carry)


@triton.jit
def _walk(xs, decays, carry_a, carry, segment, SMALL: tl.constexpr, AXIS: tl.constexpr, REDUCE: tl.constexpr):
    # The rows of y, and the pair that the next tile starts from. Only segment 0 of that pair counts.
    products, ys = (decays[0],), (xs[0],)
    for row in tl.static_range(1, ROWS):
        product, y = _joined(products[row - 1], ys[row - 1], decays[row], xs[row], SMALL)
        products, ys = products + (product,), ys + (y,)
    product, y = _apart(products[ROWS - 1]), _apart(ys[ROWS - 1])
    with_a, with_carry = _joined(carry_a, carry, product, y, SMALL)
    product, y = tl.where(segment == 0, with_a, product), tl.where(segment == 0, with_carry, y)
    product, y = _scan(product, y, AXIS, SMALL)
    # A segment continues the result of the segments before it in walking order; the first one starts from the last
    # tile.
    before = tl.broadcast_to(tl.where(segment == 0, y.shape[AXIS] - 1, segment - 1), y.shape)
    later = _apart_again(tl.where(segment == 0, carry, tl.gather(y, before, AXIS)))
    carry = tl.gather(y, before, AXIS)
    if REDUCE:
        carry_a = tl.gather(product, before, AXIS)
    rows = ()
    for row in tl.static_range(ROWS):
        product, y = _joined(products[row], later, products[row], ys[row], SMALL)
        rows = rows + (y,)
    return rows, carry_a, carry


@triton.jit
def _joined(later_a, later_y, a, y, SMALL: tl.constexpr):
    # Join two stretches: (∏a, y) of the earlier in time, continued by the later. small means 0 ≤ a ≤ 1.
    if SMALL:
        return _join_small(later_a, later_y, a, y)
    else:
        return _join(later_a, later_y, a, y)


@triton.jit
def _join(later_a, later_y, a, y):
    # A select at cuts. ∏a is 0 only at a cut, not by underflow; otherwise NaN beyond would vanish along a long chain,
    # unlike in the loop. Conversely, 0 stays 0 if ∏a overflowed.
    product = a * later_a
    product = tl.where(product == 0, TINY, product)
    product = tl.where((a == 0) | (later_a == 0), 0.0, product)
    nothing = (a == 0) | ((later_y == 0) & (tl.abs(a) == float("inf")))
    return product, y + tl.where(nothing, 0.0, a * later_y)


@triton.jit
def _join_small(later_a, later_y, a, y):
    open = a != 0
    product = tl.where(open & (later_a != 0), tl.maximum(a * later_a, TINY), 0.0)
    return product, y + a * tl.where(open, later_y, 0.0)


@triton.jit
def _scan(a, y, AXIS: tl.constexpr, SMALL: tl.constexpr):
    if SMALL:
        return tl.associative_scan((a, y), AXIS, _join_small)
    else:
        return tl.associative_scan((a, y), AXIS, _join)


@triton.jit
def _before(carries, pair, column, columns, SMALL: tl.constexpr, COUNT: tl.constexpr, AXIS: tl.constexpr):
    # The result of the chunks before this one in walking order; all others are (1, 0), which is neutral.
    chunk, chunks = tl.program_id(1), tl.num_programs(1)
    index = tl.expand_dims(tl.arange(0, COUNT), 1 - AXIS)
    inside = (index < chunk) & (column < columns)
    at = carries + (2 * pair * chunks + index).to(tl.int64) * columns + column
    a = tl.load(at, mask=inside, other=1.0)
    y = tl.load(at + chunks.to(tl.int64) * columns, mask=inside, other=0.0)
    a, y = _scan(a, y, AXIS, SMALL)
    return tl.expand_dims(tl.reduce(tl.where(index == COUNT - 1, y, 0.0), AXIS, _add), AXIS)


@triton.jit
def _publish(carries, pair, column, columns, segment, a, y):
    chunk, chunks = tl.program_id(1), tl.num_programs(1)
    at = carries + (2 * pair * chunks + chunk).to(tl.int64) * columns + tl.broadcast_to(column, y.shape)
    inside = (segment == 0) & (column < columns)
    tl.store(at, a, mask=inside)
    tl.store(at + chunks.to(tl.int64) * columns, y, mask=inside)


@triton.jit
def _places(SEGMENTS: tl.constexpr, BLOCK: tl.constexpr, TIME_FIRST: tl.constexpr):
    # The indices of segments and columns of a tile.
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if TIME_FIRST:
        return tl.arange(0, SEGMENTS)[None, :], column[:, None]
    else:
        # at most 4 columns per thread, also of flags, although 16 flags could be loaded at once
        return tl.arange(0, SEGMENTS)[:, None], tl.max_contiguous(column, 4)[None, :]


@triton.jit
def _times(segment, SEGMENTS: tl.constexpr, TIME_FIRST: tl.constexpr, FORWARDS: tl.constexpr):
    # The time within the tile: the first row of each segment, or all rows if they are loaded together.
    if TIME_FIRST:
        t = tl.arange(0, SEGMENTS * ROWS)
        if not FORWARDS:
            t = t ^ ((SEGMENTS - 1) * ROWS)
        return tl.max_contiguous(tl.multiple_of(t, 4), 4)[None, :]
    elif FORWARDS:
        return segment * ROWS
    else:
        return (SEGMENTS - 1 - segment) * ROWS


@triton.jit
def _load(
    array, step, stride, place, kind: tl.constexpr,
    TIME_FIRST: tl.constexpr, FORWARDS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    # the rows, in walking order
    t, column, steps, columns = place
    rows = ()
    if TIME_FIRST:
        tile = _cast(_read(array + t * step + column * stride, t, column, steps, columns, EVEN), kind)
        even, odd = tl.split(tl.reshape(tile, [tile.shape[0], tile.shape[1] // 4, 2, 2]))
        zero, two = tl.split(even)
        one, three = tl.split(odd)
        rows = (zero, one, two, three) if FORWARDS else (three, two, one, zero)
    else:
        for row in tl.static_range(ROWS):
            at = t + (row if FORWARDS else ROWS - 1 - row)
            tile = _read(array + at * step + column * stride, at, column, steps, columns, EVEN)
            rows = rows + (_cast(tile, kind),)
    return rows


@triton.jit
def _store(
    rows, array, step, stride, place, TIME_FIRST: tl.constexpr, FORWARDS: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    t, column, steps, columns = place
    if TIME_FIRST:
        zero, one, two, three = rows if FORWARDS else (rows[3], rows[2], rows[1], rows[0])
        tile = tl.join(tl.join(zero, two), tl.join(one, three))
        tile = tl.reshape(tile, [tile.shape[0], tile.shape[1] * 4])
        _write(array + t * step + column * stride, tile, t, column, steps, columns, EVEN)
    else:
        for row in tl.static_range(ROWS):
            at = t + (row if FORWARDS else ROWS - 1 - row)
            _write(array + at * step + column * stride, rows[row], at, column, steps, columns, EVEN)


@triton.jit
def _read(at, t, column, steps, columns, EVEN: tl.constexpr):
    if EVEN:
        return tl.load(at)
    else:
        return tl.load(at, mask=(t < steps) & (column < columns), other=0)


@triton.jit
def _write(at, tile, t, column, steps, columns, EVEN: tl.constexpr):
    if EVEN:
        tl.store(at, tile)
    else:
        tl.store(at, tile, mask=(t < steps) & (column < columns))


@triton.jit
def _cast(tile, kind: tl.constexpr):
    if kind == tl.int1:
        return tile != 0
    else:
        return tile.to(kind)


@triton.jit
def _apart(tile):
    # The tile itself. A scan and a gather need all segments of a column in one warp. After a reduction, even a trivial
    # one, Triton does not apply that layout to the loads, which should read adjacent memory.
    return tl.reduce(tl.join(tile, tile), 2, _either)


@triton.jit
def _apart_again(tile):
    # for the stores, a new axis stops it
    return tl.reduce(tl.expand_dims(tile, 2), 2, _either)


@triton.jit
def _either(one, other):
    return one


@triton.jit
def _add(one, other):
    return one + other

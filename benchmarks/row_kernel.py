"""The usual GPU kernel for GAE, one thread per row, in Triton: what ours is compared with, not part of the package.

It leaves out flags other than terminations, masks, and any parallelism over time.
"""

import triton
import triton.language as tl


@triton.jit
def gae(rewards, values, ahead, terminated, advantages, returns, steps, columns, gamma, decay, WIDTH: tl.constexpr):
    # Arrays [T, B], contiguous: neighbouring threads read neighbouring columns.
    column = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    inside = column < columns
    later = tl.zeros((WIDTH,), tl.float32)
    for i in range(steps):
        at = (steps - 1 - i) * columns + column
        going = tl.where(tl.load(terminated + at, inside, 1) != 0, 0.0, 1.0)
        value = tl.load(values + at, inside, 0.0)
        delta = tl.load(rewards + at, inside, 0.0) + gamma * going * tl.load(ahead + at, inside, 0.0) - value
        later = delta + decay * going * later
        tl.store(advantages + at, later, inside)
        tl.store(returns + at, later + value, inside)

"""The recurrence over a time axis that is split across the ranks of a torch.distributed process group.

Every rank holds some consecutive rows, in the order of the ranks. Ranks may hold different numbers of rows, or none.

The rows of a rank map a later y to y₀ + ∏a · y. So every rank sends one pair (∏a, y₀) per column, and computes from the
pairs of later ranks the y that arrives at its own last row. The gradient is the same exchange in the other direction: a
rank passes ∏a · (what it received) + its own part to the next one. Leaves out values from a neighbour's rows:
next_values at a rank's last row is the value of the state that its step led to, which the next rank may have.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from telescope.arrays import Array
from telescope.recurrence.torch import linear_recurrence


def linear_recurrence_sharded(
    x: Array, a: Array, group: distributed.ProcessGroup | None = None, *, differentiable: bool = False
) -> Array:
    """y[t] = x[t] + a[t] · y[t+1] over axis 0 of all ranks' rows together. Each rank gets its own rows of y.

    x and a are this rank's rows [T_rank, *batch], as in `linear_recurrence`. Batch axes and dtype must be equal on all
    ranks of `group` (None: the default group). All ranks must call this, with arrays on a device that the group's
    backend can send from (gloo: CPU, NCCL: CUDA). Each rank sends one message of 2 × batch numbers, for every T. a[t] =
    0 cuts the chain, also across ranks. With `differentiable` a tensor has its exact first-order gradient, for one more
    such message; all ranks must then run their backward passes in the same order.
    """
    if not isinstance(group, distributed.ProcessGroup | None):
        raise ValueError(
            f"time_group is {group!r}; expected a torch.distributed process group that this rank is in "
            f"(group.WORLD for all ranks, once init_process_group has been called)"
        )
    if isinstance(x, np.ndarray):
        x, a = (torch.from_numpy(np.require(array, requirements=["C", "W"])) for array in (x, a))
        return _solved(x, a, group)[0].numpy()
    if differentiable:
        return _Sharded.apply(x, a, group)  # type: ignore[no-untyped-call]
    return _solved(x.detach(), a.detach(), group)[0]


class _Sharded(torch.autograd.Function):
    """y with its gradient. Forward and backward send one message each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, group: Any) -> Tensor:
        y, carry = _solved(x, a, group)
        ctx.save_for_backward(a, y, carry)
        ctx.group = group
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """∂L/∂x = z, and ∂L/∂a[t] = z[t] · y[t+1]. After the last row, y comes from the next rank."""
        a, y, carry = ctx.saved_tensors
        z = _adjoint(gradient, a, ctx.group)
        return z, z * torch.cat([y, carry[None]])[1:], None


def _solved(x: Tensor, a: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """This rank's rows of y, and the y that arrives after its last row (that of the first row of later ranks)."""
    y = linear_recurrence(x, a)
    first = y[0] if len(y) else x.new_zeros(x.shape[1:])
    pairs = _gathered(torch.stack([_product(a), first]), group)
    carry = torch.zeros_like(first)
    for product, later in reversed(pairs[distributed.get_rank(group) + 1 :]):
        carry = _joined(later, product, carry)
    if len(x) == 0:
        return y, carry
    # run the chain again, with the arriving y added to the last row: exactly the loop over all rows
    return linear_recurrence(torch.cat([x[:-1], _joined(x[-1], a[-1], carry)[None]]), a), carry


def _adjoint(gradient: Tensor, a: Tensor, group: Any) -> Tensor:
    """z[t] = ∂L/∂y[t] + a[t−1] · z[t−1] over all ranks' rows. A rank passes on a · z of its last row."""
    shifted = torch.cat([torch.zeros_like(a[:1]), a[:-1]])
    z = linear_recurrence(gradient, shifted, forwards=True)
    nothing = gradient.new_zeros(gradient.shape[1:])
    pairs = _gathered(torch.stack([_product(a), _joined(nothing, a[-1], z[-1]) if len(z) else nothing]), group)
    arrived = nothing
    for product, earlier in pairs[: distributed.get_rank(group)]:
        arrived = _joined(earlier, product, arrived)
    return linear_recurrence(torch.cat([gradient[:1] + arrived, gradient[1:]]), shifted, forwards=True)


def _gathered(pair: Tensor, group: Any) -> list[Tensor]:
    """The pairs of all ranks, in order. This is the only message."""
    pairs = [torch.empty_like(pair) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(pairs, pair, group=group)
    return pairs


def _joined(x: Tensor, a: Tensor, later: Tensor) -> Tensor:
    """x + a · later, with a select at a cut, so that NaN beyond it does not enter."""
    return x + torch.where(a == 0, 0, a * later)


def _product(a: Tensor) -> Tensor:
    """∏a of each column. It is 0 only if a factor is 0, not by underflow (see `triton.py`)."""
    product = a.prod(0)
    product = torch.where(product == 0, torch.finfo(a.dtype).tiny, product)
    return torch.where((a == 0).any(0), 0, product)

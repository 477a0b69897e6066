"""The recurrence over a time axis that is split across the ranks of a torch.distributed process group.

Every rank holds some consecutive rows; ranks in order hold time in order, and need not hold equally many rows
(nor any). It leaves out gradients, and whatever an estimator wants to know of the neighbour's rows: next_values
at a rank's last row is the value of the state that step led to, which the next rank may be the one to know.

A rank's rows do one thing to what comes after them, y ↦ y₀ + ∏a · y. So every rank sends one pair (∏a, y₀) per
column, and each works out from the pairs of later ranks what arrives at its own last row.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from telescope.arrays import Array
from telescope.recurrence import linear_recurrence


def linear_recurrence_sharded(x: Array, a: Array, group: distributed.ProcessGroup | None = None) -> Array:
    """y[t] = x[t] + a[t] · y[t+1] over axis 0 of all ranks' rows together; each rank gets its own rows of y.

    x and a are this rank's rows [T_rank, *batch], as in `linear_recurrence`; the batch axes and the dtype must be
    the same on all ranks of `group` (None: the default one). All ranks must call, with arrays where the group's
    backend can send them from (gloo: CPU, NCCL: CUDA). One message of 2 × batch numbers per rank, whatever T is.
    Where a[t] = 0 the chain is cut, across ranks too. Without a gradient.
    """
    if isinstance(x, np.ndarray):
        x, a = (torch.from_numpy(np.require(array, requirements=["C", "W"])) for array in (x, a))
        return _sharded(x, a, group).numpy()
    return _sharded(x.detach(), a.detach(), group)


def _sharded(x: Tensor, a: Tensor, group: Any) -> Tensor:
    y = linear_recurrence(x, a)
    first = y[0] if len(y) else x.new_zeros(x.shape[1:])
    pairs = _gathered(torch.stack([_product(a), first]), group)
    carry = torch.zeros_like(first)
    for product, later in reversed(pairs[distributed.get_rank(group) + 1 :]):
        carry = _joined(later, product, carry)
    if len(x) == 0:
        return y
    # The chain runs once more, with what arrives added to the last row: exactly the loop over all rows.
    return linear_recurrence(torch.cat([x[:-1], _joined(x[-1], a[-1], carry)[None]]), a)


def _gathered(pair: Tensor, group: Any) -> list[Tensor]:
    """The pairs of all ranks, in their order: the only message."""
    pairs = [torch.empty_like(pair) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(pairs, pair, group=group)
    return pairs


def _joined(x: Tensor, a: Tensor, later: Tensor) -> Tensor:
    """x + a · later, with a select at a cut: NaN beyond it stays there."""
    return x + torch.where(a == 0, 0, a * later)


def _product(a: Tensor) -> Tensor:
    """∏a of each column: 0 where one of them is 0, and only there, not by underflow (see `triton.py`)."""
    product = a.prod(0)
    product = torch.where(product == 0, torch.finfo(a.dtype).tiny, product)
    return torch.where((a == 0).any(0), 0, product)

"""The recurrence on torch tensors: zero-copy into the CPU kernels, elsewhere a loop; exact gradients.

It leaves out speed on an accelerator: the loop there costs one small kernel launch per step.
"""

from typing import Any

import torch
from torch import Tensor

from telescope import arrays
from telescope.recurrence import cpu


def linear_recurrence(x: Tensor, a: Tensor, *, forwards: bool = False) -> Tensor:
    """y[t] = x[t] + a[t] · y[t±1], on the device of x; no gradient."""
    x, a = x.detach(), a.detach()
    if not arrays.on_cpu(x):
        return _loop(x, a, forwards)
    step = -1 if forwards else 1
    y = torch.empty_like(x)
    cpu.linear_recurrence(x.numpy()[::step], a.numpy()[::step], out=y.numpy()[::step])
    return y


def differentiable_recurrence(x: Tensor, a: Tensor) -> Tensor:
    """The same with its exact gradient with respect to x and a, to any order."""
    return _Recurrence.apply(x, a, False)  # type: ignore[no-any-return, no-untyped-call]


class _Recurrence(torch.autograd.Function):
    """The adjoint z[t] = ∂L/∂y[t] + a[t−1] · z[t−1] is the recurrence run the other way, a shifted by one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, forwards: bool) -> Tensor:
        y = linear_recurrence(x, a, forwards=forwards)
        ctx.save_for_backward(a, y)
        ctx.forwards = forwards
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        a, y = ctx.saved_tensors
        step = 1 if ctx.forwards else -1
        z = _Recurrence.apply(gradient, _shifted(a, step), not ctx.forwards)  # type: ignore[no-untyped-call]
        return z, z * _shifted(y, -step) if ctx.needs_input_grad[1] else None, None


def _shifted(array: Tensor, step: int) -> Tensor:
    """array[t + step], and 0 where that lies outside."""
    zero = torch.zeros_like(array[:1])
    return torch.cat([array[1:], zero] if step == 1 else [zero, array[:-1]])


def _loop(x: Tensor, a: Tensor, forwards: bool) -> Tensor:
    y = torch.empty_like(x)
    carry = torch.zeros_like(x[:1].sum(dim=0))
    for t in range(len(x)) if forwards else reversed(range(len(x))):
        carry = torch.where(a[t] == 0, x[t], x[t] + a[t] * carry)
        y[t] = carry
    return y

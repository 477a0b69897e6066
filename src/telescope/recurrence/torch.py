"""The recurrence and GAE on torch tensors: CPU kernels on the same memory, Triton on CUDA; exact gradients.

torch.compile and torch.export see two registered operators, telescope::linear_recurrence and telescope::gae. A plain
call bypasses them, which saves the dispatcher's 10 to 20 µs. Leaves out the kernels (`cpu.py`, `triton.py`).
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from telescope import torch_func
from telescope.recurrence import cpu

Floats = Sequence[Tensor]  # rewards, values, next_values; or the two results
Flags = Sequence[Tensor | None]  # terminated, truncated, mask
Discounts = tuple[float, float, float]  # γ, γλ, and the γλ of the returns

# devices with a fused GAE kernel; Triton comes with the CUDA builds of torch, except on Windows
FUSED = ("cpu", "cuda") if find_spec("triton") else ("cpu",)


def linear_recurrence(x: Tensor, a: Tensor, *, forwards: bool = False) -> Tensor:
    """y[t] = x[t] + a[t] · y[t±1], on the device of x, without gradient."""
    x, a = x.detach(), a.detach()
    if _recorded():
        return _compiled(x, a, forwards)
    if torch_func.transforming():
        return _Recurrence.apply(x, a, forwards)  # type: ignore[no-any-return, no-untyped-call]
    return _compute(x, a, forwards)


def differentiable_recurrence(x: Tensor, a: Tensor, *, forwards: bool = False) -> Tensor:
    """The recurrence with its exact gradient with respect to x and a, to any order, also under torch.func."""
    if _recorded():
        return _compiled(x, a, forwards)
    return _Recurrence.apply(x, a, forwards)  # type: ignore[no-any-return, no-untyped-call]


def _recorded() -> bool:
    """Whether torch.compile or make_fx records calls for later. They see no kernel that is not an operator.

    Also True under torch.func where torch's private interface has changed: operators are right there too, only slower.
    """
    if torch.compiler.is_compiling():
        return True
    try:
        return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
    except AttributeError:
        return torch_func.transforming()


def gae(floats: Floats, flags: Flags, discounts: Discounts, out: Floats) -> bool:
    """Advantages and returns in one pass, like `cpu.gae`, without gradient. False if the pair (x, a) is needed."""
    if torch_func.transforming():
        return False
    if torch.compiler.is_compiling():
        if out[0].device.type not in FUSED:
            return False
        _gae_operator(*floats, *flags, *discounts, *out)
        return True
    return _compute_gae(floats, flags, discounts, out)


def gae_on_cuda(floats: Floats, flags: Flags, discounts: Discounts, out: Floats, axis: int, *, fresh: bool) -> bool:
    """`gae` with time along an axis. `fresh` (new results for checked arguments) prepares `gae_again`."""
    return "cuda" in FUSED and _triton().gae(floats, flags, discounts, out, axis, fresh=fresh)


def gae_again(floats: Floats, flags: Flags, discounts: Discounts, axis: int) -> tuple[Tensor, Tensor] | None:
    """GAE into new tensors without checks, if `gae_on_cuda` had tensors of the same layout before; otherwise None."""
    return _triton().again(floats, flags, discounts, axis) if "cuda" in FUSED else None


def _compute(x: Tensor, a: Tensor, forwards: bool) -> Tensor:
    if x.device.type == "cpu":
        step = -1 if forwards else 1
        y = torch.empty_like(x)
        cpu.linear_recurrence(x.numpy()[::step], a.numpy()[::step], out=y.numpy()[::step])
        return y
    if x.device.type not in FUSED:
        return _loop(x, a, forwards)
    return _triton().linear_recurrence(x, a, forwards=forwards)  # type: ignore[no-any-return]


def _compute_gae(floats: Floats, flags: Flags, discounts: Discounts, out: Floats) -> bool:
    device = out[0].device.type
    if device == "cpu":
        views = [None if array is None else array.numpy() for array in (*floats, *flags, *out)]
        return cpu.gae(tuple(views[:3]), tuple(views[3:6]), discounts, tuple(views[6:]))  # type: ignore[arg-type]
    return device in FUSED and _triton().gae(floats, flags, discounts, out)


@cache
def _triton() -> ModuleType:
    from telescope.recurrence import triton

    return triton


@torch.library.custom_op("telescope::linear_recurrence", mutates_args=())
def _operator(x: Tensor, a: Tensor, forwards: bool) -> Tensor:
    return _compute(x.detach(), a.detach(), forwards)


@_operator.register_fake
def _(x: Tensor, a: Tensor, forwards: bool) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1], output)
    ctx.forwards = inputs[2]


def _adjoint(ctx: Any, gradient: Tensor, recurrence: Any = _operator) -> tuple[Tensor, Tensor | None, None]:
    """∂L/∂x is z[t] = ∂L/∂y[t] + a[t−1] · z[t−1], the recurrence in the other direction with a shifted by one."""
    a, y = ctx.saved_tensors
    step = 1 if ctx.forwards else -1
    z = recurrence(gradient, _shifted(a, step), not ctx.forwards)
    return z, z * _shifted(y, -step) if ctx.needs_input_grad[1] else None, None


def _mapped(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, a: Tensor, forwards: bool, recurrence: Any = _operator
) -> tuple[Tensor, int]:
    """Under torch.func.vmap, the mapped axis becomes another batch axis, after time."""
    sides = [
        side.unsqueeze(1).expand(-1, info.batch_size, *side.shape[1:]) if dim is None else side.movedim(dim, 1)
        for side, dim in zip((x, a), in_dims[:2], strict=True)
    ]
    return recurrence(*sides, forwards), 1


_operator.register_autograd(_adjoint, setup_context=_save)
_operator.register_vmap(_mapped)


class _Recurrence(torch.autograd.Function):
    """The function for plain calls. It has half the operator's overhead, and supports torch.func.grad."""

    @staticmethod
    def forward(x: Tensor, a: Tensor, forwards: bool) -> Tensor:
        return _compute(x.detach(), a.detach(), forwards)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        _save(ctx, inputs, output)
        ctx.save_for_forward(inputs[1], output)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, da: Tensor, _: None) -> Tensor:
        """dy[t] = dx[t] + da[t] · y[t±1] + a[t] · dy[t±1]: the same recurrence."""
        a, y = ctx.saved_tensors
        return _Recurrence.apply(dx + da * _shifted(y, -1 if ctx.forwards else 1), a, ctx.forwards)  # type: ignore

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        return _adjoint(ctx, gradient, _Recurrence.apply)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, a: Tensor, forwards: bool) -> tuple[Tensor, int]:
        return _mapped(info, in_dims, x, a, forwards, _Recurrence.apply)


@torch.library.custom_op("telescope::gae", mutates_args=("advantages", "returns"))
def _gae_operator(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor | None,
    truncated: Tensor | None,
    mask: Tensor | None,
    gamma: float,
    decay: float,
    returns_decay: float,
    advantages: Tensor,
    returns: Tensor,
) -> None:
    floats, flags = (rewards, values, next_values), (terminated, truncated, mask)
    discounts, out = (gamma, decay, returns_decay), (advantages, returns)
    if _compute_gae(floats, flags, discounts, out):
        return
    # the CPU kernel needs arrays of equal layout; a compiled graph has no other kernel
    flags_copied = [None if flag is None else flag.contiguous() for flag in flags]
    results = [torch.empty_like(array, memory_format=torch.contiguous_format) for array in out]
    _compute_gae([array.contiguous() for array in floats], flags_copied, discounts, results)
    for array, result in zip(out, results, strict=True):
        array.copy_(result)


def _shifted(array: Tensor, step: int) -> Tensor:
    """array[t + step], or 0 outside."""
    zero = torch.zeros_like(array[:1])
    return torch.cat([array[1:], zero] if step == 1 else [zero, array[:-1]])


def _compiled(x: Tensor, a: Tensor, forwards: bool) -> Tensor:
    """The operator for a compiled graph. Under torch.func only torch's own operators work there."""
    if not torch_func.transforming():
        return _operator(x, a, forwards)  # type: ignore[no-any-return]
    return _doubled(x.flip(0), a.flip(0)).flip(0) if forwards else _doubled(x, a)


def _doubled(x: Tensor, a: Tensor) -> Tensor:
    """Maps y ↦ x + a · y of 1, 2, 4, … steps, joined in log₂ T rounds. Here a product that underflows is a cut."""
    span = 1
    while span < len(x):
        x_later, a_later = (torch.cat([side[span:], torch.zeros_like(side[:span])]) for side in (x, a))
        x, a = x + a * torch.where(a == 0, 0.0, x_later), a * a_later
        span *= 2
    return x


def _loop(x: Tensor, a: Tensor, forwards: bool) -> Tensor:
    """One launch per step, for accelerators without our kernels."""
    y = torch.empty_like(x)
    carry = torch.zeros_like(x[:1].sum(dim=0))
    for t in range(len(x)) if forwards else reversed(range(len(x))):
        carry = torch.where(a[t] == 0, x[t], x[t] + a[t] * carry)
        y[t] = carry
    return y

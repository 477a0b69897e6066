"""A convolution of pictures for one agent, which stays fast when all agents run side by side.

Pictures are [N, H, W, C] and weights [F, k, k, C], both contiguous: the layout in which CPUs convolve fastest. vmap's
own rule would join the agents' channels into one grouped convolution, which is slower and needs other layouts; here
each agent has a convolution of its own. Leaves out second derivatives, which nothing needs.
"""

# N pictures, H × W pixels, C channels, F filters, k width of a filter
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def convolve(x: Tensor, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    """[N, H, W, C] → [N, H', W', F] with H' = ⌊(H + 2·padding − k) / stride⌋ + 1, and W' likewise."""
    return _Convolution.apply(x, weight, bias, stride, padding)  # type: ignore[no-any-return]


def _apart(info: Any, dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """The arguments of each agent. One without an agent axis is every agent's."""
    columns = [
        [x] * info.batch_size if dim is None else list(x.unbind(dim)) for x, dim in zip(tensors, dims, strict=False)
    ]
    return list(zip(*columns, strict=True))


def _together(parts: Sequence[Tensor]) -> Tensor:
    """The results of all agents; without a copy if there is only one."""
    return torch.stack(list(parts)) if len(parts) > 1 else parts[0].unsqueeze(0)


def _first(x: Tensor) -> Tensor:
    """Channels first for torch, in the same memory."""
    return x.permute(0, 3, 1, 2)


def _last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        return _last(torch.nn.functional.conv2d(_first(x), _first(weight), bias, stride, padding))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0]
        by_x, *others = _Backward.apply(slope.contiguous(), x, weight, ctx.stride, ctx.padding, wanted)
        return by_x if wanted else None, *others, None, None

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, weight: Tensor | None, bias: Tensor | None, *_: Any) -> Tensor:  # type: ignore[override]
        """The derivative along these directions: a convolution is linear in each argument."""
        seen, filters = ctx.saved_tensors
        none = torch.zeros_like(filters[:, 0, 0, 0])
        how = {"stride": ctx.stride, "padding": ctx.padding}
        parts = []
        if x is not None:
            parts.append(convolve(x, filters, none, **how))
        if weight is not None:
            parts.append(convolve(seen, weight, none if bias is None else bias, **how))
        return sum(parts[1:], parts[0])

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:  # type: ignore[override]
        *tensors, stride, padding = inputs
        each = _apart(info, dims, tuple(tensors))
        return _together([_Convolution.apply(*own, stride, padding) for own in each]), 0


class _Backward(torch.autograd.Function):
    """The gradients of a convolution by pictures (zeros if they are not wanted), weight and bias."""

    @staticmethod
    def forward(
        slope: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, wanted: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        by_x, by_weight, by_bias = torch.ops.aten.convolution_backward(
            _first(slope),
            _first(x),
            _first(weight),
            [len(weight)],
            [stride, stride],
            [padding, padding],
            [1, 1],
            False,
            [0, 0],
            1,
            [wanted, True, True],
        )
        return _last(by_x) if wanted else x.new_zeros(()), _last(by_weight), by_bias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        raise NotImplementedError("a convolution has no second derivative here")

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:  # type: ignore[override]
        *tensors, stride, padding, wanted = inputs
        each = _apart(info, dims, tuple(tensors))
        found = [_Backward.apply(*own, stride, padding, wanted) for own in each]
        return tuple(map(_together, zip(*found, strict=True))), (0, 0, 0)

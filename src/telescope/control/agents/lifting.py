"""From a function of one agent to a fast function of all: vmap, then a recorded graph, then compiled or CUDA code.

The one place where any of them is applied. What is lifted must be pure: it sees tensors (in tuples, or None) and
returns tensors, and decides nothing in Python by what they hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from telescope.control.agents.compiling import from_cache_or_anew, undisturbed

PATIENCE = 64
"""Calls of one shape by torch.func's own dispatch before they are recorded, which takes as long as many of them."""
REHEARSALS = 3
"""Runs on a side stream before a CUDA graph is captured, so that libraries have allocated what they keep."""

Program = Callable[..., list[Tensor]]


def lift(
    function: Callable[..., Any], in_dims: tuple[int | None, ...], *, compiled: bool, cuda_graph: bool = False
) -> Callable[..., Any]:
    """`function` of one agent → the same for all agents; `in_dims` as in torch.vmap.

    Calls with tensors that lie alike (shapes, strides, devices) run one recorded graph of tensor operations: the same
    numbers as without it, with less overhead. `compiled` gives it to torch's compiler at the first call, which rounds
    differently; `cuda_graph` captures it on CUDA devices. No shape is dynamic and nothing is chosen by timing, so the
    same machine always runs the same kernels.
    """
    return _Lifted(function, in_dims, compiled, cuda_graph)


class _Lifted:
    def __init__(self, function: Callable[..., Any], in_dims: tuple[int | None, ...], compiled: bool, graph: bool):
        self.function, self.in_dims, self.compiled, self.graph = function, in_dims, compiled, graph
        self.programs: dict[Any, Program] = {}
        self.calls: dict[Any, int] = {}
        self.shapes: dict[Any, Any] = {}  # what the results are built of, by signature

    def __call__(self, *arguments: Any) -> Any:
        inputs: list[Tensor] = []
        structure = _flatten(arguments, inputs)
        signature = (structure, tuple((x.shape, x.stride(), x.dtype, x.device) for x in inputs))
        program = self.programs.get(signature)
        if program is None:
            if not self._worth_recording(signature):
                return self._mapped(*arguments)
            program = self.programs[signature] = self._record(signature, structure, inputs)
        return _unflatten(self.shapes[signature], iter(program(*inputs)))

    def _worth_recording(self, signature: Any) -> bool:
        self.calls[signature] = self.calls.get(signature, 0) + 1
        return self.compiled or self.graph or self.calls[signature] > PATIENCE

    def _mapped(self, *arguments: Any) -> Any:
        # vmap wants to be told of what is no tensor (an absent action mask) that it has no seed axis
        dims = tuple(_dims(argument, dim) for argument, dim in zip(arguments, self.in_dims, strict=True))
        return torch.func.vmap(self.function, in_dims=dims)(*arguments)

    def _record(self, signature: Any, structure: Any, inputs: list[Tensor]) -> Program:
        def flat(*tensors: Tensor) -> list[Tensor]:
            outputs: list[Tensor] = []
            self.shapes[signature] = _flatten(self._mapped(*_unflatten(structure, iter(tensors))), outputs)
            return outputs

        from torch.fx.experimental.proxy_tensor import make_fx  # takes half a second, which short runs never need

        captured = self.graph and all(x.device.type == "cuda" for x in inputs)
        if captured:  # from here on the graph's own inputs, which need not lie as the caller's do
            inputs = [x.clone(memory_format=torch.contiguous_format) for x in inputs]
        with torch.no_grad():
            graph = make_fx(flat)(*inputs)
            graph.graph.eliminate_dead_code()
            graph.recompile()
            with undisturbed():
                program = from_cache_or_anew(lambda: _compiled(graph, inputs)) if self.compiled else graph
                return _Captured(program, inputs) if captured else _without_gradient(program)


def _compiled(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Program:
    """By TorchInductor, without the guards of torch.compile: a signature of ours has chosen the graph already."""
    import torch._inductor
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # Fake inputs with a shape environment, even a static one, are what lets it use its cache on disk.
    fake = FakeTensorMode(shape_env=ShapeEnv())
    examples = [fake.from_tensor(x, static_shapes=True) for x in inputs]
    # On a GPU it would otherwise time variants of a kernel, which need not add in the same order. How the inputs lie
    # needs no check: the signature has said so.
    options = {"size_asserts": False, "deterministic": inputs[0].device.type == "cuda"}
    return torch._inductor.compile(graph, list(examples), options=options)  # type: ignore[arg-type,return-value]


def _without_gradient(program: Program) -> Program:
    def run(*inputs: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return program(*inputs)

    return run


class _Captured:
    """A program as a CUDA graph: inputs are copied to where the graph reads, results out of where it writes."""

    def __init__(self, program: Program, inputs: list[Tensor]) -> None:
        self.inputs = inputs
        self.seen: list[Tensor | None] = [None] * len(inputs)
        side = torch.cuda.Stream(inputs[0].device)
        side.wait_stream(torch.cuda.current_stream(inputs[0].device))
        with torch.cuda.stream(side):
            for _ in range(REHEARSALS):
                program(*self.inputs)
        torch.cuda.current_stream(inputs[0].device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = program(*self.inputs)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        for i, x in enumerate(inputs):
            if x is not self.seen[i]:  # a batch stays the same for a whole epoch
                self.inputs[i].copy_(x)
                self.seen[i] = x
        self.graph.replay()
        return [x.clone() for x in self.outputs]


def _flatten(value: Any, into: list[Tensor]) -> Any:
    """Append the tensors in tuples to `into`; returns the structure they stood in, hashable."""
    if isinstance(value, Tensor):
        into.append(value)
        return Tensor
    if isinstance(value, tuple):
        return (type(value), tuple([_flatten(part, into) for part in value]))
    return value


def _unflatten(structure: Any, tensors: Any) -> Any:
    if structure is Tensor:
        return next(tensors)
    if isinstance(structure, tuple):
        kind, parts = structure
        values = [_unflatten(part, tensors) for part in parts]
        return tuple(values) if kind is tuple else kind(*values)
    return structure


def _dims(argument: Any, dim: int | None) -> Any:
    if isinstance(argument, tuple):
        values = [_dims(part, dim) for part in argument]
        return tuple(values) if type(argument) is tuple else type(argument)(*values)
    return dim if isinstance(argument, Tensor) else None

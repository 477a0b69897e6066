"""Lift a function of one agent to a fast function of all agents: vmap, a recorded graph, then compiled or CUDA code.

No other file uses these. A lifted function must be pure: it takes tensors (in tuples, or None), returns tensors, and
has no Python branch on their values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from telescope.control.agents.compiling import from_cache_or_anew, undisturbed
from telescope.control.agents.simplifying import simplified

PATIENCE = 64
"""Calls of one shape before a graph is recorded. Recording takes as long as many calls."""
REHEARSALS = 3
"""Runs on a side stream before a CUDA graph is captured, so that libraries allocate their memory first."""

Program = Callable[..., list[Tensor]]


def lift(
    function: Callable[..., Any],
    in_dims: tuple[int | None, ...],
    *,
    compiled: bool,
    cuda_graph: bool = False,
    notes: list[str] | None = None,
    staged: bool = False,
) -> Callable[..., Any]:
    """`function` of one agent → the same function of all agents. `in_dims` is as in torch.vmap.

    Calls with tensors of equal shapes, strides and devices run one recorded graph of tensor operations, which gives the
    same numbers with less overhead. `compiled` gives the graph to torch's compiler at the first call; it rounds
    differently. `cuda_graph` captures it on CUDA devices. Shapes are static and no kernel is chosen by timing, so the
    same machine always runs the same kernels. Where torch cannot record or compile (it does so by private interfaces,
    which may change), the calls run in the next slower way, and `notes` receives a sentence.

    `staged` is for many calls with the same first arguments: `lifted(*first)(*rest)`; see `staging.py`.
    """
    from telescope.control.agents.staging import Staged

    kind = Staged if staged else Lifted
    return kind(function, in_dims, compiled, cuda_graph, [] if notes is None else notes)


class Lifted:
    def __init__(
        self, function: Callable[..., Any], in_dims: tuple[int | None, ...], compiled: bool, graph: bool, notes: Any
    ) -> None:
        self.function, self.in_dims, self.compiled, self.graph, self.notes = function, in_dims, compiled, graph, notes
        self.programs: dict[Any, Any] = {}
        self.calls: dict[Any, int] = {}
        self.shapes: dict[Any, Any] = {}  # the structure of the results, by signature

    def __call__(self, *arguments: Any) -> Any:
        inputs: list[Tensor] = []
        structure = flatten(arguments, inputs)
        signature = signature_of(structure, inputs)
        program = self.programs.get(signature)
        if program is None:
            if not self._worth_recording(signature):
                return self._mapped(*arguments)
            program = self.programs[signature] = self._record(signature, structure, inputs)
        outputs = program(*inputs)
        return unflatten(self.shapes[signature], iter(outputs))

    def _worth_recording(self, signature: Any) -> bool:
        self.calls[signature] = self.calls.get(signature, 0) + 1
        return self.compiled or self.graph or self.calls[signature] > PATIENCE

    def _mapped(self, *arguments: Any) -> Any:
        # for vmap, a value that is not a tensor (an absent action mask) has no seed axis
        dims = tuple(_dims(argument, dim) for argument, dim in zip(arguments, self.in_dims, strict=True))
        return torch.func.vmap(self.function, in_dims=dims)(*arguments)

    def _record(self, signature: Any, structure: Any, inputs: list[Tensor]) -> Any:
        def flat(*tensors: Tensor) -> list[Tensor]:
            outputs: list[Tensor] = []
            self.shapes[signature] = flatten(self._mapped(*unflatten(structure, iter(tensors))), outputs)
            return outputs

        return self._made(flat, self._own(inputs))

    def _made(self, flat: Program, inputs: list[Tensor]) -> Any:
        with torch.no_grad():
            graph = self._graph(flat, inputs)
            return self._ready(flat if graph is None else self._fastest(graph, inputs), inputs)

    def _captures(self, inputs: list[Tensor]) -> bool:
        return self.graph and all(x.device.type == "cuda" for x in inputs)

    def _own(self, inputs: list[Tensor]) -> list[Tensor]:
        """The inputs to record with: a CUDA graph has its own, which may have other strides than the caller's."""
        return [x.clone(memory_format=torch.contiguous_format) for x in inputs] if self._captures(inputs) else inputs

    def _graph(self, flat: Program, inputs: list[Tensor]) -> torch.fx.GraphModule | None:
        """`flat` as a recorded graph; None where torch cannot record it."""
        try:
            return _recorded(flat, inputs)
        except Exception as error:
            self._note("record", error, "gives the same numbers")
            return None

    def _fastest(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Program:
        """The graph compiled, if that is wanted and possible; otherwise in fewer operations."""
        if not self.compiled:
            return simplified(graph, inputs)
        try:
            with undisturbed():
                return from_cache_or_anew(lambda: _compiled(graph, inputs))
        except Exception as error:
            self._note("compile", error, "rounds differently")
            return simplified(graph, inputs)

    def _ready(self, program: Program, inputs: list[Tensor]) -> Program:
        return _Captured(program, inputs) if self._captures(inputs) else _without_gradient(program)

    def _note(self, verb: str, error: Exception, numbers: str) -> None:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        note = f"torch cannot {verb} the updates ({why}), so they run without it, which is slower and {numbers}"
        if note not in self.notes:
            self.notes.append(note)


def _recorded(flat: Program, inputs: list[Tensor]) -> torch.fx.GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx  # takes half a second; short runs never need it

    graph = make_fx(flat)(*inputs)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _compiled(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Program:
    """Compile with TorchInductor, without torch.compile's guards: our own signature has already chosen the graph."""
    import torch._inductor
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # it uses its disk cache only for fake inputs with a shape environment, even a static one
    fake = FakeTensorMode(shape_env=ShapeEnv())
    examples = [fake.from_tensor(x, static_shapes=True) for x in inputs]
    # On a GPU it would otherwise time variants of a kernel, which may sum in another order. The signature has already
    # checked the strides of the inputs.
    options = {"size_asserts": False, "deterministic": inputs[0].device.type == "cuda"}
    return torch._inductor.compile(graph, list(examples), options=options)  # type: ignore[arg-type,return-value]


def _without_gradient(program: Program) -> Program:
    def run(*inputs: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return program(*inputs)

    return run


class _Captured:
    """A program as a CUDA graph. Each call copies inputs into the graph's memory and results out of it."""

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
            if x is not self.seen[i]:  # a batch stays the same for an epoch
                self.inputs[i].copy_(x)
                self.seen[i] = x
        self.graph.replay()
        return [x.clone() for x in self.outputs]


def signature_of(structure: Any, inputs: list[Tensor]) -> Any:
    return (structure, tuple((x.shape, x.stride(), x.dtype, x.device) for x in inputs))


def flatten(value: Any, into: list[Tensor]) -> Any:
    """Append the tensors in nested tuples to `into`. Return their structure, which is hashable."""
    if isinstance(value, Tensor):
        into.append(value)
        return Tensor
    if isinstance(value, tuple):
        return (type(value), tuple([flatten(part, into) for part in value]))
    return value


def unflatten(structure: Any, tensors: Any) -> Any:
    if structure is Tensor:
        return next(tensors)
    if isinstance(structure, tuple):
        kind, parts = structure
        values = [unflatten(part, tensors) for part in parts]
        return tuple(values) if kind is tuple else kind(*values)
    return structure


def _dims(argument: Any, dim: int | None) -> Any:
    if isinstance(argument, tuple):
        values = [_dims(part, dim) for part in argument]
        return tuple(values) if type(argument) is tuple else type(argument)(*values)
    return dim if isinstance(argument, Tensor) else None

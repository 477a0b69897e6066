"""Lift a function in two stages, for many calls with the same first arguments.

What depends on these alone is computed once: of a Jacobian-vector product, the network itself. A recorded graph is cut
in two for this. Leaves out everything else about lifting (`lifting.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from telescope.control.agents.lifting import Lifted, Program, flatten, signature_of, unflatten


class Staged(Lifted):
    """`staged(*kept)(*new)` gives what the lifted function gives for `(*kept, *new)`.

    A program is a pair: kept inputs → what is between the stages; this and new inputs → outputs.
    """

    def __call__(self, *kept: Any) -> Callable[..., Any]:
        first_inputs: list[Tensor] = []
        _, kept_parts = flatten(kept, first_inputs)
        count = len(first_inputs)
        between: dict[Any, list[Tensor]] = {}  # by signature

        def call(*new: Any) -> Any:
            inputs = list(first_inputs)
            structure = (tuple, kept_parts + flatten(new, inputs)[1])
            signature = signature_of(structure, inputs)
            if signature not in self.programs:
                if not self._worth_recording(signature):
                    return self._mapped(*kept, *new)
                self.kept = count
                self.programs[signature] = self._record(signature, structure, inputs)
            first, second = self.programs[signature]
            if signature not in between:
                between[signature] = first(*first_inputs)
            outputs = second(*between[signature], *inputs[count:])
            return unflatten(self.shapes[signature], iter(outputs))

        return call

    def _made(self, flat: Program, inputs: list[Tensor]) -> tuple[Program, Program]:
        kept, new = inputs[: self.kept], inputs[self.kept :]
        with torch.no_grad():
            graph = self._graph(flat, inputs)
            if graph is None:
                return lambda *same: list(same), self._ready(flat, inputs)
            early, late = cut(graph, self.kept)
            first = self._ready(self._fastest(early, kept), kept)
            rest = self._own(first(*kept)) + new
            return first, self._ready(self._fastest(late, rest), rest)


def cut(graph: torch.fx.GraphModule, kept: int) -> tuple[torch.fx.GraphModule, torch.fx.GraphModule]:
    """Two graphs: what depends on the first `kept` inputs alone; and the rest, which reads the first's results before
    its other inputs."""
    *nodes, output = graph.graph.nodes
    inputs = [node for node in nodes if node.op == "placeholder"]
    late = set(inputs[kept:])
    for node in nodes:
        if any(x in late for x in node.all_input_nodes):
            late.add(node)
    if any(_writes(node) for node in nodes):  # into what, and who reads it, is not worth finding out
        late = set(nodes) - set(inputs[:kept])
    border = [node for node in nodes if node not in late and any(x in late or x is output for x in node.users)]
    first, second = torch.fx.Graph(), torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in nodes:
        if node not in late:
            copies[node] = first.node_copy(node, copies.__getitem__)
    first.output([copies[node] for node in border])
    copies = {node: second.placeholder(f"between_{i}") for i, node in enumerate(border)}
    for node in nodes:
        if node in late:
            copies[node] = second.node_copy(node, copies.__getitem__)
    second.output(torch.fx.node.map_arg(output.args[0], copies.__getitem__))
    return torch.fx.GraphModule(graph, first), torch.fx.GraphModule(graph, second)


def _writes(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)

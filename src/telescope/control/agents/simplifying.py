"""Remove from a recorded graph what changes no number: views that change nothing, constants, repeated operations.

Each operation of a small network costs microseconds before it computes anything. Leaves out compiled graphs, where the
compiler does the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

VIEWS = {f"aten.{name}.default" for name in ("view", "_unsafe_view", "expand", "permute")}
"""Operations that only look at their input; often in its own shape and strides."""
SHAPED_LIKE = {f"aten.{name}.default" for name in ("ones_like", "zeros_like")}
"""Operations that read an input's shape, but no number of it."""
RANDOM = torch.Tag.nondeterministic_seeded


def simplified(graph: GraphModule, inputs: list[Tensor]) -> GraphModule:
    """The same function of tensors like `inputs`, in fewer operations. Every result keeps its bits.

    A graph that writes into a tensor stays as it is, because then two equal operations may see different numbers.
    """
    if any(node.op == "call_function" and _writes(node.target) for node in graph.graph.nodes):
        return graph
    _Simplifying(graph).run(*inputs)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return graph


class _Simplifying(torch.fx.Interpreter):
    """Runs the graph once. Each node that is seen to be superfluous is replaced."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.simplified = graph
        self.known: dict[tuple[Any, str, str], Node] = {}
        self.constants: set[Node] = set()

    def run_node(self, node: Node) -> Any:
        result = super().run_node(node)
        if node.op != "call_function" or RANDOM in getattr(node.target, "tags", ()):
            return result
        if str(node.target) in VIEWS and _same_layout(result, self.env[node.args[0]]):  # type: ignore[index]
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            return result
        key = (node.target, repr(node.args), repr(node.kwargs))  # not equality, by which 1 is 1.0
        if key in self.known:
            node.replace_all_uses_with(self.known[key])
        elif isinstance(result, Tensor) and (str(node.target) in SHAPED_LIKE or self._is_constant(node)):
            self.known[key] = self._kept(node, result)
        else:
            self.known[key] = node
        return result

    def _is_constant(self, node: Node) -> bool:
        return all(one in self.constants for one in node.all_input_nodes)

    def _kept(self, node: Node, value: Tensor) -> Node:
        """Replace a node by its value, which is the same in every call."""
        name = f"_constant_{len(self.constants)}"
        self.simplified.register_buffer(name, value, persistent=False)
        with self.simplified.graph.inserting_before(node):
            kept = self.simplified.graph.get_attr(name)
        node.replace_all_uses_with(kept)
        self.constants.add(kept)
        self.env[kept] = value
        return kept


def _writes(operation: Any) -> bool:
    schema = getattr(operation, "_schema", None)
    return schema is not None and schema.is_mutable


def _same_layout(a: Any, b: Any) -> bool:
    return a.shape == b.shape and a.stride() == b.stride()

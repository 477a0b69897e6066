"""A simplified graph is the same function with fewer operations: every result keeps its bits."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from telescope.control.agents.simplifying import simplified


def recorded(function, *inputs):
    return make_fx(function)(*inputs)


def operations(graph):
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def both(function, *inputs):
    """The operations before and after, and the results before and after for other numbers of the same shapes."""
    graph = recorded(function, *inputs)
    before, others = operations(graph), [torch.randn_like(x) if x.is_floating_point() else ~x for x in inputs]
    expected = graph(*others)
    graph = simplified(graph, list(inputs))
    return before, operations(graph), expected, graph(*others)


X = torch.randn(3, 5)


def views(x):
    return x.view(3, 5).expand(3, 5) + x.view(1, 3, 5)


def constants(x):
    return x * torch.arange(5) + torch.ones_like(x).cumsum(1) * torch.scalar_tensor(2.0)


def repeated(x):
    return torch.log_softmax(x, 1) * torch.log_softmax(x, 1).exp() + torch.log_softmax(x, 0)


def kinds_of_number(x):
    return torch.cat([(x > 0) * 1, (x > 0) * 1.0, (x > 0) * True])


def transposed(x):  # the same shape with other strides is not the same tensor
    square = x[:, :3] * 2
    return square.permute(1, 0) - square


@pytest.mark.parametrize(
    ("function", "left"), [(views, 2), (constants, 2), (repeated, 5), (kinds_of_number, 5), (transposed, None)]
)
def test_fewer_operations_give_the_same_bits(function, left):
    before, after, expected, result = both(function, X)
    assert result.dtype == expected.dtype
    assert torch.equal(result, expected)
    assert len(after) < len(before) or left is None or function is kinds_of_number
    if left is not None:
        assert len(after) <= left, after


def test_the_result_may_be_an_input_or_a_constant():
    graph = simplified(recorded(lambda x: [x.view(3, 5), torch.zeros_like(x)], X), [X])
    other = torch.randn_like(X)
    same, zeros = graph(other)
    assert torch.equal(same, other)
    assert torch.equal(zeros, torch.zeros(3, 5))


def test_random_numbers_are_drawn_anew_and_apart():
    def noise(x):
        return [x + torch.randn(3, 5), x + torch.randn(3, 5)]

    graph = simplified(recorded(noise, X), [X])
    results = [*graph(X), *graph(X)]
    assert not any(torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])


def test_a_graph_that_writes_into_a_tensor_stays_as_it_is():
    def counts(x):
        total = torch.zeros_like(x)
        before = total * 2
        total.add_(x)
        return before, total * 2

    before, after, expected, result = both(counts, X)
    assert after == before
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))

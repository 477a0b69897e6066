"""What torch sees of us: two operators that compile without a break, differentiate and map like its own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import oracle
import telescope
from telescope.recurrence import naive
from telescope.recurrence.torch import differentiable_recurrence

OPERATORS = torch.ops.telescope
FLAGS = ("terminated", "truncated", "mask")


def steps(shape: tuple[int, ...] = (9, 3), kind: torch.dtype = torch.float32) -> dict[str, Tensor]:
    arrays = {name: torch.from_numpy(array) for name, array in oracle.rollout(shape)._asdict().items()}
    return {name: array if name in FLAGS else array.to(kind) for name, array in arrays.items()}


def same(compiled: Any, eager: Any) -> None:
    for one, other in zip(compiled, eager, strict=True):
        torch.testing.assert_close(one, other)


def compiled(function: Callable[..., Any]) -> tuple[Callable[..., Any], list[str]]:
    """Compiled in one piece, or an error; and the operators of its graph, filled in when it first runs."""
    names: list[str] = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        names.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return torch._dynamo.lookup_backend("aot_eager")(graph, example)

    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend), names


def test_gae_compiles_to_one_operator() -> None:
    def function(rewards: Tensor, values: Tensor, next_values: Tensor, **flags: Tensor) -> tuple[Tensor, Tensor]:
        first = telescope.gae(rewards * 2, values, next_values, **flags, gamma=0.99, lam=0.95, returns_lam=1.0)
        return first.advantages - first.advantages.mean(), first.returns

    quick, names = compiled(function)
    same(quick(**steps()), function(**steps()))
    assert sum("telescope.gae" in name for name in names) == 1
    assert not any("where" in name or "recurrence" in name for name in names)


def test_every_route_compiles() -> None:
    """Flags that are numbers, γ per environment, batch-major, mixed layouts, half precision, `out`."""

    def function(rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, gamma: Tensor) -> Any:
        ends = {"terminated": terminated, "truncated": None, "lam": 0.9}
        data = (rewards, values, next_values)
        out = torch.empty_like(values), torch.empty_like(values)
        telescope.gae(*data, **ends, gamma=0.9, out=out)
        swapped = (array.T.contiguous() for array in data)
        return (
            *out,
            *telescope.gae(*data, **ends | {"terminated": terminated.float()}, gamma=gamma),
            *telescope.gae(*swapped, **ends | {"terminated": terminated.T}, gamma=0.9, axis=1),
            *telescope.gae(rewards.double(), values.bfloat16(), next_values.bfloat16(), **ends, gamma=0.9),
            telescope.lambda_return(rewards, next_values, **ends, gamma=gamma),
            telescope.next_values(values, values[0], terminated=terminated, truncated=None),
        )

    data = {name: array for name, array in steps().items() if name not in ("truncated", "mask")}
    gamma = torch.tensor([0.9, 0.5, 1.0])
    same(compiled(function)[0](**data, gamma=gamma), function(**data, gamma=gamma))


def test_the_gradient_compiles() -> None:
    def loss(values: Tensor, **others: Tensor) -> Tensor:
        estimate = telescope.gae(values=values, **others, gamma=0.9, lam=0.8, differentiable=True)
        return (estimate.advantages**2).sum()

    def gradient(function: Callable[..., Tensor]) -> Tensor:
        data = steps()
        function(data["values"].requires_grad_(), **{name: data[name] for name in data if name != "values"}).backward()
        return data["values"].grad

    quick, names = compiled(loss)
    same([gradient(quick)], [gradient(loss)])
    assert sum("telescope.linear_recurrence" in name for name in names) == 1


def test_the_operators_keep_their_contracts() -> None:
    x, a = (torch.randn(5, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(OPERATORS.linear_recurrence, (x, a, False))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for forwards in False, True:
        torch.library.opcheck(OPERATORS.linear_recurrence.default, (x, a, forwards), test_utils=checks)
    data, out = steps(), (torch.empty(9, 3), torch.empty(9, 3))
    torch.library.opcheck(OPERATORS.gae.default, (*data.values(), 0.9, 0.8, 0.7, *out), test_utils=checks)


def test_arrays_that_lie_differently() -> None:
    """The CPU kernel takes them as they are only outside of the operator, as a pair; inside it copies."""
    data, gamma, decay = steps((8, 3), torch.float64), 0.97, 0.97 * 0.9
    data["rewards"] = data["rewards"].T.contiguous().T
    data["mask"] = data["mask"].repeat(1, 2)[:, ::2]
    out = torch.full((3, 8), 7.0, dtype=torch.float64).T, torch.full((8, 6), 7.0, dtype=torch.float64)[:, ::2]
    OPERATORS.gae(*data.values(), gamma, decay, decay, *out)
    expected = oracle.advantages(oracle.Rollout(*(array.numpy() for array in data.values())), 0.97, 0.9)
    np.testing.assert_allclose(out[0].numpy(), expected, rtol=1e-12, atol=1e-12)
    values = torch.where(data["mask"], data["values"], 0).numpy()
    np.testing.assert_allclose(out[1].numpy(), expected + values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compute", [differentiable_recurrence, OPERATORS.linear_recurrence])
@pytest.mark.parametrize("forwards", [False, True])
@pytest.mark.parametrize("places", [(0, 0), (2, 1), (None, 2), (1, None)], ids=str)
def test_mapped_it_is_a_loop(places: tuple[int | None, int | None], forwards: bool, compute: Any) -> None:
    sides = [torch.randn((6, 3) if place is None else (6, 3, 4), dtype=torch.float64) for place in places]
    shaped = [side if place is None else side.movedim(-1, place) for side, place in zip(sides, places, strict=True)]
    y = torch.func.vmap(lambda x, a: compute(x, a, forwards=forwards), in_dims=places)(*shaped)
    order = -1 if forwards else 1
    for k in range(4):
        x, a = (side.numpy() if side.ndim == 2 else side[..., k].numpy() for side in sides)
        expected = naive.linear_recurrence(x[::order], a[::order])[::order]
        np.testing.assert_allclose(y[k].numpy(), expected, rtol=1e-12, atol=1e-12)


def test_mapped_gradients_are_gradients() -> None:
    """torch.func.grad under vmap, as a population of agents takes it, against autograd one by one."""
    x, a = torch.randn(4, 6, 3, dtype=torch.float64), torch.rand(4, 6, 3, dtype=torch.float64)

    def loss(x: Tensor, a: Tensor) -> Tensor:
        return (differentiable_recurrence(x, a) ** 2).sum()

    mapped = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(x, a)
    for k in range(4):
        leaves = x[k].clone().requires_grad_(), a[k].clone().requires_grad_()
        same([gradient[k] for gradient in mapped], torch.autograd.grad(loss(*leaves), leaves))

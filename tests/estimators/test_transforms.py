"""torch.func and jax: what is mapped, differentiated or compiled is what it was, for every public estimator.

Gradients are judged by finite differences and by autograd one by one; leaves out the values, which others judge.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_invalid_calls import CALLS
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import telescope
from problems import FUNCTIONS, float64_in_jax, parameters, told

DIFFERENTIABLE = [name for name in FUNCTIONS if "differentiable" in parameters(name)]
LISTED = ["gae", "vtrace", "retrace", "lambda_return", "n_step_return", "eligibility_trace"]
WEIGHTS = "weights"  # of quantiles: they are constants, and add up to 1

Call = Callable[..., tuple[Tensor, ...]]


def problem(name: str, library: str = "torch", *, differentiable: bool = True) -> tuple[Call, list[Any]]:
    """The function of its arrays of numbers alone, and those arrays."""
    good = {key: told(value, library) for key, value in CALLS[name][1].items() if key != "out"}
    good |= {"differentiable": differentiable} if "differentiable" in good else {}
    moving = [key for key, value in CALLS[name][1].items()
              if isinstance(value, np.ndarray) and value.dtype == float and key != WEIGHTS]  # fmt: skip

    def call(*arrays: Any) -> tuple[Any, ...]:
        results = getattr(telescope, name)(**good | dict(zip(moving, arrays, strict=True)))
        return tuple(results) if isinstance(results, tuple) else (results,)

    return call, [good[key] for key in moving]


def loss(call: Call) -> Callable[..., Any]:
    return lambda *arrays: sum((result**2).sum() for result in call(*arrays))


def each(arrays: list[Tensor]) -> list[Tensor]:
    """Two members: the arrays, and others that differ."""
    return [torch.stack([array, array * 0.5 + 0.25]) for array in arrays]


def slopes(call: Call, arrays: list[Tensor]) -> tuple[Tensor, ...]:
    leaves = [array.clone().requires_grad_() for array in arrays]
    return torch.autograd.grad(loss(call)(*leaves), leaves, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"response_function"}))
def test_mapped_it_is_each_by_itself(name: str, differentiable: bool) -> None:
    call, arrays = problem(name, differentiable=differentiable)
    together = torch.func.vmap(call)(*each(arrays))
    for k in range(2):
        for one, expected in zip(together, call(*(array[k] for array in each(arrays))), strict=True):
            torch.testing.assert_close(one[k], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    call, arrays = problem(name)
    assert torch.autograd.gradcheck(call, [array.clone().requires_grad_() for array in arrays])


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_func_differentiates_as_autograd_does(name: str) -> None:
    call, arrays = problem(name)
    every, expected = tuple(range(len(arrays))), slopes(call, arrays)
    for one, other in zip(torch.func.grad(loss(call), argnums=every)(*arrays), expected, strict=True):
        torch.testing.assert_close(one, other)
    mapped = torch.func.vmap(torch.func.grad(loss(call), argnums=every))(*each(arrays))
    for k in range(2):
        for one, other in zip(mapped, slopes(call, [array[k] for array in each(arrays)]), strict=True):
            torch.testing.assert_close(one[k], other)
    reverse, forward = (f(call, argnums=every)(*arrays) for f in (torch.func.jacrev, torch.func.jacfwd))
    torch.testing.assert_close(forward, reverse)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_stop_unless_asked_for(name: str) -> None:
    call, arrays = problem(name, differentiable=False)
    for gradient in torch.func.grad(loss(call), argnums=tuple(range(len(arrays))))(*arrays):
        assert bool((gradient == 0).all())


@pytest.mark.parametrize("name", ["gae", "eligibility_trace"])
def test_all_of_that_in_one_compiled_graph(name: str) -> None:
    call, arrays = problem(name)
    for transformed in torch.func.vmap(call), torch.func.vmap(torch.func.grad(loss(call))):
        torch._dynamo.reset()
        compiled = torch.compile(transformed, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(*each(arrays)), transformed(*each(arrays)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["gae", "eligibility_trace"])
def test_all_of_that_in_one_recorded_graph(name: str) -> None:
    """A graph that make_fx records computes anew: it sees no kernel that is not an operator."""
    call, arrays = problem(name)
    for transformed in torch.func.vmap(call), torch.func.vmap(torch.func.grad(loss(call))):
        recorded = make_fx(transformed)(*(torch.zeros_like(array) for array in each(arrays)))
        torch.testing.assert_close(recorded(*each(arrays)), transformed(*each(arrays)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LISTED)
def test_jax_differentiates_as_torch_does(name: str) -> None:
    import jax
    import jax.numpy as jnp

    expected = slopes(*problem(name))
    with float64_in_jax():
        call, arrays = problem(name, "jax")
        every = tuple(range(len(arrays)))
        gradient = jax.jit(jax.grad(loss(call), every))(*arrays)
        for one, other in zip(gradient, expected, strict=True):
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-10, atol=1e-12)
        pair = [jnp.stack([array, array * 0.5]) for array in arrays]
        mapped = jax.jit(jax.vmap(jax.grad(loss(call))))(*pair)
        np.testing.assert_allclose(mapped[0], gradient[0], rtol=1e-10, atol=1e-12)
        forward, reverse = (jax.jit(f(lambda *x: call(*x)[0], every[-1]))(*arrays) for f in (jax.jacfwd, jax.jacrev))
        np.testing.assert_allclose(forward, reverse, rtol=1e-10, atol=1e-12)

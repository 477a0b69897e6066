"""The public functions on a CUDA device: collected only where there is one.

What holds for every device is in the other files; here is what a device adds: streams, graphs, the compiler, sums in
another order.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import oracle
import telescope
from telescope.recurrence import naive

__test__ = torch.cuda.is_available()

Arrays = dict[str, Any]
ENDS = ("terminated", "truncated")
SHAPES = [(1, 1), (17, 3), (300, 5), (64, 1000), (2000, 2)]


def data(shape: tuple[int, ...] = (65, 9), kind: torch.dtype = torch.float64, device: str = "cuda") -> Arrays:
    steps = oracle.rollout(shape, ends=0.02)
    more = {"log_ratios": np.random.default_rng(1).normal(size=shape), "last_values": steps.values[-1] + 1}
    arrays = {name: torch.from_numpy(array).to(device) for name, array in {**steps._asdict(), **more}.items()}
    return {name: array if array.dtype == torch.bool else array.to(kind) for name, array in arrays.items()}


def some(given: Arrays, *names: str) -> Arrays:
    return {name: given[name] for name in names}


def paths(given: Arrays) -> Arrays:
    return some(given, "rewards", "values", "next_values", *ENDS)


def close(one: Any, other: Any, rtol: float = 1e-10) -> None:
    pairs = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
    for left, right in pairs:
        torch.testing.assert_close(left.cpu(), right.cpu(), rtol=rtol, atol=rtol)


CALLS: dict[str, Callable[[Arrays], Any]] = {
    "gae": lambda d: telescope.gae(**paths(d), gamma=0.97, lam=0.9),
    "gae, masked, two λ": lambda d: telescope.gae(**paths(d), gamma=0.97, lam=0.9, returns_lam=0.5, mask=d["mask"]),
    "gae, γ per step": lambda d: telescope.gae(**paths(d), gamma=d["rewards"].sigmoid(), lam=0.9, mask=d["mask"]),
    "gae, batch-major": lambda d: telescope.gae(
        **{name: array.T.contiguous() for name, array in paths(d).items()}, gamma=0.97, lam=0.9, axis=1
    ),
    "td_error": lambda d: telescope.td_error(**{k: v for k, v in paths(d).items() if k != "truncated"}, gamma=0.9),
    "lambda_return": lambda d: telescope.lambda_return(**some(d, "rewards", "next_values", *ENDS), gamma=0.9, lam=0.8),
    "discounted_return": lambda d: telescope.discounted_return(**some(d, "rewards", "next_values", *ENDS), gamma=0.9),
    "k_step_advantage": lambda d: telescope.k_step_advantage(**paths(d), gamma=0.9, k=5),
    "n_step_return": lambda d: telescope.n_step_return(**some(d, "rewards", "next_values", *ENDS), gamma=0.9, n=5),
    "vtrace": lambda d: telescope.vtrace(**paths(d), log_ratios=d["log_ratios"], gamma=0.9, mask=d["mask"]),
    "retrace": lambda d: telescope.retrace(
        d["rewards"], d["values"], d["next_values"], **some(d, "log_ratios", *ENDS), gamma=0.9
    ),
    "eligibility_trace": lambda d: telescope.eligibility_trace(
        d["rewards"][..., None].repeat(1, 1, 3), **some(d, *ENDS), gamma=0.9, lam=0.8
    ),
    "distributional_gae": lambda d: telescope.distributional_gae(
        d["rewards"], *(d[k][..., None].repeat(1, 1, 4) for k in ("values", "next_values")), **some(d, *ENDS),
        gamma=0.9, lam=0.8,
    ),
    "shaped_rewards": lambda d: telescope.shaped_rewards(
        d["rewards"], d["values"], d["next_values"], terminated=d["terminated"], gamma=0.9
    ),
    "next_values": lambda d: telescope.next_values(
        d["values"], d["last_values"], **some(d, *ENDS), final_values=d["next_values"], mask=d["mask"]
    ),
    "group_relative": lambda d: telescope.group_relative(d["rewards"], mask=d["mask"]),
    "leave_one_out": lambda d: telescope.leave_one_out(d["rewards"], mask=d["mask"]),
    "whiten": lambda d: telescope.whiten(d["rewards"], mask=d["mask"], axis=0),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_the_device_changes_no_result(name: str) -> None:
    result = CALLS[name](data())
    assert all(array.is_cuda for array in (result if isinstance(result, tuple) else (result,)))
    close(result, CALLS[name](data(device="cpu")))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("major", ["time", "batch"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_plan(shape: tuple[int, int], major: str, masked: bool) -> None:
    """Odd shapes, one and many tiles and chunks, in both layouts."""
    given = {
        name: array if major == "time" or array.ndim < 2 else array.T.contiguous().T
        for name, array in data(shape).items()
    }
    mask = {"mask": given["mask"] if masked else None}
    close(telescope.gae(**paths(given), **mask, gamma=0.99, lam=0.95),
          telescope.gae(**{k: v.cpu() for k, v in paths(given).items()}, mask=given["mask"].cpu() if masked else None,
                        gamma=0.99, lam=0.95))  # fmt: skip


@pytest.mark.parametrize("shape", [(2048, 64), (100_000, 1)], ids=str)
@pytest.mark.parametrize("decay", [(0.99, 0.95), (1.0, 1.0)], ids=str)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_it_is_as_exact_as_the_loop(shape: tuple[int, int], decay: tuple[float, float], kind: torch.dtype) -> None:
    """Error at most twice that of the plain loop in float32, and one unit of the largest number on the way."""
    gamma, lam = decay
    given = paths(data(shape, kind)) | dict.fromkeys(ENDS)
    exact = telescope.gae(**{k: v if v is None else v.cpu().double() for k, v in given.items()}, gamma=gamma, lam=lam)
    r, v, ahead = (given[name].float().cpu().numpy() for name in ("rewards", "values", "next_values"))
    delta = r + np.float32(gamma) * ahead - v
    loop = naive.linear_recurrence(delta, np.full_like(delta, gamma * lam))
    right = exact.advantages.numpy()
    unit = np.finfo(np.float32).eps * np.abs(right).max()
    found = telescope.gae(**given, gamma=gamma, lam=lam)
    assert found.advantages.dtype == torch.float32
    for array, naively, expected in zip(found, (loop, loop + v), (right, exact.returns.numpy()), strict=True):
        assert np.abs(array.cpu().numpy() - expected).max() <= 2 * np.abs(naively - expected).max() + unit


def test_nothing_waits_for_the_device_and_the_stream_is_the_current_one() -> None:
    given, other = paths(data()), torch.cuda.Stream()
    expected = telescope.gae(**given, gamma=0.97, lam=0.9)
    late = {name: torch.zeros_like(array) for name, array in given.items()}
    torch.cuda.synchronize()
    with torch.cuda.stream(other):
        torch.cuda._sleep(50_000_000)
        for name, array in given.items():
            late[name].copy_(array)
        found = telescope.gae(**late, gamma=0.97, lam=0.9)
        assert not other.query()  # else somebody waited
    other.synchronize()
    close(found, expected, rtol=0)


@pytest.mark.parametrize("shape", [(65, 9), (4000, 1)], ids=str)
def test_a_recorded_call_is_replayed_on_new_numbers(shape: tuple[int, int]) -> None:
    given = paths(data(shape))
    telescope.gae(**given, gamma=0.97, lam=0.9)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = telescope.gae(**given, gamma=0.97, lam=0.9)
    for name in ("rewards", "values", "next_values"):
        given[name].neg_().add_(1)
    graph.replay()
    close(found, telescope.gae(**given, gamma=0.97, lam=0.9), rtol=0)


@pytest.mark.parametrize("axis", [0, 1])
def test_what_is_remembered(axis: int) -> None:
    """Tensors that lie like ones that were checked go straight to the kernel; any that differ do not."""
    from telescope.recurrence import triton

    given = {k: v.T.contiguous() if axis else v for k, v in paths(data((70, 11), torch.float32)).items()}
    rewards, values, successors, *ends = given.values()
    floats, flags, discounts = (rewards, values, successors), (*ends, None), (0.97, 0.9, 0.9)
    out = torch.empty_like(values), torch.empty_like(values)
    assert triton.again(floats, flags, discounts, axis) is None
    triton.gae(floats, flags, discounts, out, axis, fresh=True)
    close(triton.again(floats, flags, discounts, axis), out, rtol=0)
    swapped = (successors, rewards, values), flags, (0.5, 0.4, 0.4)
    triton.gae(*swapped, out, axis)
    close(triton.again(*swapped, axis), out, rtol=0)
    for other in (floats[0].cpu(), floats[0].double(), floats[0][1:], floats[0].repeat(1, 2)[:, ::2], None):
        assert triton.again((other, *floats[1:]), flags, discounts, axis) is None
        assert triton.again(floats, (other, *flags[1:]), discounts, axis) is None
    assert triton.again(floats, flags, discounts, 1 - axis) is None
    assert triton.again(floats, flags, (0.97, 0.9, 0.8), axis) is None


def test_a_mistake_is_told_also_behind_a_call_without() -> None:
    given = paths(data((70, 12)))
    expected = telescope.gae(**{name: array.cpu() for name, array in given.items()}, gamma=0.97, lam=0.9)
    for _ in range(3):
        close(telescope.gae(**given, gamma=0.97, lam=0.9), expected)
    for name in given:
        for wrong in (given[name].cpu(), given[name][1:], None):
            if wrong is not None or name not in ENDS:
                with pytest.raises(ValueError, match=r"next_values|rewards|values|terminated|truncated"):
                    telescope.gae(**given | {name: wrong}, gamma=0.97, lam=0.9)
    close(telescope.gae(**given | {"terminated": given["terminated"].double()}, gamma=0.97, lam=0.9), expected)


def test_the_compiler_sees_one_graph() -> None:
    def function(rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, truncated: Tensor) -> Tensor:
        found = telescope.gae(
            rewards * 2, values, next_values, terminated=terminated, truncated=truncated, gamma=0.97, lam=0.9
        )
        return found.advantages - found.returns.mean()

    given = paths(data(kind=torch.float32))
    close(torch.compile(function, fullgraph=True)(**given), function(**given), rtol=1e-5)


def test_gradients_are_those_of_the_cpu() -> None:
    def gradient(device: str) -> tuple[Tensor, ...]:
        given = data(device=device)
        leaves = tuple(given[name].requires_grad_() for name in ("rewards", "values", "next_values"))
        found = telescope.gae(**paths(given), mask=given["mask"], gamma=0.97, lam=0.9, differentiable=True)
        return torch.autograd.grad((found.advantages**2).sum() + found.returns.sin().sum(), leaves)

    close(gradient("cuda"), gradient("cpu"))


def test_more_axes_that_lie_anyhow() -> None:
    """[T, S, B] as a view that no two strides describe, and rows that begin anywhere in memory."""
    given = {name: array[1:] for name, array in paths(data((20, 3, 5))).items()}
    swapped = {name: array.movedim(1, 2).contiguous().movedim(1, 2)[:, :, 1:] for name, array in given.items()}
    expected = telescope.gae(**{name: array[:, :, 1:].cpu() for name, array in given.items()}, gamma=0.97, lam=0.9)
    close(telescope.gae(**swapped, gamma=0.97, lam=0.9), expected)


def test_every_device_there_is() -> None:
    expected = telescope.gae(**paths(data(device="cpu")), gamma=0.97, lam=0.9)
    for index in reversed(range(torch.cuda.device_count())):
        for _ in range(2):  # the second time as it is remembered
            found = telescope.gae(**paths(data(device=f"cuda:{index}")), gamma=0.97, lam=0.9)
            assert found.advantages.device.index == index
            close(found, expected)

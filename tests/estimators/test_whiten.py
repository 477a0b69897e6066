"""whiten: mean 0 and deviation 1 over what counts, and nothing else is touched."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import telescope

BOTH = [np.asarray, torch.as_tensor]


def sample(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(3.0, 2.0, shape)


@pytest.mark.parametrize("array", BOTH)
@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 1), [1]], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_against_the_definition_over_live_entries(array: Any, axis: Any, biased: bool) -> None:
    x, mask = sample(6, 5), sample(6, 5) > 2
    hidden = np.where(mask, x, np.nan)
    axes = tuple(axis) if isinstance(axis, list) else axis
    mean = np.nanmean(hidden, axis=axes, keepdims=True)
    std = np.nanstd(hidden, axis=axes, ddof=0 if biased else 1, keepdims=True)
    result = telescope.whiten(array(hidden), mask=array(mask), axis=axis, biased=biased, eps=0.5)
    np.testing.assert_allclose(np.asarray(result), np.where(mask, (x - mean) / (std + 0.5), 0), atol=1e-12)
    scaled = telescope.whiten(array(hidden), mask=array(mask), axis=axis, biased=biased, scale_only=True)
    np.testing.assert_allclose(np.asarray(scaled), np.where(mask, x / (std + 1e-8), 0), atol=1e-6)


@given(hnp.arrays("f4", st.integers(2, 50), elements=st.floats(-100, 100, width=32)), st.booleans())
def test_shift_and_scale_do_not_matter(x: np.ndarray, biased: bool) -> None:
    x = x.astype(np.float64)
    if np.ptp(x) < 1e-2:
        return
    whitened = telescope.whiten(x, eps=0.0, biased=biased)
    assert abs(whitened.mean()) < 1e-9
    np.testing.assert_allclose(whitened.std(ddof=0 if biased else 1), 1)
    np.testing.assert_allclose(telescope.whiten(3 * x - 7, eps=0.0, biased=biased), whitened, atol=1e-9)


@pytest.mark.parametrize("array", BOTH)
@pytest.mark.parametrize("value", [0.1, 100.1, -3e4])
@pytest.mark.parametrize("count", [1, 2, 1000, 4097])
def test_equal_numbers_give_zero(array: Any, value: float, count: int) -> None:
    """In float32 their mean is not quite any of them; divided by its own rounding that would become ±1."""
    for biased in True, False:
        result = telescope.whiten(array(np.full(count, value, np.float32)), biased=biased)
        np.testing.assert_array_equal(np.asarray(result), np.zeros(count, np.float32))


@pytest.mark.parametrize("array", BOTH)
def test_nothing_counts_or_nothing_is_there(array: Any) -> None:
    result = telescope.whiten(array(np.full((3, 2), np.nan)), mask=array(np.zeros((3, 2), bool)))
    np.testing.assert_array_equal(np.asarray(result), np.zeros((3, 2)))
    assert telescope.whiten(array(np.zeros((0, 2)))).shape == (0, 2)
    assert telescope.whiten(array(np.zeros((0, 2))), axis=0).shape == (0, 2)
    assert telescope.whiten(array(np.array(5.0))) == 0


def test_types_and_inputs() -> None:
    for dtype in np.float16, np.float32, np.float64:
        x = sample(7).astype(dtype)
        before = x.copy()
        assert telescope.whiten(x).dtype == (np.float64 if dtype == np.float64 else np.float32)
        np.testing.assert_array_equal(x, before)
    for dtype in torch.float16, torch.bfloat16, torch.float32, torch.float64:
        result = telescope.whiten(torch.as_tensor(sample(7)).to(dtype))
        assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("array", BOTH)
@pytest.mark.parametrize("biased", [True, False])
def test_eps_may_stand_under_the_root(array: Any, biased: bool) -> None:
    x = sample(6, 5)
    variance = x.var(axis=0, ddof=0 if biased else 1)
    arguments = {"axis": 0, "biased": biased, "eps": 0.5, "eps_inside": True}
    result = telescope.whiten(array(x), **arguments)
    np.testing.assert_allclose(np.asarray(result), (x - x.mean(axis=0)) / np.sqrt(variance + 0.5), atol=1e-12)
    scaled = telescope.whiten(array(x), **arguments, scale_only=True)
    np.testing.assert_allclose(np.asarray(scaled), x / np.sqrt(variance + 0.5), atol=1e-12)
    np.testing.assert_array_equal(telescope.whiten(array(np.ones(5)), eps_inside=True), np.zeros(5))


def rank_of(rank: int, folder: str) -> None:
    """One of the two processes of the test below."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for rows in [slice(0, 2), slice(2, 9)], [slice(0, 0), slice(0, 9)]:  # unequal parts, and an empty one
        check_part(rows[rank], rank)
    torch.distributed.destroy_process_group()


def check_part(rows: slice, rank: int) -> None:
    world = torch.distributed.group.WORLD
    x, mask = (torch.as_tensor(array) for array in (sample(9, 4), sample(9, 4) > 2))
    for more in {}, {"mask": mask}, {"axis": 0, "mask": mask}, {"axis": 0, "biased": False, "eps_inside": True}:
        expected = telescope.whiten(x, **more, eps=0.5)[rows]
        part = {**more, "mask": mask[rows]} if "mask" in more else more
        result = telescope.whiten(x[rows], **part, eps=0.5, group=world)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    far = x.float() + 1e5  # a variance from sums of squares would be lost in float32
    torch.testing.assert_close(telescope.whiten(far[rows], group=world), telescope.whiten(far)[rows], rtol=0, atol=1e-2)
    equal = telescope.whiten(torch.full((5 + 1000 * rank,), 0.1), group=world)
    assert bool((equal == 0).all())
    with pytest.raises(ValueError, match="differentiable is True, but group is given"):
        telescope.whiten(x, group=world, differentiable=True)


def test_over_ranks_it_is_whiten_of_all_their_entries(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(rank_of, (str(tmp_path),), nprocs=2)


def test_gradient_only_on_request() -> None:
    x = torch.as_tensor(sample(4, 3)).requires_grad_()
    mask = torch.as_tensor(sample(4, 3) > 2)
    assert not telescope.whiten(x, mask=mask).requires_grad
    assert torch.autograd.gradcheck(lambda x: telescope.whiten(x, mask=mask, axis=0, differentiable=True), x)
    equal = torch.ones(5, requires_grad=True)
    (gradient,) = torch.autograd.grad(telescope.whiten(equal, differentiable=True)[0], equal)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("compiled", [False, True])
def test_under_vmap_and_compile(compiled: bool) -> None:
    """As the minibatch update calls it: for one agent, lifted over the seeds."""
    x, mask = torch.as_tensor(sample(3, 8)), torch.as_tensor(sample(3, 8) > 2)

    def update(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return telescope.whiten(x, mask=mask)

    lifted = torch.func.vmap(update)
    if compiled:
        lifted = torch.compile(lifted, fullgraph=True, backend="aot_eager")
    expected = torch.stack([update(*pair) for pair in zip(x, mask, strict=True)])
    torch.testing.assert_close(lifted(x, mask), expected, rtol=0, atol=1e-12)

    def loss(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (telescope.whiten(weight * x) * weight).sum()

    slope = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(torch.tensor(2.0, dtype=x.dtype), x)
    torch.testing.assert_close(slope, telescope.whiten(x, axis=1).sum(1), rtol=0, atol=1e-9)  # a constant


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": [1.0]}, "x is a list"),
        ({"x": np.ones(3, int)}, "x has dtype int64"),
        ({"x": np.ones(3), "mask": np.ones(2, bool)}, r"mask has shape \(2,\) but x has \(3,\)"),
        ({"x": np.ones(3), "mask": np.full(3, 0.5)}, "mask has dtype float64 and holds 0.5"),
        ({"x": np.ones(3), "axis": 1}, "axis is 1"),
        ({"x": np.ones(3), "eps": -1.0}, "eps is -1.0"),
        ({"x": np.ones(3), "differentiable": True}, "differentiable is True"),
        ({"x": np.ones(3), "group": object()}, "group is given, but x is an array of numpy"),
        ({"x": torch.ones(3), "group": object()}, "group is <object.*; expected a torch.distributed process group"),
        ({"x": np.ones(3), "mask": torch.ones(3)}, "mask is a torch.Tensor but x is a numpy.ndarray"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        telescope.whiten(**arguments)

"""Lifting over the seeds changes how a function is run, never what it computes."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from telescope.control.agents import lifting
from telescope.control.agents.lifting import lift


class Pair(NamedTuple):
    x: Tensor
    nothing: None
    inner: tuple


class Result(NamedTuple):
    x: Tensor
    totals: tuple


def gradient_step(pair, scale):
    """Of one agent: a gradient, a select and a sum over the vector, as an update has them."""
    gradient = torch.func.grad(lambda x: (torch.tanh(x) * pair.inner[0]).sum())(pair.x)
    new = pair.x - scale * torch.where(gradient > 0.5, gradient, gradient**2)
    return Result(new, (gradient.sum(),))


def arguments(seeds=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return Pair(torch.randn(seeds, 5, generator=rng), None, (torch.randn(seeds, 5, generator=rng),)), torch.tensor(0.1)


def one_by_one(pair, scale):
    rows = [gradient_step(Pair(x, None, (y,)), scale) for x, y in zip(pair.x, pair.inner[0], strict=True)]
    return torch.stack([row.x for row in rows]), torch.stack([row.totals[0] for row in rows])


def test_every_seed_is_computed_as_it_would_be_alone():
    result = lift(gradient_step, (0, None), compiled=False)(*arguments())
    assert isinstance(result, Result)
    for got, expected in zip((result.x, *result.totals), one_by_one(*arguments()), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_recorded_call_gives_the_same_bits_as_an_unrecorded_one(monkeypatch):
    monkeypatch.setattr(lifting, "PATIENCE", 2)
    lifted = lift(gradient_step, (0, None), compiled=False)
    results = [lifted(*arguments()) for _ in range(4)]
    assert len(lifted.programs) == 1, "nothing was recorded: the test sees nothing"
    for result in results[1:]:
        assert torch.equal(result.x, results[0].x)
        assert torch.equal(result.totals[0], results[0].totals[0])
    new = lifted(*arguments(seed=1)).x  # other numbers through the same recording
    torch.testing.assert_close(new, one_by_one(*arguments(seed=1))[0])


def test_each_shape_has_a_recording_of_its_own(monkeypatch):
    monkeypatch.setattr(lifting, "PATIENCE", 0)
    lifted = lift(gradient_step, (0, None), compiled=False)
    for seeds in (2, 5, 2):
        torch.testing.assert_close(lifted(*arguments(seeds)).x, one_by_one(*arguments(seeds))[0])
    assert len(lifted.programs) == 2


@pytest.mark.parametrize("compiled", [False, True])
def test_no_gradient_flows_out_of_a_recording(compiled, monkeypatch):
    monkeypatch.setattr(lifting, "PATIENCE", 0)
    pair, scale = arguments()
    result = lift(gradient_step, (0, None), compiled=compiled)(pair._replace(x=pair.x.requires_grad_()), scale)
    assert not result.x.requires_grad
    torch.testing.assert_close(result.x, one_by_one(*arguments())[0])

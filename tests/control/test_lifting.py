"""Lifting over the seeds changes how a function is run, never what it computes."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from telescope.control.agents import lifting, staging
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


# Two stages


def product(weights, x, direction):
    """J(J v) of one agent, of a function whose Jacobian J depends on what is kept alone."""
    _, tangent = torch.func.jvp(lambda y: torch.tanh(weights * y).cumsum(0), (x,), (direction.inner[0],))
    return Result(tangent, (tangent.sum() * direction.x.sum(),))


def kept_and_new(seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(3, 5, generator=rng), torch.randn(3, 5, generator=rng)


def plain(kept, pair):
    rows = [product(*(x[s] for x in kept), Pair(pair.x[s], None, (pair.inner[0][s],))) for s in range(3)]
    return torch.stack([row.x for row in rows]), torch.stack([row.totals[0] for row in rows])


@pytest.mark.parametrize("compiled", [False, True])
def test_two_stages_compute_what_one_does(compiled, monkeypatch):
    """For each new argument, for other kept ones, and before anything is recorded."""
    monkeypatch.setattr(lifting, "PATIENCE", 2)
    staged = lift(product, (0, 0, 0), compiled=compiled, staged=True)
    for seed in (0, 1):
        kept = kept_and_new(seed)
        call = staged(*kept)
        for other in range(4):
            pair = arguments(seed=other)[0]
            got = call(pair)
            for a, b in zip((got.x, *got.totals), plain(kept, pair), strict=True):
                torch.testing.assert_close(a, b)
    assert len(staged.programs) == 1, "nothing was recorded: the test sees nothing"


def test_what_is_kept_is_computed_once(monkeypatch):
    monkeypatch.setattr(lifting, "PATIENCE", 0)
    staged = lift(product, (0, 0, 0), compiled=False, staged=True)
    pair = arguments()[0]
    staged(*kept_and_new())(pair)
    [(first, second)] = staged.programs.values()
    counts = [0, 0]

    def counting(which, program):
        def run(*inputs):
            counts[which] += 1
            return program(*inputs)

        return run

    staged.programs = dict.fromkeys(staged.programs, (counting(0, first), counting(1, second)))
    call = staged(*kept_and_new(1))
    for _ in range(5):
        call(pair)
    assert counts == [1, 5]


def test_a_cut_puts_everything_that_can_be_before_it(monkeypatch):
    monkeypatch.setattr(lifting, "PATIENCE", 0)
    staged = lift(product, (0, 0, 0), compiled=False, staged=True)
    graphs = []
    cut = staging.cut
    monkeypatch.setattr(staging, "cut", lambda graph, kept: graphs.append(cut(graph, kept)) or graphs[-1])
    staged(*kept_and_new())(arguments()[0])
    first, second = (str(graph.graph) for graph in graphs[0])
    assert "tanh" in first
    assert "aten.tanh.default" not in second
    assert "cumsum" in second


def test_a_graph_that_writes_into_a_tensor_is_not_cut():
    def writes(x, y):
        z = x.exp()
        z.add_(y)
        return z

    from torch.fx.experimental.proxy_tensor import make_fx

    x, y = torch.randn(3), torch.randn(3)
    first, second = staging.cut(make_fx(writes)(x, y), 1)
    for _ in range(2):  # the second call sees what the first wrote
        between = first(x)
        torch.testing.assert_close(second(*between, y), x.exp() + y)
        torch.testing.assert_close(second(*between, y), x.exp() + y)

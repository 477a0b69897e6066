"""The short way into GAE gives what the door gives, bit for bit, and lets nothing pass that the door refuses."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from test_estimator_errors import BAD, GOOD

import oracle
import telescope
from telescope.estimators import ordinary
from telescope.recurrence import torch as on_tensors

SHAPES = {0: [(1,), (40,), (0, 3), (3, 0), (1, 1), (7, 5), (300, 1), (1, 6), (5, 2, 3)], 1: [(1, 1), (5, 7), (3, 0)]}


def steps(shape: tuple[int, ...], dtype: str = "f4", flags: str = "mask") -> dict[str, Any]:
    """Arguments of gae; `flags` names the last one that is not None."""
    given = oracle.rollout(shape, dtype)._asdict()
    names = ["nothing", "terminated", "truncated", "mask"]
    return {**given, **dict.fromkeys(names[names.index(flags) + 1 :]), "gamma": 0.97, "lam": 0.9}


def as_tensors(given: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in given.items()}


def short(given: dict[str, Any]) -> Any:
    """What the short way says to these arguments of gae."""
    floats = tuple(given[name] for name in ("rewards", "values", "next_values"))
    flags = tuple(given.get(name) for name in ("terminated", "truncated", "mask"))
    returns_lam = given.get("returns_lam")
    lams = given["lam"], given["lam"] if returns_lam is None else returns_lam
    return ordinary.gae(floats, flags, (given["gamma"], *lams), given.get("axis", 0), given.get("out"))


def by_the_door(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(ordinary, "gae", lambda *_: None)
        return telescope.gae(**given)


def assert_same(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        assert type(one) is type(other)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(("axis", "shape"), [(axis, shape) for axis, shapes in SHAPES.items() for shape in shapes])
def test_the_short_way_is_the_door(axis, shape, dtype, library, monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, returns_lam, out in itertools.product(
        ("nothing", "terminated", "truncated", "mask"), (None, 0.5), (False, True)
    ):
        given = {**steps(shape, dtype, flags), "returns_lam": returns_lam, "axis": axis}
        if out:
            given["out"] = np.full(shape, 7, dtype), np.full(shape, 7, dtype)
        if library == "torch":
            given = as_tensors(given)
            given["out"] = tuple(map(torch.from_numpy, given["out"])) if out else None
        expected = [np.asarray(array).copy() for array in by_the_door(given, monkeypatch)]
        found = short(given)
        assert found is not None
        assert_same([np.asarray(array) for array in found], expected)
        result = telescope.gae(**given)
        assert type(result) is telescope.estimators.Advantages
        if out:
            assert all(one is other for one, other in zip(result, given["out"], strict=True))


UNUSUAL: dict[str, Any] = {
    "flags that are numbers": lambda given: {"terminated": given["terminated"].astype("f4")},
    "rewards that are integers": lambda given: {"rewards": given["rewards"].astype(int)},
    "rewards of another precision": lambda given: {"rewards": given["rewards"].astype("f8")},
    "half precision": lambda given: {name: given[name].astype("f2") for name in ("values", "next_values")},
    "other byte order": lambda given: {"rewards": given["rewards"].astype(">f4")},
    "read-only": lambda given: {"rewards": np.broadcast_to(given["rewards"], given["rewards"].shape)},
    "every other column": lambda given: {"values": np.repeat(given["values"], 2, 1)[:, ::2]},
    "another layout": lambda given: {"values": np.asfortranarray(given["values"])},
    "γ of another type": lambda given: {"gamma": np.float64(0.97)},
    "λ of each step": lambda given: {"lam": np.full((len(given["values"]), 1), 0.9, "f4")},
    "an integer": lambda given: {"gamma": 1},
    "an axis from behind": lambda given: {"axis": -2},
    "a list of outputs": lambda given: {"out": [np.zeros_like(given["values"]), np.zeros_like(given["values"])]},
}


@pytest.mark.parametrize("change", UNUSUAL)
def test_what_is_unusual_goes_through_the_door(change: str) -> None:
    given = steps((6, 4))
    given |= UNUSUAL[change](given)
    assert short(given) is None
    assert telescope.gae(**given).advantages.shape == (6, 4)


@pytest.mark.parametrize("change", range(len(BAD)))
def test_what_is_wrong_is_left_to_the_door(change: int) -> None:
    given = {**GOOD, **BAD[change][0]}
    if "differentiable" not in given:
        assert short(given) is None


def test_no_overlap_passes() -> None:
    """In each: an output that shares memory with an input or with the other one, however it is hidden."""
    given, n = steps((6, 4)), 6 * 4
    buffer = np.zeros(3 * n, "f4")
    free = np.zeros((6, 4), "f4")
    plane, shifted = buffer[:n].reshape(6, 4), buffer[4 : n + 4].reshape(6, 4)
    flags = buffer.view(bool)[:n].reshape(6, 4)
    through_torch = torch.from_numpy(free).numpy()
    bad: list[dict[str, Any]] = [
        {"out": (given["values"], free)},
        {"out": (free, given["rewards"])},
        {"out": (free, free)},
        {"out": (plane, shifted)},
        {"rewards": plane, "out": (shifted, free)},
        {"terminated": flags, "out": (free, plane)},
        {"next_values": through_torch, "out": (free, np.zeros_like(free))},
        {"next_values": free[:], "out": (np.zeros_like(free), free)},
    ]
    for change in bad:
        for unsafe in ({**given, **change}, as_tensors({**given, **change})):
            if unsafe is not change and isinstance(unsafe["rewards"], torch.Tensor):
                unsafe["out"] = tuple(map(torch.from_numpy, change["out"]))
            assert short(unsafe) is None
            with pytest.raises(ValueError, match="shares memory"):
                telescope.gae(**unsafe)


def test_views_of_one_buffer_that_do_not_meet_are_fine() -> None:
    given, buffer = steps((6, 4)), np.zeros((5, 6, 4), "f4")
    for name, plane in zip(("rewards", "values", "next_values"), buffer, strict=False):
        plane[...] = given[name]
        given[name] = plane
    assert short({**given, "out": (buffer[3], buffer[4])}) is not None


def test_tensors_that_ask_for_gradients_or_are_not_plain_go_through_the_door() -> None:
    given = as_tensors(steps((6, 4)))
    expected = telescope.gae(**given)
    assert short({**given, "values": given["values"].clone().requires_grad_()}) is None
    assert short({**given, "values": torch.nn.Parameter(given["values"])}) is None
    assert short({**given, "rewards": given["rewards"].to_sparse()}) is None
    assert short({**given, "rewards": given["rewards"].to("meta")}) is None
    assert short({**given, "rewards": given["rewards"].numpy()}) is None
    found = telescope.gae(**{**given, "values": given["values"].clone().requires_grad_()})
    assert_same(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_cuda_kernel_gets_tensors_as_they_are(axis: int, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked without a GPU: tensors of the CPU stand in, and the kernel notes what it is handed."""
    handed: list[Any] = []

    def kernel(floats: Any, flags: Any, discounts: Any, out: Any, along: int, *, fresh: bool) -> bool:
        handed[:] = (*floats, *flags, *out, along, fresh)
        return True

    monkeypatch.setattr(on_tensors, "gae_on_cuda", kernel)
    given = as_tensors(steps((6, 4)))
    names = "rewards", "values", "next_values", "terminated", "truncated", "mask"
    tensors = [given[name] for name in names]
    tensors[0] = tensors[0].to(torch.int64)
    tensors[1:3] = [tensor.to(dtype) for tensor in tensors[1:3]]
    out = ordinary._on_cuda(torch, tuple(tensors), (0.9, 0.8, 0.8), axis)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    for one, other in zip(handed[:-2], (*tensors, *out), strict=True):
        assert one is other
    assert handed[-2:] == [axis, True]
    assert [array.dtype for array in out] == [wide, wide]
    buffer = torch.zeros(5, 6, 4, dtype=wide)
    assert ordinary._on_cuda(torch, (*tensors, buffer[0], buffer[1]), (0.9, 0.8, 0.8), axis)[0] is not None
    assert handed[-2:] == [axis, False]
    for bad in (
        (*tensors, buffer[0], buffer[0]),
        (*tensors, buffer.flatten()[:24].view(6, 4), buffer.flatten()[4:28].view(6, 4)),
        (*tensors[:5], buffer.view(torch.uint8).flatten()[:24].view(6, 4).view(torch.bool), buffer[0], buffer[1]),
        (*tensors, buffer[0, :3], buffer[1]),
        (*tensors, buffer[0].to(torch.float16), buffer[1]),
        (*tensors[:2], tensors[2].to(torch.int32), *tensors[3:]),
        (*tensors[:3], tensors[3].to(torch.uint8), *tensors[4:]),
        (tensors[0] + 0j, *tensors[1:]),
        (tensors[0][:3], *tensors[1:]),
        (None, *tensors[1:]),
        (*tensors[:2], None, *tensors[3:]),
    ):
        assert ordinary._on_cuda(torch, bad, (0.9, 0.8, 0.8), axis) is None


@pytest.mark.parametrize("gamma", [0.9, torch.full((6, 4), 0.9)], ids=["the short way", "the door"])
def test_what_a_graph_still_needs_is_not_overwritten_in_silence(gamma: Any) -> None:
    """Kills: gradients that are silently those of what was written into `out` since."""
    steps, weight = torch.ones(6, 4), torch.ones(6, 4, requires_grad=True)
    out = (torch.full((6, 4), 3.0), torch.zeros(6, 4))
    loss = (weight * out[0]).sum()
    ends = {"terminated": None, "truncated": None, "gamma": gamma, "lam": 0.9}
    telescope.gae(steps, steps, steps, **ends, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    for wrong in (torch.zeros(6, 4, requires_grad=True), weight * 2):
        with pytest.raises(ValueError, match=r"out\[0\] requires a gradient"):
            telescope.gae(steps, steps, steps, **ends, out=(wrong, out[1]))
    with torch.inference_mode():  # such tensors have no history to be told
        out = (torch.zeros(6, 4), torch.zeros(6, 4))
        assert telescope.gae(steps, steps, steps, **ends, out=out).advantages is out[0]

"""Every argument of every public function, given what it cannot be: a ValueError that names it, or nothing amiss.

Exhaustive, not random: functions × arguments × wrong values, in NumPy and in torch. What the messages say besides the
name is for the tests of each function.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import telescope
from problems import FUNCTIONS, drawn, parameters, told
from telescope.estimators import conventions

T, B = 4, 2
STEPS = drawn((T, B), 0)
GOOD: dict[str, Any] = {name: array for name, array in STEPS.items() if name not in ("world rewards", "x")}
GOOD |= {"gamma": 0.9, "lam": 0.9, "returns_lam": 0.5, "axis": 0, "differentiable": False, "k": 2, "n": 2, "lags": 2}
GOOD |= {
    "rho_clip": 1.0,
    "c_clip": 1.0,
    "pg_rho_clip": 1.0,
    "kind": "replacing",
    "step_size": 0.1,
    "x": np.ones((T, B)),
}
GOOD |= {"alpha": 0.5, "low": 0.25, "high": 0.75}
GOOD |= {"scale": True, "biased": True, "eps": 0.1, "eps_inside": False, "scale_only": False}
SPECIAL: dict[str, dict[str, Any]] = {
    "gae": {"out": (np.zeros((T, B)), np.zeros((T, B)))},
    "distributional_gae": {"weights": np.array([0.25, 0.25, 0.5])},
    "response_function": {"rewards": np.ones(STEPS["world rewards"])},
}
flags = STEPS["mask"]
more = {"truncated": ~flags, "final_values": np.ones((T, B)), "mask": flags, "axis": 0}
steps = {"rewards": np.ones((T, B)), "values": np.ones((T, B)), "last_values": np.ones(B)}
longer = {"rewards": np.ones((T, B)), "values": np.ones((T + 1, B))}
packed = {
    "rewards": np.ones(4),
    "values": np.ones(4),
    "terminated": np.array([True, False]),
    "final_values": np.ones(2),
}
CONVENTIONS: dict[str, dict[str, Any]] = {
    "from_last_values": {**steps, "terminated": flags, **more},
    "from_values_with_bootstrap": {**longer, "terminated": flags, **more},
    "from_dones": {**steps, "dones": flags | ~flags, **more},
    "from_episode_starts": {**steps, "episode_starts": flags | True, "last_dones": flags[0] | True, **more},
    "from_discounts": {**longer, "discounts": np.ones((T, B)), **more},
    "from_arrivals": {"rewards": np.ones((T, B)), "values": np.ones((T, B)), "terminated": flags, **more},
    "from_next_step_autoreset": {
        **steps, "terminated": flags, "truncated": ~flags, "previous_dones": flags[0], "axis": 0,
    },
    "from_lengths": {**packed, "lengths": np.array([1, 3])},
    "from_cu_seqlens": {**packed, "cu_seqlens": np.array([0, 1, 4])},
    "split_packed_values": {"values": np.ones(6), "lengths": np.array([1, 3])},
    "from_response_mask": {
        "rewards": np.ones((B, T)), "values": np.ones((B, T)), "mask": flags.T,
        "terminated": flags[0], "final_values": np.ones(B), "masked": "skipped",
    },
    "dense_final_values": {
        "values": np.ones((T, B)), "places": (np.array([0, 1]), np.array([0, 1])), "final_values": np.ones(2)
    },
}  # fmt: skip
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    name: (
        getattr(telescope, name),
        {key: GOOD[key] for key in GOOD if key in parameters(name)} | SPECIAL.get(name, {}),
    )
    for name in FUNCTIONS
} | {name: (getattr(conventions, name), arguments) for name, arguments in CONVENTIONS.items()}


class Foreign:
    """An array of a library that is not supported."""

    shape, dtype, ndim = (T, B), np.dtype("f4"), 2


# Wrong for every argument that there is.
NEVER: dict[str, Callable[[Any], Any]] = {
    "an object": lambda good: Foreign(),
    "a word": lambda good: "abc",
    "a complex number": lambda good: 0.5j,
    "a list": lambda good: [1.5, 0.5],
    "a dictionary": lambda good: {},
    "a set": lambda good: {1},
    "an array of objects": lambda good: np.asarray(good, object),
    "an array of words": lambda good: np.full(np.shape(good), "x"),
    "an array of complex numbers": lambda good: np.ones(np.shape(good), complex),
    "an array of dates": lambda good: np.zeros(np.shape(good), "M8[s]"),
    "an array of records": lambda good: np.zeros(np.shape(good), [("a", "f4")]),
    "a masked array": lambda good: np.ma.masked_array(np.ones(np.shape(good))),
    "an array of another library": lambda good: torch.ones(np.shape(good)),
    "too many axes": lambda good: np.ones((1, 1, *np.shape(good), 1, 1)),
}
# Right for some.
SOMETIMES: dict[str, Callable[[Any], Any]] = {
    "None": lambda good: None,
    "True": lambda good: True,
    "NumPy's True": lambda good: np.True_,
    "NaN": lambda good: float("nan"),
    "infinity": lambda good: float("inf"),
    "a negative number": lambda good: -7,
    "a half": lambda good: 0.5,
    "a large integer": lambda good: 99,
    "a pair of numbers": lambda good: (1, 2),
    "no axes": lambda good: np.array(1.0),
    "one axis less": lambda good: np.ones(np.shape(good)[1:]),
    "another precision": lambda good: np.ones(np.shape(good), "f4"),
    "the other byte order": lambda good: np.ones(np.shape(good), ">f8"),
    "integers": lambda good: np.ones(np.shape(good), int),
    "unsigned integers": lambda good: np.ones(np.shape(good), np.uint16),
    "all NaN": lambda good: np.full(np.shape(good), np.nan),
}
TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "NumPy's": lambda good: good.numpy(),
    "sparse": lambda good: good.to_sparse(),
    "on another device": lambda good: good.to("meta"),
    "complex": lambda good: good + 0j,
    "quantised": lambda good: torch.quantize_per_tensor(good.float(), 0.1, 0, torch.qint8),
    "nested": lambda good: torch.nested.as_nested_tensor([torch.ones(2), torch.ones(3)]),
    "of a sign still to be turned": lambda good: (
        torch.complex(torch.zeros(good.shape), torch.ones(good.shape)).conj().imag
    ),
}
SOMETIMES_TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "with a gradient": lambda good: good.double().requires_grad_(),
    "in eight bits": lambda good: good.float().to(torch.float8_e4m3fn),
    "unsigned": lambda good: good.to(torch.uint16),
    "repeated": lambda good: good[:1].expand_as(good),
    "no axes": lambda good: torch.tensor(1.0),
    "seven": lambda good: torch.full((7,), 0.5),
}
ANY_ARRAY = ("an array of another library", "too many axes", "NumPy's", "on another device")


def complaints(name: str, good: dict[str, Any], wrong: dict[str, Callable[[Any], Any]], *, refused: bool) -> list[str]:
    """What does not come out as it should, in words: for every argument and each wrong value in its place."""
    function, found = CALLS[name][0], []
    for argument, value in good.items():
        for kind, make in wrong.items():
            if (wrong is TENSORS or wrong is SOMETIMES_TENSORS) and not isinstance(value, torch.Tensor):
                continue
            if kind == "an array of another library" and argument == "places":
                continue  # indices may be NumPy's
            if argument == "explained_variance" and kind in ANY_ARRAY:
                continue  # the call's only array, of any shape
            try:
                function(**{**good, argument: make(value)})
            except ValueError as error:
                if argument not in str(error):
                    found.append(f"{argument} = {kind}: {error}")
            except Exception as error:
                found.append(f"{argument} = {kind}: {type(error).__name__}: {error}")
            else:
                found += [f"{argument} = {kind} was taken"] if refused else []
    return found


@pytest.mark.parametrize("name", CALLS)
def test_what_an_argument_can_never_be_is_refused_by_name(name: str) -> None:
    assert not complaints(name, CALLS[name][1], NEVER, refused=True)


@pytest.mark.parametrize("name", CALLS)
def test_whatever_comes_it_is_taken_or_refused_by_name(name: str) -> None:
    CALLS[name][0](**CALLS[name][1])
    assert not complaints(name, CALLS[name][1], SOMETIMES, refused=False)


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantize.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantize.*:DeprecationWarning")
@pytest.mark.parametrize("name", CALLS)
def test_tensors_that_are_not_plain(name: str) -> None:
    good = {key: told(value, "torch") for key, value in CALLS[name][1].items() if key != "out"}
    if "out" in CALLS[name][1]:
        good |= {"out": tuple(torch.zeros(T, B, dtype=torch.float64) for _ in range(2))}
    CALLS[name][0](**good)
    assert not complaints(name, good, TENSORS, refused=True)
    assert not complaints(name, good, SOMETIMES_TENSORS, refused=False)


def test_tensors_without_numbers_have_shapes() -> None:
    """On the meta device there is nothing to check but shapes and dtypes; they come out as ever."""
    for name in FUNCTIONS:
        good = {key: told(value, "torch") for key, value in CALLS[name][1].items() if key != "out"}
        meta = {key: value.to("meta") if isinstance(value, torch.Tensor) else value for key, value in good.items()}
        results, shapes = CALLS[name][0](**meta), CALLS[name][0](**good)
        for result, like in zip(listed(results), listed(shapes), strict=True):
            assert (result.device.type, result.shape, result.dtype) == ("meta", like.shape, like.dtype)


def listed(results: Any) -> list[torch.Tensor]:
    return list(results) if isinstance(results, tuple) else [results]


def test_out_must_have_a_place_for_each_number() -> None:
    good = CALLS["gae"][1]
    for library in "numpy", "torch":
        row = np.lib.stride_tricks.as_strided(np.zeros(B), (T, B), (0, 8))
        pair = (row, np.zeros((T, B))) if library == "numpy" else (torch.from_numpy(row), torch.zeros(T, B).double())
        with pytest.raises(ValueError, match=r"out\[0\] repeats its memory"):
            telescope.gae(**{key: told(value, library) for key, value in good.items()} | {"out": pair})


def test_lengths_do_not_wrap_round() -> None:
    """Of unsigned integers the difference of a falling pair is a huge number, and the sum of all right again."""
    with pytest.raises(ValueError, match=r"cu_seqlens .* 1 numbers below the one before"):
        conventions.from_cu_seqlens(**{**packed, "cu_seqlens": np.array([0, 3, 2, 4], np.uint64)})


def test_a_misspelt_switch_is_no_yes() -> None:
    x = np.ones((T, B))
    for option in "biased", "eps_inside", "scale_only", "differentiable":
        with pytest.raises(ValueError, match=f"{option} is 'no'; expected True or False"):
            telescope.whiten(x, **{option: "no"})

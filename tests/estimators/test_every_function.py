"""Fuzz: every public function, over libraries, dtypes, layouts, flags, masks, axes, γ and λ, is its definition.

For ten times as many problems, drawn anew each time:
`pytest tests/estimators/test_every_function.py --hypothesis-profile=long`.
"""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import definitions
import telescope
from problems import DISCOUNTS, FLAGS, FUNCTIONS, LAYOUTS, PER_STEP, WIDE, drawn, parameters, plain, told

SPATIAL = {
    "td_error",
    "shaped_rewards",
    "whiten",
    "group_relative",
    "leave_one_out",
    "from_explained_variance",
}  # they have no time axis
MOVED = (*PER_STEP, *WIDE, *FLAGS, "final_values")
EXAMPLES = settings().max_examples
FEW = [(5, 2), (1,), (0, 3), (4, 2, 2)]  # shapes for JAX, which compiles anew for each

numbers = st.sampled_from([0.0, 0.25, 0.5, 1.0])  # exact in every dtype
clips = st.sampled_from([None, 0.0, 0.5, 1.0, 2.0])


OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("biased", "eps_inside", "scale_only", "scale"), st.booleans()),
    **dict.fromkeys(("rho_clip", "c_clip", "pg_rho_clip"), clips),
    **dict.fromkeys(("k", "n", "lags"), st.integers(1, 9)),
    "step_size": numbers,
    "eps": st.sampled_from([0.25, 1.0]),
    "alpha": st.sampled_from([0.1, 0.25, 1.0, 8.0]),
    "low": st.sampled_from([0.0, 0.25]),
    "high": st.sampled_from([0.25, 0.5, 1.0]),
    "kind": st.sampled_from(["accumulating", "replacing"]),
}


def discount(data: st.DataObject, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """One number, or one per environment, per step or both."""
    shapes = [None, (), shape[1:], (*shape[:1], *[1] * (len(shape) - 1)), shape]
    chosen = data.draw(st.sampled_from(shapes), name)
    if chosen is None:
        return data.draw(numbers, f"{name}, a number")
    found = np.random.default_rng(len(shape)).choice([0.0, 0.25, 0.5, 1.0], chosen)
    return np.asarray(found, dtype)


def flag(data: st.DataObject, name: str, array: np.ndarray) -> np.ndarray | None:
    """As booleans or numbers; None where that says the same."""
    kinds: list[Any] = ["bool", "uint8", "int64", "float32"]
    if (array.all() if name == "mask" else not array.any()) or data.draw(st.integers(0, 3), f"no {name}") == 0:
        return None
    return array.astype(data.draw(st.sampled_from(kinds), name))


def problem(data: st.DataObject, name: str, shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
    """The arguments of one call, in NumPy, contiguous and time first."""
    found = drawn(shape, data.draw(st.integers(0, 999), "seed"), data.draw(st.sampled_from([0.0, 0.2, 0.6]), "ends"))
    arguments = {key: array for key, array in found.items() if key in parameters(name)}
    arguments |= {key: data.draw(OPTIONS[key], key) for key in sorted(OPTIONS.keys() & parameters(name))}
    if name == "response_function":
        arguments["rewards"] = np.random.default_rng(0).normal(size=found["world rewards"])
    if name == "distributional_gae":
        arguments["weights"] = data.draw(st.sampled_from([None, np.array([0.5, 0.75, -0.25])]), "weights")
    for key, array in arguments.items():
        if isinstance(array, np.ndarray) and array.dtype == np.float64:
            arguments[key] = array.astype(dtype)
        elif key in FLAGS:
            arguments[key] = flag(data, key, array)
    for key in parameters(name) & set(DISCOUNTS):
        arguments[key] = discount(data, key, shape, dtype)
    return arguments


def as_given(arguments: dict[str, Any], shape: tuple[int, ...]) -> definitions.Given:
    """The same in float64 and in full, for the definition."""
    full = definitions.Given(arguments)
    for key, value in arguments.items():
        if isinstance(value, np.ndarray):
            full[key] = value.astype(np.float64)
    for key, otherwise in {"gamma": 1.0, "lam": 1.0, "returns_lam": 1.0, **dict.fromkeys(FLAGS, False)}.items():
        value = full.get(key)
        value = (key == "mask" or otherwise) if value is None else value
        full[key] = np.broadcast_to(np.asarray(value, bool if key in FLAGS else float), shape)
    return full


def moved(arguments: dict[str, Any], axis: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Time at another axis; γ and λ then follow the array's own layout."""
    result = dict(arguments)
    for key, value in arguments.items():
        if isinstance(value, np.ndarray) and key in MOVED:
            result[key] = np.moveaxis(value, 0, axis)
        elif isinstance(value, np.ndarray) and key in DISCOUNTS and value.ndim:
            spread = value.reshape((1,) * (len(shape) - value.ndim) + value.shape)
            result[key] = np.moveaxis(spread, 0, axis)
    return result


def check(data: st.DataObject, name: str, library: str, shape: tuple[int, ...], dtype: Any) -> None:
    function, arguments = getattr(telescope, name), problem(data, name, shape, dtype)
    axis = data.draw(st.integers(0, len(shape) - 1), "axis") if "axis" in parameters(name) else 0
    if name == "whiten":
        arguments["axis"] = data.draw(st.sampled_from([None, *range(len(shape))]), "over")
    arrays = sorted(key for key, value in arguments.items() if isinstance(value, np.ndarray))
    layouts = {key: data.draw(st.sampled_from(list(LAYOUTS)), f"layout of {key}") for key in arrays}
    for key in (key for key in arrays if layouts[key] == "repeated"):
        if key in MOVED:
            arguments[key] = np.ascontiguousarray(LAYOUTS["repeated"](arguments[key]))
        else:
            layouts[key] = "contiguous"  # repeated it would be another world, or γ
    expected = getattr(definitions, name)(as_given(arguments, shape))
    if name not in SPATIAL | {"response_function", "true_online_td"}:
        expected = [np.moveaxis(one, 0, axis) for one in (expected if isinstance(expected, tuple) else (expected,))]
        arguments = moved(arguments, axis, shape) | {"axis": axis}
    for key, layout in layouts.items():
        if layout == "repeated" and axis:
            layouts[key] = "fortran"  # what repeats lies along time, which is now elsewhere
    called = {key: told(value, library, layouts.get(key, "contiguous")) for key, value in arguments.items()}
    if library == "torch" and dtype == np.float32 and data.draw(st.booleans(), "needs a gradient"):
        called = {k: v.requires_grad_() if getattr(v, "is_leaf", False) and v.dtype == torch.float32 and k not in FLAGS
                  else v for k, v in called.items()}  # fmt: skip
    before = {key: contents(value) for key, value in called.items()}
    results = function(**called)
    working = np.float64 if dtype == np.float64 else np.float32
    for one, right in zip(results if isinstance(results, tuple) else (results,), listed(expected), strict=True):
        kept = name == "next_values"  # a value that is passed on keeps its precision
        assert str(one.dtype).removeprefix("torch.") == np.dtype(dtype if kept else working).name
        assert not getattr(one, "requires_grad", False)
        # Sums over at most seven steps of numbers up to about exp(3): a few hundred roundings of the largest.
        bound = 512 * np.finfo(working).eps * max(1.0, np.abs(right).max(initial=0))
        np.testing.assert_allclose(plain(one)[0], right, rtol=0, atol=bound, err_msg=name)
    for key, value in called.items():
        assert contents(value) == before[key], f"{key} was changed"


def listed(expected: Any) -> list[np.ndarray]:
    return list(expected) if isinstance(expected, tuple | list) else [expected]


def contents(value: Any) -> Any:
    """The bytes of an array."""
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    return (value.shape, value.tobytes()) if hasattr(value, "tobytes") else value


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=EXAMPLES // 2, phases=[Phase.generate])
@given(data=st.data())
def test_it_is_its_definition(name: str, data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=7), "shape")
    library = data.draw(st.sampled_from(["numpy", "torch"]), "library")
    check(data, name, library, shape, data.draw(dtypes, "dtype"))


dtypes = st.sampled_from([np.float64, np.float32, np.float16])


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=EXAMPLES // 33)
@given(data=st.data())
def test_in_jax_too(name: str, data: st.DataObject) -> None:
    check(data, name, "jax", data.draw(st.sampled_from(FEW), "shape"), np.float32)

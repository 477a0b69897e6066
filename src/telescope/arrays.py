"""Recognise array libraries, and check that the arrays of one call fit together. Every public function uses it.

torch and jax are used only if the caller has already imported them. Checks of numbers (flags are 0 or 1, γ lies in
[0, 1], no final value is missing) need arrays with numbers. A JAX tracer has a shape and a dtype but no numbers, so
these checks are skipped there (`any_true`); all others are not. Leaves out arithmetic.
"""

import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from telescope.torch_func import mapped

Array = Any  # numpy.ndarray, torch.Tensor or jax.Array; results are of the arguments' library

_NUMPY = (np.ndarray, np.generic)  # the sum of an array without axes is the latter
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_NUMPY_FLOATS = {np.dtype(kind): np.dtype(max(kind, "f4")) for kind in ("f2", "f4", "f8")}


def library(name: str, array: Array) -> ModuleType:
    """The library of an array: numpy, torch or jax.numpy. Anything else raises a ValueError with its name."""
    if type(array) is np.ndarray or type(array) is np.memmap:
        return np
    if isinstance(array, np.ndarray):
        raise ValueError(_subclass_message(name, array))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        if not (type(array) is torch.Tensor or _stands_for_one(array)):
            raise ValueError(f"{name} is a {_kind(array)}; pass a plain tensor ({name}.as_subclass(torch.Tensor))")
        if array.layout != torch.strided or array.is_nested or array.is_quantized or _negated(array):
            raise ValueError(_lazy_message(name, array))
        return torch
    if is_jax(array):
        return sys.modules["jax.numpy"]
    if isinstance(array, bool | int | float | list | tuple) or array is None:
        raise ValueError(f"{name} is {_brief(array)}, not an array; pass np.asarray({name}) or a torch tensor")
    raise ValueError(f"{name} is a {_kind(array)}; supported are numpy.ndarray, torch.Tensor and jax.Array")


def _subclass_message(name: str, array: np.ndarray) -> str:
    if isinstance(array, np.ma.MaskedArray):
        return f"{name} is a numpy masked array; pass its data, and mask= (True counts) beside it"
    return f"{name} is a {_kind(array)}, whose numbers can mean something else; pass np.asarray({name})"


def _stands_for_one(array: Array) -> bool:
    """Whether it is a parameter, or torch's stand-in for a tensor while it traces."""
    return isinstance(array, sys.modules["torch"].nn.Parameter) or type(array).__module__.startswith("torch._sub")


def _negated(array: Array) -> bool:
    """Whether the sign of its numbers is flipped lazily, as in the imaginary part of a conjugate."""
    return not sys.modules["torch"].compiler.is_compiling() and bool(array.is_neg())


def _lazy_message(name: str, array: Array) -> str:
    """The error message for a tensor whose memory does not directly hold its numbers."""
    if array.is_nested:
        return f"{name} is a nested tensor; pass a padded one, and mask= (True counts) beside it"
    if array.layout != sys.modules["torch"].strided:
        return f"{name} is a {array.layout} tensor; pass a dense one ({name}.to_dense())"
    if array.is_quantized:
        return f"{name} is a quantized tensor; pass {name}.dequantize()"
    return f"{name} is a tensor with a lazy sign flip; pass {name}.resolve_neg()"


def is_jax(array: Array) -> bool:
    """Whether it is a JAX array or tracer."""
    jax, torch = sys.modules.get("jax"), sys.modules.get("torch")
    if jax is None or (torch is not None and isinstance(array, torch.Tensor)):  # torch.compile cannot ask JAX of it
        return False
    return isinstance(array, jax.Array)


def any_true(wrong: Array) -> bool:
    """Whether any entry is True. False for a tracer, which has no numbers yet, so that the check is skipped."""
    if _hidden(wrong):
        return False
    jax = sys.modules.get("jax")
    return not (jax is not None and isinstance(wrong, jax.core.Tracer)) and bool(wrong.any())


def _hidden(array: Array) -> bool:
    """Whether a tensor's numbers cannot be read: on meta, compiled, mapped, or while a CUDA graph is captured."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(array, torch.Tensor):
        return False
    if array.is_meta or torch.compiler.is_compiling() or mapped(array):
        return True
    return bool(array.is_cuda and torch.cuda.is_current_stream_capturing())


def check_alike(**named: Array) -> ModuleType:
    """Check that all arrays except None have the library, device and shape of the first one. Return the library."""
    (name, first), *others = named.items()
    xp = library(name, first)
    shape, plain = first.shape, type(first) is np.ndarray
    for other, array in others:
        if array is None:
            continue
        if not (plain and type(array) is np.ndarray):  # a shortcut: this runs on every call
            check_neighbour(name, first, other, array)
        if array.shape != shape:
            raise ValueError(_shape_message(name, tuple(first.shape), named))
    return xp


def check_neighbour(name: str, first: Array, other: str, array: Array) -> None:
    """Check that an array has the first one's library and device. JAX has its own rules for devices."""
    if library(other, array) is not library(name, first):
        raise ValueError(f"{other} is a {_kind(array)} but {name} is a {_kind(first)}; one call takes one library")
    if not isinstance(first, np.ndarray) and not is_jax(first) and array.device != first.device:
        raise ValueError(f"{other} is on {array.device} but {name} is on {first.device}; move one of them")


def check_shape(name: str, array: Array, expected: tuple[int, ...], why: str) -> None:
    """Check for exactly this shape; a shape that only broadcasts to it is an error."""
    if tuple(array.shape) != expected:
        hint = _squeeze_hint(tuple(array.shape), expected)
        raise ValueError(f"{name} has shape {tuple(array.shape)} but {why} {expected}{hint}")


def refuse_dtype(name: str, array: Array, reference: str, first: Array) -> None:
    """Raise the error for arrays of different dtypes. Casting one of them would hide a mistake."""
    raise ValueError(f"{name} has dtype {array.dtype} but {reference} has {first.dtype}; convert one of them")


def check_float(name: str, array: Array) -> None:
    """Check for a supported floating point dtype: float16, bfloat16 (torch, jax), float32 or float64."""
    if isinstance(array, np.ndarray):
        known = array.dtype in _NUMPY_FLOATS
    else:
        known = str(array.dtype).removeprefix("torch.") in _FLOATS
    if not known:
        raise ValueError(f"{name} has dtype {array.dtype}; expected float16, bfloat16, float32 or float64")


def working_dtype(array: Array) -> Any:
    """The dtype of results and sums: the array's own, or float32 for half precision."""
    if isinstance(array, np.ndarray):
        return _NUMPY_FLOATS[array.dtype]
    if is_jax(array):
        return array.dtype if array.dtype == np.float64 else np.dtype("f4")  # its dtypes are NumPy's
    torch = sys.modules["torch"]
    return array.dtype if array.dtype == torch.float64 else torch.float32


def to_dtype(name: str, array: Array, dtype: Any, differentiable: bool = False) -> Array:
    """The array in a real dtype, unchanged if it already has it. Gradients stop unless `differentiable`."""
    if type(array) is np.ndarray and array.dtype is dtype and array.flags.aligned:
        return array
    check_real(name, array)
    if isinstance(array, np.ndarray):
        return np.require(np.asarray(array), dtype, "A")
    array = array if differentiable else detached(array)
    return array.astype(dtype) if is_jax(array) else array.to(dtype)


def check_real(name: str, array: Array) -> None:
    """Check for numbers that can be converted to floating point: no complex numbers, no text."""
    if not _is_real(array):
        raise ValueError(f"{name} has dtype {array.dtype}; expected real numbers")


def _is_real(array: Array) -> bool:
    if isinstance(array, np.ndarray):
        return array.dtype.kind in "fiub"
    if is_jax(array):
        jnp = sys.modules["jax.numpy"]
        return array.dtype == bool or any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.integer, jnp.floating))
    return not array.is_complex()


def scalar(value: Any, like: Array) -> Array:
    """A number as an array without axes, with the dtype and device of `like`."""
    if isinstance(like, np.ndarray):
        return np.asarray(value, like.dtype)
    if is_jax(like):
        return sys.modules["jax.numpy"].asarray(value, like.dtype)
    # filled on the device: copying a number there would wait for it
    return sys.modules["torch"].full((), value, dtype=like.dtype, device=like.device)


def on_cpu(array: Array) -> bool:
    """Whether NumPy can read this memory in place."""
    return isinstance(array, np.ndarray) or (not is_jax(array) and array.device.type == "cpu")


def detached(array: Array) -> Array:
    """The same memory without its gradient."""
    if isinstance(array, _NUMPY):
        return array
    return sys.modules["jax"].lax.stop_gradient(array) if is_jax(array) else array.detach()


def spread(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    """A view of the array, broadcast to `shape`."""
    came = tuple(array.shape)
    fits = len(came) <= len(shape) and all(n in (1, m) for n, m in zip(came[::-1], shape[::-1], strict=False))
    if not fits:
        raise ValueError(
            f"{name} has shape {came}, which does not broadcast to {shape}; with time first, (B,) is one "
            f"number per environment and (T, 1) one per step"
        )
    return library(name, array).broadcast_to(array, shape)


def to_bool(name: str, flags: Array | None, live: Array | None = None) -> Array | None:
    """Flags as booleans. Numbers must be exactly 0 or 1 (checked where `live`). None stays None."""
    if flags is None:
        return None
    if isinstance(flags, np.ndarray):
        flags = np.asarray(flags)
        if flags.dtype.char == "?":
            return flags
    elif str(flags.dtype).endswith("bool"):
        return detached(flags)
    if not _is_real(flags):
        raise ValueError(f"{name} has dtype {flags.dtype}; expected booleans, or numbers that are exactly 0 or 1")
    wrong = (flags != 0) & (flags != 1)
    if live is not None:
        wrong = wrong & live
    if any_true(wrong):
        raise ValueError(
            f"{name} has dtype {flags.dtype} and holds {flags[wrong][0].item()}; expected booleans, or numbers that "
            f"are exactly 0 or 1 (None if there are none)"
        )
    return flags != 0


def front(array: Array, axis: int) -> Array:
    """A view with `axis` first and all other axes in the same order."""
    if axis == 0:
        return array
    return _permuted(array, [axis, *(i for i in range(array.ndim) if i != axis)])


def back(array: Array, axis: int) -> Array:
    """The inverse view of `front`."""
    return array if axis == 0 else _permuted(array, [*range(1, axis + 1), 0, *range(axis + 1, array.ndim)])


def checked_axis(axis: int, dimensions: int) -> int:
    """`axis` counted from the front."""
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer) or not -dimensions <= axis < dimensions:
        raise ValueError(f"axis is {axis!r}; expected an integer in [{-dimensions}, {dimensions}) for this shape")
    return int(axis) % dimensions


def time_axis(name: str, array: Array, axis: int) -> int:
    """The time axis of a named array, counted from the front. An array without axes raises a ValueError."""
    if library(name, array) and array.ndim == 0:
        raise ValueError(f"{name} has shape (); expected at least a time axis")
    return checked_axis(axis, array.ndim)


def check_switch(name: str, value: Any) -> None:
    """Check for True or False. Other truthy values are errors, because "no" would be true."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} is {_brief(value)}; expected True or False")


def check_word(name: str, value: Any, words: Sequence[str], hint: str = "") -> None:
    """Check for one of the words."""
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"{name} is {_brief(value)}; expected {' or '.join(map(repr, words))}{hint}")


def counted(name: str, value: Any, meaning: str) -> int:
    """Check for an integer >= 1, and return it."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} is {_brief(value)}; expected an integer >= 1, {meaning}")
    return int(value)


def check_not_negative(name: str, value: Any, otherwise: str = "") -> None:
    """Check for a number >= 0, such as a step size. `otherwise` says what else is allowed."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating) or not value >= 0:
        raise ValueError(f"{name} is {_brief(value)}; expected a number >= 0{otherwise}")


def in_unit_interval(name: str, value: Any) -> float:
    """Check for a number in [0, 1], and return it."""
    known = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not (known and 0 <= value <= 1):  # excludes NaN
        raise ValueError(f"{name} is {_brief(value)}; expected a number in [0, 1]")
    return float(value)


def _permuted(array: Array, order: Sequence[int]) -> Array:
    return array.permute(*order) if hasattr(array, "permute") else array.transpose(order)


def _shape_message(reference: str, shape: tuple[int, ...], named: dict[str, Array]) -> str:
    """The error message that names all arguments of another shape, with the likely fix."""
    others = [(name, tuple(array.shape)) for name, array in named.items() if array is not None]
    wrong = [f"{name} has shape {other}" for name, other in others if other != shape]
    hints = (_squeeze_hint(other, shape) for _, other in others if other != shape)
    return f"{' and '.join(wrong)} but {reference} has {shape}{_first(hints)}"


def _squeeze_hint(came: tuple[int, ...], expected: tuple[int, ...]) -> str:
    if (*expected, 1) == came:
        return "; did the critic forget .squeeze(-1)?"
    if (*came, 1) == expected:
        return "; does one of the arguments lack .squeeze(-1)?"
    if len(came) == len(expected) == 2 and came == expected[::-1]:
        return "; is it transposed?"
    if came[1:] == expected[1:] and came[:1] == tuple(n + 1 for n in expected[:1]):
        return "; if its extra last row is the value of the last state, see telescope.next_values"
    return ""


def _first(texts: Iterable[str]) -> str:
    return next((text for text in texts if text), "")


def _kind(array: Any) -> str:
    return f"{type(array).__module__.split('.')[0]}.{type(array).__name__}"


def _brief(value: Any) -> str:
    """A number or word unchanged; the type of anything longer."""
    plain = isinstance(value, bool | int | float | str | np.generic) or value is None
    return repr(value) if plain else f"a {type(value).__name__}"

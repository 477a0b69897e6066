"""Checkpoints: a nested state of arrays and plain values in one safetensors file. Loading is exact, or an error.

Leaves out the meaning of the state (the algorithms) and the place of the file (`layout.py`). Nothing is ever unpickled.

The file is an ordinary safetensors file. Arrays are its tensors, named by JSON pointer (RFC 6901: `/agent/params/w0`).
Its metadata has one entry, `telescope` (several entries would be written in random order). It is a JSON object with
`sha256`, `format`, `kind`, `about` (the owner), `leaves` (pointer → the array's original type) and `state` (everything
else, with null in place of arrays). The digest covers the whole file, with its own 64 digits as zeros, so every change
is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from telescope.runs.files import RunError, read, require, shown, write_atomic

FORMAT = 1
_MARKER = "telescope"
_NO_DIGEST = "0" * 64
_PLAIN = (bool, int, float, str, type(None))
_INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_DTYPES = {"bool", "float16", "float32", "float64", "complex64", *_INTEGERS}

Array = npt.NDArray[Any]


def save(
    path: str | os.PathLike[str], state: dict[str, Any], *, kind: str, about: Mapping[str, Any] | None = None
) -> None:
    """Write the state to `path`, atomically.

    state: nested dicts with str keys, and lists. Leaves are NumPy arrays and scalars, torch tensors on any device
    (including bfloat16 and the float8 family), int of any size, float, bool, str, None. kind: the purpose of the file;
    `load` must name the same.

    A RunError if the disk is full, read-only or gone; the previous file is then unchanged. A ValueError that names the
    leaf for anything that `load` could not return exactly.
    """
    arrays: dict[str, Array] = {}
    leaves: dict[str, str] = {}
    tree = _split(state, "", arrays, leaves)
    head = {"sha256": _NO_DIGEST, "format": FORMAT, "kind": kind, "about": dict(about or {})}
    header = {**head, "leaves": leaves, "state": tree}
    data = require("safetensors.numpy").save(arrays, metadata={_MARKER: json.dumps(header)})
    view = memoryview(data)
    start = data.index(_NO_DIGEST.encode())  # the first key of the only metadata entry, at the start of the file
    write_atomic(path, view[:start], _digest(data, start).encode(), view[start + len(_NO_DIGEST) :])


def load(path: str | os.PathLike[str], *, kind: str) -> dict[str, Any]:
    """Read what `save` wrote: the same structure, types and bits.

    Tensors are on the CPU; arrays are writable and C-ordered.

    A RunError if the file is missing, cut, changed in any byte, written by another program, in another format version
    or of another kind. No part of such a file is used.
    """
    return load_about(path, kind=kind)[0]


def load_about(path: str | os.PathLike[str], *, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Like `load`, and the `about` that was given to `save`."""
    data = read(path)
    name = shown(path)
    header = _verified_header(data, name)
    if header.get("format") != FORMAT:
        raise RunError(
            f"{name} is a checkpoint of format {header.get('format')}, but this version of telescope "
            f"reads format {FORMAT}"
        )
    if header.get("kind") != kind:
        raise RunError(f"{name} is a checkpoint of kind {header.get('kind')!r}, but {kind!r} was expected")
    library = require("safetensors.numpy")
    try:
        arrays = library.load(data)
        state, about = dict(header["state"]), dict(header.get("about", {}))
        for pointer, origin in header["leaves"].items():
            _insert(state, pointer, _restored(arrays[pointer], origin))
    except Exception as error:  # the digest matches, so another program wrote this
        told = f"{type(error).__name__}: {error}"
        raise RunError(f"{name} does not have the content of a telescope checkpoint ({told})") from error
    return state, about


def _verified_header(data: bytes, path: str) -> dict[str, Any]:
    """The `telescope` metadata of a file, after a check of its digest."""
    length = int.from_bytes(data[:8], "little")
    try:
        header: dict[str, Any]
        if not 2 <= length <= len(data) - 8:
            raise ValueError("the header ends beyond the file")
        text = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(_MARKER, "{}")
        header = json.loads(text)
        digest = header.get("sha256")
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise RunError(f"{path} is cut short, damaged, or not a checkpoint; nothing of it was loaded") from error
    if digest is None:
        raise RunError(f"{path} is a safetensors file, but not a checkpoint written by telescope")
    if digest != _digest(data, start=data.find(str(digest).encode())):
        raise RunError(f"{path} is cut short or damaged (its SHA-256 does not match); nothing of it was loaded")
    return header


def _digest(data: bytes, start: int) -> str:
    """SHA-256 of the file, with 64 zeros in place of the digest itself."""
    view = memoryview(data)
    whole = hashlib.sha256(view[:start])
    whole.update(_NO_DIGEST.encode())
    whole.update(view[start + len(_NO_DIGEST) :])
    return whole.hexdigest()


def _split(value: Any, pointer: str, arrays: dict[str, Array], leaves: dict[str, str]) -> Any:
    """The JSON part of the state. Arrays go to `arrays`, their original types to `leaves`, and null replaces them."""
    if type(value) in _PLAIN:
        return value
    if type(value) is list:
        return [_split(item, f"{pointer}/{i}", arrays, leaves) for i, item in enumerate(value)]
    if type(value) is dict:
        return {
            _checked_key(key, pointer): _split(item, f"{pointer}/{_escaped(key)}", arrays, leaves)
            for key, item in value.items()
        }
    arrays[pointer], leaves[pointer] = _as_array(value, pointer)
    return None


def _as_array(value: Any, pointer: str) -> tuple[Array, str]:
    """A leaf as a native, C-ordered array, and its original type: `array`, `scalar`, or `tensor` with its dtype."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        origin = f"tensor {str(tensor.dtype).removeprefix('torch.')}"
        if tensor.dtype.is_floating_point and tensor.dtype not in (
            torch.float16,
            torch.float32,
            torch.float64,
        ):
            tensor = tensor.view(
                {1: torch.uint8, 2: torch.uint16}[tensor.itemsize]
            )  # NumPy lacks this type: keep the bits
        return _storable(tensor.resolve_conj().resolve_neg().numpy(), pointer), origin
    if isinstance(value, np.generic):
        return _storable(np.asarray(value), pointer), "scalar"
    if type(value) is np.ndarray:
        return _storable(value, pointer), "array"
    raise ValueError(
        f"state{pointer} is a {type(value).__module__}.{type(value).__qualname__}; a checkpoint holds dicts "
        "with str keys, lists, arrays, tensors, int, float, bool, str and None (a list, not a tuple)"
    )


def _storable(array: Array, pointer: str) -> Array:
    if array.dtype.name not in _DTYPES:
        raise ValueError(f"state{pointer} has dtype {array.dtype}, which a safetensors file cannot hold")
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _restored(array: Array, origin: str) -> Any:
    if origin == "scalar":
        return array[()]
    array = array.copy()  # the loaded one is a read-only view of the file's bytes
    if origin == "array":
        return array
    torch = require("torch")
    dtype = getattr(torch, origin.removeprefix("tensor "))
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{origin!r} is no kind of array")
    if array.size == 0:  # NumPy gives it strides of 0, and torch would keep them
        return torch.empty(array.shape, dtype=dtype)
    return torch.from_numpy(array).view(dtype)


def _checked_key(key: Any, pointer: str) -> str:
    if type(key) is not str:
        raise ValueError(f"state{pointer} has the key {key!r}; keys are str")
    return key


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _insert(state: Any, pointer: str, value: Any) -> None:
    """Put a leaf at the place that its JSON pointer names."""
    *path, last = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
    for part in path:
        state = state[int(part) if isinstance(state, list) else part]
    state[int(last) if isinstance(state, list) else last] = value

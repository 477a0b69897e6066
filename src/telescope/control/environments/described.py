"""Spaces as plain data and back, so that a run folder says what its agents see and do without their environment.

Leaves out values of spaces, and where a run keeps the description (`runs/identity/record.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from telescope.control.environments.spaces import Packed, packed_actions, packed_observations


def described(space: spaces.Space) -> dict[str, Any]:
    """The space as numbers, strings, lists and dicts. The inverse is `space_of`."""
    if isinstance(space, Packed):
        return described(space.original)
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "parts": [[key, described(part)] for key, part in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "parts": [described(part) for part in space.spaces]}
    kind, dtype = type(space).__name__, str(np.dtype(space.dtype))  # type: ignore[arg-type]
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": dtype}
    if isinstance(space, spaces.MultiDiscrete):
        return {"kind": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist(), "dtype": dtype}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    if isinstance(space, spaces.Box):
        bounds = {"low": _numbers(space.low), "high": _numbers(space.high)}
        return {"kind": "Box", **bounds, "shape": list(space.shape), "dtype": dtype}
    raise ValueError(
        f"the space {space} is a {kind}; expected Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
    )


def space_of(plain: Mapping[str, Any]) -> spaces.Space:
    """The space that `described` made this of."""
    kind = plain["kind"]
    if kind == "Dict":
        return spaces.Dict([(key, space_of(part)) for key, part in plain["parts"]])
    if kind == "Tuple":
        return spaces.Tuple([space_of(part) for part in plain["parts"]])
    if kind == "MultiBinary":
        return spaces.MultiBinary(plain["n"])
    dtype: Any = np.dtype(plain["dtype"])
    if kind == "Discrete":
        return spaces.Discrete(plain["n"], start=plain["start"], dtype=dtype.type)
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(np.array(plain["nvec"]), dtype=dtype.type, start=np.array(plain["start"]))
    shape = tuple(plain["shape"])
    low, high = (_bound(plain[side], shape, dtype) for side in ("low", "high"))
    return spaces.Box(low, high, shape, dtype.type)


def spaces_of(plain: Mapping[str, Any]) -> tuple[spaces.Space, spaces.Space]:
    """The observation and the action space that a run folder describes, composite ones as rows."""
    return packed_observations(space_of(plain["observation"])), packed_actions(space_of(plain["action"]))


def _numbers(bound: np.ndarray) -> Any:
    """A bound as one number if all entries are equal, else as a list of all; infinity as a word, which JSON lacks."""
    flat = [x if np.isfinite(x) else str(x) for x in bound.ravel().tolist()]
    return flat[0] if flat and all(x == flat[0] for x in flat) else flat


def _bound(plain: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    numbers = plain if isinstance(plain, list) else [plain] * int(np.prod(shape))
    return np.array([float(x) if isinstance(x, str) else x for x in numbers], dtype).reshape(shape)

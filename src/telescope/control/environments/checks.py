"""Checks of values from environments: observations, rewards, flags, action masks.

`snapshots.Recorder` checks single environments, `lanes.Lane` vector environments, and `policy.Policy` its arguments.
A value that does not fit its space raises an error and is never changed to fit.
"""

# N environments side by side (`lead` is () for one, (N,) for many), A entries of an action mask

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from telescope.control.environments.spaces import (
    PackedActions,
    PackedObservations,
    choices,
    named,
    part_of,
    require_same_keys,
)

Fit = Callable[..., Any]
"""fit(observation, where="") → the same as an array or number of the space's shape, or ValueError"""
INTEGERS = (int, np.integer)
NUMBERS = "biuf"
"""The kinds of NumPy dtype that hold real numbers."""


def observation_fit(space: gym.Space, lead: tuple[int, ...] = (), subject: str = "observation") -> Fit:
    """Return a check of observations `[*lead, *obs]` of a space. For a Box or Discrete it costs a comparison of dtypes.

    A space of integers accepts only integers within its bounds. A Box of floats accepts every real number of its shape,
    also beyond its bounds, because simulators and wrappers often exceed them a little. Composite observations become
    rows of bytes.
    """
    if isinstance(space, PackedObservations):
        return _packing(space, lead, subject)
    dtype, shape = np.dtype(space.dtype), (*lead, *(space.shape or ()))  # type: ignore[arg-type]
    whole = dtype.kind in "biu"
    low, high = _bounds(space)
    bounded = whole and not _spans(dtype, low, high)
    discrete = isinstance(space, gym.spaces.Discrete) and not lead

    def fit(x: Any, where: str = "") -> Any:
        if type(x) is np.ndarray and x.dtype == dtype and x.shape == shape and not bounded:
            return x
        if discrete and isinstance(x, INTEGERS) and low <= x <= high:
            return x
        array = real_array(x, f"{subject}{where}")
        if array.shape != shape:
            raise ValueError(f"{subject}{where} has shape {array.shape}; expected {shape}, as in the space {space}")
        if whole and array.dtype.kind == "f":
            raise ValueError(
                f"{subject}{where} has dtype {array.dtype}, but {space} holds whole numbers ({dtype}), which would cut "
                "fractions off; return whole numbers, or declare a Box of floats"
            )
        if bounded or (whole and array.dtype != dtype):
            outside = (array < low) | (array > high)
            if outside.any():
                value = array[outside].flat[0]
                raise ValueError(f"{subject}{where} holds {value}, which is not in the space {space}")
        return array.astype(dtype, copy=False) if whole else array

    return fit


def _packing(space: PackedObservations, lead: tuple[int, ...], subject: str) -> Fit:
    """The check of a composite observation, which makes a row of bytes `[*lead, W]` of it; rows stay."""
    fits = [observation_fit(part.space, lead, f"{subject}{named(part.path)}") for part in space.parts]
    starts = [getattr(part.space, "start", 0) for part in space.parts]
    shape = (*lead, *space.shape)

    def fit(x: Any, where: str = "") -> np.ndarray:
        if type(x) is np.ndarray and x.dtype == np.uint8 and x.shape == shape:
            return x
        require_same_keys(space.original, x, f"{subject}{where}")
        row = np.zeros(shape, np.uint8)
        for part, own, start in zip(space.parts, fits, starts, strict=True):
            value = np.asarray(own(part_of(x, part.path, f"{subject}{where}"), where))
            if part.dtype == "f4" and not np.isfinite(value).all():
                odd = value[~np.isfinite(value)].flat[0]
                raise FloatingPointError(f"{subject}{named(part.path)}{where} holds {odd}; expected finite numbers")
            stop = part.start + part.entries * np.dtype(part.dtype).itemsize
            row[..., part.start : stop].view(part.dtype)[...] = (value - start).reshape((*lead, part.entries))
        return row

    return fit


def packed(space: PackedObservations, observation: Any, subject: str = "observation") -> np.ndarray:
    """The row [W] of one observation, or the rows [N, W] of a batch, whose parts have N in front."""
    part = space.parts[0]
    found = np.shape(part_of(observation, part.path, subject))
    return np.asarray(observation_fit(space, found[: len(found) - len(part.space.shape or ())], subject)(observation))


def _bounds(space: Any) -> tuple[Any, Any]:
    if isinstance(space, gym.spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, gym.spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    return (0, 1) if isinstance(space, gym.spaces.MultiBinary) else (space.low, space.high)


def _spans(dtype: np.dtype, low: Any, high: Any) -> bool:
    """Whether the bounds are those of the dtype, so that no value can lie outside."""
    limits = (False, True) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return bool(np.all(low == limits[0]) and np.all(high == limits[1]))


def real_array(x: Any, subject: str) -> np.ndarray:
    """Anything that holds real numbers, as an array. A ValueError for strings, None, complex numbers, ragged rows."""
    try:
        array = np.asarray(x)
    except Exception as error:  # rows of different lengths, a tensor on another device
        raise ValueError(f"{subject} is not an array of numbers: {error}") from error
    if array.dtype.kind not in NUMBERS:
        raise ValueError(f"{subject} is {_short(x)} ({array.dtype}); expected real numbers")
    return array


def _short(x: Any) -> str:
    text = " ".join(repr(x).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def rewards_fit(rewards: Any, lead: tuple[int, ...], subject: str) -> np.ndarray:
    """Rewards as a new float64 array `[*lead]`. Anything else than one real number each raises a ValueError."""
    array = real_array(rewards, subject)
    if array.shape != lead:
        expected = f"{lead}, one for each environment" if lead else "one number: does it need .item()?"
        raise ValueError(f"{subject} has shape {array.shape}; expected {expected}")
    return np.array(array, np.float64)


def flags_fit(flags: Any, lead: tuple[int, ...], subject: str) -> np.ndarray:
    """`terminated` or `truncated` as a new array of bools `[*lead]`. 0 and 1 are accepted, other numbers are not."""
    array = real_array(flags, subject)
    if array.shape != lead:
        raise ValueError(f"{subject} has shape {array.shape}; expected {lead or 'a single True or False'}")
    if array.dtype.kind != "b" and not ((array == 0) | (array == 1)).all():
        raise ValueError(f"{subject} is {_short(flags)}; expected True or False")
    return np.array(array, bool)


def mask_sizes(space: gym.Space) -> list[int]:
    """The size of each part of an action mask: [n] for Discrete, nvec for MultiDiscrete, otherwise empty."""
    if isinstance(space, PackedActions):
        return [size for part in space.parts for size in part.sizes]
    return choices(space)


def mask_fit(
    space: gym.Space, mask: Any, lead: tuple[int, ...] = (), subject: str = "action_mask", exempt: Any = False
) -> np.ndarray:
    """An action mask as bools `[*lead, A]`, True = allowed. A MultiDiscrete mask may be a tuple or list of its parts.

    The mask of a Dict or Tuple may have its structure; a part without choices, or without limits, has None or nothing.
    `exempt` `[*lead]` is True where no action is chosen; there the mask may forbid all actions.
    """
    sizes = mask_sizes(space)
    if not sizes:
        raise ValueError(f"{subject} came for the action space {space}; only Discrete and MultiDiscrete have masks")
    if isinstance(space, PackedActions) and isinstance(mask, Mapping | tuple):
        return np.concatenate(_part_masks(space, mask, lead, subject, exempt), axis=-1)
    array = real_array(_joined_parts(mask, len(sizes), lead), subject)
    expected = (*lead, sum(sizes))
    # the mask of one environment may have the shape of its actions, [2, 3] for MultiDiscrete([3, 3])
    flat = array.reshape(-1) if not lead and array.size == sum(sizes) else array
    if flat.shape != expected:
        raise ValueError(
            f"{subject} has {array.size} entries in shape {array.shape} for the action space {space}; expected "
            f"{sum(sizes)} in shape {expected} (n of Discrete, sum(nvec) of MultiDiscrete; not indices)"
        )
    if flat.dtype.kind != "b" and not ((flat == 0) | (flat == 1)).all():
        odd = flat[(flat != 0) & (flat != 1)].flat[0]
        hint = "; a mask that is added to logits is turned into one by mask == 0" if odd < 0 else ""
        raise ValueError(f"{subject} holds {odd}; expected True or 1 for allowed and False or 0 for forbidden{hint}")
    allowed = flat.astype(bool)
    starts = np.cumsum([0, *sizes[:-1]])
    some = np.logical_or.reduceat(allowed, starts, axis=-1).all(-1) | exempt
    if not np.all(some):
        what = "no action" if len(sizes) == 1 else "no action of some component"
        raise ValueError(
            f"{subject} allows {what}, but one has to be chosen; end the episode when no action is left "
            "(True or 1 is allowed; a mask that is added to logits is turned into one by mask == 0)"
        )
    return allowed


def _part_masks(space: PackedActions, mask: Any, lead: tuple[int, ...], subject: str, exempt: Any) -> list[np.ndarray]:
    """The masks `[*lead, n]` of the parts with choices."""
    found = []
    for part in (part for part in space.parts if part.sizes):
        try:
            own = part_of(mask, part.path, subject)
        except ValueError:
            own = None
        if own is None:
            found.append(np.ones((*lead, sum(part.sizes)), bool))
        else:
            found.append(mask_fit(part.space, own, lead, f"{subject}{named(part.path)}", exempt))
    return found


def _joined_parts(mask: Any, parts: int, lead: tuple[int, ...]) -> Any:
    """Join the parts of a MultiDiscrete mask, which have different lengths, into one array."""
    if isinstance(mask, tuple | list) and len(mask) == parts and all(np.ndim(part) > len(lead) for part in mask):
        if not lead:
            return np.concatenate([np.ravel(part) for part in mask])
        return np.concatenate([np.asarray(part) for part in mask], axis=-1) if isinstance(mask, tuple) else mask
    return mask


def require_finite(step: Any, seeds: Sequence[int], when: str) -> None:
    """Raise a FloatingPointError that names seed and environment if a reward or observation is NaN or infinite."""
    seen = [("reward", step.rewards), ("observation", step.observations)]
    if step.next_observations is not step.observations:
        seen.append(("final observation", step.next_observations))
    for name, x in seen:
        require_finite_array(name, x, seeds, when)


def require_finite_array(name: str, x: np.ndarray, seeds: Sequence[int], when: str) -> None:
    """The same check for one array `[S, B, …]`."""
    if x.dtype.kind != "f" or math.isfinite(np.add.reduce(x, axis=None)):
        return
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):  # a finite array can still overflow in the sum
        s, b = bad[0][:2]
        raise FloatingPointError(
            f"{name} of seed {seeds[s]}, environment {b} is {x[tuple(bad[0])]} {when}, so the run stops here; "
            f"check how the environment computes this {name}"
        )

"""Rollouts in files: `read("rollout.npz", convention="sb3")` and `record("rollout.npz", rewards=…, values=…, …)`.

A convention is how another library calls its arrays, which axis is time, and what its flags mean. Leaves out what is
wrong with a rollout (`doctor.py`).
"""

# T time, B columns
from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from telescope.lab.evidence import Rollout

Arrays = dict[str, np.ndarray]


class Convention(NamedTuple):
    """How a library writes a rollout."""

    names: Mapping[str, tuple[str, ...]] = {}
    """Our name → its names. Our own names are always understood."""
    translated: Callable[[Arrays], Arrays] = lambda arrays: arrays
    """From its arrays under our names to ours."""
    more: tuple[str, ...] = ()
    """Names besides ours that it has."""


def _late_flags(arrays: Arrays) -> Arrays:
    """Flags say that a row begins an episode; the last row's own flag and next value stand apart."""
    starts, last_flags = arrays.pop("starts", None), arrays.pop("last_flags", None)
    last_values, values = arrays.pop("last_values", None), arrays.get("values")
    if values is not None and last_values is not None:
        arrays["next_values"] = np.concatenate([values[1:], np.reshape(last_values, (1, *values.shape[1:]))])
    if starts is None:
        return arrays
    if last_flags is None:  # whether the last row ended an episode is not known, so it is left out
        arrays = {name: x[:-1] if x.shape == starts.shape else x for name, x in arrays.items()}
        return arrays | {"terminated": starts[1:] != 0}
    last = np.reshape(last_flags, (1, *starts.shape[1:]))
    return arrays | {"terminated": np.concatenate([starts[1:], last]) != 0}


def _bootstrap_row(arrays: Arrays) -> Arrays:
    """Values have one row more than rewards; a discount of 0 says that the episode terminated."""
    values, discounts = arrays.get("values"), arrays.pop("discounts", None)
    if values is not None and len(values) == len(arrays["rewards"]) + 1:
        arrays["values"], arrays["next_values"] = values[:-1], values[1:]
    if discounts is not None:
        arrays["terminated"] = discounts == 0
        arrays.setdefault("gamma", np.max(discounts))
    return arrays


def _features_last(arrays: Arrays) -> Arrays:
    """[T, 1] or [B, T, 1]: time is the last axis but one, and the last one means nothing."""
    return _one_flag(_batch_first({name: x[..., 0] if x.shape[-1:] == (1,) else x for name, x in arrays.items()}))


def _batch_first(arrays: Arrays) -> Arrays:
    """Time is axis 1, and a third axis of size 1 means nothing."""
    for name, x in arrays.items():
        if x.ndim == 3 and x.shape[-1] == 1:
            x = x[..., 0]
        arrays[name] = np.swapaxes(x, 0, 1) if x.ndim >= 2 else x
    return arrays


def _one_flag(arrays: Arrays) -> Arrays:
    """`done` is both kinds of ends: truncated where it is not terminated."""
    done = arrays.pop("done", None)
    if done is not None:
        terminated = arrays.setdefault("terminated", done)
        arrays.setdefault("truncated", (done != 0) & (terminated == 0))
    return arrays


def _one_after_another(arrays: Arrays) -> Arrays:
    """The environments' steps stand one after another; where one's are cut off, its last step is `unfinished`."""
    arrays, cut = _one_flag(arrays), arrays.pop("unfinished", None)
    if cut is not None:
        truncated = arrays.get("truncated", np.zeros(cut.shape, bool)) != 0
        arrays["truncated"] = truncated | ((cut != 0) & (arrays.get("terminated", truncated) == 0))
    return arrays


def _tokens(arrays: Arrays) -> Arrays:
    """Completions [B, T] with a mask. Each ends with its last token."""
    padding = arrays.pop("padding", None)
    if padding is not None:
        arrays["mask"] = padding == 0
    arrays = _batch_first(arrays)
    mask = arrays.get("mask", np.ones(arrays["rewards"].shape, bool)) != 0
    if "terminated" not in arrays:
        later = np.cumsum(mask[::-1], 0)[::-1]
        arrays["terminated"] = mask & (later == 1)
    return arrays


CONVENTIONS: dict[str, Convention] = {
    "telescope": Convention(),
    "sb3": Convention(
        {"starts": ("episode_starts",), "last_flags": ("dones", "last_dones"), "lam": ("gae_lambda",)},
        _late_flags,
        ("last_values",),
    ),
    "cleanrl": Convention(
        {
            "starts": ("dones",),
            "last_flags": ("next_done",),
            "last_values": ("next_value",),
            "lam": ("gae_lambda",),
        },
        _late_flags,
    ),
    "torchrl": Convention(
        {
            "rewards": ("reward",),
            "values": ("state_value",),
            "next_values": ("next_state_value",),
            "advantages": ("advantage",),
            "returns": ("value_target",),
            "lam": ("lmbda",),
        },
        _features_last,
        ("done",),
    ),
    "rlax": Convention(
        {"rewards": ("r_t",), "discounts": ("discount_t",), "values": ("v_t",), "lam": ("lambda_",)}, _bootstrap_row
    ),
    "tianshou": Convention(
        {
            "rewards": ("rew",),
            "values": ("v_s",),
            "next_values": ("v_s_",),
            "advantages": ("adv",),
            "lam": ("gae_lambda",),
        },
        _one_after_another,
        ("done", "unfinished"),
    ),
    "trl": Convention(
        {"padding": ("padding_mask",), "lam": ("gae_lambda", "lmbda"), "group": ("num_generations",)}, _tokens
    ),
    "verl": Convention({"rewards": ("token_level_rewards",), "mask": ("response_mask",)}, _tokens),
}
"""Library → its convention."""


SCALARS = ("gamma", "lam", "group")


def rollout(arrays: Mapping[str, Any], convention: str = "telescope") -> Rollout:
    """A rollout from named arrays of any library that NumPy can read.

    Raises:
        ValueError: the convention is not known, there are no rewards, an array is none of numbers, or γ, λ or the
            size of a group is out of range.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is {convention!r}; expected {', '.join(CONVENTIONS)}")
    row = CONVENTIONS[convention]
    found = {_ours(name, row): x for name, x in arrays.items() if x is not None and _ours(name, row) in _read(row)}
    found = {name: _numbers(name, x) for name, x in found.items()}
    if "rewards" not in found:
        wanted = " or ".join(("rewards", *row.names.get("rewards", ())))
        raise ValueError(f"there are {', '.join(arrays) or 'no arrays'}; expected at least {wanted}{_hint(arrays)}")
    scalars = {name: _scalar(name, found.pop(name)) for name in SCALARS if name in found}
    for name, x in found.items():
        if x.ndim == 0:
            raise ValueError(f"{name} is the single number {x}; expected an array [T, ...], time first")
    try:
        translated = row.translated(found | ({"gamma": np.array(scalars["gamma"])} if "gamma" in scalars else {}))
    except (ValueError, IndexError) as error:
        shapes = ", ".join(f"{name} {x.shape}" for name, x in found.items())
        raise ValueError(f"shapes do not fit together as {convention} has them: {shapes} ({error})") from None
    known: dict[str, Any] = {name: translated.get(name) for name in Rollout._fields}
    if known["gamma"] is not None:
        scalars["gamma"] = _scalar("gamma", known["gamma"])
    return Rollout(**known | scalars)


def _ours(name: str, row: Convention) -> str:
    """Our name of an array."""
    return next((ours for ours, theirs in row.names.items() if name in theirs), name)


def _read(row: Convention) -> set[str]:
    """Our names of what a convention reads."""
    return {*Rollout._fields, *row.names, *row.more}


def unread(arrays: Mapping[str, Any], convention: str = "telescope") -> list[str]:
    """The names in a file that the convention does not know."""
    row = CONVENTIONS[convention]
    return [name for name in arrays if _ours(name, row) not in _read(row)]


def _hint(arrays: Mapping[str, Any]) -> str:
    """Which convention has rewards under one of these names."""
    fitting = [name for name, row in CONVENTIONS.items() if set(row.names.get("rewards", ())) & set(arrays)]
    return f"; use --convention {fitting[0]}" if fitting else " (see --convention)"


def _numbers(name: str, x: Any) -> np.ndarray:
    try:
        array = as_array(x)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is no array: {error}") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} holds {array.dtype}; expected real numbers, or True and False")
    return array


def _scalar(name: str, x: np.ndarray) -> Any:
    """γ, λ or the size of a group, checked."""
    if x.size != 1 or not np.isfinite(x.ravel()[0]):
        raise ValueError(f"{name} is {x}; expected one number")
    number = float(x.ravel()[0])
    if name == "group":
        if number < 2 or number != int(number):
            raise ValueError(f"group is {number:g}; expected a whole number of completions from 2 on")
        return int(number)
    if not 0 <= number <= 1:
        raise ValueError(f"{name} is {number:g}; expected a number from 0 to 1")
    return number


def load(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of numbers in an npz file. Others are left out, and never unpickled.

    Raises:
        ValueError: this is no npz file.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return dict(_readable(file))
    except (zipfile.BadZipFile, ValueError, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no npz file of numbers ({error}); numpy.savez makes one") from None


def _readable(file: Any) -> Iterator[tuple[str, np.ndarray]]:
    for name in file.files:
        try:
            yield name, file[name]
        except ValueError as error:  # of Python objects
            if name in ("rewards", *Rollout._fields):
                raise ValueError(f"{name}: {error}") from None


def read(path: str | Path, convention: str = "telescope") -> Rollout:
    """The rollout in an npz file.

    Raises:
        ValueError: this is no npz file, or it holds no rollout.
    """
    return rollout(load(path), convention)


def record(path: str | Path, **arrays: Any) -> Path:
    """Write a rollout to an npz file, from a running program: `record("rollout.npz", rewards=…, values=…, gamma=…)`.

    Arrays are NumPy arrays, tensors of any device, or JAX arrays, [T, *batch]; None is left out. Names are free, so
    another library's own can be kept and read with its convention.
    """
    path = Path(path)
    kept: dict[str, Any] = {name: _numbers(name, x) for name, x in arrays.items() if x is not None}
    partial = path.with_name(f"{path.name}.partial")  # so that the doctor never reads half a file
    with open(partial, "wb") as file:
        np.savez(file, **kept)
    return partial.replace(path)


def as_array(x: Any) -> np.ndarray:
    """A NumPy array of an array of any library; bfloat16, which NumPy has not, becomes float32."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.float() if str(x.dtype) == "torch.bfloat16" else x
    array = np.asarray(x)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array

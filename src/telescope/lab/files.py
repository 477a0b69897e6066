"""Rollouts in files: `read("rollout.npz", convention="sb3")` and `record("rollout.npz", rewards=…, values=…, …)`.

A convention is how another library calls its arrays, which axis is time, and what its flags mean. Leaves out what is
wrong with a rollout (`doctor.py`).
"""

# T time, B columns
from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
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


def _late_flags(arrays: Arrays) -> Arrays:
    """Flags say that a row begins an episode; the last row's own flag and next value stand apart."""
    starts, last_flags = arrays.pop("starts", None), arrays.pop("last_flags", None)
    last_values, values = arrays.pop("last_values", None), arrays.get("values")
    if starts is not None:
        ended = np.zeros(starts.shape, bool)
        ended[:-1] = starts[1:] != 0
        if last_flags is not None:
            ended[-1] = np.asarray(last_flags).reshape(ended[-1].shape) != 0
        arrays["terminated"] = ended
    if values is not None and last_values is not None:
        arrays["next_values"] = np.concatenate([values[1:], np.reshape(last_values, (1, *values.shape[1:]))])
    return arrays


def _bootstrap_row(arrays: Arrays) -> Arrays:
    """Values have one row more than rewards; a discount of 0 says that the episode terminated."""
    values, discounts = arrays.get("values"), arrays.pop("discounts", None)
    if values is not None and len(values) == len(arrays["rewards"]) + 1:
        arrays["values"], arrays["next_values"] = values[:-1], values[1:]
    if discounts is not None:
        arrays["terminated"] = discounts == 0
        arrays.setdefault("gamma", np.max(discounts))
    return arrays


def _batch_first(arrays: Arrays) -> Arrays:
    """Time is axis 1, and a last axis of size 1 means nothing."""
    for name, x in arrays.items():
        if x.ndim == 3 and x.shape[-1] == 1:
            x = x[..., 0]
        arrays[name] = np.swapaxes(x, 0, 1) if x.ndim >= 2 else x
    return _one_flag(arrays)


def _one_flag(arrays: Arrays) -> Arrays:
    """`done` is both kinds of ends: truncated where it is not terminated."""
    done = arrays.pop("done", None)
    if done is not None:
        terminated = arrays.setdefault("terminated", done)
        arrays.setdefault("truncated", (done != 0) & (terminated == 0))
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
        {"starts": ("episode_starts",), "last_flags": ("dones", "last_dones"), "lam": ("gae_lambda",)}, _late_flags
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
        _batch_first,
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
        _one_flag,
    ),
    "trl": Convention({"padding": ("padding_mask",), "lam": ("gae_lambda", "lmbda")}, _tokens),
    "verl": Convention({"rewards": ("token_level_rewards",), "mask": ("response_mask",)}, _tokens),
}
"""Library → its convention."""


def rollout(arrays: Mapping[str, Any], convention: str = "telescope") -> Rollout:
    """A rollout from named arrays of any library that NumPy can read.

    Raises:
        ValueError: the convention is not known, there are no rewards, or γ or λ is no number.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is {convention!r}; expected {', '.join(CONVENTIONS)}")
    row = CONVENTIONS[convention]
    ours = {their: name for name, names in row.names.items() for their in names}
    found = {ours.get(name, name): _array(x) for name, x in arrays.items() if x is not None}
    if "rewards" not in found:
        wanted = " or ".join(("rewards", *row.names.get("rewards", ())))
        raise ValueError(f"there are {', '.join(arrays) or 'no arrays'}; expected at least {wanted} (see --convention)")
    translated = row.translated(dict(found))
    known: dict[str, Any] = {name: translated.get(name) for name in Rollout._fields}
    for name in ("gamma", "lam"):
        if known[name] is not None:
            if np.size(known[name]) != 1 or not np.isfinite(float(np.ravel(known[name])[0])):
                raise ValueError(f"{name} is {known[name]}; expected one number")
            known[name] = float(np.ravel(known[name])[0])
    return Rollout(**known)


def read(path: str | Path, convention: str = "telescope") -> Rollout:
    """The rollout in an npz file.

    Raises:
        ValueError: this is no npz file, or it holds no rollout.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError, AttributeError) as error:
        raise ValueError(f"{path} is no npz file of numbers ({error}); numpy.savez makes one") from None
    return rollout(arrays, convention)


def record(path: str | Path, **arrays: Any) -> Path:
    """Write a rollout to an npz file, from a running program: `record("rollout.npz", rewards=…, values=…, gamma=…)`.

    Arrays are NumPy arrays, tensors of any device, or JAX arrays, [T, *batch]; None is left out. Names are free, so
    another library's own can be kept and read with its convention.
    """
    path = Path(path)
    with open(path, "wb") as file:
        kept: dict[str, Any] = {name: _array(x) for name, x in arrays.items() if x is not None}
        np.savez(file, **kept)
    return path


def _array(x: Any) -> np.ndarray:
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.float() if str(x.dtype) == "torch.bfloat16" else x
    array = np.asarray(x)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array

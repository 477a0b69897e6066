"""Checks of configuration fields. A ValueError names the field and its value.

Leaves out checks that only one configuration needs.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

MEMORY_LIMITS = [Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory/memory.limit_in_bytes")]
"""A container's limit of memory in bytes, or `max`; in two versions of the interface."""
ABSENT = "absent"
"""In place of the digest of a file that is not there."""


def typed(config: object) -> None:
    """Check every field against its annotation. A value of another type raises a ValueError.

    NumPy scalars become Python numbers; ints become floats, and lists become tuples, if the annotation says so. A field
    whose metadata says `callable` also accepts functions (only from Python).
    """
    cls: Any = type(config)
    functions = {field.name for field in dataclasses.fields(cls) if field.metadata.get("callable")}
    for name, hint in hints(cls).items():
        if name in functions and callable(value := getattr(config, name)):
            continue
        if name in functions and isinstance(value, list | tuple) and any(map(callable, value)):
            object.__setattr__(config, name, tuple(x if callable(x) else fitted(x, str, name) for x in value))
            continue
        object.__setattr__(config, name, fitted(getattr(config, name), hint, name))


@functools.cache
def hints(cls: type[Any]) -> dict[str, Any]:
    """The annotations of a dataclass's fields, by name."""
    found = typing.get_type_hints(cls)
    return {field.name: found[field.name] for field in dataclasses.fields(cls) if field.init}


def fitted(value: Any, hint: Any, place: str, none: str = "None") -> Any:
    """The value, converted to the annotation. A ValueError if that is impossible. `none` is the word for None."""
    value = _plain(value)
    for option in options(hint):
        matched, result = _match(value, option, place)
        if matched:
            return result
    whole = f"; write {int(value)}" if type(value) is float and value.is_integer() and int in options(hint) else ""
    raise ValueError(f"{place} is {value!r} ({type(value).__name__}); expected {described(hint, none)}{whole}")


def _plain(value: Any) -> Any:
    """A NumPy or torch scalar as a Python number; everything else unchanged."""
    scalar = getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    return value.item() if scalar else value


def _match(value: Any, option: Any, place: str) -> tuple[bool, Any]:
    """Whether one alternative of an annotation accepts the value, and the converted value."""
    origin = typing.get_origin(option)
    if option is Any:
        return True, value
    if origin is typing.Literal:
        return any(value == one and type(value) is type(one) for one in typing.get_args(option)), value
    if option in (None, types.NoneType):
        return value is None, None
    if option is tuple or origin is tuple:
        return isinstance(value, list | tuple), _fitted_tuple(value, typing.get_args(option), place)
    if option is dict or origin in (dict, Mapping):
        return isinstance(value, Mapping), _plain_values(value)
    if option is float and type(value) is int:
        return True, float(value)
    if option is float and type(value) is float and math.isnan(value):
        raise ValueError(f"{place} is nan; expected a number")
    return type(value) is option, value  # exactly: True is not an int here


def _fitted_tuple(value: Any, hints: tuple[Any, ...], place: str) -> Any:
    if not isinstance(value, list | tuple):
        return None
    if not hints:
        return tuple(value)
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = hints[:1] * len(value)
    if len(hints) != len(value):
        raise ValueError(f"{place} is {value!r}; expected {len(hints)} values, not {len(value)}")
    return tuple(fitted(item, hint, f"{place}[{i}]") for i, (item, hint) in enumerate(zip(value, hints, strict=True)))


def _plain_values(value: Any) -> Any:
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def options(hint: Any) -> list[Any]:
    """The alternatives of a union, with float last because it accepts an int."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return sorted(typing.get_args(hint) if union else [hint], key=lambda one: (one is not types.NoneType, one is float))


def described(hint: Any, none: str = "None") -> str:
    """An annotation in words: `a float or None`, `one of 'auto', 'on', 'off'`."""

    def words(option: Any) -> str:
        if option is types.NoneType:
            return none
        if typing.get_origin(option) is typing.Literal:
            return f"one of {', '.join(map(repr, typing.get_args(option)))}"
        return str(getattr(option, "__name__", option)) if typing.get_origin(option) is None else str(option)

    return " or ".join(words(option) for option in reversed(options(hint)))


def import_path(value: Any) -> str:
    """`module:name` of a function or class that can be imported again; `module:` alone if it cannot."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    found = sys.modules.get(str(module))
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name if found is value and module != '__main__' else ''}"


def positive(config: object, *names: str) -> None:
    _require(config, names, lambda x: math.isfinite(x) and x > 0, "a number > 0")


def positive_all(config: object, name: str) -> None:
    value = getattr(config, name)
    if not all(isinstance(x, int) and x > 0 for x in value):
        raise ValueError(f"{name} is {value!r}; expected whole numbers > 0")


def at_least_zero(config: object, *names: str) -> None:
    _require(config, names, lambda x: math.isfinite(x) and x >= 0, "a number >= 0")


def finite(config: object, *names: str) -> None:
    _require(config, names, math.isfinite, "a finite number")


def in_unit_interval(config: object, *names: str) -> None:
    _require(config, names, lambda x: 0 <= x <= 1, "a number in [0, 1]")


def unread(config: object, name: str, reader: str, reason: str) -> None:
    """Raise a ValueError if a field was set that has no effect here. `reader`: what would use it."""
    if changed(config, name):
        raise ValueError(f"{name} is {getattr(config, name)!r}, but {reason}, so nothing would read it; {reader}")


def changed(config: object, name: str) -> bool:
    """Whether a field differs from its class's default."""
    [default] = [field.default for field in dataclasses.fields(config) if field.name == name]  # type: ignore[arg-type]
    return bool(getattr(config, name) != default)


def _require(config: object, names: Iterable[str], holds: Callable[[Any], bool], expected: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is None:  # which `typed` lets pass only where the annotation has it
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not holds(value):
            raise ValueError(f"{name} is {value!r}; expected {expected}")


def whole_number(name: str, value: Any) -> int:
    """An argument as an int >= 1. A ValueError if it is something else."""
    number = fitted(value, int, name)
    if number < 1:
        raise ValueError(f"{name} is {number}; expected at least 1")
    return int(number)


def fits_memory(numbers: int, subject: str) -> None:
    """Raise a ValueError if `numbers` float32 numbers exceed this machine's memory. `subject` begins the sentence."""
    there = memory()
    if 4 * numbers > there:
        raise ValueError(f"{subject} {4 * numbers / 1e9:,.0f} GB of memory, but this machine has {there / 1e9:,.0f} GB")


def memory() -> int:
    """The bytes of memory of this machine, at most its container's limit."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
            found = min(found, int(limit.read_text()))
    return found


def file_digest(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of an ordinary file; ABSENT if it does not exist or cannot be read."""
    try:
        with open(path if os.path.isfile(path) else "", "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ABSENT


def missing_device(device: str) -> str:
    """Why torch cannot store numbers on this device; empty if it can."""
    import torch

    try:
        torch.zeros(1, device=device).cpu()  # fails too for devices that hold no numbers
    except Exception as error:  # an unknown name or a missing device raises many types
        return " ".join(str(error).split()).partition(". ")[0]
    return ""


def require_device(config: Any) -> None:
    """Raise a ValueError if the configuration's device is not available."""
    if reason := missing_device(config.device):
        raise ValueError(f"device {config.device!r} is not available on this machine ({reason}); use --device cpu")


def on_device(config: Any, device: str | None) -> Any:
    """The configuration with an available device: the given one, or its own, or otherwise the CPU."""
    if device is not None:
        config = dataclasses.replace(config, device=device)
        require_device(config)
    elif reason := missing_device(config.device):
        warnings.warn(f"device {config.device!r} is not available on this machine ({reason}); using cpu", stacklevel=3)
        config = dataclasses.replace(config, device="cpu")
    return config


@contextlib.contextmanager
def fitting() -> Iterator[None]:
    """Turn errors from an incomplete or inconsistent state into a ValueError."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"the state to resume from does not match this run ({type(error).__name__}: {error}); was it changed, or "
            "written by another version?"
        ) from error


def same_kind(what: str, saved: Any, own: Any) -> None:
    """Raise a ValueError unless `saved` has the names, shapes and dtypes of `own`. Compiled loops do not check them."""
    if isinstance(own, Mapping):
        if not isinstance(saved, Mapping) or saved.keys() != own.keys():
            names = sorted(saved) if isinstance(saved, Mapping) else type(saved).__name__
            raise ValueError(f"{what} of the state to resume from holds {names}; expected {sorted(own)}")
        for name, value in own.items():
            same_kind(f"{what} {name}", saved[name], value)
    elif hasattr(own, "shape"):
        there, here = (
            f"{type(x).__name__} {tuple(x.shape)} of {x.dtype}" if hasattr(x, "shape") else repr(x)
            for x in (saved, own)
        )
        if there != here:
            raise ValueError(f"{what} of the state to resume from is {there}; expected {here}")


def as_typed(flag: str, value: Any) -> list[str]:
    """A flag of the command line with its values, as typed. Words before the first flag have no flag."""
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    values = [str(one) for one in (value if isinstance(value, list | tuple) else ["none" if value is None else value])]
    return [f"--{flag}", *values] if flag else values

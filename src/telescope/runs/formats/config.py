"""Configurations as TOML files: write a frozen dataclass, and read it back with checks of its annotations.

Leaves out the meaning of fields (each algorithm's config) and the command line (`commands/arguments.py`).

TOML has no null. To write None, the key is left out, or has the word "none" if the field's default is something else.
`checks.fitted` checks values against annotations, as for every config. cattrs and msgspec would be a second way, and
their errors name neither the value nor the intended key.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from typing import Any

from telescope.checks import fitted, import_path, options
from telescope.renamed import current
from telescope.runs.files import join, read, require, shown, write_atomic

NONE = "none"


def write_config(path: str | os.PathLike[str], config: Any) -> None:
    """Write a dataclass of str, int, float, bool, None, tuples and dicts of those as TOML, atomically.

    A function or class is written as module:name. `read_config` with the same class returns an equal config.
    A ValueError for a value that TOML cannot express; a RunError if the file cannot be written.
    """
    write_mapping(path, to_mapping(config))


def write_mapping(path: str | os.PathLike[str], mapping: Mapping[str, Any]) -> None:
    """Write the result of `to_mapping` as TOML, atomically. A RunError if the file cannot be written."""
    write_atomic(path, require("tomli_w").dumps(mapping).encode())


def to_mapping(config: Any) -> dict[str, Any]:
    """The fields as TOML values, without those that are None (or with `"none"` if the default is something else)."""
    hints = typing.get_type_hints(type(config))
    mapping = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == NONE and _admits_none(hints[field.name]):
            raise ValueError(f"{field.name} is {value!r}, which means None in a configuration file; pass None")
        if value is None and _default(field) is not None:
            mapping[field.name] = NONE
        elif value is not None:
            mapping[field.name] = _expressible(value, field.name)
    return mapping


def read_config(path: str | os.PathLike[str], cls: type[Any]) -> Any:
    """Read a TOML file into the dataclass `cls`. Missing keys take the field's default.

    A RunError if the file cannot be read; a ValueError if it is not TOML, or as in `from_mapping`.
    """
    return from_mapping(cls, read_toml(path), source=os.fspath(path))


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a TOML file into a dict. A RunError if it cannot be read, a ValueError if it is not TOML."""
    data = read(path)
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # includes decoding errors
        raise ValueError(f"{shown(path)} is not a TOML file: {error}") from error


def from_mapping(cls: type[Any], mapping: Mapping[str, Any], *, source: str, told: bool = False) -> Any:
    """Build the dataclass `cls` from names and values, checked against its annotations.

    An int is accepted for a float, an array for a tuple, `"none"` for None. source: the origin of the mapping, for
    messages. told: former names of fields give no DeprecationWarning. A ValueError names the key, its value and the
    expected type, or for an unknown key the closest known one.
    """
    mapping = current(cls, mapping, told=told, stacklevel=3)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in mapping:
        if key not in fields:
            raise ValueError(f"{source}: unknown key {key!r}{_hint(key, fields)}")
    given = {key: None if value == NONE and _admits_none(hints[key]) else value for key, value in mapping.items()}
    values = {key: fitted(value, hints[key], f"{source}: {key}", f'"{NONE}"') for key, value in given.items()}
    absent = [name for name, field in fields.items() if name not in mapping and _required(field)]
    missing = [name for name in absent if not _admits_none(hints[name])]
    if missing:
        raise ValueError(f"{source}: no value for {join(map(repr, missing))}, which {cls.__name__} needs")
    return cls(**values, **dict.fromkeys(absent))


def _admits_none(hint: Any) -> bool:
    return any(option in (None, types.NoneType) for option in options(hint))


def _hint(key: str, names: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key.replace("-", "_"), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys are {', '.join(names)}"


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default(field: dataclasses.Field[Any]) -> Any:
    """The default; None for a field without one, because leaving it out then means None too."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _expressible(value: Any, place: str) -> Any:
    """The value as TOML writes it. Tuples become arrays (lists, when read back within a dict). None is an error."""
    if isinstance(value, list | tuple):
        return [_expressible(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: _expressible(item, f"{place}.{key}") for key, item in value.items()}
    if type(value) in (bool, int, float, str):
        return value
    if isinstance(value, types.FunctionType | type):
        return import_path(value)
    raise ValueError(
        f"{place} is {value!r} ({type(value).__name__}), which a TOML configuration cannot hold; "
        "expected str, int, float, bool, or tuples and dicts (with str keys) of those"
    )

"""Keyword arguments on the command line, `--env-kwargs NAME VALUE NAME VALUE`, with TOML values.

Leaves out which names are valid; the environment decides.
"""

from __future__ import annotations

import json
import tomllib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

CAPITALS = {"True": True, "False": False}
"""Python's spelling of values, which users type too."""


AS_TOML: dict[str, Any] = {"separators": (", ", " = "), "ensure_ascii": False}


def registry() -> Any:
    """The rules that tyro lacks: a dictionary of values of any kind."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

    rules = ConstructorRegistry()

    @rules.primitive_rule
    def keywords(info: Any) -> Any:
        if typing.get_origin(info.type) is not dict:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="[NAME VALUE [NAME VALUE ...]]",
            instance_from_str=parsed,
            is_instance=lambda x: isinstance(x, dict),
            str_from_instance=written,
        )

    return rules


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """NAME VALUE pairs as a dictionary. A value that is not TOML is a string."""
    if len(words) % 2:
        raise ValueError(f"{' '.join(words)!r} leaves a NAME without a VALUE; expected pairs: NAME VALUE NAME VALUE")
    names = words[::2]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{', '.join(sorted(twice))} is given more than once; expected each NAME once")
    return {name: value(word) for name, word in zip(names, words[1::2], strict=True)}


def value(word: str) -> Any:
    """`false`, `5`, `0.1`, `[1, 2]`, `{x = 1}`, `"5"` as TOML values; everything else is the word itself."""
    if word in CAPITALS:
        return CAPITALS[word]
    try:
        table = tomllib.loads(f"value = {word}")
    except tomllib.TOMLDecodeError:
        return word
    alone = list(table) == ["value"]
    return table["value"] if alone and _kept(table["value"]) else word


def _kept(found: Any) -> bool:
    """Whether a run's config.toml can hold it. A date stays a word."""
    if isinstance(found, Mapping):
        return all(map(_kept, found.values()))
    return all(map(_kept, found)) if isinstance(found, list) else isinstance(found, bool | int | float | str)


def written(keywords: Mapping[str, Any]) -> list[str]:
    """The words that `parsed` would read, for the help text: JSON with "=" for ":" is TOML on one line."""
    texts = (value if isinstance(value, str) else json.dumps(value, **AS_TOML) for value in keywords.values())
    return [word for pair in zip(keywords, texts, strict=True) for word in pair]

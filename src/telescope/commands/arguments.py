"""Turn flags and positional arguments into a dataclass, with an error sentence for each wrong one.

tyro prints the help from the same dataclass. It does not parse the arguments: it answers wrong ones with a box, and
accepts neither `1e5` for an integer, nor `none`, nor other libraries' names for a flag (`flags.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

from telescope.checks import as_typed, hints
from telescope.commands import keywords
from telescope.commands.flags import REPEATABLE, short_for, unknown_flag
from telescope.renamed import current

HELP = {"-h", "--help"}
_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", re.IGNORECASE)


def parse(cls: type[Any], words: Sequence[str], title: str, defaults: dict[str, Any] | None = None) -> Any:
    """Flags → the dataclass. Nested dataclasses share one flat set of flags. A ValueError says what is wrong.

    With --help, print the help and raise SystemExit(0).
    """
    default = None if defaults is None else cls(**defaults)
    if HELP & set(words):
        _print_help(cls, title, default)
    return _filled(cls, values(words, known_flags(cls), title), default)


def _print_help(cls: type[Any], title: str, default: Any) -> None:
    import tyro

    rules = {"config": (tyro.conf.OmitArgPrefixes,), "registry": keywords.registry()}
    tyro.cli(cls, args=["--help"], prog=title, **rules, **({} if default is None else {"default": default}))


def _filled(cls: Any, given: Mapping[str, Any], default: Any) -> Any:
    """The dataclass with the given values, by flag. Other fields come from the default, or from the class."""
    fields: dict[str, Any] = {}
    for name, hint in hints(cls).items():
        if _is_inside(hint):
            fields[name] = _filled(hint, given, getattr(default, name))
        elif (flag := name.replace("_", "-")) in given:
            fields[name] = given[flag]
    return cls(**fields) if default is None else dataclasses.replace(default, **fields)


def known_flags(cls: Any) -> dict[str, Any]:
    """The flags of a dataclass and of its nested dataclasses: name → type."""
    flags: dict[str, Any] = {}
    for name, hint in hints(cls).items():
        flags |= known_flags(hint) if _is_inside(hint) else {name.replace("_", "-"): hint}
    return flags


def _is_inside(hint: Any) -> bool:
    """Whether it is a dataclass, whose fields are flags too."""
    return dataclasses.is_dataclass(hint)


def values(words: Sequence[str], known: Mapping[str, Any], title: str) -> dict[str, Any]:
    """The values by flag. A ValueError for an unknown flag, a missing value, or a value of the wrong type."""
    found: dict[str, Any] = {}
    for flag, told in _grouped(words):
        flag, told = short_for(flag, told, known)
        if flag is None:
            raise ValueError(f"{told[0]!r} is not a flag; `{title} --help` lists the arguments")
        name = flag.removeprefix("no-") if _is_switch(flag, known) else flag
        if name not in known:
            raise ValueError(unknown_flag(flag, known, title))
        hint = known[name]
        if _is_switch(flag, known):
            if told:
                raise ValueError(f"--{flag} takes no value, got {told[0]!r}; --{name} means yes, --no-{name} no")
            found[name] = flag == name
            continue
        if not told or told == [""]:
            raise ValueError(f"--{flag} needs a value; `{title} --help` shows which")
        if not _takes_many(hint) and len(told) > 1:
            raise ValueError(f"--{flag} takes one value, got {len(told)}: {' '.join(told)}")
        if (count := _how_many(hint)) and len(told) != count and [word.lower() for word in told] != ["none"]:
            raise ValueError(f"--{flag} takes {count} values, got {len(told)}: {' '.join(told)}")
        if name in REPEATABLE and name in found:
            found[name] += tuple(told)
            continue
        if _takes_many(hint) and name in found:
            raise ValueError(f"--{flag} is given twice; give all its values after one --{flag}")
        found[name] = _joined(told, flag, hint)
    return found


def under_current_names(flags: list[str], cls: type[Any]) -> list[str]:
    """The flags of a configuration, with former names replaced by current ones and a DeprecationWarning."""
    given: dict[str, Any] = {}
    for flag, values in _grouped(flags):
        name = (flag or "").replace("-", "_")
        values = [*(given.get(name, []) if name in REPEATABLE else []), *values]
        given[name if values else name.removeprefix("no_")] = values or not name.startswith("no_")
    now = current(cls, given)
    if now == given or HELP & set(flags):
        return flags
    return [word for name, value in now.items() for word in as_typed(name.replace("_", "-"), value)]


@contextlib.contextmanager
def notes(category: type[Warning] = UserWarning) -> Iterator[None]:
    """Print the warnings of the block as plain lines on standard error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", category)
        yield
    for warning in caught:
        if issubclass(warning.category, category):
            print(f"note: {warning.message}", file=sys.stderr)


def positionals(arguments: Sequence[str], *options: type[Any]) -> tuple[list[str], list[str]]:
    """Split arguments into positional ones, and flags of these dataclasses with their values."""
    known = {flag: hint for cls in options for flag, hint in known_flags(cls).items()}
    free, rest = list[str](), list[str]()
    room = 0  # how many more values the last flag takes
    for word in arguments:
        if (flag := _flag(word)) is not None:
            many = _takes_many(known.get(flag))
            room = 0 if "=" in word or word in HELP or _is_switch(flag, known) else len(arguments) if many else 1
        (rest if flag is not None or room > 0 else free).append(word)
        room -= flag is None
    return free, rest


def value_of(flag: str, words: Sequence[str]) -> str | None:
    """The value of one flag, before the others are parsed."""
    return next((told[0] for name, told in _grouped(words) if told and name == flag), None)


def _grouped(words: Sequence[str]) -> Iterator[tuple[str | None, list[str]]]:
    """Each flag with the words after it. Words before the first flag come without a flag."""
    flag: str | None = None
    values: list[str] = []
    for word in words:
        if (found := _flag(word)) is None:
            values.append(word)
            continue
        if flag is not None or values:
            yield flag, values
        flag, values = found, [word.partition("=")[2]] if "=" in word else []
    if flag is not None or values:
        yield flag, values


def _flag(word: str) -> str | None:
    """The name of a flag, with hyphens, or None for a value. Negative numbers are values."""
    if not word.startswith("-") or word == "-" or _NUMBER.fullmatch(word):
        return None
    return word.lstrip("-").partition("=")[0].replace("_", "-")


def _is_switch(flag: str, known: Mapping[str, Any]) -> bool:
    return known.get(flag) is bool or (flag.startswith("no-") and known.get(flag.removeprefix("no-")) is bool)


def _takes_many(hint: Any) -> bool:
    return any(typing.get_origin(one) in (tuple, list, dict) for one in (hint, *typing.get_args(hint)))


def _how_many(hint: Any) -> int:
    """The length of a tuple type of fixed length; 0 for all other types."""
    tuples = [typing.get_args(one) for one in (hint, *typing.get_args(hint)) if typing.get_origin(one) is tuple]
    return 0 if not tuples or Ellipsis in tuples[0] else len(tuples[0])


def _joined(words: Sequence[str], flag: str, hint: Any) -> Any:
    """The value of the words after a flag: NAME VALUE pairs, a tuple, or one value."""
    if typing.get_origin(hint) is dict:
        try:
            return keywords.parsed(words)
        except ValueError as error:
            raise ValueError(f"--{flag}: {error}") from None
    found = tuple(_value(word, flag, hint) for word in words)
    return found if _takes_many(hint) and found != (None,) else found[0]


def _value(word: str, flag: str, hint: Any) -> Any:
    """The word as a value of the flag's type: 1e5 is the integer 100000, and none is None."""
    kinds = set(_kinds(hint))
    choices = [choice for choice in kinds if isinstance(choice, str)]
    if word == "None" and type(None) in kinds:
        return None
    if object in kinds or str in kinds or word in choices:
        return word
    if type(None) in kinds and word.lower() == "none":
        return None
    if _NUMBER.fullmatch(word):
        if float in kinds:
            return float(word)
        if int in kinds and float(word).is_integer():
            return int(Decimal(word))  # exact, unlike a float
    wanted = [f"one of {', '.join(sorted(choices))}"] if choices else []
    wanted += ["a number"] if float in kinds else ["a whole number"] if int in kinds else []
    wanted += ["none"] if type(None) in kinds else []
    several = f"; separate several by spaces: --{flag} 1 2" if "," in word and _takes_many(hint) else ""
    raise ValueError(f"--{flag} is {word!r}; expected {' or '.join(wanted)}{several}")


def _kinds(hint: Any) -> Iterator[Any]:
    """The plain types and literal values inside an annotation; `object` if it accepts anything."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        yield object
    elif origin is Literal:
        yield from inner
    elif inner:
        for one in inner:
            yield from _kinds(one)
    else:
        yield hint

"""Flags and positional arguments: checked one by one, told in a sentence where they are wrong, made a dataclass.

Leaves out what any command does with them, and what other libraries call them (`flags.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

from telescope.commands import keywords
from telescope.commands.flags import unknown_flag

HELP = {"-h", "--help"}
_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", re.IGNORECASE)


def parse(cls: type[Any], flags: list[str], title: str, defaults: dict[str, Any] | None = None) -> Any:
    """Flags → the dataclass; nested dataclasses share one flat set of flags. ValueError says what is wrong.

    Where help is asked for, that is all that happens: it is printed, and SystemExit(0) raised.
    """
    import tyro

    asked = bool(HELP & set(flags))
    flags = ["--help"] if asked else checked(flags, known_flags(cls), title)
    default = {} if defaults is None else {"default": cls(**defaults)}
    rules = {"config": (tyro.conf.OmitArgPrefixes,), "registry": keywords.registry()}
    with contextlib.nullcontext() if asked else _boxes_as_sentences():
        return tyro.cli(cls, args=flags, prog=title, **rules, **default)


def known_flags(cls: type[Any]) -> dict[str, Any]:
    """The flags of a dataclass and of those inside it: name → type."""
    hints: dict[str, Any] = typing.get_type_hints(cls)
    flags: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        inside = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        flags |= known_flags(hint) if inside else {field.name.replace("_", "-"): hint}
    return flags


def checked(words: Sequence[str], known: Mapping[str, Any], title: str) -> list[str]:
    """The words as tyro takes them; ValueError for an unknown flag, a missing value, or one of the wrong kind."""
    told, seen = list[str](), set[str]()
    for flag, values in _grouped(words, known):
        if flag is None:
            raise ValueError(f"{values[0]!r} is not understood here; `{title} --help` shows what is")
        name = flag.removeprefix("no-") if _is_switch(flag, known) else flag
        if name not in known:
            raise ValueError(unknown_flag(flag, known, title))
        hint = known[name]
        if _is_switch(flag, known):
            if values:
                raise ValueError(f"--{flag} takes no value, got {values[0]!r}; --{name} means yes, --no-{name} no")
        elif not values or values == [""]:
            raise ValueError(f"--{flag} needs a value after it; `{title} --help` shows which")
        elif not _takes_many(hint) and len(values) > 1:
            raise ValueError(f"--{flag} takes one value, got {len(values)}: {' '.join(values)}")
        elif (count := _how_many(hint)) and len(values) != count and [value.lower() for value in values] != ["none"]:
            raise ValueError(f"--{flag} takes {count} values, got {len(values)}: {' '.join(values)}")
        elif _takes_many(hint) and name in seen:
            raise ValueError(f"--{flag} is given twice; give all its values behind one --{flag}")
        seen.add(name)
        told += [f"--{flag}", *(_value(value, flag, hint) for value in values)]
    return told


def positionals(arguments: Sequence[str], *options: type[Any]) -> tuple[list[str], list[str]]:
    """The arguments that are no flags nor values of flags of these dataclasses, and the rest."""
    known = {flag: hint for cls in options for flag, hint in known_flags(cls).items()}
    free, rest = list[str](), list[str]()
    room = 0  # for how many more values the last flag has room
    for word in arguments:
        if (flag := _flag(word)) is not None:
            many = _takes_many(known.get(flag))
            room = 0 if "=" in word or word in HELP or _is_switch(flag, known) else len(arguments) if many else 1
        (rest if flag is not None or room > 0 else free).append(word)
        room -= flag is None
    return free, rest


def value_of(flag: str, flags: list[str]) -> str | None:
    """The value of one flag before the others are parsed."""
    for i, argument in enumerate(flags):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag and i + 1 < len(flags) and _flag(flags[i + 1]) is None:
            return flags[i + 1]
    return None


def _grouped(words: Sequence[str], known: Mapping[str, Any]) -> Iterator[tuple[str | None, list[str]]]:
    """Each flag with the words behind it; words before the first flag without one."""
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
    """The name of a flag, with hyphens; None for a value. Negative numbers are values."""
    if not word.startswith("-") or word == "-" or _NUMBER.fullmatch(word):
        return None
    return word.lstrip("-").partition("=")[0].replace("_", "-")


def _is_switch(flag: str, known: Mapping[str, Any]) -> bool:
    return known.get(flag) is bool or (flag.startswith("no-") and known.get(flag.removeprefix("no-")) is bool)


def _takes_many(hint: Any) -> bool:
    return any(typing.get_origin(one) in (tuple, list, dict) for one in (hint, *typing.get_args(hint)))


def _how_many(hint: Any) -> int:
    """The length of a tuple that has a fixed one; 0 for every other kind."""
    tuples = [typing.get_args(one) for one in (hint, *typing.get_args(hint)) if typing.get_origin(one) is tuple]
    return 0 if not tuples or Ellipsis in tuples[0] else len(tuples[0])


def _value(word: str, flag: str, hint: Any) -> str:
    """The word as tyro takes it: 1e5 is the integer 100000, and none is None."""
    kinds = set(_kinds(hint))
    choices = [choice for choice in kinds if isinstance(choice, str)]
    if dict in kinds or str in kinds or word in choices:
        return word
    if type(None) in kinds and word.lower() == "none":
        return "None"
    if _NUMBER.fullmatch(word):
        number = float(word)
        if float in kinds:
            return word
        if int in kinds and number.is_integer():
            return word if word.lstrip("+-").replace("_", "").isdecimal() else str(int(Decimal(word)))
    wanted = [f"one of {', '.join(sorted(choices))}"] if choices else []
    wanted += ["a number"] if float in kinds else ["a whole number"] if int in kinds else []
    wanted += ["none"] if type(None) in kinds else []
    several = f"; separate several by spaces: --{flag} 1 2" if "," in word and _takes_many(hint) else ""
    raise ValueError(f"--{flag} is {word!r}; expected {' or '.join(wanted)}{several}")


def _kinds(hint: Any) -> Iterator[Any]:
    """The plain types and literal values inside an annotation; `dict` for one of anything."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict or hint is Any:
        yield dict
    elif origin is Literal:
        yield from inner
    elif inner:
        for one in inner:
            yield from _kinds(one)
    else:
        yield hint


@contextlib.contextmanager
def _boxes_as_sentences() -> Iterator[None]:
    """What tyro still refuses, above all a config's own complaints, as a ValueError instead of a box on the screen."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "10000"  # no line of a box is broken then
    try:
        with contextlib.redirect_stderr(io.StringIO()) as box:
            yield
    except SystemExit as ended:
        if not ended.code:
            raise
        raise ValueError(_sentence(box.getvalue())) from None
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns


def _sentence(box: str) -> str:
    """The first paragraph under the title of a box, be it drawn with lines or, for another encoding, without."""
    _, *lines = [line.strip("╭╮│╰╯─|+- ") for line in box.strip().splitlines()]
    paragraph = itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines))
    return re.sub(r"^Error parsing (\w+: )?", "", " ".join(paragraph))  # the name of a dataclass says nothing here

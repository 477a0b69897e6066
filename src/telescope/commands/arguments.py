"""Flags and positional arguments, and how they become a dataclass.

Leaves out what any command does with them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from telescope.commands import keywords


def parse(cls: type[Any], flags: list[str], title: str, defaults: dict[str, Any] | None = None) -> Any:
    """Flags → the dataclass; nested dataclasses share one flat set of flags."""
    try:
        import tyro
    except ImportError as error:
        raise ImportError('the command line needs more packages: pip install "telescope-rl[control]"') from error
    default = {} if defaults is None else {"default": cls(**defaults)}
    rules = {"config": (tyro.conf.OmitArgPrefixes,), "registry": keywords.registry()}
    return tyro.cli(cls, args=flags, prog=title, **rules, **default)


def positionals(arguments: list[str], options: Any) -> tuple[list[str], list[str]]:
    """The arguments that are no flags nor values of flags, and the rest."""
    switches = {f"--{field.name}" for field in dataclasses.fields(options) if field.default is False}
    positionals, flags = list[str](), list[str]()
    for argument in arguments:
        takes_value = bool(flags) and flags[-1].startswith("--") and flags[-1] not in switches and "=" not in flags[-1]
        (flags if argument.startswith("-") or takes_value else positionals).append(argument)
    return positionals, flags


def value_of(flag: str, flags: list[str]) -> str | None:
    """The value of one flag before the others are parsed."""
    for i, argument in enumerate(flags):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag and i + 1 < len(flags):
            return flags[i + 1]
    return None

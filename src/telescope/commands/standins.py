"""Print help without loading slow libraries: empty stand-ins replace them while a config class is imported.

Documentation tools work the same way. The process must end after printing help. If a stand-in is not enough, the
libraries are loaded after all. The goal is `telescope train ALGORITHM ENV --help` within 1.5 s; an algorithm's file has
its config beside its loop, so it imports torch, which alone takes longer.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

HEAVY = {"torch", "gymnasium", "numba"}


class _Anything(type):
    """The metaclass of a class that can be anything: a base class, a decorator, a type, a constant."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __call__(cls, *arguments: Any, **more: Any) -> Any:
        return arguments[0] if arguments and isinstance(arguments[0], types.FunctionType) else cls  # as a decorator

    def __getitem__(cls, key: Any) -> Any:
        return cls


class Anything(metaclass=_Anything):
    """The value of every name in a stand-in module."""


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds slow libraries and all of their modules, as empty modules."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        heavy = name.partition(".")[0] in HEAVY
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if heavy else None

    def create_module(self, spec: Any) -> Any:
        return None

    def exec_module(self, module: Any) -> None:
        module.__getattr__ = lambda name: getattr(Anything, name)


def with_standins(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a command that prints help. Nothing else may run in this process afterwards."""
    if HEAVY & set(sys.modules):
        return command(arguments)
    finder = StandIns()
    sys.meta_path.insert(0, finder)
    try:
        return command(arguments)
    except Exception:  # a stand-in was not enough; an error of the user's will occur again
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in HEAVY | {"telescope"}]:
            del sys.modules[name]
        from telescope.commands.train import train

        return train(arguments)

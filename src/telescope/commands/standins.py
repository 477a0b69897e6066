"""Help without the libraries that take seconds to load: stand-ins take their place while a config class is read.

As documentation tools do it. For a process that prints help and ends; where a stand-in is not enough, the libraries
themselves are loaded after all. The bar: `telescope train ALGORITHM ENV --help` within 1.5 s. An algorithm's file has
its config beside its loop, and so imports torch, which alone takes longer.
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
    """The class of a class that is whatever is asked of it: a base class, a decorator, a type, a constant."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __call__(cls, *arguments: Any, **more: Any) -> Any:
        return arguments[0] if arguments and isinstance(arguments[0], types.FunctionType) else cls  # as a decorator

    def __getitem__(cls, key: Any) -> Any:
        return cls


class Anything(metaclass=_Anything):
    """What every name of a stand-in's is."""


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the heavy libraries and all of their modules, empty."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        heavy = name.partition(".")[0] in HEAVY
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if heavy else None

    def create_module(self, spec: Any) -> Any:
        return None

    def exec_module(self, module: Any) -> None:
        module.__getattr__ = lambda name: getattr(Anything, name)


def with_standins(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a command that prints help. Nothing else may follow in this process."""
    if HEAVY & set(sys.modules):
        return command(arguments)
    finder = StandIns()
    sys.meta_path.insert(0, finder)
    try:
        return command(arguments)
    except Exception:  # what a stand-in cannot do; a mistake of the user's comes up again
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in HEAVY | {"telescope"}]:
            del sys.modules[name]
        from telescope.commands.train import train

        return train(arguments)

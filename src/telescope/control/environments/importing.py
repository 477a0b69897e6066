"""Objects that a setting names as `module:name`, also from modules in the working directory.

Leaves out whether a run folder may import them (`runs/identity/trust.py`).
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any


def imported(path: str, field: str) -> Any:
    """The callable or value under `module:name`. A ValueError with the setting's name if there is none."""
    module, _, name = path.rpartition(":")
    found = attribute(import_module(module, path, field), name)
    if found is None:
        raise ValueError(
            f"{field} is {path!r}, but the module {module!r} has no {name!r}{similar(name, vars(sys.modules[module]))}"
        )
    return found


def import_module(module: str, path: str, field: str) -> ModuleType:
    """The module that the setting `field` names in `path`. A ValueError if it cannot be found."""
    if not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"{field} is {path!r}; expected module:name, but {module!r} is not a module name")
    _find_modules_here()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        lost = error.name is not None and f"{module}.".startswith(
            f"{error.name}."
        )  # not a module that it imports itself
        hint = "; add its folder to PYTHONPATH, or change into that folder" if lost else ""
        raise ValueError(
            f"{field} {path!r} names the module {module!r}, which cannot be imported: {error}{hint}"
        ) from error


def _find_modules_here() -> None:
    """Import from the working directory too, as `python -m` does, but only for this import and after all other folders.

    The folder may hold a torch.py of somebody else, and `import torch` must not find it.
    """
    if not sys.flags.safe_path and not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())


def attribute(module: Any, path: str) -> Any:
    """The object under a dotted name in a module; None if there is none."""
    for part in path.split("."):
        module = getattr(module, part, None)
    return module


def similar(name: str, known: Iterable[str]) -> str:
    """Up to three similar known names, as the end of a sentence."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {', '.join(close)}?" if close else ""

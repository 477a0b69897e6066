"""Modules that have moved. Imports by their former names work until 1.0, with a DeprecationWarning.

Leaves out names inside modules, which have not moved.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from types import ModuleType
from typing import Any

MOVED = {
    "control.env_factory": "control.environments.factory",
    "control.env_lanes": "control.environments.lanes",
    "control.networks": "control.agents.networks",
    "control.distributions": "control.agents.distributions",
    "control.normalisation": "control.experience.normalisation",
    "language.sampling": "language.experience.sampling",
    "language.rollouts": "language.experience.rollout",
    "language.supervised": "language.experience.supervised",
    "language.preferences": "language.experience.preferences",
    "language.tasks": "language.data.tasks",
    "language.rewards": "language.data.rewards",
    "language.text": "language.data.text",
    "language.tokenizer": "language.models.tokenizer",
    "language.pretrained": "language.models.pretrained",
    "language.adapters": "language.models.adapters",
    "language.objectives": "objectives.rows",
    "language.frameworks": "objectives.frameworks",
    "language.advantages": "objectives.advantages",
    "language.policy_loss": "objectives.loss",
    "runs.checkpoint": "runs.formats.checkpoint",
    "runs.config": "runs.formats.config",
    "runs.log": "runs.formats.log",
    "runs.curves": "runs.formats.curves",
}
"""Former name → name, below `telescope`."""

SPLIT = {
    "control.rollout": ("experience.rollout", "experience.samples", "experience.encoding"),
    "language.training": ("run", "execution", "checks", "optimiser", "randomness"),
}
"""Former name → the modules in the same folder that have its content now."""


class Former(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """An import finder for former names."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.removeprefix("telescope.") not in MOVED | SPLIT:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        former = module.__name__
        if parts := SPLIT.get(former.removeprefix("telescope.")):
            _have_content_of(module, [f"{former.rpartition('.')[0]}.{part}" for part in parts])
            return
        name = f"telescope.{MOVED[former.removeprefix('telescope.')]}"
        warnings.warn(f"{former} has moved: import {name}", DeprecationWarning, stacklevel=2)
        sys.modules[former] = importlib.import_module(name)  # the result of the import


def _have_content_of(module: ModuleType, parts: list[str]) -> None:
    warnings.warn(f"{module.__name__} has been split: import {' or '.join(parts)}", DeprecationWarning, stacklevel=3)

    def find(name: str) -> Any:
        for part in parts:
            if hasattr(found := importlib.import_module(part), name):
                return getattr(found, name)
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    module.__dict__["__getattr__"] = find

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
    "control.rollout": "control.experience.rollout control.experience.samples control.experience.encoding",
    "control.normalisation": "control.experience.normalisation",
    "language.training": "language.run language.execution language.checks language.optimiser language.randomness",
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
"""Former name → name below `telescope`, or the names of the modules that have its content now."""


class Former(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """An import finder for former names."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.removeprefix("telescope.") not in MOVED:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        former = module.__name__
        names = [f"telescope.{name}" for name in MOVED[former.removeprefix("telescope.")].split()]
        warnings.warn(f"{former} has moved: import {' or '.join(names)}", DeprecationWarning, stacklevel=2)
        parts = [importlib.import_module(name) for name in names]
        if len(parts) == 1:
            sys.modules[former] = parts[0]  # the result of the import
        for part in reversed(parts):
            vars(module).update({name: found for name, found in vars(part).items() if not name.startswith("__")})

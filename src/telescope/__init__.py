"""telescope: advantages that are right at every boundary, and trainers that use them.

Importing it costs little: the estimators need NumPy; numba, torch and the rest are loaded where first used.
"""

import importlib
import sys
from typing import Any

from telescope.estimators import (
    conventions,
    discounted_return,
    distributional_gae,
    dutch_trace,
    eligibility_trace,
    gae,
    group_relative,
    k_step_advantage,
    lambda_return,
    leave_one_out,
    n_step_return,
    next_values,
    response_function,
    retrace,
    shaped_rewards,
    td_error,
    true_online_td,
    vtrace,
    whiten,
)
from telescope.moved import Former

__version__ = "0.1.0"
__all__ = [
    "conventions",
    "discounted_return",
    "distributional_gae",
    "dutch_trace",
    "eligibility_trace",
    "gae",
    "group_relative",
    "k_step_advantage",
    "lambda_return",
    "leave_one_out",
    "load",
    "n_step_return",
    "next_values",
    "response_function",
    "retrace",
    "shaped_rewards",
    "td_error",
    "train",
    "true_online_td",
    "vtrace",
    "whiten",
]

sys.meta_path.append(Former())

_FUNCTIONS = {"load": "telescope.policy", "train": "telescope.runner"}
_SUBMODULES = {"algorithms", "answers", "control", "losses", "metrics", "runs"}


def __getattr__(name: str) -> Any:
    """`telescope.train`, `telescope.load` and the submodules that need torch, when somebody asks for them."""
    if name not in _SUBMODULES | {*_FUNCTIONS}:
        raise AttributeError(f"module 'telescope' has no attribute {name!r}")
    try:
        if name in _FUNCTIONS:
            return getattr(importlib.import_module(_FUNCTIONS[name]), name)
        return importlib.import_module(f"telescope.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "telescope":
            raise
        extra = "language" if name == "answers" else "control"
        message = f'telescope.{name} needs {error.name}: pip install "telescope-rl[{extra}]"'
        raise ImportError(message, name=error.name) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})

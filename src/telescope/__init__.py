"""telescope: advantages that are right at every episode boundary, and trainers that use them.

The import is fast: NumPy, numba, torch and other libraries are loaded when they are first needed.
"""

# ruff: noqa: F403, F405 - the names are those of __all__
import importlib
import sys
from typing import TYPE_CHECKING, Any

from telescope.moved import Former

if TYPE_CHECKING:
    from telescope.estimators import *

__version__ = "0.1.0"
__all__ = [
    "conventions",
    "discounted_return",
    "distributional_gae",
    "dutch_trace",
    "eligibility_trace",
    "end_corrected",
    "from_explained_variance",
    "gae",
    "group_relative",
    "k_step_advantage",
    "lambda_return",
    "leave_one_out",
    "length_adaptive",
    "load",
    "n_step_return",
    "next_values",
    "per_segment",
    "per_turn",
    "response_function",
    "retrace",
    "shaped_rewards",
    "td_error",
    "train",
    "true_online_td",
    "tune",
    "vtrace",
    "whiten",
]

sys.meta_path.append(Former())

_FUNCTIONS = dict.fromkeys(__all__, "telescope.estimators")
_FUNCTIONS |= {"load": "telescope.loading", "train": "telescope.runner", "tune": "telescope.tuning"}
_SUBMODULES = {"algorithms", "answers", "control", "estimators", "losses", "metrics", "recurrence", "runs"}


def __getattr__(name: str) -> Any:
    """Load public functions and submodules on first use."""
    if name not in _SUBMODULES | {*_FUNCTIONS}:
        raise AttributeError(f"module 'telescope' has no attribute {name!r}")
    try:
        if name == "conventions":
            return importlib.import_module("telescope.estimators.conventions")
        if name in _FUNCTIONS:
            globals()[name] = getattr(
                importlib.import_module(_FUNCTIONS[name]), name
            )  # the next access finds it directly
            return globals()[name]
        return importlib.import_module(f"telescope.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "telescope":
            raise
        extra = "language" if name == "answers" else "control"
        message = f'telescope.{name} needs {error.name}: pip install "telescope-rl[{extra}]"'
        raise ImportError(message, name=error.name) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})

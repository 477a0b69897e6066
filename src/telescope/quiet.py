"""Keep NumPy's floating point state from affecting valid calls.

NumPy warns about NaN and infinity even where a select drops them, and raises errors under `np.errstate(all="raise")`.
Leaves out other libraries, which do neither.
"""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])


def quiet(function: Function) -> Function:
    """Decorate a public function so that NaN, infinity and overflow neither warn nor raise."""

    @wraps(function)
    def silent(*arguments: Any, **options: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is not None and torch.compiler.is_compiling():  # the compiler cannot trace an errstate
            return function(*arguments, **options)
        with np.errstate(all="ignore"):
            return function(*arguments, **options)

    return silent  # type: ignore[return-value]

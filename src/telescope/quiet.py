"""NumPy's floating point state is the caller's: it must not decide whether a valid call returns.

NumPy warns of NaN and infinity also where a select leaves them out, and raises under `np.errstate(all="raise")`. It
leaves out other libraries, which do neither.
"""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])


def quiet(function: Function) -> Function:
    """For a public function: it neither warns nor raises because of what floating point numbers can be."""

    @wraps(function)
    def silent(*arguments: Any, **options: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is not None and torch.compiler.is_compiling():  # it cannot trace an errstate
            return function(*arguments, **options)
        with np.errstate(all="ignore"):
            return function(*arguments, **options)

    return silent  # type: ignore[return-value]

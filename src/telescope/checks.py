"""What every configuration asks of its own fields; a ValueError says which field it is, and what it holds.

It leaves out what only one configuration asks.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any


def positive(config: object, *names: str) -> None:
    _require(config, names, lambda x: math.isfinite(x) and x > 0, "a number > 0")


def positive_all(config: object, name: str) -> None:
    value = getattr(config, name)
    if not all(isinstance(x, int) and x > 0 for x in value):
        raise ValueError(f"{name} is {value!r}; expected whole numbers > 0")


def at_least_zero(config: object, *names: str) -> None:
    _require(config, names, lambda x: math.isfinite(x) and x >= 0, "a number >= 0")


def in_unit_interval(config: object, *names: str) -> None:
    _require(config, names, lambda x: 0 <= x <= 1, "a number in [0, 1]")


def _require(config: object, names: Iterable[str], holds: Callable[[Any], bool], expected: str) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not holds(value):
            raise ValueError(f"{name} is {value!r}; expected {expected}")

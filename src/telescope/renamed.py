"""Former names of settings and columns. They work until 1.0, with a DeprecationWarning.

The table "One vocabulary" in docs/design.md has the current names. Leaves out modules that have moved (`moved.py`) and
other libraries' names for our flags (`commands/flags.py`).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

Config = TypeVar("Config")


class Former(NamedTuple):
    """A renamed setting: its config class, its new name, its new value from the former one and all others, a remark."""

    owner: str
    now: str
    value: Callable[[Any, Mapping[str, Any]], Any]
    remark: str = ""


FIELDS = {
    "clip_value_loss": Former(
        "PPO", "value_clip", lambda on, others: others.get("value_clip") or 0.2 if on else None, ", a number or none"
    ),
    "target_kl": Former("RLHF", "kl_limit", lambda limit, _: limit),
    "anneal_learning_rate": Former(
        "LanguageConfig", "min_lr_ratio", lambda on, _: 0.1 if on else 1.0, ", its share at the end of the run"
    ),
}
"""Settings by former name. The owner is a config class, or a base class of several."""
PARTS: dict[str, tuple[str, Callable[[int], dict[str, Any]], str]] = {
    "gru": (
        "PPO",
        lambda units: {"memory": "gru", "memory_size": units, "shared_memory": True} if units else {},
        "is memory and memory_size now (and shared_memory, since policy and value function had one gru)",
    ),
}
"""Settings that have become several: owner, the current ones for a value, and a remark."""
PAIRS = {"clip": ("GRPO", "clip_high")}
"""Settings that held two numbers. The second one now has its own name."""

COLUMNS = {
    "grpo": {"clip_fraction": "clipped"},
    "rlhf": {"clip_fraction": "clipped", "kl_reference": "kl_completion"},
}
"""Columns of metrics.csv by algorithm: former name → name. Where a table has both, the first is another quantity."""


def columns_today(former: Mapping[str, str], header: Sequence[str]) -> dict[str, str]:
    """The columns of a table → their names today."""
    return {name: now if (now := former.get(name, name)) not in header else name for name in header}


def current(cls: type[Any], settings: Mapping[str, Any], *, told: bool = False, stacklevel: int = 2) -> dict[str, Any]:
    """The settings of a configuration under the current names of its fields.

    told: give no DeprecationWarning, as for a run folder, which keeps the names that it began with.
    """
    kinds, found, said = {kind.__name__ for kind in cls.__mro__}, dict(settings), list[str]()
    for former, (owner, now, value, remark) in FIELDS.items():
        if former in found and owner in kinds:
            found[now] = value(found.pop(former), found)
            said.append(f"{former} is called {now} now{remark}")
    for former, (owner, parts, remark) in PARTS.items():
        if former in found and owner in kinds:
            value = found.pop(former)
            found |= parts(int(value[0] if isinstance(value, list) else value))
            said.append(f"{former} {remark}")
    for name, (owner, second) in PAIRS.items():
        if owner in kinds and isinstance(pair := found.get(name), list | tuple) and len(pair) == 2:
            found[name], found[second] = pair
            said.append(f"{name} is one number now, and the second is called {second}")
    for sentence in () if told else said:
        warnings.warn(sentence, DeprecationWarning, stacklevel=stacklevel + 1)
    return found


def takes_former_names(cls: type[Config]) -> type[Config]:
    """Decorate a dataclass so that its constructor, and `dataclasses.replace`, also accept former names of fields."""
    made = cls.__init__

    @functools.wraps(made)
    def init(self: Any, *values: Any, **settings: Any) -> None:
        made(self, *values, **current(cls, settings))

    cls.__init__ = init  # type: ignore[method-assign,assignment]
    return cls

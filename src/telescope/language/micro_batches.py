"""How much goes through the model at a time, where a budget of tokens says it.

Rows keep their order. A loss takes its weights from the whole batch, so that cuts change nothing but rounding. Leaves
out the shares of several ranks (`parallel.py`).
"""

# N prompts, B = N · group completions, P and T tokens
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Size(NamedTuple):
    """A prompt and what is learned after it."""

    asked: int  # tokens of the prompt
    own: int  # tokens of the longest completion
    completions: int = 1


def sizes_of(asked: Tensor, own: Tensor, group: int = 1) -> list[Size]:
    """The sizes of N prompts. Masks: of prompts [N, P] and of completions [B, T]."""
    longest = own.sum(1).view(-1, group).amax(1)
    return [Size(a, o, group) for a, o in zip(asked.sum(1).tolist(), longest.tolist(), strict=True)]


def padded(sizes: Sequence[Size]) -> int:
    """The places of these prompts and completions, if each kind is padded to its longest one."""
    completions = sum(size.completions for size in sizes)
    return len(sizes) * max(size.asked for size in sizes) + completions * max(size.own for size in sizes)


def by_tokens(sizes: Sequence[Size], rows: slice, budget: int) -> list[slice]:
    """These rows in pieces of at most `budget` places. A single row may have more."""
    found, start = list[slice](), rows.start
    for stop in range(rows.start + 1, rows.stop):
        if padded(sizes[start : stop + 1]) > budget:
            found.append(slice(start, stop))
            start = stop
    return [*found, slice(start, rows.stop)] if rows.stop > rows.start else []


def within(sizes: Sequence[Size], group: int, budget: int) -> int:
    """How many completions of a group go through the model at a time: all, or as many of a single group as fit."""
    if len(sizes) != 1 or padded(sizes) <= budget:
        return max(group, len(sizes) * group)
    return min(group, max(1, (budget - sizes[0].asked) // max(1, sizes[0].own)))

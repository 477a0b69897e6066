"""Where memory runs out: a sentence that says what reduces it, instead of torch's own about its allocator.

Leaves out how much is needed, which nobody knows beforehand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

SHORT = (
    "; less is needed with a smaller --micro-batch, --max-tokens, --prompts, --group or --batch-size, "
    "with --lora-rank (no optimiser state for most weights), or --dtype bfloat16"
)
"""What reduces the memory of a run."""


@contextlib.contextmanager
def memory() -> Iterator[None]:
    """Have what torch raises where memory runs out, on any device, say what reduces it: a MemoryError."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        said = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            if "can't allocate memory" not in said:
                raise
            said = said[said.index("can't allocate memory") :]
        raise MemoryError(f"out of memory ({said[:160] or type(error).__name__}){SHORT}") from error


def sparing(loop: Iterator[Any]) -> Iterator[Any]:
    """A training loop that tells it so."""
    with memory():
        yield from loop

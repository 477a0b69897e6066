"""When memory runs out: an error sentence with the settings that reduce it, instead of torch's allocator report.

Leaves out how much memory a run needs, which cannot be known beforehand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

SHORT = (
    "; to use less, lower --micro-batch, --max-tokens, --prompts, --group or --batch-size, "
    "set --lora-rank (no optimiser state for most weights), or use --dtype bfloat16"
)
"""Settings that reduce the memory of a run, as the end of a sentence."""


@contextlib.contextmanager
def memory() -> Iterator[None]:
    """Turn torch's out-of-memory errors, on any device, into a MemoryError that says what reduces memory."""
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
    """Decorate a training loop with `told`."""
    with memory():
        yield from loop

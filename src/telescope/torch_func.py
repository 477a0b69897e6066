"""Whether torch.func is at work, by torch's private interface, and what holds where that interface has changed.

Leaves out JAX's tracers and torch.compile (`arrays.py`).
"""

import sys
from typing import Any


def transforming() -> bool:
    """Whether torch.func is active (vmap, grad, jacrev). Its tensors have no memory that NumPy could read.

    Also True where torch's private interface has changed: what is right under torch.func is right without it, only
    slower.
    """
    try:
        return sys.modules["torch"]._C._functorch.peek_interpreter_stack() is not None
    except AttributeError:
        return True


# torch.compiler.assume_constant_result sets this; here it is set without loading torch
transforming._dynamo_marked_constant = True  # type: ignore[attr-defined]


def mapped(array: Any) -> bool:
    """Whether a tensor stands for a batch of tensors, under torch.func.vmap at any depth."""
    try:
        functorch = sys.modules["torch"]._C._functorch
        while functorch.is_functorch_wrapped_tensor(array):
            if functorch.is_batchedtensor(array):
                return True
            array = functorch.get_unwrapped(array)
    except AttributeError:  # the private interface has changed: ask for a number, which such a tensor does not have
        try:
            bool(array.any())
        except RuntimeError:
            return True
    return False

"""The steps of a rollout for the temporal estimators: checked, time first, in working precision.

It handles masks and last steps. Leaves out the formulas (`temporal.py`).
"""

from types import ModuleType
from typing import NamedTuple

import numpy as np

from telescope import arrays, torch_func
from telescope.arrays import Array

NUMBERS = (float, int, np.floating, np.integer)


class Steps(NamedTuple):
    """Arrays [T, *batch] by the caller's names."""

    xp: ModuleType  # numpy, also for CPU tensors (as views); torch for tensors that must stay tensors
    caller: ModuleType  # numpy or torch: the library of the results
    axis: int
    floats: dict[str, Array]
    flags: dict[str, Array | None]  # None: no such flags
    discounts: dict[str, Array]  # γ and λ: numbers, or arrays [T, *batch]
    mask: Array | None  # True counts
    like: Array  # one of the floats: shape, dtype and device of results
    reference: Array  # the same array as the caller passed it
    differentiable: bool  # whether gradients pass

    def inside(self, array: Array) -> Array:
        """The caller's array as a view with time first."""
        return arrays.front(array.numpy() if self.caller is not self.xp else array, self.axis)

    def deliver(self, array: Array) -> Array:
        """A result in the caller's library and layout."""
        return self.outside(arrays.back(array, self.axis))

    def outside(self, array: Array) -> Array:
        """A result in the caller's library."""
        return self.caller.from_numpy(array) if self.caller is not self.xp else array

    def number(self, value: Array) -> Array:
        """A number as an array without axes, so that it does not change the dtype."""
        return arrays.scalar(value, self.like) if isinstance(value, float) else value

    def where(self, condition: Array, then: Array, otherwise: Array) -> Array:
        """A select, never a product, because the other number may be NaN."""
        return self.xp.where(condition, self.number(then), self.number(otherwise))

    def flag(self, name: str) -> Array:
        """A flag as an array; all False if it is None."""
        flags = self.flags[name]
        return self.xp.zeros_like(self.like, dtype=bool) if flags is None else flags

    def live(self, array: Array, otherwise: float = 0.0) -> Array:
        """The array where the mask is True, and `otherwise` elsewhere."""
        return array if self.mask is None else self.where(self.mask, array, otherwise)

    def last(self) -> Array:
        """True at each column's last live step, where the end of the buffer truncates the episode."""
        if self.mask is None or len(self.like) == 0:
            no, yes = self.xp.zeros_like(self.like[:-1], dtype=bool), self.xp.ones_like(self.like[-1:], dtype=bool)
            return self.xp.concatenate([no, yes])
        order = self.xp.cumsum(self.xp.ones_like(self.mask, dtype=int), 0)
        return self.mask & (order == self.xp.amax(order * self.mask, 0))


def enter(
    floats: dict[str, Array],
    flags: dict[str, Array | None],
    mask: Array | None,
    discounts: dict[str, Array] | None = None,
    axis: int = 0,
    differentiable: bool = False,
) -> Steps:
    """The public door: everything is checked here, together, before anything is computed.

    The result has the dtype of the first of the floats that are not rewards.
    """
    if differentiable is not False:
        arrays.check_switch("differentiable", differentiable)
    caller = arrays.check_alike(**floats, **flags, mask=mask)
    like, *_ = [name for name in floats if name != "rewards"]
    reference = floats[like]
    _check_dtypes(floats, like)
    axis = arrays.checked_axis(axis, reference.ndim)
    if differentiable and caller is np:
        raise ValueError(
            "differentiable is True, but the arrays are numpy's; gradients need torch tensors or JAX arrays"
        )
    dtype = arrays.working_dtype(reference)
    stays = caller is np or differentiable or not arrays.on_cpu(reference) or _followed(caller)

    def inside(array: Array) -> Array:
        return array if stays and axis == 0 else arrays.front(array if stays else array.numpy(), axis)

    live = arrays.to_bool("mask", mask)
    masks = {name: arrays.to_bool(name, flag, live) for name, flag in flags.items()}
    numbers = {name: inside(arrays.to_dtype(name, array, dtype, differentiable)) for name, array in floats.items()}
    spread = {name: _discount(name, value, reference, live) for name, value in (discounts or {}).items()}
    for name, value in spread.items():
        if not isinstance(value, float):
            spread[name] = inside(arrays.to_dtype(name, value, dtype, differentiable))
    return Steps(
        caller if stays else np,
        caller,
        axis,
        numbers,
        {name: None if flag is None else inside(flag) for name, flag in masks.items()},
        spread,
        None if live is None else inside(live),
        numbers[like],
        reference,
        differentiable,
    )


def _followed(caller: ModuleType) -> bool:
    """Whether torch.compile or torch.func traces. They follow tensors, not NumPy views of them."""
    return caller.__name__ == "torch" and (caller.compiler.is_compiling() or torch_func.transforming())


def _check_dtypes(floats: dict[str, Array], like: str) -> None:
    """Check floats: rewards have any real dtype, all values one supported dtype, and none is missing."""
    reference = floats[like]
    for name, array in floats.items():
        if array is None:
            arrays.library(name, array)
    arrays.check_float(like, reference)
    if reference.ndim == 0:
        raise ValueError(f"{', '.join(floats)} have shape (); expected at least a time axis")
    for name, array in floats.items():
        if name != "rewards" and array.dtype != reference.dtype:
            arrays.refuse_dtype(name, array, like, reference)


def _discount(name: str, value: Array, reference: Array, live: Array | None) -> Array:
    """γ or λ in [0, 1]: one number, or an array that broadcasts against the caller's layout."""
    if isinstance(value, NUMBERS):
        if isinstance(value, bool) or not 0 <= value <= 1:  # excludes NaN
            raise ValueError(f"{name} is {value}; expected a number in [0, 1]")
        return float(value)
    arrays.check_neighbour("values", reference, name, value)
    arrays.check_real(name, value)
    shape = tuple(reference.shape)
    value = arrays.spread(name, value, shape)
    wrong = ~((value >= 0) & (value <= 1))
    if arrays.any_true(wrong if live is None else wrong & live):
        raise ValueError(f"{name} holds numbers outside [0, 1], or NaN")
    return value

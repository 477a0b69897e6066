"""Random arguments for every public estimator, by name, in any library, dtype and memory layout.

What they should give is in `definitions.py`; this file knows no formula.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import telescope

FUNCTIONS = sorted(set(telescope.__all__) - {"conventions", "load", "train", "tune"})
PER_STEP = ("rewards", "values", "next_values", "log_ratios", "q_values", "potentials", "next_potentials", "x")
WIDE = ("features", "next_features", "quantiles", "next_quantiles")  # one more axis, the last
FLAGS = ("terminated", "truncated", "mask", "turn_ends", "segment_ends")
DISCOUNTS = ("gamma", "lam", "returns_lam")
# How an array of these numbers may lie in memory. Torch has no negative strides, and JAX none at all.
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": lambda x: np.array(x, order="C"),
    "fortran": lambda x: np.array(x, order="F"),
    "inside another": lambda x: np.pad(x, [(1, 2)] * x.ndim)[tuple(slice(1, -2) for _ in x.shape)] if x.ndim else x,
    "every other": lambda x: np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x,
    "repeated": lambda x: np.broadcast_to(x[:1], x.shape) if x.ndim and len(x) else x,
    "backwards": lambda x: np.ascontiguousarray(x[::-1])[::-1] if x.ndim else x,
    "all backwards": lambda x: np.flip(np.flip(x).copy()),
}


def drawn(shape: tuple[int, ...], seed: int, ends: float = 0.2, width: int = 3) -> dict[str, Any]:
    """Every argument that any function takes, in float64: enough for a call of each, apart from how it is given."""
    random = np.random.default_rng([seed, *shape])
    numbers: dict[str, Any] = {name: random.normal(size=shape) for name in PER_STEP}
    numbers |= {name: random.normal(size=(*shape, width)) for name in WIDE}
    numbers |= {"last_values": random.normal(size=shape[1:]), "final_values": random.normal(size=shape)}
    numbers |= {"weights": random.normal(size=(*shape[1:], width)), "explained_variance": random.normal(size=shape)}
    numbers |= {name: random.random(shape) < (ends if name != "mask" else 0.8) for name in FLAGS}
    states, actions = 1 + seed % 3, 1 + seed % 2
    numbers["transitions"] = 0.9 * random.dirichlet(np.ones(states), (states, actions))
    return numbers | {"policy": random.dirichlet(np.ones(actions), states), "world rewards": (states, actions)}


def parameters(name: str) -> set[str]:
    return set(inspect.signature(getattr(telescope, name)).parameters)


def told(array: Any, library: str, layout: str = "contiguous") -> Any:
    """A NumPy array in a library, lying as the layout says; anything else as it is."""
    if not isinstance(array, np.ndarray):
        return array
    if library == "jax":
        import jax.numpy as jnp

        return jnp.asarray(array)
    if library == "numpy":
        return LAYOUTS[layout](array)
    strided = LAYOUTS[layout if "backwards" not in layout else "fortran"](array)
    writable = strided if strided.flags.writeable else strided[:1].copy()
    return torch.from_numpy(writable).expand(strided.shape) if strided is not writable else torch.from_numpy(strided)


def plain(result: Any) -> list[np.ndarray]:
    """A result, or each of several, as float64."""
    results = result if isinstance(result, tuple) else (result,)
    return [np.asarray(one.double() if isinstance(one, torch.Tensor) else one, dtype=np.float64) for one in results]


def float64_in_jax() -> Any:
    """JAX computes in float64 in this block. Before JAX 0.8 the function had another place."""
    import jax
    import jax.experimental

    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()

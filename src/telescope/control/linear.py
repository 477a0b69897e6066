"""The settings that algorithms with linear values and eligibility traces share, and the features that they describe.

Leaves out the steps of TD(λ) (`estimators/eligibility.py`) and the feature functions (`agents/features.py`).
"""

# S seeds
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from telescope.checks import at_least_zero, fits_memory, in_unit_interval, positive, unread
from telescope.control.config import LearnerConfig

if TYPE_CHECKING:
    from telescope.control.agents.features import Features


@dataclasses.dataclass(frozen=True)
class LinearConfig(LearnerConfig):
    """The settings that algorithms with linear values and eligibility traces share."""

    arithmetic: ClassVar[str] = "NumPy"
    """What computes updates."""
    num_steps: int = 1000
    """Steps per iteration. Each iteration writes one row of metrics per seed; learning does not wait for it."""
    learning_rate: float = 0.5
    """Step size α. Tile coding divides it by tilings, so that 1 corrects the whole error; fourier divides it by ‖c‖."""
    anneal_learning_rate: bool = False
    """Decay the step size linearly to 0 over the run."""
    lam: float = 0.9
    """λ of the eligibility trace, between 0 and 1. 0 learns from one step; 1 from the rest of the episode."""
    trace: Literal["accumulating", "replacing", "dutch"] = "replacing"
    """What a feature adds to the trace. replacing needs features of 0 and 1: tabular or tiles."""
    true_online: bool = False
    """Learn by van Seijen's true online update, which equals the online forward view exactly. Needs trace dutch."""
    features: Literal["auto", "tabular", "tiles", "fourier"] = "auto"
    """Features of an observation. auto: tabular for a Discrete space, tiles for a Box."""
    tilings: int = 8
    """Number of displaced grids of tile coding. 1: state aggregation."""
    tiles: int = 8
    """Tiles of a grid along each dimension."""
    fourier_order: int = 3
    """Highest frequency of the Fourier basis along each dimension."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "tilings", "tiles")
        at_least_zero(self, "fourier_order")
        in_unit_interval(self, "lam")
        if self.num_envs != 1:
            raise ValueError(
                f"num_envs is {self.num_envs}; expected 1, because a trace follows one environment; raise seeds instead"
            )
        if self.compile == "on":
            raise ValueError("compile is 'on', but linear values are learned in NumPy; set compile to 'auto' or 'off'")
        if self.device != "cpu":
            raise ValueError(f"device is {self.device!r}, but linear values are learned in NumPy on the CPU; use cpu")
        if self.true_online and self.trace != "dutch":
            raise ValueError(f"true_online is True, but trace is {self.trace!r}; its update needs trace 'dutch'")
        if self.features == "fourier":
            for name in ("tilings", "tiles"):
                unread(self, name, "set features to 'tiles'", "features is 'fourier'")
            if self.trace == "replacing":
                raise ValueError("trace is 'replacing', but features is 'fourier', whose numbers are not 0 or 1")
        else:
            unread(self, "fourier_order", "set features to 'fourier'", f"features is {self.features!r}")

    def under(self, name: str) -> Self:
        """These settings as an algorithm of this name has them: `true_online_…` learns by the true online update."""
        return dataclasses.replace(self, trace="dutch", true_online=True) if name.startswith("true_online") else self

    def features_for(self, observation_space: Any) -> Features:
        """Return φ(s) for the observations of this space."""
        import gymnasium as gym

        from telescope.control.agents import features as basis
        from telescope.control.agents.reading import decoded_bounds, flat
        from telescope.control.environments.spaces import PackedObservations

        if isinstance(observation_space, PackedObservations):
            normalised = self.clip_observations if self.normalise_observations else None
            decoded = gym.spaces.Box(*decoded_bounds(observation_space, normalised), dtype=np.float32)
            found = dataclasses.replace(self, normalise_observations=False).features_for(decoded)
            return found._replace(apply=lambda rows: found.apply(flat(observation_space, rows)))
        discrete = isinstance(observation_space, gym.spaces.Discrete)
        kind = ("tabular" if discrete else "tiles") if self.features == "auto" else self.features
        if kind == "tabular" and not discrete:
            raise ValueError(f"features is 'tabular', but observation_space is {observation_space}; expected Discrete")
        low, high = (
            ((), ())
            if kind == "tabular"
            else basis.bounds(observation_space, self.clip_observations if self.normalise_observations else None)
        )
        size = int(observation_space.n) if kind == "tabular" else len(low)
        how = {"tilings": self.tilings, "tiles": self.tiles}
        count = basis.feature_count(size, kind, **how, order=self.fourier_order)
        subject = f"{count:,} features ({kind} of {size} numbers) of {self.seeds} seeds need"
        fits_memory(8 * self.seeds * count, subject)
        if kind == "tabular":
            return basis.tabular(size)
        if kind == "tiles":
            found = basis.tile_coding(low, high, **how)  # type: ignore[arg-type]
        else:
            found = basis.fourier_basis(low, high, order=self.fourier_order)  # type: ignore[arg-type]
        return basis.coordinates(found, int(observation_space.n)) if discrete else found


def in_arrays(update: Callable[..., Any], config: Any, features: Any, learner: Any, batch: Any, *numbers: Any) -> Any:
    """`update(config, features, learner, batch, *numbers)` on NumPy views of tensors; its results as tensors.

    These are a few operations on small arrays, and torch takes several times as long to begin one.
    """
    import torch

    arrays = (type(tree)(*(None if x is None else x.numpy() for x in tree)) for tree in (learner, batch))
    with np.errstate(over="ignore", invalid="ignore"):  # parameters that diverge are found at the iteration's end
        new, statistics = update(config, features, *arrays, *numbers)
    return type(new)(*map(torch.from_numpy, new)), torch.from_numpy(statistics)


def rows_where(condition: np.ndarray, new: Any, old: Any) -> Any:
    """Choose between two NamedTuples of arrays [S, …] by a condition [S, 1]."""
    if condition.all():
        return new
    return type(new)(*(a if a is b else np.where(condition, a, b) for a, b in zip(new, old, strict=True)))

"""Translate other libraries' conventions into ours. Each function returns the arguments of `gae`, except γ and λ.

    rollout = conventions.from_episode_starts(rewards, values, last_values, episode_starts=…, …)
    advantages, returns = gae(**rollout, gamma=0.99, lam=0.95)

Nothing is estimated here. What a convention does not say is an argument: whether an end was a termination or a
truncation, and the value of the final state. `truncated` has no default; None says that there are none.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from telescope import arrays
from telescope.arrays import Array
from telescope.estimators.sequences import (
    Arguments,
    check_rewards,
    from_cu_seqlens,
    from_lengths,
    from_response_mask,
    split_packed_values,
)
from telescope.estimators.temporal import next_values
from telescope.quiet import quiet

__all__ = [
    "FinalObservations",
    "dense_final_values",
    "final_observations",
    "from_arrivals",
    "from_cu_seqlens",
    "from_discounts",
    "from_dones",
    "from_episode_starts",
    "from_last_values",
    "from_lengths",
    "from_next_step_autoreset",
    "from_response_mask",
    "from_values_with_bootstrap",
    "split_packed_values",
]


@quiet
def from_last_values(
    rewards: Array,
    values: Array,
    last_values: Array,
    *,
    terminated: Array | None,
    truncated: Array | None,
    final_values: Array | None = None,
    mask: Array | None = None,
    axis: int = 0,
) -> Arguments:
    """Flags of this step, and the value after the last step. The other functions use this one.

    For Gymnasium's SAME_STEP autoreset, take `final_values` from `final_observations` and `dense_final_values`.
    Arguments and errors are those of `next_values`.
    """
    check_rewards(rewards, values)
    ends: Arguments = {"terminated": terminated, "truncated": truncated, "mask": mask, "axis": axis}
    successors = next_values(values, last_values, final_values=final_values, **ends)
    return {"rewards": rewards, "values": values, "next_values": successors, **ends}


@quiet
def from_values_with_bootstrap(
    rewards: Array,
    values: Array,
    *,
    terminated: Array | None,
    truncated: Array | None,
    final_values: Array | None = None,
    mask: Array | None = None,
    axis: int = 0,
) -> Arguments:
    """Values [T+1, *batch], whose last row is the bootstrap; all else is [T, *batch] (rlax, DeepMind's agents)."""
    axis = arrays.time_axis("rewards", rewards, axis)
    arrays.check_neighbour("rewards", rewards, "values", values)
    shape = list(rewards.shape)
    shape[axis] += 1
    arrays.check_shape("values", values, tuple(shape), "rewards and a bootstrap row make")
    last_values = values[(slice(None),) * axis + (-1,)]
    ends: Arguments = {"terminated": terminated, "truncated": truncated, "mask": mask, "axis": axis}
    return from_last_values(rewards, _rows(values, axis, stop=-1), last_values, final_values=final_values, **ends)


@quiet
def from_dones(
    rewards: Array,
    values: Array,
    last_values: Array,
    *,
    dones: Array,
    truncated: Array | None,
    final_values: Array | None = None,
    mask: Array | None = None,
    axis: int = 0,
) -> Arguments:
    """One flag for both kinds of ends, at the step that ended the episode, and `truncated` for time limits.

    A done step is terminated unless it is truncated (`infos["TimeLimit.truncated"]` in old Gym and Stable-Baselines3).
    With `truncated=None` all ends are terminations.
    """
    arrays.library("dones", dones)
    arrays.check_alike(rewards=rewards, dones=dones, truncated=truncated, mask=mask)
    live = arrays.to_bool("mask", mask)
    done: Array = arrays.to_bool("dones", dones, live)
    cut: Array = arrays.to_bool("truncated", truncated, live)
    ends: Arguments = {"terminated": done, "truncated": None}
    if cut is not None:
        stray = cut & ~done if live is None else cut & ~done & live
        if arrays.any_true(stray):
            raise ValueError(
                f"truncated is True at {int(stray.sum())} steps where dones is not; is one of them a row off?"
            )
        ends = {"terminated": done & ~cut, "truncated": cut}
    return from_last_values(rewards, values, last_values, final_values=final_values, mask=mask, axis=axis, **ends)


@quiet
def from_episode_starts(
    rewards: Array,
    values: Array,
    last_values: Array,
    *,
    episode_starts: Array,
    last_dones: Array,
    truncated: Array | None,
    final_values: Array | None = None,
    mask: Array | None = None,
    axis: int = 0,
) -> Arguments:
    """Flags one row late: whether step t begins an episode (baselines, Stable-Baselines3, CleanRL's `dones`).

    `episode_starts` is [T, *batch]. `last_dones` [*batch] says whether the state after the last step begins an episode
    (Stable-Baselines3's `dones`, CleanRL's `next_done`). `truncated` is that of this step, as everywhere here. Row 0 of
    `episode_starts` is not read, because it is about the step before the buffer.
    """
    arrays.library("episode_starts", episode_starts)
    xp = arrays.check_alike(rewards=rewards, episode_starts=episode_starts)
    axis = arrays.time_axis("rewards", rewards, axis)
    starts, last = arrays.to_bool("episode_starts", episode_starts), _row("last_dones", last_dones, rewards, axis)
    dones = xp.concatenate([_rows(starts, axis, start=1), last], axis)
    more: Arguments = {"truncated": truncated, "final_values": final_values, "mask": mask, "axis": axis}
    return from_dones(rewards, values, last_values, dones=_rows(dones, axis, stop=rewards.shape[axis]), **more)


@quiet
def from_discounts(
    rewards: Array,
    values: Array,
    *,
    discounts: Array,
    truncated: Array | None,
    final_values: Array | None = None,
    mask: Array | None = None,
    axis: int = 0,
) -> Arguments:
    """Discounts [T, *batch], which are γ, or 0 where the episode terminated, and values [T+1, *batch] (rlax).

    The result includes `gamma`, so pass only λ: `gae(**rollout, lam=0.95)`.
    """
    arrays.library("discounts", discounts)
    arrays.check_alike(rewards=rewards, discounts=discounts)
    arrays.check_real("discounts", discounts)
    more: Arguments = {"truncated": truncated, "final_values": final_values, "mask": mask, "axis": axis}
    rollout = from_values_with_bootstrap(rewards, values, terminated=discounts == 0, **more)
    return rollout | {"gamma": discounts}


@quiet
def from_arrivals(
    rewards: Array,
    values: Array,
    *,
    terminated: Array | None,
    truncated: Array | None,
    final_values: Array | None = None,
    mask: Array | None = None,
    axis: int = 0,
) -> Arguments:
    """Rows [T+1, *batch] of what arrives together: an observation, and the reward of the action before it.

    So `rewards[t+1]` and the flags, final values and mask of that row belong to the action of row t; only `values`
    belong to their own row (PufferLib, torchbeast, SEED RL, dm_env). Row 0 of all arrays except `values` belongs to the
    previous buffer. The result has T steps, because the reward of the last row's action has not arrived yet.
    """
    arrays.check_alike(
        rewards=rewards,
        values=values,
        terminated=terminated,
        truncated=truncated,
        final_values=final_values,
        mask=mask,
    )
    axis = arrays.time_axis("rewards", rewards, axis)
    if rewards.shape[axis] == 0:
        raise ValueError(f"rewards has shape {tuple(rewards.shape)}; expected at least the row of the first values")
    late = {"terminated": terminated, "truncated": truncated, "final_values": final_values, "mask": mask}
    moved = {name: None if array is None else _rows(array, axis, start=1) for name, array in late.items()}
    return from_values_with_bootstrap(_rows(rewards, axis, start=1), values, axis=axis, **moved)


@quiet
def from_next_step_autoreset(
    rewards: Array,
    values: Array,
    last_values: Array,
    *,
    terminated: Array | None,
    truncated: Array | None,
    previous_dones: Array,
    axis: int = 0,
) -> Arguments:
    """Gymnasium's NEXT_STEP autoreset (also EnvPool's): the step after an end only resets, and is masked.

    That step ignores its action and has reward 0. Its row holds the final observation of the previous episode, so every
    live step bootstraps from the next row's value, also if it is truncated. `previous_dones` [*batch] says where the
    step before the buffer ended an episode, so that row 0 is such a row. Pass zeros for a buffer that begins with a
    reset.
    """
    check_rewards(rewards, values)
    xp = arrays.check_alike(rewards=rewards, values=values, terminated=terminated, truncated=truncated)
    axis = arrays.time_axis("rewards", rewards, axis)
    before = _row("previous_dones", previous_dones, rewards, axis)
    flags = (arrays.to_bool("terminated", terminated), arrays.to_bool("truncated", truncated))
    ended = xp.zeros_like(values, dtype=bool)
    for flag in flags:
        ended = ended if flag is None else ended | flag
    reset = xp.concatenate([before, _rows(ended, axis, stop=-1)], axis)
    return {
        "rewards": rewards,
        "values": values,
        "next_values": next_values(values, last_values, terminated=None, truncated=None, axis=axis),
        "terminated": flags[0],
        "truncated": flags[1],
        "mask": ~_rows(reset, axis, stop=rewards.shape[axis]),
        "axis": axis,
    }


class FinalObservations(NamedTuple):
    """The K places where episodes ended, and the observations there."""

    places: tuple[np.ndarray, np.ndarray]  # steps [K] and environments [K]
    observations: Any  # [K, ...]; a dictionary or tuple if observations are one


@quiet
def final_observations(infos: Sequence[Mapping[str, Any]], like: Any) -> FinalObservations:
    """The final observations in the infos of an autoreset within the step, as one batch.

    `infos` are those of T steps, in order. Each is a dictionary of a vector environment with `final_obs` (Gymnasium
    from 1.0 on, SAME_STEP) or `final_observation` (before), or a list of B dictionaries with `terminal_observation`
    (Stable-Baselines3). `like` is any batch of observations [B, ...] of these environments; the result has its
    structure (dictionaries, tuples), shape and dtype, also if no episode ended.
    """
    ended = [(t, b, observation) for t, info in enumerate(infos) for b, observation in _finals(t, info)]
    steps, environments = np.array([place for *place, _ in ended], int).reshape(-1, 2).T
    return FinalObservations((steps, environments), _stacked([observation for *_, observation in ended], like))


FINALS = ("final_obs", "final_observation", "terminal_observation")


def _finals(t: int, info: Any) -> Iterator[tuple[int, Any]]:
    """Yield environment and final observation of each episode that ended in a step."""
    if isinstance(info, Mapping):
        name = next((name for name in FINALS if name in info), None)
        given = () if name is None else info[name]
        ended = info.get(f"_{name}", [one is not None for one in given])
        yield from ((int(b), given[b]) for b in np.flatnonzero(ended))
    elif isinstance(info, Sequence) and all(isinstance(one, Mapping) for one in info):
        for b, one in enumerate(info):
            yield from ((b, one[name]) for name in FINALS if one.get(name) is not None)
    else:
        raise ValueError(f"infos holds a {type(info).__name__} at step {t}; expected the infos of each step")


@quiet
def dense_final_values(values: Array, places: tuple[Array, ...], final_values: Array) -> Array:
    """Final values [K] at their places, and NaN ("none") elsewhere: [T, *batch], like `values`.

    `places` are K indices for each axis of `values`, as from `np.nonzero(truncated)` or `final_observations`.
    """
    arrays.check_neighbour("values", values, "final_values", final_values)
    arrays.check_float("values", values)
    if not isinstance(places, tuple | list) or len(places) != values.ndim:
        came = f"{len(places)} arrays" if isinstance(places, tuple | list) else f"a {type(places).__name__}"
        raise ValueError(
            f"places is {came}; expected one array of indices for each of the {values.ndim} axes of values"
        )
    for index in places:
        arrays.library("places", index)
        if "int" not in str(index.dtype) or index.ndim != 1 or len(index) != len(places[0]):
            raise ValueError(f"places holds {index.dtype}, {tuple(index.shape)}; expected integers [K] for each axis")
    for axis, (index, length) in enumerate(zip(places, values.shape, strict=True)):
        if arrays.any_true((index < 0) | (index >= length)):  # a negative index would count from the end
            raise ValueError(f"places holds indices outside [0, {length}) for axis {axis} of values")
    arrays.check_shape("final_values", final_values, tuple(places[0].shape), "places has")
    if final_values.dtype != values.dtype:
        arrays.refuse_dtype("final_values", final_values, "values", values)
    xp = arrays.library("values", values)
    dense, given = xp.full_like(arrays.detached(values), xp.nan), arrays.detached(final_values)
    if arrays.is_jax(values):
        return dense.at[tuple(places)].set(given)
    dense[tuple(places)] = given
    return dense


def _stacked(found: list[Any], like: Any) -> Any:
    if isinstance(like, Mapping):
        return {key: _stacked([one[key] for one in found], batch) for key, batch in like.items()}
    if isinstance(like, tuple):
        return tuple(_stacked([one[i] for one in found], batch) for i, batch in enumerate(like))
    return np.array(found, like.dtype).reshape(len(found), *like.shape[1:])


def _rows(array: Array, axis: int, start: int | None = None, stop: int | None = None) -> Array:
    """A view of a part of the time axis."""
    return array[(slice(None),) * axis + (slice(start, stop),)]


def _row(name: str, flags: Array, rewards: Array, axis: int) -> Array:
    """Flags [*batch], one per column, as one row of time. For rewards [T], True or False is enough."""
    if isinstance(flags, bool | np.bool_):
        flags = arrays.scalar(flags, rewards)
    arrays.check_neighbour("rewards", rewards, name, flags)
    shape = tuple(rewards.shape)
    arrays.check_shape(name, flags, shape[:axis] + shape[axis + 1 :], "one per column of rewards is")
    row: Array = arrays.to_bool(name, flags)
    return row[(slice(None),) * axis + (None,)]

"""Translate sequences of tokens into the arguments of `gae`: packed on one axis, or [B, T] with a response mask.

A completion is an episode: the end-of-sequence token terminates it, and the length limit truncates it. Leaves out
rewards and losses. `conventions.py` exports these functions too.
"""

from telescope import arrays
from telescope.arrays import Array
from telescope.estimators.temporal import next_values
from telescope.quiet import quiet

Arguments = dict[str, Array]  # of gae: rewards, values, next_values, terminated, truncated, mask, axis


@quiet
def from_lengths(
    rewards: Array, values: Array, lengths: Array, *, terminated: Array | None, final_values: Array | None = None
) -> Arguments:
    """B sequences packed one after another on one time axis [N], with `lengths` [B]. A length may be 0.

    Args:
        rewards, values: [N]. If values are [N + B], with a bootstrap after each sequence, split them with
            `split_packed_values` first.
        lengths: [B] integers with sum N.
        terminated: [B], True for complete sequences (with an end-of-sequence token). None: no sequence is complete.
        final_values: [B], v of the state after each sequence's last token. Needed, and read, where not terminated. To
            count a sequence at the length limit as complete, set `terminated`.
    """
    check_rewards(rewards, values)
    xp = arrays.library("values", values)
    lengths = _whole("lengths", lengths, values)
    owner, last = _sequences(values, lengths)
    complete, finals = _endings(values, lengths, terminated, final_values)
    kept = arrays.detached(values)
    return {
        "rewards": rewards,
        "values": values,
        "next_values": xp.where(last, finals[owner], xp.concatenate([kept[1:], kept[:1]])),
        "terminated": last & complete[owner],
        "truncated": last & ~complete[owner],
        "mask": None,
        "axis": 0,
    }


@quiet
def from_cu_seqlens(
    rewards: Array, values: Array, cu_seqlens: Array, *, terminated: Array | None, final_values: Array | None = None
) -> Arguments:
    """`from_lengths` with cumulative lengths [B+1], which begin with 0 and end with N, as in flash attention."""
    cu_seqlens = _whole("cu_seqlens", cu_seqlens, values)
    if cu_seqlens.ndim != 1 or len(cu_seqlens) == 0:
        raise ValueError(f"cu_seqlens has shape {tuple(cu_seqlens.shape)}; expected [B+1], 0 first and N last")
    if arrays.any_true(cu_seqlens[:1] != 0):
        raise ValueError(f"cu_seqlens begins with {cu_seqlens[0].item()}, expected 0; are these lengths?")
    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    if values.ndim == 1 and (arrays.any_true(lengths < 0) or arrays.any_true(cu_seqlens[-1:] != len(values))):
        raise ValueError(
            f"cu_seqlens ends with {cu_seqlens[-1].item()}, and holds {int((lengths < 0).sum())} numbers below the one "
            f"before; expected rising numbers that end with {len(values)}, the length of values"
        )
    return from_lengths(rewards, values, lengths, terminated=terminated, final_values=final_values)


@quiet
def split_packed_values(values: Array, lengths: Array) -> tuple[Array, Array]:
    """Split values [N + B], with a bootstrap after each sequence, into values [N] and final values [B].

    Not available under jax.jit, because the shapes depend on the data.
    """
    lengths = _whole("lengths", lengths, values)
    arrays.check_float("values", values)
    _, bootstrap = _sequences(values, lengths + 1)
    return values[~bootstrap], values[bootstrap]


@quiet
def from_response_mask(
    rewards: Array,
    values: Array,
    mask: Array,
    *,
    terminated: Array | None,
    final_values: Array | None = None,
    masked: str = "skipped",
) -> Arguments:
    """Completions [B, T] with a response mask, True counts (TRL, verl, OpenRLHF). Padding may be on either side.

    Args:
        rewards, values, mask: [B, T]. Masked places (padding, prompt, tool tokens) are not read.
        terminated: [B], True where the completion ended by itself. The end-of-sequence token terminates, the length
            limit truncates. None says that none ended. Pass all True for a trainer that does not distinguish them.
        final_values: [B], v of the state after the last token. Needed, and read, where not terminated.
        masked: "skipped" leaves masked tokens out, as if they did not exist (verl). With "decayed" they are steps with
            reward 0 and value 0 that decay the trace (TRL, OpenRLHF). The two differ only if tokens between live ones
            are masked.

    Returns:
        The arguments with `axis=1`.
    """
    arrays.check_word("masked", masked, ("skipped", "decayed"))
    check_rewards(rewards, values)
    arrays.library("mask", mask)
    xp = arrays.check_alike(values=values, mask=mask)
    if values.ndim != 2:
        raise ValueError(f"values has shape {tuple(values.shape)}; expected [B, T]")
    live: Array = arrays.to_bool("mask", mask)
    lengths = live.sum(1)
    last = live & (xp.cumsum(live, 1) == lengths[:, None])
    complete, finals = _endings(values, lengths, terminated, final_values)
    if masked == "decayed":
        rewards, values = (xp.where(live, array, arrays.scalar(0.0, array)) for array in (rewards, values))
    mask = live if masked == "skipped" else None
    nothing = xp.zeros_like(finals)  # after the last column; values after last tokens are set below
    following = next_values(values, nothing, terminated=None, truncated=None, mask=mask, axis=1)
    return {
        "rewards": rewards,
        "values": values,
        "next_values": xp.where(last, finals[:, None], following),
        "terminated": last & complete[:, None],
        "truncated": last & ~complete[:, None],
        "mask": mask,
        "axis": 1,
    }


def check_rewards(rewards: Array, values: Array) -> None:
    """Check that rewards are real numbers, one per value. `gae` would raise the error later."""
    arrays.library("rewards", rewards)
    arrays.check_alike(values=values, rewards=rewards)
    arrays.check_real("rewards", rewards)


def _sequences(values: Array, lengths: Array) -> tuple[Array, Array]:
    """For each place of a packed axis [N]: the number of its sequence, and whether it is the sequence's last place."""
    xp = arrays.library("values", values)
    if values.ndim != 1 or lengths.ndim != 1:
        raise ValueError(
            f"values and lengths have shapes {tuple(values.shape)} and {tuple(lengths.shape)}; expected [N] and [B]"
        )
    if arrays.any_true(lengths < 0) or arrays.any_true(lengths.sum() != len(values)):
        raise ValueError(
            f"lengths sum to {int(lengths.sum())}; expected {len(values)}, the length of values, and none below 0"
        )
    ends = xp.cumsum(lengths, 0)
    after = xp.cumsum(xp.ones_like(values, dtype=ends.dtype), 0)
    owner = xp.searchsorted(ends, after)
    return owner, after == ends[owner]


def _whole(name: str, counts: Array, values: Array) -> Array:
    """As signed integers, so that differences do not wrap around."""
    arrays.check_neighbour("values", values, name, counts)
    if "int" not in str(counts.dtype):
        raise ValueError(f"{name} has dtype {counts.dtype}; expected integers")
    return arrays.library(name, counts).asarray(counts, dtype=int)


def _endings(values: Array, lengths: Array, terminated: Array | None, finals: Array | None) -> tuple[Array, Array]:
    """For each sequence: whether it ended by itself, and the value of the state after it."""
    xp, shape = arrays.library("values", values), tuple(lengths.shape)
    complete = lengths < 0  # all False
    if terminated is not None:
        arrays.check_neighbour("values", values, "terminated", terminated)
        arrays.check_shape("terminated", terminated, shape, "one per sequence is")
        complete = arrays.to_bool("terminated", terminated)
    if finals is None:
        open_ended = ~complete & (lengths > 0)
        if arrays.any_true(open_ended):
            raise ValueError(
                f"final_values is None, but {int(open_ended.sum())} sequences did not terminate; pass v of the state "
                f"after their last token, or terminated=True for them if the length limit is to count as an end"
            )
        finals = xp.full_like(lengths, xp.nan, dtype=values.dtype)
    arrays.check_neighbour("values", values, "final_values", finals)
    arrays.check_shape("final_values", finals, shape, "one per sequence is")
    if finals.dtype != values.dtype:
        arrays.refuse_dtype("final_values", finals, "values", values)
    return complete, xp.where(complete, arrays.scalar(0.0, values), arrays.detached(finals))

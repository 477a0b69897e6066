"""From sequences of tokens to the arguments of `gae`: packed on one axis, or side by side under a response mask.

A completion is an episode: the end-of-sequence token terminates it, the length limit truncates it. Leaves out where
rewards come from and which tokens a loss counts. `conventions.py` exports these functions with the others.
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
    """Sequences packed end to end on one time axis [N], `lengths` [B] of them; a length may be 0.

    Args:
        rewards, values: [N]. Where values come as [N + B], each sequence's followed by its bootstrap, take them
            apart with `split_packed_values` first.
        lengths: [B] integers with sum N.
        terminated: [B], which sequences are complete (the end-of-sequence token came); None: none of them.
        final_values: [B], v of the state after each sequence's last token. Read where not terminated, and needed
            there: to count a sequence that hit the length limit as complete, say so in `terminated`.
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
    """The same with cumulative lengths [B+1], which begin with 0 and end with N, as flash attention takes them."""
    cu_seqlens = _whole("cu_seqlens", cu_seqlens, values)
    if cu_seqlens.ndim != 1 or len(cu_seqlens) == 0:
        raise ValueError(f"cu_seqlens has shape {tuple(cu_seqlens.shape)}; expected [B+1], 0 first and N last")
    if arrays.any_true(cu_seqlens[:1] != 0):
        raise ValueError(f"cu_seqlens begins with {cu_seqlens[0].item()}, expected 0; are these lengths?")
    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    if values.ndim == 1 and (arrays.any_true(lengths < 0) or arrays.any_true(cu_seqlens[-1:] != len(values))):
        raise ValueError(
            f"cu_seqlens ends with {cu_seqlens[-1].item()}, and holds {int((lengths < 0).sum())} numbers below the one "
            f"before; expected rising numbers, {len(values)} being the last, which is what values holds"
        )
    return from_lengths(rewards, values, lengths, terminated=terminated, final_values=final_values)


@quiet
def split_packed_values(values: Array, lengths: Array) -> tuple[Array, Array]:
    """Values [N + B], each sequence's followed by its bootstrap, as values [N] and final values [B].

    Not under jax.jit: where the sequences end decides what goes where.
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
    """Completions [B, T] with a response mask, True counts (TRL, verl, OpenRLHF); padding on either side.

    Args:
        rewards, values, mask: [B, T]. Whatever stands in masked places (padding, prompt, tool tokens) is not read.
        terminated: [B], where the completion ended by itself. The end-of-sequence token terminates, the length
            limit truncates; None says that none ended. A trainer that treats both alike has all True here.
        final_values: [B], v of the state after the last token; read, and needed, where not terminated.
        masked: "skipped": time stands still over masked tokens, as if they were not there (verl). "decayed": they
            are steps with reward 0 and value 0, and a trace that crosses them fades (TRL, OpenRLHF). The two differ
            only where tokens are masked between live ones.

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
    nothing = xp.zeros_like(finals)  # after the last column; what follows a last token is put in below
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
    """Real numbers, one for each value; `gae` would refuse others too, but later."""
    arrays.library("rewards", rewards)
    arrays.check_alike(values=values, rewards=rewards)
    arrays.check_real("rewards", rewards)


def _sequences(values: Array, lengths: Array) -> tuple[Array, Array]:
    """For each place of a packed axis [N]: the number of its sequence, and whether it is that sequence's last."""
    xp = arrays.library("values", values)
    if values.ndim != 1 or lengths.ndim != 1:
        raise ValueError(
            f"values and lengths have shapes {tuple(values.shape)} and {tuple(lengths.shape)}; expected [N] and [B]"
        )
    if arrays.any_true(lengths < 0) or arrays.any_true(lengths.sum() != len(values)):
        raise ValueError(
            f"lengths sum to {int(lengths.sum())}; expected {len(values)}, what values holds, and none below 0"
        )
    ends = xp.cumsum(lengths, 0)
    after = xp.cumsum(xp.ones_like(values, dtype=ends.dtype), 0)
    owner = xp.searchsorted(ends, after)
    return owner, after == ends[owner]


def _whole(name: str, counts: Array, values: Array) -> Array:
    """Integers that can also be negative, so that none wraps round where one is subtracted from another."""
    arrays.check_neighbour("values", values, name, counts)
    if "int" not in str(counts.dtype):
        raise ValueError(f"{name} has dtype {counts.dtype}; expected integers")
    return arrays.library(name, counts).asarray(counts, dtype=int)


def _endings(values: Array, lengths: Array, terminated: Array | None, finals: Array | None) -> tuple[Array, Array]:
    """Of each sequence: did it end by itself, and the value of the state after it."""
    xp, shape = arrays.library("values", values), tuple(lengths.shape)
    complete = lengths < 0  # none
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

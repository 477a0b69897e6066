"""Texts in rows without padding: prompts, each followed by its completions, one after another, apart by their mask.

A prompt stands once before the completions that share its row, and so does each beginning that several completions
have in common: a tree. Positions restart with every text, and a token sees the tokens before it in its own text alone.
Leaves out layers with a recurrent state, which read across such borders.
"""

# N prompts, B = N · group completions of T tokens, R rows of W places, D hidden size
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from telescope.language.models.states import require_positions, require_tokens, rows_of

WORTH = 0.9
"""Rows with at most this share of the places of padded texts are worth their mask."""


class Layout(NamedTuple):
    """Where each token stands, and what it sees."""

    source: Tensor  # [R, W] index into the prompts' tokens, then the completions'; −1 at empty places
    position: Tensor  # [R, W] within its text
    seen: Tensor  # [R, W, W] bool, True where a token sees another
    predicts: Tensor  # [B, T or T + 1] the place in the flat rows whose state predicts each token


def packed_states(
    trunk: nn.Module,
    prompts: tuple[Tensor, Tensor],
    completions: tuple[Tensor, Tensor],
    group: int,
    *,
    after: bool = False,
    saving: bool = False,
) -> Tensor | None:
    """The states before each token of the completions [B, T, D]; see `completion_states`.

    saving: None where rows have hardly fewer places than padded texts, which need no mask.
    """
    layout = arranged(prompts, completions, group, width_of(trunk), after=after)
    padded = prompts[0].numel() * group + completions[0].numel()
    if saving and layout.source.numel() > WORTH * padded:
        return None
    everything = torch.cat(
        [prompts[0].flatten(), completions[0].flatten(), completions[0].new_zeros(1)]
    )  # the last one fills empty places
    ids, position = everything[layout.source], layout.position
    require_tokens(trunk, ids)
    require_positions(trunk, int(position.max()) + 1)
    out = trunk(input_ids=ids, attention_mask=_masks(trunk, layout), position_ids=position, use_cache=False)
    flat = out.last_hidden_state.flatten(0, 1)  # [R · W, D]
    return rows_of(flat, layout.predicts.flatten()).unflatten(0, layout.predicts.shape)


def width_of(trunk: Any) -> int:
    """Places of a row: as many as a hidden state has numbers. Attention then costs a sixth of the matrix products."""
    return int(trunk.config.get_text_config().hidden_size)


class _Stretch(NamedTuple):
    """A prompt and some completions that follow it, which stand together."""

    prompt: int
    members: list[int]  # numbers of the completions
    shared: list[int]  # the tokens of each that stand already, in the member before it


def arranged(
    prompts: tuple[Tensor, Tensor], completions: tuple[Tensor, Tensor], group: int, width: int, *, after: bool = False
) -> Layout:
    """Fill rows of `width` places, or wider for a longer text. after: also run the last token of each completion."""
    (asked, asked_mask), (ids, mask) = (
        (torch.where(live, x, -1).cpu().numpy(), live.cpu().numpy()) for x, live in (prompts, completions)
    )
    lengths = asked_mask.sum(1)  # [N]
    run = (mask.sum(1) - (not after)).clip(min=0)  # [B] tokens of each completion that are needed
    width = max(width, int((lengths.repeat(group) + run).max()))
    stretches = _stretches(asked, lengths, ids, run, group, width)
    sizes = [int(lengths[one.prompt] + run[one.members].sum()) - sum(one.shared) for one in stretches]
    places = _filled(sizes, width)
    shape = 1 + max(row for row, _ in places), max(at + n for (_, at), n in zip(places, sizes, strict=True))
    source, position = np.full(shape, -1), np.zeros(shape, dtype=np.int64)
    until = np.tile(np.arange(1, 1 + shape[1]), (shape[0], 1))  # [R, W] an empty place is seen by itself alone

    # the prompts, each before its completions: S stretches
    asker = np.array([one.prompt for one in stretches])  # [S]
    row, start = np.array(places).T  # [S]
    follows = start + lengths[asker]  # [S] where the completions begin
    stop = start + sizes  # [S]
    live = asked_mask[asker]  # [S, P]
    at = row[:, None] * shape[1] + start[:, None] + live.cumsum(1) - 1
    source.flat[at[live]] = (asker[:, None] * asked.shape[1] + np.arange(asked.shape[1]))[live]
    position.flat[at[live]] = (live.cumsum(1) - 1)[live]
    until.flat[at[live]] = np.broadcast_to(stop[:, None], live.shape)[live]

    # their completions in the order in which they stand: M = B of them, T tokens
    owner = np.repeat(np.arange(len(stretches)), [len(one.members) for one in stretches])  # [M] its stretch
    member = np.concatenate([one.members for one in stretches])
    shared, need, token = np.concatenate([one.shared for one in stretches]), run[member], np.arange(ids.shape[1])
    base = (row * shape[1])[owner, None]  # [M, 1]
    column, leaves = _standing(owner, shared, need, follows, stop, len(token))
    new = (shared[:, None] <= token) & (token < need[:, None])  # [M, T]
    at = (base + column)[new]
    source.flat[at] = (asked.size + member[:, None] * ids.shape[1] + token)[new]
    position.flat[at] = (lengths[asker[owner]][:, None] + token)[new]
    until.flat[at] = leaves[new]

    here = np.arange(shape[1])
    seen = (here <= here[:, None]) & (here[:, None] < until[:, None, :])  # [R, W, W]
    place = np.empty((len(ids), ids.shape[1] + 1), dtype=np.int64)  # [B, T + 1] of the token before each
    place[member] = base + np.concatenate([follows[owner, None] - 1, column], 1)
    place = np.take_along_axis(place, np.minimum(np.arange(place.shape[1]), run[:, None]), 1)
    found = (source, position, seen, place if after else place[:, :-1])
    return Layout(*(torch.from_numpy(x).to(prompts[0].device) for x in found))


def _standing(owner: Any, shared: Any, need: Any, follows: Any, stop: Any, tokens: int) -> tuple[Any, Any]:
    """The column [M, T] of each token of M completions, and the column until which later tokens see it.

    They stand in alphabetical order, so the tokens that follow a token in its texts are next to each other.

    Args:
        owner: [M] the stretch of each. shared: [M] its tokens that stand already, in the completion before it. need:
            [M] its tokens. follows, stop: [S] columns where the completions of a stretch begin, and where they end.
    """
    own, opens = need - shared, np.diff(owner, prepend=-1) > 0  # [M] tokens of its own; the first of its stretch
    before = own.cumsum() - own
    begins = follows[owner] + before - before[opens][owner]  # [M] the column of the first token of its own
    number, token = np.arange(len(owner))[:, None], np.arange(tokens)
    fresh = shared[:, None] <= token  # [M, T]
    home = np.maximum.accumulate(np.where(fresh, number, 0), 0)  # [M, T] the completion whose own token it is
    border = np.append(np.where(opens, stop[owner - opens], begins)[1:], stop[-1])  # [M] the column after its last one
    last = np.append(fresh[1:], np.ones((1, tokens), dtype=bool), 0)  # [M, T] the next completion does not share it
    leaf = np.minimum.accumulate(np.where(last, number, len(owner))[::-1], 0)[::-1]  # [M, T] the last one that does
    return begins[home] + token - shared[home], border[leaf]


def _stretches(asked: Any, lengths: Any, ids: Any, run: Any, group: int, width: int) -> list[_Stretch]:
    """Each different prompt with all completions that follow it, or in several stretches where a row has no room.

    They stand in alphabetical order, so that of all before it a completion has most in common with its neighbour.
    """
    _, first, kind = np.unique(asked, axis=0, return_index=True, return_inverse=True)
    owner = first[kind.reshape(-1)].repeat(group)  # [B] the prompt that each completion follows
    order = np.lexsort((*ids.T[::-1], owner))
    one, other = ids[order[1:]], ids[order[:-1]]
    alike = np.minimum((one == other).cumprod(1).sum(1), np.minimum(run[order[1:]], run[order[:-1]]))
    found, length = list[_Stretch](), 0
    for member, shared in zip(order.tolist(), [0, *alike.tolist()], strict=True):
        prompt, need = int(owner[member]), int(run[member])
        if found and found[-1].prompt == prompt and length + need - shared <= width:
            found[-1].members.append(member)
            found[-1].shared.append(shared)
            length += need - shared
        else:
            found.append(_Stretch(prompt, [member], [0]))
            length = int(lengths[prompt]) + need
    return found


def _filled(lengths: list[int], width: int) -> list[tuple[int, int]]:
    """The row and column of each stretch: the longest first, into the first row with room."""
    used, found = list[int](), [(0, 0)] * len(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, taken in enumerate(used) if taken + lengths[i] <= width), len(used))
        if row == len(used):
            used.append(0)
        found[i] = (row, used[row])
        used[row] += lengths[i]
    return found


def _masks(trunk: Any, layout: Layout) -> Any:
    """What is added to attention scores [R, 1, W, W]: 0 where a token sees another, else the lowest number.

    For a model with several kinds of layers, by kind.
    """
    position, seen = layout.position, layout.seen
    window = getattr(trunk.config, "sliding_window", None)
    near = seen if window is None else seen & (position[:, :, None] - position[:, None, :] < window)
    kinds = set(getattr(trunk.config, "layer_types", None) or ())
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise ValueError(f"its layers of {min(unknown)} read across the borders of packed texts")
    dtype = next(trunk.parameters()).dtype
    by_kind = {"full_attention": seen, "sliding_attention": near}
    return {kind: _added(by_kind[kind], dtype) for kind in kinds} or _added(near, dtype)


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    lowest = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, lowest)[:, None]

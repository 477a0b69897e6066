"""A cache of keys and values for sampling, with room for tokens to come.

transformers' own cache copies all of its keys and values at every token. Leaves out layers that hold anything else
(windows, recurrent states), which stay transformers' own, and gradients: rows are written in place.
"""

# C texts in the cache, H heads, W tokens so far, D numbers of a head
from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 16
"""Tokens to come that a new array has room for."""


def roomy_cache(config: Any) -> DynamicCache:
    """An empty cache for a model with this config."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):
    """The keys and values of one layer. They are the first W places of arrays that have more."""

    keys: Any  # [C, H, W, D]
    values: Any
    room: tuple[Tensor, Tensor] | None = None  # [C, H, W and more, D] each

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the keys and values [C, H, new, D] of new tokens; return those of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if self.room is None or not self._own() or stop > self.room[0].shape[-2]:
            self.room = (_with_room(self.keys, key_states, stop), _with_room(self.values, value_states, stop))
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[..., start:stop, :] = new
        self._show(stop)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Any) -> None:
        """Select these texts, some of them several times."""
        if self.room is None or not self._own():
            super().reorder_cache(beam_idx)
            return
        length, rows = self.get_seq_length(), beam_idx.to(self.room[0].device)
        self.room = (self.room[0].index_select(0, rows), self.room[1].index_select(0, rows))
        self._show(length)

    def _show(self, length: int) -> None:
        assert self.room is not None
        self.keys, self.values = (room[..., :length, :] for room in self.room)

    def _own(self) -> bool:
        """Whether keys and values still are the beginning of the arrays with room: others may have replaced them."""
        assert self.room is not None
        pairs = zip((self.keys, self.values), self.room, strict=True)
        return all(x.data_ptr() == room.data_ptr() and x.stride() == room.stride() for x, room in pairs)


def _with_room(old: Tensor, new: Tensor, length: int) -> Tensor:
    """An array for `length` tokens and some more, which begins with the old ones."""
    room = new.new_empty((*new.shape[:-2], length + ROOM, new.shape[-1]))
    if old.numel():
        room[..., : old.shape[-2], :] = old
    return room

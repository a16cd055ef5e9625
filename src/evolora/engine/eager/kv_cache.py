"""The keys and values of a batch, in memory with room to grow, whose finished rows can leave."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from evolora.engine.cpu.activation_store import Tape
from evolora.engine.cpu.attention.decode import extend
from evolora.engine.cpu.jit import compiled, run_rows, takes

# Entries to copy, for less of which another thread is not worth its call.
_LEAST_A_THREAD = 1_000_000


class RoomyCache(Cache):  # type: ignore[misc]
    """A cache whose layers all have room."""

    layers: "list[RoomyLayer]"
    tape: Tape | None = None  # where what the gradient needs is to be written, too


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, [rows, heads, length, size], with room for `capacity` positions.

    transformers' own DynamicLayer copies everything for each new token. Here `keys` and `values` are [rows, capacity,
    heads, size], so that a row's are read in the order they lie in memory (`evolora.engine.cpu.attention.decode`).
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (self._room(states.transpose(1, 2)) for states in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append these, and return all so far, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[-2]
        self.keys[:, start : self.length] = key_states.transpose(1, 2)
        self.values[:, start : self.length] = value_states.transpose(1, 2)
        return self.keys[:, : self.length].transpose(1, 2), self.values[:, : self.length].transpose(1, 2)

    def extends(self, states: Tensor) -> bool:
        """Whether `extend` can take these."""
        return self.is_initialized and states.is_contiguous() and takes(states)

    def extend(self, states: Tensor, mask: Tensor, scaling: float) -> Tensor:
        """Append the keys and values among `states` [rows, asked, 3, heads, size] and attend to all so far with its
        queries: `evolora.engine.cpu.attention.decode.extend`."""
        start, self.length = self.length, self.length + states.shape[1]
        return extend(states, self.keys, self.values, start, mask, scaling)

    def grow(self, positions: int = 1) -> int:
        """Where the positions to be written next begin; they count from now on."""
        self.length += positions
        return self.length - positions

    def begin(self, states: Tensor, length: int, heads: int) -> None:
        """Start with `length` positions for each of `states` [rows, positions, hidden], still to be written."""
        self.dtype, self.device, self.is_initialized = states.dtype, states.device, True
        rows, _, hidden = states.shape
        self.keys, self.values = (states.new_empty(rows, self.capacity, heads, hidden // heads) for _ in range(2))
        self.length = length

    def fill(self, packed: "RoomyLayer", index: Tensor) -> None:
        """Start with the positions that stand at `index` [rows, length] in the flattened packs of another."""
        self.dtype, self.device, self.is_initialized = packed.dtype, packed.device, True
        rows, self.length = index.shape
        for name in ("keys", "values"):
            states = getattr(packed, name)[:, : packed.length].flatten(0, 1)
            room = states.new_empty(rows, self.capacity, *states.shape[1:])
            _gather(states, index, room)
            setattr(self, name, room)

    def get_seq_length(self) -> int:
        return self.length

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order; a row may come several times."""
        for name in ("keys", "values"):
            kept = getattr(self, name)[:, : self.length].index_select(0, indices)
            room = self._room(kept)
            room[:, : self.length] = kept
            setattr(self, name, room)

    def _room(self, states: Tensor) -> Tensor:
        """For states [rows, positions, heads, size]."""
        return states.new_empty(len(states), self.capacity, *states.shape[2:])


def make_cache(model: PreTrainedModel, capacity: int) -> Cache:
    """A cache for `model` with room for `capacity` positions where every layer attends to every position; else (sliding
    windows, recurrent layers) the one that transformers makes for it."""
    cache = DynamicCache(config=model.config)
    if all(type(layer) is DynamicLayer for layer in cache.layers):
        return RoomyCache(layers=[RoomyLayer(capacity) for _ in cache.layers])
    return cache


def keeps_all(cache: Cache) -> bool:
    """Whether every layer keeps every position where it was put, so that positions may be masked anywhere."""
    return all(isinstance(layer, RoomyLayer) for layer in cache.layers)


def unpacked(cache: Cache, index: Tensor, *, capacity: int) -> RoomyCache:
    """A cache of rows, from one of packs: position p of row r is what stands at `index` [rows, length] in the flattened
    packs [packs * width]."""
    layers = []
    for packed in cache.layers:
        layer = RoomyLayer(capacity)
        layer.fill(packed, index)
        layers.append(layer)
    return RoomyCache(layers=layers)


def _gather(states: Tensor, index: Tensor, room: Tensor) -> None:
    """room[row, p] = states[index[row, p]] for [places, heads, size]."""
    if takes(states, room):
        arguments = states.flatten(1).numpy(), index.numpy(), room.flatten(2).numpy()
        run_rows(_gather_rows, arguments, len(index), min(torch.get_num_threads(), room.numel() // _LEAST_A_THREAD))
    else:
        # index_select copies whole positions, where indexing would go entry by entry.
        room[:, : index.shape[1]] = states.index_select(0, index.flatten()).unflatten(0, index.shape)


@compiled()
def _gather_rows(states: Any, index: Any, room: Any, first: Any, last: Any) -> None:
    """For rows `first` to `last` (not included)."""
    for row in range(first, last):
        for position in range(index.shape[1]):
            source, target = states[index[row, position]], room[row, position]
            for d in range(len(source)):
                target[d] = source[d]

"""The KV cache of a batch, in memory with room to grow, whose finished rows can leave."""

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from evolora.engine.base import Trace


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, [rows, heads, length, size], with room for `capacity` positions.

    transformers' own DynamicLayer copies everything for each new token. Here `keys` and `values` are [rows, capacity,
    heads, size], so that a row's are read in the order they lie in memory. What attends gets views of them, or with
    `copies` tensors in the order of transformers' own.
    """

    def __init__(self, capacity: int, *, copies: bool = False) -> None:
        super().__init__()
        self.capacity, self.copies = capacity, copies
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (self._room(states.transpose(1, 2)) for states in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append these, and return all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[-2]
        self.keys[:, start : self.length] = key_states.transpose(1, 2)
        self.values[:, start : self.length] = value_states.transpose(1, 2)
        keys, values = (states[:, : self.length].transpose(1, 2) for states in (self.keys, self.values))
        return (keys.contiguous(), values.contiguous()) if self.copies else (keys, values)

    def fill(self, packed: "RoomyLayer", index: Tensor) -> None:
        """Start with the positions that stand at `index` [rows, length] in the flattened packs of another."""
        self.dtype, self.device, self.is_initialized = packed.dtype, packed.device, True
        rows, self.length = index.shape
        for name in ("keys", "values"):
            states = getattr(packed, name)[:, : packed.length].flatten(0, 1)
            room = states.new_empty(rows, self.capacity, *states.shape[1:])
            self.gather(states, index, room)
            setattr(self, name, room)

    def get_seq_length(self) -> int:
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, in this order; a row may come several times."""
        for name in ("keys", "values"):
            kept = getattr(self, name)[:, : self.length].index_select(0, beam_idx)
            room = self._room(kept)
            room[:, : self.length] = kept
            setattr(self, name, room)

    def gather(self, states: Tensor, index: Tensor, room: Tensor) -> None:
        """room[row, p] = states[index[row, p]] for [places, heads, size]."""
        # index_select copies whole positions, where indexing would go entry by entry.
        room[:, : index.shape[1]] = states.index_select(0, index.flatten()).unflatten(0, index.shape)

    def _room(self, states: Tensor) -> Tensor:
        """For states [rows, positions, heads, size]."""
        return states.new_empty(len(states), self.capacity, *states.shape[2:])


class RoomyCache(Cache):  # type: ignore[misc]
    """A cache whose layers all have room. `trace` is where an engine's passes write what the gradient needs, too."""

    layers: list[RoomyLayer]
    trace: Trace | None = None

    def unpacked(self, index: Tensor, *, capacity: int) -> "RoomyCache":
        """A cache of rows, from this one of packs: position p of row r is what stands at `index` [rows, length] in the
        flattened packs [packs * width]."""
        layers = []
        for packed in self.layers:
            layer = type(packed)(capacity, copies=packed.copies)
            layer.fill(packed, index)
            layers.append(layer)
        cache = type(self)(layers=layers)
        cache.trace = self.trace
        return cache


def make_cache(
    model: PreTrainedModel,
    capacity: int,
    *,
    longest: int | None = None,
    kind: type[RoomyCache] = RoomyCache,
    layer: type[RoomyLayer] = RoomyLayer,
) -> Cache:
    """A cache for `model` with room for `capacity` positions where every layer attends to every position of a row of
    `longest`, or of `capacity`; else (sliding windows that it outgrows, recurrent layers) the one that transformers
    makes for it."""
    cache = DynamicCache(config=model.config)
    if not all(_attends_to_all(own, longest or capacity) for own in cache.layers):
        return cache
    # Attention that is the architecture's own code may take keys for contiguous, as DynamicCache's are.
    copies = model.config._attn_implementation == "eager" and not model._supports_attention_backend
    return kind(layers=[layer(capacity, copies=copies) for _ in cache.layers])


def _attends_to_all(layer: CacheLayerMixin, longest: int) -> bool:
    slides = type(layer) is DynamicSlidingWindowLayer and layer.sliding_window >= longest
    return slides or type(layer) is DynamicLayer


def keeps_all(cache: Cache) -> bool:
    """Whether every layer keeps every position where it was put, so that positions may be masked anywhere."""
    return all(isinstance(layer, RoomyLayer) for layer in cache.layers)

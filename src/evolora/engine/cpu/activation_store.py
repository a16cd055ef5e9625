"""Room for what a decoding computes for each token, by layer: what the gradient of what it writes needs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

# A room that is kept for another tape has at most so many.
_KEPT_BYTES = 2**26


class TapedLayer(NamedTuple):
    """Of one layer, arrays [tokens, ...]: the hidden states before it, queries with keys and values, what attention
    makes of them, the hidden states between attention and MLP, and those within that before and after its activation.
    """

    first_hidden: Any
    states: Any
    mixed: Any
    second_hidden: Any
    wide: Any
    activated: Any

    def at(self, where: slice) -> "TapedLayer":
        return TapedLayer(*(array[where] for array in self))


class Taken(NamedTuple):
    """Where some tokens are to be written: into `last_hidden`, what the last layer gives; and for each layer."""

    last_hidden: Any
    layers: list[TapedLayer]

    def write(self, index: int, *states: Tensor) -> None:
        """What `TapedLayer` has of one layer, each [..., size] of these tokens."""
        for array, own in zip(self.layers[index], states, strict=True):
            array[:] = own.reshape(array.shape).numpy()


class Tape:
    """Room for up to `most` tokens and `n_layers` layers, each with so many entries a token of what `TapedLayer` has as
    `sizes` says; tokens are taken in order. `shelf` is where another tape's room may lie, and this one's is put when
    it is no longer needed: memory that is new to the process costs more than what is written to it."""

    def __init__(self, most: int, n_layers: int, sizes: Sequence[int], shelf: list[Any]) -> None:
        needed = self.entries(most, n_layers, sizes)
        room = shelf.pop() if shelf else np.empty(0, np.float32)
        if len(room) < needed:
            room = np.empty(needed, np.float32)  # what is not written takes no memory
        self._room, self._shelf = room, shelf
        room = room[:needed]
        edges = np.cumsum([most * size for size in [*sizes] * n_layers])
        arrays = [part.reshape(most, -1) for part in np.split(room, edges)]
        self.tokens = 0
        self._last_hidden = arrays.pop()
        self._layers = [TapedLayer(*arrays[i : i + len(sizes)]) for i in range(0, len(arrays), len(sizes))]

    @staticmethod
    def entries(most: int, n_layers: int, sizes: Sequence[int]) -> int:
        """How many numbers there is room for."""
        return most * (n_layers * sum(sizes) + sizes[0])

    def take(self, tokens: int) -> Taken:
        """Where so many more tokens are to be written."""
        start, self.tokens = self.tokens, self.tokens + tokens
        return self._taken(slice(start, self.tokens))

    def give_back(self, tokens: int) -> None:
        """The last so many of those that were taken."""
        self.tokens -= tokens

    def taken(self) -> Taken:
        """All that was, until the tape is let go."""
        return self._taken(slice(0, self.tokens))

    def release(self) -> None:
        """Give the room to another."""
        if self._layers and self._room.nbytes <= _KEPT_BYTES:
            self._shelf[:] = [self._room]
        self._room, self._last_hidden, self._layers = self._room[:0], self._last_hidden[:0], []

    def _taken(self, where: slice) -> Taken:
        return Taken(self._last_hidden[where], [layer.at(where) for layer in self._layers])

"""Room for what a decoding computes for each token, by layer: what the gradient of what it writes needs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor


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
    `sizes` says; tokens are taken in order."""

    def __init__(self, most: int, n_layers: int, sizes: Sequence[int]) -> None:
        # What is not written takes no memory; what is, in one piece, comes from the system in huge pages.
        room = np.empty(most * (n_layers * sum(sizes) + sizes[0]), np.float32)
        edges = np.cumsum([most * size for size in [*sizes] * n_layers])
        arrays = [part.reshape(most, -1) for part in np.split(room, edges)]
        self.nbytes, self.tokens = room.nbytes, 0
        self._last_hidden = arrays.pop()
        self._layers = [TapedLayer(*arrays[i : i + len(sizes)]) for i in range(0, len(arrays), len(sizes))]

    def take(self, tokens: int) -> Taken:
        """Where so many more tokens are to be written."""
        start, self.tokens = self.tokens, self.tokens + tokens
        return self._taken(slice(start, self.tokens))

    def give_back(self, tokens: int) -> None:
        """The last so many of those that were taken."""
        self.tokens -= tokens

    def let_go(self) -> Taken:
        """All that was taken; it is no longer this tape's."""
        taken = self._taken(slice(0, self.tokens))
        self._last_hidden, self._layers = self._last_hidden[:0], []
        return taken

    def _taken(self, where: slice) -> Taken:
        return Taken(self._last_hidden[where], [layer.at(where) for layer in self._layers])

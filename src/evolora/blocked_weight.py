"""A layer's weight in oneDNN's own blocked layout: from a plain weight, each product arranges the blocks anew.

Where a product has few rows and so little arithmetic, that is a tenth of its time to a third. The results are the same
to the bit.
"""

import copy
from typing import Any

import torch
from torch import Tensor

# Blocks are a second copy of the weights. Products of more rows gain too little by it, and where they are many, the
# memory is needed for their keys and values. Two limits, so that a batch near one does not arrange blocks at each step.
MOST_ROWS = 96
_DROPPED_FROM = 128
# Arranging the blocks takes as long as so many products gain by them, about.
_LEAST_PRODUCTS = 32


class BlockedWeight:
    """The weight of one layer, laid out in blocks once some products of up to `MOST_ROWS` rows have asked for it, and
    again when it has changed; dropped by a product of many."""

    def __init__(self, weight: Tensor, *, transposed: bool) -> None:
        self._weight = weight
        self._transposed = transposed
        self._blocks: Tensor | None = None
        self._products = 0  # that would have been faster with blocks

    def __deepcopy__(self, memo: dict[int, Any]) -> "BlockedWeight":
        """A copy of the layer that shares its weight shares the blocks; one with a weight of its own starts without."""
        weight = copy.deepcopy(self._weight, memo)
        return self if weight is self._weight else BlockedWeight(weight, transposed=self._transposed)

    def of(self, weight: Tensor, *, rows: int) -> Tensor:
        """The layer's `weight` as [out, in], to multiply `rows` rows: in blocks, if that pays."""
        if rows == 1:
            return self._plain(weight)  # no product of matrices: as fast from a plain weight, and rounded otherwise
        blocks = self._blocks
        if blocks is not None and rows < _DROPPED_FROM and self._current(weight):
            return blocks
        if blocks is not None or rows >= _DROPPED_FROM:
            self._blocks, self._products = None, 0
        if rows > MOST_ROWS:
            return self._plain(weight)
        self._products += 1
        return self._plain(weight) if self._products < _LEAST_PRODUCTS else self._arrange(weight)

    def _plain(self, weight: Tensor) -> Tensor:
        return weight.t() if self._transposed else weight

    def _arrange(self, weight: Tensor) -> Tensor:
        plain = weight.detach()
        # From a transposed weight it takes twice as long as a copy and this.
        blocks: Tensor = torch.ops.mkldnn._reorder_linear_weight(self._plain(plain).contiguous(), MOST_ROWS)
        self._weight = weight
        self._address, self._version = weight.data_ptr(), weight._version
        # What is written through `.data`, as by PEFT's merging, has no version: one value in the middle tells.
        self._values = plain.numpy()
        self._probe = plain.shape[0] // 2, plain.shape[1] // 2
        self._value = self._values[self._probe]
        self._blocks = blocks
        return blocks

    def _current(self, weight: Tensor) -> bool:
        return (
            weight._version == self._version
            and weight.data_ptr() == self._address
            and bool(self._values[self._probe] == self._value)
        )

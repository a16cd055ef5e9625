"""Dropout by counters: which entries are dropped follows from a token's own key and the layer, in any company.

16 bits of a number decide, so that four entries share one. The numbers are SplitMix64's (Steele, Lea and Flood, 2014,
"Fast splittable pseudorandom number generators") in int64, whose products wrap and whose shifts copy the sign, on any
device.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SHARES = 2**16
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True)
class Dropout:
    """The `share` of the adapters' input that is dropped, by numbers that begin at `starts` [layers, rows, length]."""

    share: float
    starts: Tensor

    @classmethod
    def of(cls, share: float, keys: Tensor, *, layers: int) -> Self:
        """By a key for each token of a batch, [rows, length]."""
        own = torch.arange(layers, device=keys.device) * _signed(GOLDEN)
        return cls(share, mixed(keys + own[:, None, None]))

    def of_layer(self, layer: int, shape: torch.Size) -> Tensor:
        """The starts for an input [*shape, width]. An output embedding may get only the last tokens of each row."""
        starts = self.starts[layer]
        return (starts if starts.numel() == shape.numel() else starts[:, -shape[-1] :]).reshape(shape)


def token_keys(ids: Tensor, mask: Tensor, seeds: npt.NDArray[np.uint64]) -> Tensor:
    """A key for each token of texts, `ids` and `mask` [rows, length], from its text's entry of `seeds` [rows] and from
    the text up to it, not from where padding puts it.

    >>> text = torch.tensor([[5, 6, 7]])
    >>> padded, seeds = torch.tensor([[0, 5, 6, 8]]), np.array([1], np.uint64)
    >>> token_keys(text, text > 0, seeds)[0, :2] == token_keys(padded, padded > 0, seeds)[0, 1:3]
    tensor([True, True])
    """
    mask = mask.to(torch.int64)
    own = mixed(mixed(ids + 1) + mask.cumsum(1) * _signed(GOLDEN))
    seed = torch.from_numpy(seeds.astype(np.uint64).view(np.int64)).to(ids.device)
    return mixed((own * mask).cumsum(1) + seed[:, None])


def dropped(x: Tensor, share: float, starts: Tensor) -> Tensor:
    """`x` [..., width] with `share` of its entries, to 1 in 65,536, set to zero and the rest scaled up, as the tokens'
    `starts` [...] say. Differentiable."""
    limit, scale = limit_and_scale(share)
    counters = torch.arange(1, (x.shape[-1] + 3) // 4 + 1, device=x.device) * _signed(GOLDEN)
    bits = mixed(starts[..., None] + counters).view(torch.int16)
    kept = bits[..., : x.shape[-1]] >= limit
    return x * kept.to(x.dtype).mul_(scale)


def limit_and_scale(share: float) -> tuple[int, float]:
    """The number of 16 bits, signed, below which an entry is dropped, and by what the others are scaled up."""
    count = min(max(1, round(share * SHARES)), SHARES - 1)
    return count - SHARES // 2, SHARES / (SHARES - count)


def mixed(z: Tensor) -> Tensor:
    """SplitMix64's last step."""
    for bits, factor in ((30, FIRST), (27, SECOND)):
        z = (z ^ _shifted(z, bits)).mul_(_signed(factor))
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (z >> bits).bitwise_and_(2 ** (64 - bits) - 1)


def _signed(number: int) -> int:
    """The int64 of the same 64 bits."""
    return (number + 2**63) % 2**64 - 2**63

"""LoRA adapters on a CPU, compiled: what each row's own one adds, from the genomes as they lie in memory.

Of a few rows each, torch's batched products reach a tenth of the rate of others, and rows that are not equally many for
each individual have to be copied to be so.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from evolora.engine.cpu.dropout import Dropped
from evolora.engine.cpu.jit import REORDERED, compiled
from evolora.engine.cpu.types import F32, F32_1, F32_2, I64, I64_1

AT_ONCE = 8
_ZERO = np.float32(0)


class Adapter(NamedTuple):
    """The adapters of one layer for the rows of a batch, as compiled functions take them.

    `genomes` [n, genome_length] float32 and `owners` [rows] int64, the individual of each row; A [rank, in] lies at
    `a_offset` of a genome and B [out, rank] at `b_offset`.
    """

    genomes: Any
    owners: Any
    a_offset: int
    b_offset: int
    rank: int
    scaling: Any


# As types.
ADAPTER = F32_2, I64_1, I64, I64, I64, F32


@dataclass(frozen=True)
class GroupAdapter:
    """The adapters of one layer for a batch of equal groups of rows, in order those of each of `genomes` [n,
    genome_length], float32 on a CPU: A [rank, in] at `a_offset` of a genome, B [out, rank] at `b_offset`; and which
    entries of their input are `dropped`."""

    genomes: Tensor
    a_offset: int
    b_offset: int
    rank: int
    scaling: float
    dropped: Dropped


NOTHING = np.empty((0, 0), np.float32)
NO_ADAPTER = Adapter(NOTHING, np.empty(0, np.int64), 0, 0, 0, _ZERO)


class AdapterHook(ABC):
    """A forward hook that adds to its layer's output what adapters do: a compiled pass may do that in its place."""

    @property
    @abstractmethod
    def active(self) -> bool:
        """Whether it adds anything now."""

    @abstractmethod
    def adapter(self, rows: int) -> Adapter | None:
        """What it would add to a batch of so many rows; None if compiled functions cannot, or there is an error to be
        raised."""

    @abstractmethod
    def groups(self, rows: int) -> "GroupAdapter | None":
        """The same of equal groups of rows, in training too."""


def active_adapter(layer: nn.Module) -> list[AdapterHook] | None:
    """The one hook of `layer` that adapts it now, or none; None where anything else has a part in what it gives."""
    hooks = list[Any](layer._forward_hooks.values())
    if layer._forward_pre_hooks or not all(isinstance(hook, AdapterHook) for hook in hooks):
        return None
    active = [hook for hook in hooks if hook.active]
    return active if len(active) <= 1 else None


@compiled([*ADAPTER, F32_2, F32_2, I64, I64], **REORDERED)
def add_low_rank(
    genomes: Any,
    owners: Any,
    a_offset: Any,
    b_offset: Any,
    rank: Any,
    scaling: Any,
    x: Any,
    result: Any,
    first: Any,
    last: Any,
) -> None:
    """Rows `first` to `last` (not included) of `result` [rows, out] += scaling (x A.T) B.T for x [rows, in]; row i is
    of individual owners[i]. Nothing with a rank of 0."""
    if rank == 0 or first == last:
        return
    width, wide = x.shape[1], result.shape[1]
    low = np.zeros((last - first, (rank + AT_ONCE - 1) // AT_ONCE * AT_ONCE), np.float32)
    factor = np.empty((AT_ONCE, wide), np.float32)
    start = first
    while start < last:
        owner = owners[start]
        end = start + 1
        while end < last and owners[end] == owner:
            end += 1
        genome = genomes[owner]
        down(genome[a_offset : a_offset + rank * width], rank, scaling, x[start:end], low[start - first : end - first])
        for chosen in range(0, rank, AT_ONCE):
            transpose(genome[b_offset : b_offset + rank * wide], rank, chosen, factor)
            up(low[start - first : end - first, chosen : chosen + AT_ONCE], factor, result[start:end])
        start = end


@compiled([F32_1, I64, F32, F32_2, F32_2], **REORDERED)
def down(a: Any, rank: Any, scaling: Any, x: Any, low: Any) -> None:
    """low [rows, rank and more] = scaling x A.T, with A flat. Two rows and four ranks at a time, which share what they
    read; past an end the last one again."""
    rows, width = x.shape
    for row in range(0, rows, 2):
        other = min(row + 1, rows - 1)
        x0, x1 = x[row], x[other]
        for r0 in range(0, rank, 4):
            r1, r2, r3 = min(r0 + 1, rank - 1), min(r0 + 2, rank - 1), min(r0 + 3, rank - 1)
            a0, a1 = a[r0 * width : (r0 + 1) * width], a[r1 * width : (r1 + 1) * width]
            a2, a3 = a[r2 * width : (r2 + 1) * width], a[r3 * width : (r3 + 1) * width]
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = _ZERO
            for d in range(width):
                v0, v1 = x0[d], x1[d]
                s00 += v0 * a0[d]
                s01 += v0 * a1[d]
                s02 += v0 * a2[d]
                s03 += v0 * a3[d]
                s10 += v1 * a0[d]
                s11 += v1 * a1[d]
                s12 += v1 * a2[d]
                s13 += v1 * a3[d]
            low[row, r0], low[row, r1] = s00 * scaling, s01 * scaling
            low[row, r2], low[row, r3] = s02 * scaling, s03 * scaling
            low[other, r0], low[other, r1] = s10 * scaling, s11 * scaling
            low[other, r2], low[other, r3] = s12 * scaling, s13 * scaling


@compiled([F32_1, I64, I64, F32_2], **REORDERED)
def transpose(b: Any, rank: Any, chosen: Any, factor: Any) -> None:
    """Columns `chosen` and on of B, flat [out * rank], as rows of `factor` [8, out]; zeros where there are none left.
    Columns of 8, the usual rank, by steps that the compiler knows."""
    wide = factor.shape[1]
    if rank == AT_ONCE:
        for d in range(wide):
            for r in range(AT_ONCE):
                factor[r, d] = b[d * AT_ONCE + r]
    else:
        for d in range(wide):
            for r in range(AT_ONCE):
                factor[r, d] = b[d * rank + chosen + r] if chosen + r < rank else _ZERO


@compiled([F32_2, F32_2, F32_2], **REORDERED)
def up(low: Any, factor: Any, result: Any) -> None:
    """result [rows, out] += low [rows, 8] factor [8, out]."""
    f0, f1, f2, f3 = factor[0], factor[1], factor[2], factor[3]
    f4, f5, f6, f7 = factor[4], factor[5], factor[6], factor[7]
    for row in range(len(result)):
        own = result[row]
        l0, l1, l2, l3 = low[row, 0], low[row, 1], low[row, 2], low[row, 3]
        l4, l5, l6, l7 = low[row, 4], low[row, 5], low[row, 6], low[row, 7]
        for d in range(factor.shape[1]):
            low_half = l0 * f0[d] + l1 * f1[d] + l2 * f2[d] + l3 * f3[d]
            own[d] += low_half + l4 * f4[d] + l5 * f5[d] + l6 * f6[d] + l7 * f7[d]

"""Dropout by a seed: the same entries forwards and backwards, and none of them kept in memory.

torch's own draws a number for each entry, which takes as long as all products of a small model. Here 16 bits
of one decide, and compiled code makes four decisions of each number.
"""

from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from evolora.engine.cpu.jit import REORDERED, compiled, in_float32, run_rows, threads_worth
from evolora.engine.cpu.types import F32, F32_2, I64, U16, U64
from evolora.engine.eager import dropout as eager

# SplitMix64 (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators").
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _ONE = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(1)


class Dropped(NamedTuple):
    """Which entries of states [rows, width] are dropped, as compiled functions take it: those whose 16 random bits, by
    the seed, are below the limit. The rest is scaled up. Nothing with a limit of 0."""

    seed: Any
    limit: Any
    scale: Any

    @classmethod
    def drawn(cls, share: float, generator: torch.Generator | None) -> Self:
        """`share` of them, to 1 in 65,536, as a generator of the CPU says; none without one."""
        if generator is None:
            return cls(np.uint64(0), np.uint16(0), np.float32(1))
        limit, scale = eager.limit_and_scale(share)
        seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator))
        return cls(np.uint64(seed), np.uint16(limit), np.float32(scale))


# As types.
DROPPED = U64, U16, F32

NOT_DROPPED = Dropped.drawn(0.0, None)


def dropped(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """`x` with `share` of its entries, to 1 in 65,536, set to zero and the rest scaled up, as `generator`, one of x's
    device, says. Differentiable, of float32 on a CPU once."""
    if in_float32(x):
        by_seed: Tensor = _Dropout.apply(x, Dropped.drawn(share, generator))  # type: ignore[no-untyped-call]
        return by_seed
    return eager.dropped(x, share, generator)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, which: Dropped) -> Tensor:
        ctx.which = which
        return _run(x, which)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _run(gradient, ctx.which), None


def _run(x: Tensor, which: Dropped) -> Tensor:
    result = torch.empty(x.shape, dtype=torch.float32)
    arrays = [tensor.contiguous().view(-1, x.shape[-1]).numpy() for tensor in (x.detach(), result)]
    run_rows(drop_rows, [*which, *arrays], len(arrays[0]), threads_worth(x.numel()))
    return result


@compiled([*DROPPED, F32_2, F32_2, I64, I64])
def drop_rows(seed: Any, limit: Any, scale: Any, x: Any, result: Any, first: Any, last: Any) -> None:
    """Rows `first` to `last` (not included) of `result`: of x [rows, width] what is not dropped."""
    numbers = np.empty((x.shape[1] + 3) // 4, np.uint64)
    bits = numbers.view(np.uint16)
    for row in range(first, last):
        own, target = x[row], result[row]
        _draw(seed, row, numbers)
        for d in range(len(own)):
            target[d] = own[d] * scale if bits[d] >= limit else np.float32(0)


@compiled([*DROPPED, F32_2, F32_2, I64], **REORDERED)
def add_dropped_rows(seed: Any, limit: Any, scale: Any, x: Any, result: Any, first: Any) -> None:
    """result [rows, width] += what is not dropped of x, which are rows `first` and on of the states."""
    numbers = np.empty((x.shape[1] + 3) // 4, np.uint64)
    bits = numbers.view(np.uint16)
    for row in range(len(x)):
        own, target = x[row], result[row]
        _draw(seed, first + row, numbers)
        for d in range(len(own)):
            target[d] += own[d] * scale if bits[d] >= limit else np.float32(0)


@compiled()
def _draw(seed: Any, row: Any, numbers: Any) -> None:
    """The numbers of a row, as SplitMix64 draws them one after another."""
    start = seed + np.uint64(row * len(numbers)) * _GOLDEN
    for i in range(len(numbers)):
        z = start + (np.uint64(i) + _ONE) * _GOLDEN
        z = (z ^ (z >> _S30)) * _FIRST
        z = (z ^ (z >> _S27)) * _SECOND
        numbers[i] = z ^ (z >> _S31)

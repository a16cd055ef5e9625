"""Dropout by counters, compiled: the same entries forwards and backwards, and none of them kept in memory."""

from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from evolora.engine.cpu.jit import REORDERED, compiled, in_float32, run_rows, threads_worth
from evolora.engine.cpu.types import F32, F32_2, I16, I64, U64_1
from evolora.engine.eager import dropout as eager

_GOLDEN, _FIRST, _SECOND = np.uint64(eager.GOLDEN), np.uint64(eager.FIRST), np.uint64(eager.SECOND)
_S30, _S27, _S31, _ONE = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(1)


class Dropped(NamedTuple):
    """Which entries of states [rows, width] are dropped, as compiled functions take it: those whose 16 random bits, by
    their row's entry of `starts` [rows], are below the limit. The rest is scaled up. Nothing without starts."""

    starts: Any
    limit: Any
    scale: Any

    @classmethod
    def of(cls, share: float, starts: Tensor) -> Self:
        """`share` of them, to 1 in 65,536."""
        limit, scale = eager.limit_and_scale(share)
        return cls(starts.reshape(-1).numpy().view(np.uint64), np.int16(limit), np.float32(scale))


# As types.
DROPPED = U64_1, I16, F32

NOT_DROPPED = Dropped(np.empty(0, np.uint64), np.int16(0), np.float32(1))


def dropped(x: Tensor, share: float, starts: Tensor) -> Tensor:
    """`x` [..., width] with `share` of its entries, to 1 in 65,536, set to zero and the rest scaled up, as the tokens'
    `starts` [...] say. Differentiable, of float32 on a CPU once."""
    if in_float32(x):
        by_rows: Tensor = _Dropout.apply(x, Dropped.of(share, starts))  # type: ignore[no-untyped-call]
        return by_rows
    return eager.dropped(x, share, starts)


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
def drop_rows(starts: Any, limit: Any, scale: Any, x: Any, result: Any, first: Any, last: Any) -> None:
    """Rows `first` to `last` (not included) of `result`: of x [rows, width] what is not dropped."""
    numbers = np.empty((x.shape[1] + 3) // 4, np.uint64)
    bits = numbers.view(np.int16)
    for row in range(first, last):
        own, target = x[row], result[row]
        _draw(starts[row], numbers)
        for d in range(len(own)):
            target[d] = own[d] * scale if bits[d] >= limit else np.float32(0)


@compiled([*DROPPED, F32_2, F32_2, I64], **REORDERED)
def add_dropped_rows(starts: Any, limit: Any, scale: Any, x: Any, result: Any, first: Any) -> None:
    """result [rows, width] += what is not dropped of x, which are rows `first` and on of the states."""
    numbers = np.empty((x.shape[1] + 3) // 4, np.uint64)
    bits = numbers.view(np.int16)
    for row in range(len(x)):
        own, target = x[row], result[row]
        _draw(starts[first + row], numbers)
        for d in range(len(own)):
            target[d] += own[d] * scale if bits[d] >= limit else np.float32(0)


@compiled()
def _draw(start: Any, numbers: Any) -> None:
    """The numbers of a row, as SplitMix64 draws them one after another."""
    for i in range(len(numbers)):
        z = start + (np.uint64(i) + _ONE) * _GOLDEN
        z = (z ^ (z >> _S30)) * _FIRST
        z = (z ^ (z >> _S27)) * _SECOND
        numbers[i] = z ^ (z >> _S31)

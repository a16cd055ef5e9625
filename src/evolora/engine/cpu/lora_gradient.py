"""LoRA adapters of equal groups of rows on a CPU, forwards and backwards, compiled: torch's batched products with a
factor of so few columns reach a quarter of a processor's rate, and the gradient takes six of them and their sums."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evolora.engine.cpu.dropout import DROPPED, NOT_DROPPED, Dropped, add_dropped_rows, drop_rows
from evolora.engine.cpu.jit import REORDERED, compiled, copy, in_float32, run_rows
from evolora.engine.cpu.lora import AT_ONCE, down, transpose, up
from evolora.engine.cpu.types import F32, F32_2, I64, I64_1, I64_2

# Of a compiled product one thread does as much as this many of torch's, and each individual has one.
_WORTH_THREADS = 2
# Rows at a time whose gradient is dropped: they stay in the processor's first cache.
_ROWS = 8


class Factors(NamedTuple):
    """The factors of n individuals as compiled functions take them: A [rank, in] of individual i lies in row i of the
    matrix `a`, from `a_offset` on; B [out, rank] in that of `b`. Of gradients, where they are written."""

    a: Any
    a_offset: int
    b: Any
    b_offset: int


class Segments(NamedTuple):
    """Which rows are of which individual: those `bounds[j, 0]` to `bounds[j, 1]` (not included), for individual i with
    `firsts[i]` <= j < `firsts[i + 1]`."""

    firsts: Any
    bounds: Any

    @classmethod
    def equal(cls, rows: int, n: int) -> "Segments":
        """Of equally many rows for each of `n` individuals, one's after another's."""
        edges = np.arange(n + 1) * (rows // n)
        return cls(np.arange(n + 1), np.stack([edges[:-1], edges[1:]], 1))


# As types.
_FACTORS, _SEGMENTS = (F32_2, I64, F32_2, I64), (I64_1, I64_2)


def takes_adapters(output: Tensor, x: Tensor, a: Tensor) -> bool:
    """Whether `add_adapters` can be used on these, and is the faster way."""
    return in_float32(output) and in_float32(x) and in_float32(a) and worth_it(len(a))


def worth_it(n: int) -> bool:
    """Whether compiled adapters of `n` individuals are faster than torch's products with the threads that it has."""
    return torch.get_num_threads() <= _WORTH_THREADS * n


def add_adapters(
    output: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float, which: Dropped = NOT_DROPPED
) -> Tensor:
    """output + scaling (x A.T) B.T, of x what is not dropped; of the rows, [n * m, ..., out] and [n * m, ..., in], the
    i-th m by the i-th factors of A [n, rank, in] and B [n, out, rank]. Once differentiable in the four tensors; without
    gradients `output` itself changes, if it lies in order."""
    if torch.is_grad_enabled():
        differentiable: Tensor = _Added.apply(output, x, a, b, scaling, which)  # type: ignore[no-untyped-call]
        return differentiable
    result = output.contiguous()
    x, a, b = x.contiguous(), a.contiguous(), b.contiguous()
    add_groups(_factors(a, b), len(a), a.shape[1], scaling, which, x, result)
    return result


def add_groups(
    factors: Factors, n: int, rank: int, scaling: float, which: Dropped, x: Tensor, result: Tensor
) -> tuple[Tensor, Tensor]:
    """Add to `result`, in order in memory as x is, what `n` individuals' adapters make of x. What the gradient needs:
    of x what is not dropped, and scaling x A.T."""
    states, target = _rows(x), _rows(result)
    kept = torch.empty_like(x) if len(which.starts) else x
    low = torch.zeros(len(states), -(-rank // AT_ONCE) * AT_ONCE, dtype=torch.float32)
    arguments = (*factors, rank, np.float32(scaling), *which, states, _rows(kept), low.numpy(), target, n)
    run_rows(add_rows_of_groups, arguments, n, torch.get_num_threads())
    return kept, low


def low_of(factors: Factors, rank: int, scaling: float, segments: Segments, x: Tensor) -> Tensor:
    """scaling x A.T, as `add_groups` gives it, of rows that are each individual's `segments`."""
    states = _rows(x)
    low = torch.zeros(len(states), -(-rank // AT_ONCE) * AT_ONCE, dtype=torch.float32)
    arguments = factors.a, factors.a_offset, rank, np.float32(scaling), *segments, states, low.numpy()
    run_rows(low_groups, arguments, len(segments.firsts) - 1, torch.get_num_threads())
    return low


def add_gradients(
    factors: Factors,
    segments: Segments,
    rank: int,
    scaling: float,
    which: Dropped,
    kept: Tensor,
    low: Tensor,
    of_result: Tensor,
    of_x: Tensor,
    of_factors: Factors,
) -> None:
    """From `of_result`, the gradient of the result of `add_groups`, of rows that are each individual's `segments`: that
    of x is added to `of_x`, both in order in memory, and that of the factors written to `of_factors`."""
    arrays = _rows(kept), low.numpy(), _rows(of_result), _rows(of_x)
    arguments = (*factors, rank, np.float32(scaling), *which, *arrays, *of_factors, *segments)
    run_rows(gradient_groups, arguments, len(segments.firsts) - 1, torch.get_num_threads())


def _factors(a: Tensor, b: Tensor) -> Factors:
    return Factors(a.detach().view(len(a), -1).numpy(), 0, b.detach().view(len(b), -1).numpy(), 0)


def _rows(states: Tensor) -> Any:
    return states.detach().view(-1, states.shape[-1]).numpy()


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float, which: Dropped) -> Tensor:
        x, a, b = x.contiguous(), a.contiguous(), b.contiguous()
        result = output.clone(memory_format=torch.contiguous_format)
        kept, low = add_groups(_factors(a, b), len(a), a.shape[1], scaling, which, x, result)
        ctx.save_for_backward(kept, low, a, b)
        ctx.scaling, ctx.which = scaling, which
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None]:
        kept, low, a, b = ctx.saved_tensors
        of_x, of_a, of_b = torch.zeros_like(kept), torch.empty_like(a), torch.empty_like(b)
        segments = Segments.equal(low.shape[0], len(a))
        own = _factors(a, b), segments, a.shape[1], ctx.scaling, ctx.which
        add_gradients(*own, kept, low, gradient.contiguous(), of_x, _factors(of_a, of_b))
        return gradient, of_x, of_a, of_b, None, None


@compiled([*_FACTORS, I64, F32, *DROPPED, F32_2, F32_2, F32_2, F32_2, I64, I64, I64], **REORDERED)
def add_rows_of_groups(
    a: Any,
    a_offset: Any,
    b: Any,
    b_offset: Any,
    rank: Any,
    scaling: Any,
    starts: Any,
    limit: Any,
    scale: Any,
    x: Any,
    kept: Any,
    low: Any,
    result: Any,
    n: Any,
    first: Any,
    last: Any,
) -> None:
    """What `add_groups` does for individuals `first` to `last` (not included)."""
    each, width, wide = len(x) // n, x.shape[1], result.shape[1]
    factor = np.empty((AT_ONCE, wide), np.float32)
    for own in range(first, last):
        start, end = own * each, (own + 1) * each
        if len(starts):
            drop_rows(starts, limit, scale, x, kept, start, end)
        down(a[own, a_offset : a_offset + rank * width], rank, scaling, kept[start:end], low[start:end])
        for chosen in range(0, rank, AT_ONCE):
            transpose(b[own, b_offset : b_offset + rank * wide], rank, chosen, factor)
            up(low[start:end, chosen : chosen + AT_ONCE], factor, result[start:end])


@compiled([F32_2, I64, I64, F32, *_SEGMENTS, F32_2, F32_2, I64, I64], **REORDERED)
def low_groups(
    a: Any,
    a_offset: Any,
    rank: Any,
    scaling: Any,
    firsts: Any,
    bounds: Any,
    x: Any,
    low: Any,
    first: Any,
    last: Any,
) -> None:
    """What `low_of` does for individuals `first` to `last` (not included)."""
    for own in range(first, last):
        factor = a[own, a_offset : a_offset + rank * x.shape[1]]
        for segment in range(firsts[own], firsts[own + 1]):
            start, end = bounds[segment]
            down(factor, rank, scaling, x[start:end], low[start:end])


@compiled([*_FACTORS, I64, F32, *DROPPED, F32_2, F32_2, F32_2, F32_2, *_FACTORS, *_SEGMENTS, I64, I64], **REORDERED)
def gradient_groups(
    a: Any,
    a_offset: Any,
    b: Any,
    b_offset: Any,
    rank: Any,
    scaling: Any,
    starts: Any,
    limit: Any,
    scale: Any,
    kept: Any,
    low: Any,
    of_result: Any,
    of_x: Any,
    of_a: Any,
    of_a_offset: Any,
    of_b: Any,
    of_b_offset: Any,
    firsts: Any,
    bounds: Any,
    first: Any,
    last: Any,
) -> None:
    """What `add_gradients` does for individuals `first` to `last` (not included); eight ranks at a time."""
    width, wide = kept.shape[1], of_result.shape[1]
    longest = 0
    for segment in range(len(bounds)):
        longest = max(longest, bounds[segment, 1] - bounds[segment, 0])
    b_rows, of_b_rows = np.empty((AT_ONCE, wide), np.float32), np.empty((AT_ONCE, wide), np.float32)
    a_rows, of_a_rows = np.empty((AT_ONCE, width), np.float32), np.empty((AT_ONCE, width), np.float32)
    room, some_rows = np.empty((longest, AT_ONCE), np.float32), np.empty((_ROWS, width), np.float32)
    for own in range(first, last):
        for chosen in range(0, rank, AT_ONCE):
            some = min(AT_ONCE, rank - chosen)
            a_rows[some:] = np.float32(0)
            for r in range(some):
                a_start = a_offset + (chosen + r) * width
                copy(a[own, a_start : a_start + width], a_rows[r])
            transpose(b[own, b_offset : b_offset + rank * wide], rank, chosen, b_rows)
            of_a_rows[:], of_b_rows[:] = np.float32(0), np.float32(0)
            for segment in range(firsts[own], firsts[own + 1]):
                start, end = bounds[segment]
                of_low = room[: end - start]
                down(b_rows.reshape(AT_ONCE * wide), AT_ONCE, scaling, of_result[start:end], of_low)
                if len(starts):
                    for row in range(0, end - start, _ROWS):
                        more = min(_ROWS, end - start - row)
                        some_rows[:] = np.float32(0)
                        up(of_low[row : row + more], a_rows, some_rows[:more])
                        at = start + row
                        add_dropped_rows(starts, limit, scale, some_rows[:more], of_x[at : at + more], at)
                else:
                    up(of_low, a_rows, of_x[start:end])
                _outer(of_low, kept[start:end], of_a_rows)
                _outer(low[start:end, chosen : chosen + AT_ONCE], of_result[start:end], of_b_rows)
            for r in range(some):
                a_start = of_a_offset + (chosen + r) * width
                copy(of_a_rows[r], of_a[own, a_start : a_start + width])
            for d in range(wide):
                for r in range(some):
                    of_b[own, of_b_offset + d * rank + chosen + r] = of_b_rows[r, d]


@compiled(**REORDERED)
def _outer(low: Any, states: Any, result: Any) -> None:
    """result [8, width] += low.T states, of low [rows, 8] and states [rows, width]; eight rows at a time."""
    turned = np.empty((AT_ONCE, AT_ONCE), np.float32)
    whole = len(states) // AT_ONCE * AT_ONCE
    for row in range(0, whole, AT_ONCE):
        for i in range(AT_ONCE):
            for r in range(AT_ONCE):
                turned[r, i] = low[row + i, r]
        up(turned, states[row : row + AT_ONCE], result)
    for row in range(whole, len(states)):
        for r in range(AT_ONCE):
            for d in range(states.shape[1]):
                result[r, d] += low[row, r] * states[row, d]

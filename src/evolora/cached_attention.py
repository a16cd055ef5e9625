"""Attention of a few queries over cached keys and values on a CPU, compiled.

In decoding, a row's query meets keys and values that come from memory. torch's batched products take them head by head;
this takes a row's keys and values once, in the order they lie in memory, and leaves out padding.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

# What is masked as strongly as this is left out.
_FAR = np.float32(-1e30)

# Products of a query's entry and a key's, for less of which another thread is not worth its call.
_LEAST_A_THREAD = 500_000

# exp(x) = 2^n exp(f) with |f| <= ln(2) / 2, and exp(f) by the polynomial of the Cephes library (S. L. Moshier): good to
# 3 in 10 million. ln(2) is in two parts, so that n times the first is exact.
_LOG2_E = np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_C5, _C4, _C3 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_C2, _C1, _C0 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_ONE, _ZERO, _HALF, _LEAST = np.float32(1), np.float32(0), np.float32(0.5), np.float32(-87)
_LEAST_SCORE = np.float32(-3e38)
_BIAS, _MANTISSA = np.int32(127), np.int32(23)


def _compiled(**options: Any) -> Callable[[Any], Any]:
    """Compiled when first called, without Python's lock; kept on disk where there is a place for it."""

    def decorate(function: Any) -> Any:
        try:
            return njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache can be written
            return njit(nogil=True, **options)(function)

    return decorate


@_compiled(error_model="numpy")
def _exponentials(x: Any, powers: Any) -> None:
    """exp(x - max(x)) in place of x [n]; `powers` [n] is room, int32."""
    as_float = powers.view(np.float32)
    top = _LEAST_SCORE
    for i in range(len(x)):
        top = max(top, x[i])
    for i in range(len(x)):
        value = max(x[i] - top, _LEAST)
        n = np.floor(value * _LOG2_E + _HALF)
        f = value - n * _LN2_HIGH - n * _LN2_LOW
        series = ((((_C5 * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + _C0
        x[i] = series * f * f + f + _ONE
        powers[i] = (np.int32(n) + _BIAS) << _MANTISSA
    for i in range(len(x)):
        x[i] *= as_float[i]


@_compiled(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def _attend_rows(
    states: Any, keys: Any, values: Any, mask: Any, scaling: Any, mixed: Any, append: Any, first: Any, last: Any
) -> None:
    """Rows `first` to `last` (not included) of `mixed` [rows, asked, heads, size]: see `attend` and `extend`. The
    queries are states[:, :, 0]; with `append` >= 0, states[:, :, 1] and [:, :, 2] become the keys and values there."""
    asked, heads, size = mixed.shape[1:]
    positions, key_heads = mask.shape[2], keys.shape[2]
    shared = heads // key_heads
    seen = np.empty(positions, np.int64)
    weights = np.empty((heads, positions), np.float32)
    powers = np.empty(positions, np.int32)
    for row in range(first, last):
        if append >= 0:
            for place in range(asked):
                keys[row, append + place] = states[row, place, 1]
                values[row, append + place] = states[row, place, 2]
        for place in range(asked):
            bias = mask[row if len(mask) > 1 else 0, place]
            count = 0
            for position in range(positions):
                if bias[position] > _FAR:
                    seen[count] = position
                    count += 1
            for i in range(count):
                for key_head in range(key_heads):
                    key = keys[row, seen[i], key_head]
                    for head in range(key_head * shared, (key_head + 1) * shared):
                        query = states[row, place, 0, head]
                        score = _ZERO
                        for d in range(size):
                            score += query[d] * key[d]
                        weights[head, i] = score * scaling + bias[seen[i]]
            for head in range(heads):
                own = weights[head, :count]
                _exponentials(own, powers)
                total = _ZERO
                for i in range(count):
                    total += own[i]
                for i in range(count):
                    own[i] /= total
            mixed[row, place] = _ZERO
            for i in range(count):
                for key_head in range(key_heads):
                    value = values[row, seen[i], key_head]
                    for head in range(key_head * shared, (key_head + 1) * shared):
                        weight, mix = weights[head, i], mixed[row, place, head]
                        for d in range(size):
                            mix[d] += weight * value[d]


def takes(*states: Tensor) -> bool:
    """Whether these can be computed here: float32 on a CPU, without gradients."""
    plain = all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in states)
    return plain and not torch.is_grad_enabled()


def extend(states: Tensor, keys: Tensor, values: Tensor, length: int, mask: Tensor, scaling: float) -> Tensor:
    """Write the keys and values among `states` [rows, asked, 3, heads, size] (queries, keys, values) into `keys` and
    `values` [rows, capacity, heads, size] from position `length` on, and attend: [rows, asked, heads, size].

    `mask` [rows or 1, asked, length + asked] is added to the scores.
    """
    rows, asked, _, heads, size = states.shape
    mixed = states.new_empty(rows, asked, heads, size)
    _run(states, keys, values, mask, scaling, mixed, length)
    return mixed


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attention of `query` [rows, asked, heads, size] over `keys` and `values` [rows, capacity, key heads, size], of
    which as many positions count as `mask` [rows or 1, asked, positions] has: [rows, asked, heads, size]. The mask is
    added to the scores; as many query heads as come for one key head share it, in order."""
    mixed = torch.empty_like(query)
    _run(query[:, :, None], keys, values, mask, scaling, mixed, -1)
    return mixed


def _run(
    states: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float, mixed: Tensor, append: int
) -> None:
    rows = len(states)
    arrays = [tensor.numpy() for tensor in (states, keys, values, mask)]
    arguments = (*arrays, np.float32(scaling), mixed.numpy(), append)
    threads = max(1, min(torch.get_num_threads(), rows, mixed.numel() * mask.shape[-1] // _LEAST_A_THREAD))
    if threads == 1:
        _attend_rows(*arguments, 0, rows)
        return
    edges = [rows * i // threads for i in range(threads + 1)]
    others = [_helpers(threads - 1).submit(_attend_rows, *arguments, *edges[i : i + 2]) for i in range(1, threads)]
    _attend_rows(*arguments, *edges[:2])
    for other in others:
        other.result()


@functools.cache
def _helpers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="evolora-attention")

"""Attention of a few queries over cached keys and values on a CPU, compiled.

In decoding, a row's query meets keys and values that come from memory. torch's batched products take them head by head;
this takes a row's keys and values once, in the order they lie in memory, and leaves out padding.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from evolora.engine.cpu.jit import REORDERED, compiled, copy, exponentials, run_rows
from evolora.engine.cpu.lora import ADAPTER, NO_ADAPTER, NOTHING, Adapter, add_low_rank
from evolora.engine.cpu.types import F32, F32_2, F32_3, F32_4, F32_5, I64, I64_2

# What is masked as strongly as this is left out.
_FAR = np.float32(-1e30)

# Products of a query's entry and a key's, for less of which another thread is not worth its call.
_LEAST_A_THREAD = 500_000

_LEAST_SCORE, _ONE, _ZERO = np.float32(-3e38), np.float32(1), np.float32(0)


@compiled([*ADAPTER, F32_2, F32_2, F32_5, F32_4, F32_4, F32_3, I64, F32, F32_4, I64, I64, I64], **REORDERED)
def attend_rows(
    genomes: Any,
    owners: Any,
    a_offset: Any,
    b_offset: Any,
    rank: Any,
    adapter_scaling: Any,
    x: Any,
    flat: Any,
    states: Any,
    keys: Any,
    values: Any,
    mask: Any,
    positions: Any,
    scaling: Any,
    mixed: Any,
    append: Any,
    first: Any,
    last: Any,
) -> None:
    """Rows `first` to `last` (not included) of `mixed` [rows, asked, heads, size]: see `attend` and `extend`; of the
    mask so many `positions` count. The queries are states[:, :, 0]; with `append` >= 0, states[:, :, 1] and [:, :, 2]
    become the keys and values there. To `flat`, which is `states` as [rows, ...], an adapter adds first."""
    asked, heads, size = mixed.shape[1:]
    if rank:
        add_low_rank(genomes, owners, a_offset, b_offset, rank, adapter_scaling, x, flat, first, last)
    key_heads = keys.shape[2]
    shared = heads // key_heads
    seen = np.empty(positions, np.int64)
    scores, weights = np.empty((heads, positions), np.float32), np.empty((heads, positions), np.float32)
    powers = np.empty(positions, np.int32)
    for row in range(first, last):
        if append >= 0:
            for place in range(asked):
                for head in range(key_heads):
                    copy(states[row, place, 1, head], keys[row, append + place, head])
                    copy(states[row, place, 2, head], values[row, append + place, head])
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
                        scores[head, i] = score * scaling + bias[seen[i]]
            for head in range(heads):
                own, top = weights[head, :count], _LEAST_SCORE
                for i in range(count):
                    top = max(top, scores[head, i])
                exponentials(scores[head, :count], top, _ONE, own, powers)
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


def extend(states: Tensor, keys: Tensor, values: Tensor, length: int, mask: Tensor, scaling: float) -> Tensor:
    """Write the keys and values among `states` [rows, asked, 3, heads, size] (queries, keys, values) into `keys` and
    `values` [rows, capacity, heads, size] from position `length` on, and attend: [rows, asked, heads, size].

    `mask` [rows or 1, asked, length + asked] is added to the scores.
    """
    rows, asked, _, heads, size = states.shape
    mixed = states.new_empty(rows, asked, heads, size)
    in_order = states.numpy(), keys.numpy(), values.numpy(), mask.numpy()
    attend_arrays(NO_ADAPTER, NOTHING, *in_order, np.float32(scaling), mixed.numpy(), append=length)
    return mixed


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attention of `query` [rows, asked, heads, size] over `keys` and `values` [rows, capacity, key heads, size], of
    which as many positions count as `mask` [rows or 1, asked, positions] has: [rows, asked, heads, size]. The mask is
    added to the scores; as many query heads as come for one key head share it, in order."""
    mixed = torch.empty_like(query)
    in_order = query[:, :, None].numpy(), keys.numpy(), values.numpy(), mask.numpy()
    attend_arrays(NO_ADAPTER, NOTHING, *in_order, np.float32(scaling), mixed.numpy(), append=-1)
    return mixed


def attend_arrays(
    adapter: Adapter,
    x: Any,
    states: Any,
    keys: Any,
    values: Any,
    mask: Any,
    scaling: Any,
    mixed: Any,
    *,
    append: int,
) -> None:
    """`extend` into `mixed`, or `attend` where `append`, the length so far, is -1; of arrays. An adapter first adds to
    `states`, with one position asked, what it makes of `x` [rows, in]."""
    threads = min(torch.get_num_threads(), mixed.size * mask.shape[-1] // _LEAST_A_THREAD)
    flat = states.reshape(len(states), -1)
    arguments = (*adapter, x, flat, states, keys, values, mask, mask.shape[2], scaling, mixed, append)
    run_rows(attend_rows, arguments, len(states), threads)


@compiled([F32_2, I64_2, F32_3, I64, I64])
def gather_rows(states: Any, index: Any, room: Any, first: Any, last: Any) -> None:
    """For rows `first` to `last` (not included) room[row, p] = states[index[row, p]] of states [places, size]."""
    for row in range(first, last):
        for position in range(index.shape[1]):
            source, target = states[index[row, position]], room[row, position]
            for d in range(len(source)):
                target[d] = source[d]

"""Packs of texts on their way through a layer of a GPT-2 on a CPU, compiled."""

from typing import Any

import numpy as np

from evolora.engine.cpu.attention.prefill import attend_within
from evolora.engine.cpu.gelu import gelu_block
from evolora.engine.cpu.gpt2.decode_kernels import NORM, PRODUCT, copy_rows, multiply, normalise
from evolora.engine.cpu.jit import REORDERED, compiled, copy
from evolora.engine.cpu.lora import add_low_rank
from evolora.engine.cpu.types import F32, F32_2, F32_3, F32_4, F32_5, I64, I64_1, I64_2, group

# Typed, since what is given a literal is compiled once more for it.
_START = np.int64(0)
# As types.
_ROOMS = group(F32_3, F32_5, F32_3, F32_3, F32_3, F32_2, F32_3, F32_2, I64_2)
_LAYER = *[PRODUCT] * 4, group(*NORM), group(*NORM), F32_4, F32_4, F32
_READ = *_LAYER, _ROOMS, group(*[F32_3] * 5), F32_3, F32_3, F32_3, I64, I64


@compiled(_READ, **REORDERED)
def read_layer(
    of_states: Any,
    of_attended: Any,
    of_widened: Any,
    of_narrowed: Any,
    norm: Any,
    next_norm: Any,
    keys: Any,
    values: Any,
    scaling: Any,
    rooms: Any,
    taped: Any,
    mask: Any,
    hidden: Any,
    normed: Any,
    first: Any,
    last: Any,
) -> None:
    """Packs `first` to `last` (not included) of `hidden` and `normed` after a layer. `taped` are arrays of a tape's
    layer but for the first, or empty."""
    packs, length, _ = hidden.shape
    threads = len(rooms[0])
    slot = min((first * threads + packs - 1) // packs, threads - 1)  # of the thread that `run_rows` gives these
    states, by_head, mixed, product = rooms[0][slot], rooms[1][slot], rooms[2][slot], rooms[3][slot]
    wide, flat_wide, activated, flat_activated = rooms[4][slot], rooms[5][slot], rooms[6][slot], rooms[7][slot]
    owners, heads = rooms[8][slot], by_head.shape[2]
    for pack in range(first, last):
        own, own_normed = hidden[pack], normed[pack]
        multiply_pack(of_states, pack, owners, own_normed, states)
        if len(keys):
            for place in range(length):
                for head in range(heads):
                    copy(by_head[place, 1, head], keys[pack, place, head])
                    copy(by_head[place, 2, head], values[pack, place, head])
        attend_within(by_head, mask[pack if len(mask) > 1 else 0], scaling, mixed)
        multiply_pack(of_attended, pack, owners, mixed, product)
        _add(product, own, norm, own_normed)
        if len(taped[2]):
            copy_rows(own, taped[2][pack], _START, length)
        multiply_pack(of_widened, pack, owners, own_normed, wide)
        gelu_block(flat_wide, flat_activated, _START, len(flat_wide))
        multiply_pack(of_narrowed, pack, owners, activated, product)
        _add(product, own, next_norm, own_normed)
        if len(taped[0]):
            copy_rows(states, taped[0][pack], _START, length)
            copy_rows(mixed, taped[1][pack], _START, length)
            copy_rows(wide, taped[3][pack], _START, length)
            copy_rows(activated, taped[4][pack], _START, length)


@compiled([PRODUCT, I64, I64_1, F32_2, F32_2], **REORDERED)
def multiply_pack(product: Any, pack: Any, owners: Any, x: Any, result: Any) -> None:
    """A pack's results, with what its individual's adapter adds; `owners` is room."""
    multiply(product, x, result, _START, len(x))
    genomes, owner, a_offset, b_offset, rank, scaling = product[2]
    if rank:
        owners[:] = owner[pack]
        add_low_rank(genomes, owners, a_offset, b_offset, rank, scaling, x, result, _START, len(x))


@compiled(**REORDERED)
def _add(product: Any, own: Any, norm: Any, normed: Any) -> None:
    for row in range(len(own)):
        more, target = product[row], own[row]
        for d in range(len(target)):
            target[d] += more[d]
        normalise(target, *norm, normed[row])

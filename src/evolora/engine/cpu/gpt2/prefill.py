"""GPT-2's pass over packs of texts on a CPU, without gradients: each layer in one compiled function, pack by pack.

A pack's states stay in the processor's second cache from one end of the layer to the other. One after another, the
products and what is between them would write all packs' states to memory, and read them back.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from evolora.engine.cpu.gpt2.decode import layers_of
from evolora.engine.cpu.gpt2.prefill_kernels import read_layer
from evolora.engine.cpu.jit import in_float32, run_rows
from evolora.engine.cpu.kv_cache import KernelCache
from evolora.engine.cpu.matmul.frozen_linear import FrozenProduct

# Packs of a thread, on average: with fewer one thread may have twice as many as another.
_LEAST_PACKS = 4
_NONE, _NO_TAPE = np.empty((0, 0, 0, 0), np.float32), (np.empty((0, 0, 0), np.float32),) * 5


def read_packs(model: Any, hidden: Tensor, mask: Tensor, cache: Cache | None) -> Tensor | None:
    """The last hidden states of a GPT2Model from the embeddings `hidden`, both [packs, width, hidden], of which the
    latter change; keys and values into a new `cache`, if there is one, and onto its tape what belongs there. None and
    nothing done where `evolora.engine.cpu.gpt2.decode` does not know the layers, or their weights are not in panels.

    `mask` [packs or 1, 1, width, width] is added to the scores of attention.
    """
    packs, width, _ = hidden.shape
    threads = torch.get_num_threads()
    too_few = threads > 1 and packs < _LEAST_PACKS * threads
    layers = None if too_few or not in_float32(hidden) else layers_of(model, packs)
    if layers is None:
        return None
    if cache is not None and not (isinstance(cache, KernelCache) and cache.get_seq_length() == 0):
        return None
    # With panels that come and go, a row's bits would depend on what was computed before: attention rounds otherwise.
    products = [product for layer in layers for product in layer.products]
    if not all(isinstance(product, FrozenProduct) and product.always for product in products):
        return None
    whole = [layer.whole(packs * width) for layer in layers]
    if any(each is None for each in whole):
        return None
    heads = model.config.n_head
    rooms = _rooms(min(threads, packs), width, heads, hidden.shape[2], layers[0].biases[2].size)
    normed: Tensor = model.h[0].ln_1(hidden)
    arrays = mask[:, 0].contiguous().numpy(), hidden.numpy(), normed.numpy()
    tape = None if cache is None else cache.trace
    taken = None if tape is None else tape.take(packs * width)
    for index, (layer, own) in enumerate(zip(layers, whole, strict=True)):
        assert own is not None
        keys, values, taped = _NONE, _NONE, _NO_TAPE
        if cache is not None:
            cached = cache.layers[index]
            cached.begin(hidden, width, heads)
            keys, values = cached.keys.numpy(), cached.values.numpy()
        if taken is not None:
            first_hidden, *others = taken.layers[index]
            _by_pack(first_hidden, packs)[:] = hidden.numpy()
            taped = tuple(_by_pack(array, packs) for array in others)
        run_rows(read_layer, (*own, keys, values, layer.scaling, rooms, taped, *arrays), packs, threads)
    if taken is not None:
        _by_pack(taken.last_hidden, packs)[:] = hidden.numpy()
    return normed


def _by_pack(array: Any, packs: int) -> Any:
    return array.reshape(packs, -1, array.shape[1])


def _rooms(threads: int, length: int, heads: int, width: int, inner: int) -> tuple[Any, ...]:
    """For a pack's states within a layer, of each thread: each in all the shapes that are needed, since another shape
    takes a compiled function seconds to compile."""
    states, mixed, product, wide, activated = (
        np.empty((threads, length, each), np.float32) for each in (3 * width, width, width, inner, inner)
    )
    by_head = states.reshape(threads, length, 3, heads, -1)
    flat = [each.reshape(threads, -1) for each in (wide, activated)]
    owners = np.empty((threads, length), np.int64)
    return states, by_head, mixed, product, wide, flat[0], activated, flat[1], owners

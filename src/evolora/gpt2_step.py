"""One more token for each row of a GPT-2 on a CPU: of each layer its four products, and three compiled functions.

What lies between the products (adapters, attention over the cache, residuals, normalisation) is little arithmetic, but
some twenty calls of torch a layer, and each takes Python's lock away from the other parts of a batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from evolora.cache import RoomyCache
from evolora.cached_attention import attend_arrays
from evolora.compiled import REORDERED, compiled, in_float32, run_rows, takes
from evolora.compiled_adapter import NO_ADAPTER, Adapter, active_adapter, add_low_rank

Product = Callable[[Tensor], Tensor]

# Multiplications of an adapter, for less of which another thread is not worth its call.
_LEAST_A_THREAD = 1_500_000


class _Norm(NamedTuple):
    weight: Any
    bias: Any
    epsilon: Any


@dataclass(frozen=True)
class _Layer:
    """One of the model's layers: its four products, in order, and what adapts three of them; the normalisation within
    it, and that after it."""

    states: Product
    of_states: Adapter
    attended: Product
    of_attended: Adapter
    widened: Product
    narrowed: Product
    of_narrowed: Adapter
    scaling: Any
    norm: _Norm
    next_norm: _Norm


class Gpt2Step:
    """What the steps of one batch have in common: looked up once, since a step of a small model takes no longer than
    looking it up a few times."""

    def __init__(self, rows: int, heads: int, first_norm: nn.Module, layers: list[_Layer]) -> None:
        self.rows = rows
        self.heads = heads
        self.first_norm = first_norm
        self.layers = layers

    @classmethod
    def of(cls, model: Any, rows: int, widened: Sequence[Product]) -> Self | None:
        """For `model` with the adapters that it has now; None where more than GPT-2's own layers, in float32 on a CPU,
        and one adapter of each has a part in its pass."""
        norms = plain_norms(model)
        if norms is None:
            return None
        layers = []
        for index, block in enumerate(model.h):
            attention, mlp = block.attn, block.mlp
            products = attention.c_attn, attention.c_proj, mlp.c_fc, mlp.c_proj
            before, after, wide, last = (_adapter_of(layer, rows) for layer in products)
            # What adapts the MLP's first layer would have to come before its activation.
            if before is None or after is None or wide is not NO_ADAPTER or last is None:
                return None
            layers.append(
                _Layer(
                    attention.c_attn.forward,
                    before,
                    attention.c_proj.forward,
                    after,
                    widened[index],
                    mlp.c_proj.forward,
                    last,
                    np.float32(attention.scaling),
                    _norm(norms[2 * index + 1]),
                    _norm(norms[2 * index + 2]),
                )
            )
        return cls(rows, model.config.n_head, norms[0], layers)

    def run(self, hidden: Tensor, mask: Tensor, cache: RoomyCache) -> Tensor:
        """The last hidden states of one more token of each row, from its embedding `hidden`, both [rows, 1, width].

        `mask` [rows, 1, positions] is added to the scores of attention; `cache` grows by a position.
        """
        normed: Tensor = self.first_norm(hidden)
        mixed = torch.empty_like(hidden)
        in_hidden, in_normed, in_mixed = _rows(hidden), _rows(normed), _rows(mixed)
        by_head = in_mixed.reshape(self.rows, 1, self.heads, -1)
        in_mask = mask.numpy()
        for layer, cached in zip(self.layers, cache.layers, strict=True):
            states = layer.states(normed).numpy().reshape(self.rows, 1, 3, self.heads, -1)
            place = cached.grow()
            keys, values = cached.keys.numpy(), cached.values.numpy()
            attend_arrays(
                layer.of_states, in_normed, states, keys, values, in_mask, layer.scaling, by_head, append=place
            )
            _finish(layer.of_attended, in_mixed, _rows(layer.attended(mixed)), in_hidden, layer.norm, in_normed)
            wide = layer.widened(normed)
            narrow = layer.narrowed(wide)
            _finish(layer.of_narrowed, _rows(wide), _rows(narrow), in_hidden, layer.next_norm, in_normed)
        return normed


def gpt2_step(model: Any, hidden: Tensor, mask: Tensor, cache: RoomyCache, widened: Sequence[Product]) -> Tensor | None:
    """`Gpt2Step.run` of `model`, or None and nothing done. `widened` gives what is between the two layers of an MLP."""
    if not takes(hidden) or torch.is_autocast_enabled("cpu") or not cache.layers[0].is_initialized:
        return None
    if cache.prepared is None:  # not asked yet: that there is no such step is known by (None,)
        cache.prepared = (Gpt2Step.of(model, len(hidden), widened),)
    step: Gpt2Step | None
    (step,) = cache.prepared
    return None if step is None else step.run(hidden, mask, cache)


def plain_norms(model: Any) -> list[nn.LayerNorm] | None:
    """The normalisations of a GPT-2, in order, float32 on a CPU; None where it has others, or anything but its own has
    a part in what is between its products."""
    norms = [norm for block in model.h for norm in (block.ln_1, block.ln_2)] + [model.ln_f]
    mlps = [block.mlp for block in model.h]
    if not all(type(mlp) is GPT2MLP for mlp in mlps):
        return None
    if not all(type(norm) is nn.LayerNorm and norm.bias is not None and in_float32(norm.weight) for norm in norms):
        return None
    within = mlps + [mlp.act for mlp in mlps]
    if any(module._forward_hooks or module._forward_pre_hooks for module in [*norms, *within]):
        return None
    return norms


def _rows(states: Tensor) -> Any:
    return states.view(len(states), -1).numpy()


def _norm(module: nn.LayerNorm) -> _Norm:
    return _Norm(module.weight.detach().numpy(), module.bias.detach().numpy(), np.float32(module.eps))


def _adapter_of(layer: nn.Module, rows: int) -> Adapter | None:
    """What is to be added to a layer's product; None where it is not known how."""
    weight, active = getattr(layer, "weight", None), active_adapter(layer)
    if active is None or not (isinstance(weight, Tensor) and in_float32(weight)):
        return None
    return active[0].adapter(rows) if active else NO_ADAPTER


def _finish(adapter: Adapter, x: Any, product: Any, hidden: Any, norm: _Norm, normed: Any) -> None:
    """To a layer's `product` of `x` add what its adapter makes of it, add that to `hidden`, and normalise that into
    `normed`; all [rows, width] of their own."""
    threads = min(torch.get_num_threads(), adapter.rank * (x.size + product.size) // _LEAST_A_THREAD)
    run_rows(_finish_rows, (*adapter, x, product, hidden, *norm, normed), len(hidden), threads)


@compiled(**REORDERED)
def _finish_rows(
    genomes: Any,
    owners: Any,
    a_offset: Any,
    b_offset: Any,
    rank: Any,
    scaling: Any,
    x: Any,
    product: Any,
    hidden: Any,
    weight: Any,
    bias: Any,
    epsilon: Any,
    normed: Any,
    first: Any,
    last: Any,
) -> None:
    """Rows `first` to `last` (not included) of what `_finish` does."""
    add_low_rank(genomes, owners, a_offset, b_offset, rank, scaling, x, product, first, last)
    width = hidden.shape[1]
    for row in range(first, last):
        own, more, target = hidden[row], product[row], normed[row]
        total = np.float32(0)
        for d in range(width):
            own[d] += more[d]
            total += own[d]
        mean = total / np.float32(width)
        squares = np.float32(0)
        for d in range(width):
            squares += (own[d] - mean) * (own[d] - mean)
        factor = np.float32(1) / np.sqrt(squares / np.float32(width) + epsilon)
        for d in range(width):
            target[d] = (own[d] - mean) * factor * weight[d] + bias[d]

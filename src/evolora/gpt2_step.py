"""One more token for each row of a GPT-2 on a CPU: each layer in one compiled function, or its four products and three
compiled functions.

What lies between the products (adapters, attention over the cache, residuals, normalisation) is little arithmetic, but
some twenty calls of torch a layer, and each takes Python's lock away from the other parts of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.cache_utils import Cache
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2LMHeadModel

from evolora.cache import RoomyCache
from evolora.cached_attention import attend_arrays, attend_rows
from evolora.compiled import REORDERED, compiled, copy, in_float32, run_rows
from evolora.compiled_adapter import NO_ADAPTER, Adapter, active_adapter, add_low_rank
from evolora.frozen_product import FrozenProduct
from evolora.gelu import gelu_block
from evolora.panels import multiply_rows, panels_of
from evolora.tape import TapedLayer

Product = Callable[[Tensor], Tensor]

# Multiplications of an adapter, for less of which another thread is not worth its call.
_LEAST_A_THREAD = 1_500_000
# Rows that a thread has at least where each takes some through a whole layer; with fewer, threads share each product.
_LEAST_ROWS = 8
_FAR, _ZERO = np.finfo(np.float32).min, np.float32(0)
_NO_TAPE = np.empty((0, 0), np.float32)


class _Norm(NamedTuple):
    weight: Any
    bias: Any
    epsilon: Any


@dataclass(frozen=True)
class Layer:
    """One of the model's layers: its four products, in order, with their biases and what adapts them; the normalisation
    within it, and that after it."""

    products: tuple[Product, Product, Product, Product]
    biases: tuple[Any, ...]
    activation: Product
    adapters: tuple[Adapter, ...]
    scaling: Any
    norm: _Norm
    next_norm: _Norm

    def whole(self, rows: int) -> tuple[Any, ...] | None:
        """What a compiled function of the whole layer takes first, to multiply so many rows: of each product the
        panels, bias and adapter, of each normalisation the weight, bias and epsilon. None where a product has no
        panels, or between them is another activation than GPT-2's."""
        if type(self.activation) is not NewGELUActivation:
            return None
        panels = [each.panels(rows) for each in self.products if isinstance(each, FrozenProduct)]
        if len(panels) < len(self.products) or any(each is None for each in panels):
            return None
        products = [(own, bias, tuple(one)) for own, bias, one in zip(panels, self.biases, self.adapters, strict=True)]
        return *products, tuple(self.norm), tuple(self.next_norm)


class Gpt2Step:
    """What the steps of one batch have in common: looked up once, since a step of a small model takes no longer than
    looking it up a few times."""

    def __init__(self, model: Any, rows: int, first_norm: _Norm, layers: list[Layer], cache: RoomyCache) -> None:
        self.rows = rows
        self.heads = model.config.n_head
        self.first_norm = first_norm
        self.layers = layers
        self.cache = cache
        self.embeddings = [module.weight.detach().numpy() for module in (model.transformer.wte, model.transformer.wpe)]
        self.output = model.lm_head
        self.hidden, self.normed = (torch.empty(rows, 1, model.config.n_embd) for _ in range(2))
        self._whole: list[tuple[Any, ...]] | None = None  # for each layer, what its compiled function takes first
        self._product = np.empty((rows, model.config.n_embd), np.float32)
        self._rooms: tuple[Any, ...] = ()

    @classmethod
    def of(cls, model: Any, rows: int, cache: Cache | None) -> Self | None:
        """For `model` with the adapters that it has now and the rows' cache; None where more than GPT-2's own layers,
        in float32 on a CPU, and one adapter of each has a part in its pass."""
        if type(model) is not GPT2LMHeadModel or not isinstance(cache, RoomyCache) or model.training:
            return None
        body = model.transformer
        embeddings = body.wte, body.wpe
        if hooked(model):
            return None
        if not all(type(each) is nn.Embedding and each.max_norm is None for each in embeddings):
            return None
        if not all(in_float32(module.weight) for module in (*embeddings, model.lm_head)):
            return None
        if len(model.lm_head.weight) > len(body.wte.weight) or torch.is_autocast_enabled("cpu"):
            return None
        if not _attends_plainly(body) or not cache.layers[0].is_initialized:
            return None
        layers = layers_of(body, rows)
        return None if layers is None else cls(model, rows, _norm(body.h[0].ln_1), layers, cache)

    @torch.no_grad()
    def run(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The logits after one more token of each row, `tokens` [rows] at `positions` [rows], [rows, 1, vocabulary],
        and the hidden states that they come from, [rows, 1, width], which the next step writes over.

        `mask` [rows, length] is 0 at the positions that are not to be seen; the cache grows by one.
        """
        if int(positions.max()) >= len(self.embeddings[1]):
            raise IndexError(f"position {int(positions.max())} in a model with {len(self.embeddings[1])} positions")
        hidden, normed = _rows(self.hidden), _rows(self.normed)
        _embed_rows(tokens.numpy(), positions.numpy(), *self.embeddings, *self.first_norm, hidden, normed)
        far = np.where(mask.numpy() == 0, _FAR, _ZERO)[:, None]
        threads = torch.get_num_threads()
        if self._whole is None and (threads == 1 or self.rows >= threads * _LEAST_ROWS):
            self._whole = self._of_whole()
        taken = None if self.cache.tape is None else self.cache.tape.take(self.rows)
        for index, (layer, cached) in enumerate(zip(self.layers, self.cache.layers, strict=True)):
            place = cached.grow()
            if self._whole is None:
                taped = None if taken is None else taken.layers[index]
                cached_states = cached.keys.numpy(), cached.values.numpy()
                self._by_product(layer, hidden, normed, *cached_states, far, place, taped)
                continue
            rooms = self._rooms, _NO_TAPE
            if taken is not None:
                first_hidden, states, mixed, second_hidden, wide, activated = taken.layers[index]
                first_hidden[:] = hidden
                rooms = self._rooms_of(states, mixed, wide, activated), second_hidden
            run_rows(_layer_rows, (*self._whole[index], *rooms, hidden, normed, far, place), self.rows, threads)
        if taken is not None:
            taken.last_hidden[:] = hidden
        logits: Tensor = self.output.forward(self.normed)
        return logits, self.normed

    def _of_whole(self) -> list[tuple[Any, ...]] | None:
        """What a whole layer's function takes first, of each layer; None while a product has no panels."""
        width, inner = self._product.shape[1], self.layers[0].biases[2].size
        self._rooms = self._rooms_of(
            *(np.empty((self.rows, each), np.float32) for each in (3 * width, width, inner, inner))
        )
        found = []
        for own, layer, cached in zip(
            [layer.whole(self.rows) for layer in self.layers], self.layers, self.cache.layers, strict=True
        ):
            if own is None:
                return None
            keys, values = cached.keys.numpy(), cached.values.numpy()
            found.append((*own, keys, values, layer.scaling))
        return found

    def _rooms_of(self, states: Any, mixed: Any, wide: Any, activated: Any) -> tuple[Any, ...]:
        """A layer's states, [rows, ...], in all the shapes that are needed: within a compiled function another shape
        takes seconds to compile."""
        by_head = states.reshape(self.rows, 1, 3, self.heads, -1), mixed.reshape(self.rows, 1, self.heads, -1)
        return (states, mixed, *by_head, self._product, wide, wide.reshape(-1), activated, activated.reshape(-1))

    def _by_product(
        self,
        layer: Layer,
        in_hidden: Any,
        in_normed: Any,
        keys: Any,
        values: Any,
        mask: Any,
        place: int,
        taped: TapedLayer | None,
    ) -> None:
        """The hidden states after a layer, with each product for itself."""
        states, attended, widened, narrowed = layer.products
        of_states, of_attended, of_widened, of_narrowed = layer.adapters
        mixed = torch.empty_like(self.normed)
        in_mixed = _rows(mixed)
        by_head = in_mixed.reshape(self.rows, 1, self.heads, -1)
        own_states = states(self.normed)
        in_states = own_states.numpy().reshape(self.rows, 1, 3, self.heads, -1)
        scaling = layer.scaling
        if taped is not None:
            taped.first_hidden[:] = in_hidden
        attend_arrays(of_states, in_normed, in_states, keys, values, mask, scaling, by_head, append=place)
        _finish(of_attended, in_mixed, _rows(attended(mixed)), in_hidden, layer.norm, in_normed)
        if taped is not None:
            taped.states[:], taped.mixed[:], taped.second_hidden[:] = _rows(own_states), in_mixed, in_hidden
        wide = widened(self.normed)
        arguments = (*of_widened, in_normed, _rows(wide))
        run_rows(add_low_rank, arguments, self.rows, _threads(of_widened, in_normed, _rows(wide)))
        activated = layer.activation(wide)
        if taped is not None:
            taped.wide[:], taped.activated[:] = _rows(wide), _rows(activated)
        _finish(of_narrowed, _rows(activated), _rows(narrowed(activated)), in_hidden, layer.next_norm, in_normed)


def layers_of(model: Any, rows: int) -> list[Layer] | None:
    """Those of a GPT2Model, with the adapters that they have now for so many rows; None where more than its own layers,
    in float32 on a CPU, and one adapter of each has a part in its pass."""
    norms = plain_norms(model)
    if norms is None:
        return None
    layers = []
    for index, block in enumerate(model.h):
        attention, mlp = block.attn, block.mlp
        modules = attention.c_attn, attention.c_proj, mlp.c_fc, mlp.c_proj
        adapters = [adapter for layer in modules if (adapter := _adapter_of(layer, rows)) is not None]
        if len(adapters) < len(modules):
            return None
        layers.append(
            Layer(
                tuple(module.forward for module in modules),
                tuple(module.bias.detach().contiguous().numpy() for module in modules),
                mlp.act,
                tuple(adapters),
                np.float32(attention.scaling),
                _norm(norms[2 * index + 1]),
                _norm(norms[2 * index + 2]),
            )
        )
    return layers


def hooked(model: GPT2LMHeadModel) -> bool:
    """Whether anything has a part in what is before a GPT-2's layers or after them."""
    body = model.transformer
    ends = model, body, body.drop, body.wte, body.wpe, model.lm_head
    return any(module._forward_hooks or module._forward_pre_hooks for module in ends)


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


def _attends_plainly(body: Any) -> bool:
    """Whether a GPT-2's attention is that of `evolora.kernels`, to the row's own text."""
    return body.config._attn_implementation == "evolora" and not body.config.add_cross_attention


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
    threads = _threads(adapter, x, product)
    run_rows(_finish_rows, (*adapter, x, product, hidden, *norm, normed), len(hidden), threads)


def _threads(adapter: Adapter, x: Any, product: Any) -> int:
    worth = int(adapter.rank * (x.size + product.size)) // _LEAST_A_THREAD
    return min(torch.get_num_threads(), worth)


@compiled(**REORDERED)
def _embed_rows(
    tokens: Any, positions: Any, words: Any, places: Any, weight: Any, bias: Any, epsilon: Any, hidden: Any, normed: Any
) -> None:
    """`hidden` [rows, width] from the embeddings of tokens and positions, normalised into `normed`."""
    for row in range(len(hidden)):
        word, place, own = words[tokens[row]], places[positions[row]], hidden[row]
        for d in range(len(own)):
            own[d] = word[d] + place[d]
        normalise(own, weight, bias, epsilon, normed[row])


@compiled(**REORDERED)
def _layer_rows(
    of_states: Any,
    of_attended: Any,
    of_widened: Any,
    of_narrowed: Any,
    norm: Any,
    next_norm: Any,
    keys: Any,
    values: Any,
    scaling: Any,
    room: Any,
    second_hidden: Any,
    hidden: Any,
    normed: Any,
    mask: Any,
    place: Any,
    first: Any,
    last: Any,
) -> None:
    """Rows `first` to `last` (not included) of `hidden` and `normed` [rows, width] after a layer. Of each product the
    panels, bias and adapter; of each normalisation the weight, bias and epsilon. `second_hidden`, if it is not empty,
    gets the hidden states between attention and MLP."""
    states, mixed, states_by_head, mixed_by_head, product, wide, flat_wide, activated, flat_activated = room
    inner = wide.shape[1]
    multiply(of_states, normed, states, first, last)
    attended = states, states_by_head, keys, values, mask, scaling, mixed_by_head
    attend_rows(*of_states[2], normed, *attended, place, first, last)
    multiply(of_attended, mixed, product, first, last)
    _finish_rows(*of_attended[2], mixed, product, hidden, *norm, normed, first, last)
    if len(second_hidden):
        for row in range(first, last):
            copy(hidden[row], second_hidden[row])
    multiply(of_widened, normed, wide, first, last)
    add_low_rank(*of_widened[2], normed, wide, first, last)
    gelu_block(flat_wide, flat_activated, first * inner, last * inner)
    multiply(of_narrowed, activated, product, first, last)
    _finish_rows(*of_narrowed[2], activated, product, hidden, *next_norm, normed, first, last)


@compiled(**REORDERED)
def multiply(product: Any, x: Any, result: Any, first: Any, last: Any) -> None:
    multiply_rows(x, product[0], product[1], result, first, last, 0, panels_of(result.shape[1]))


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
    for row in range(first, last):
        own, more = hidden[row], product[row]
        for d in range(len(own)):
            own[d] += more[d]
        normalise(own, weight, bias, epsilon, normed[row])


@compiled(error_model="numpy")
def normalise(own: Any, weight: Any, bias: Any, epsilon: Any, target: Any) -> None:
    """`target` [width] from `own`, as a normalisation of layers does. In an order of its own, not the compiler's, which
    would be another in each function that has this as a part: a row has the same bits by whatever way."""
    width = np.float32(len(own))
    mean = _total(own, _ZERO, False) / width
    factor = np.float32(1) / np.sqrt(_total(own, mean, True) / width + epsilon)
    for d in range(len(own)):
        target[d] = (own[d] - mean) * factor * weight[d] + bias[d]


@compiled(error_model="numpy")
def _total(own: Any, mean: Any, squared: Any) -> Any:
    """The sum of own - mean, or of its squares."""
    t0 = t1 = t2 = t3 = t4 = t5 = t6 = t7 = _ZERO
    whole = len(own) // 8 * 8
    for d in range(0, whole, 8):
        x0, x1, x2, x3 = own[d] - mean, own[d + 1] - mean, own[d + 2] - mean, own[d + 3] - mean
        x4, x5, x6, x7 = own[d + 4] - mean, own[d + 5] - mean, own[d + 6] - mean, own[d + 7] - mean
        t0 += x0 * x0 if squared else x0
        t1 += x1 * x1 if squared else x1
        t2 += x2 * x2 if squared else x2
        t3 += x3 * x3 if squared else x3
        t4 += x4 * x4 if squared else x4
        t5 += x5 * x5 if squared else x5
        t6 += x6 * x6 if squared else x6
        t7 += x7 * x7 if squared else x7
    for d in range(whole, len(own)):
        x0 = own[d] - mean
        t0 += x0 * x0 if squared else x0
    return ((t0 + t1) + (t2 + t3)) + ((t4 + t5) + (t6 + t7))

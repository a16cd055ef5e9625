"""GPT-2's pass over whole texts on a CPU, and the way back to the genomes: of each layer its products, attention, and
the compiled functions between them.

By the model's modules and hooks the same is some hundred calls and nodes of a graph, much of it in Python, for whose
lock the parts of a batch wait.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.cache_utils import Cache
from transformers.pytorch_utils import Conv1D

from evolora.compiled import in_float32
from evolora.compiled_adapter import GroupAdapter, active_adapter
from evolora.differentiable_adapter import Factors, add_gradients, add_groups, worth_it
from evolora.dropout import NOT_DROPPED, Dropped
from evolora.frozen_product import FrozenProduct
from evolora.gelu import gelu, gelu_gradient
from evolora.gpt2_step import plain_norms

Attend = Callable[..., tuple[Tensor, Any]]


class _Norm(NamedTuple):
    weight: Tensor
    bias: Tensor
    epsilon: float


class _Normed(NamedTuple):
    """What the gradient of a normalisation needs."""

    hidden: Tensor
    mean: Tensor
    factor: Tensor


@dataclass(frozen=True)
class _Product:
    """One of a layer's products, with what adapts it, and which of its adapters' input is dropped."""

    module: Conv1D
    adapter: GroupAdapter | None
    dropped: Dropped


@dataclass(frozen=True)
class _Layer:
    first_norm: _Norm
    states: _Product
    attention: nn.Module
    attended: _Product
    second_norm: _Norm
    widened: _Product
    narrowed: _Product


class _Kept(NamedTuple):
    """What the gradient of a layer needs, in the order in which it came. Of each adapter: its input, of which something
    may have been dropped, and scaling x A.T."""

    first_hidden: Tensor
    first_mean: Tensor
    first_factor: Tensor
    states_input: Tensor | None
    states_low: Tensor | None
    states: Tensor  # with a graph of attention's own to `mixed`
    mixed: Tensor
    attended_input: Tensor | None
    attended_low: Tensor | None
    second_hidden: Tensor
    second_mean: Tensor
    second_factor: Tensor
    widened_input: Tensor | None
    widened_low: Tensor | None
    wide: Tensor  # before GELU
    narrowed_input: Tensor | None
    narrowed_low: Tensor | None


class Gpt2Packs:
    """The pass of one batch, with the adapters that the model has now."""

    def __init__(
        self,
        layers: list[_Layer],
        last_norm: _Norm,
        genomes: Tensor | None,
        *,
        heads: int,
        attend: Attend,
    ) -> None:
        self.layers = layers
        self.last_norm = last_norm
        self.genomes = genomes
        self.heads = heads
        self.attend = attend

    @classmethod
    def of(cls, model: Any, rows: int, *, attend: Attend) -> Self | None:
        """For `model`; None where more than GPT-2's own frozen layers, in float32 on a CPU, and adapters of one
        population has a part in its pass, or where torch's own products of adapters are faster."""
        norms = plain_norms(model)
        if norms is None or any(norm.weight.requires_grad for norm in norms):
            return None
        if not all(type(block.mlp.act) is NewGELUActivation for block in model.h):
            return None
        layers, adapters = [], []
        for index, block in enumerate(model.h):
            modules = block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj
            products = [product for product in (_product(module, rows) for module in modules) if product is not None]
            if len(products) < len(modules):
                return None
            states, attended, wide, narrow = products
            first, second = (_Norm(norm.weight, norm.bias, norm.eps) for norm in norms[2 * index : 2 * index + 2])
            layers.append(_Layer(first, states, block.attn, attended, second, wide, narrow))
            adapters += [product.adapter for product in products if product.adapter is not None]
        genomes = adapters[0].genomes if adapters else None
        if any(adapter.genomes is not genomes for adapter in adapters):
            return None
        if genomes is not None and not worth_it(len(genomes)):
            return None
        last = _Norm(norms[-1].weight, norms[-1].bias, norms[-1].eps)
        heads = model.config.n_head
        return cls(layers, last, genomes, heads=heads, attend=attend)

    def run(self, hidden: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """The last hidden states from the embeddings `hidden`, both [rows, length, width]; differentiable in the
        genomes, without a cache."""
        if torch.is_grad_enabled() and self.genomes is not None and self.genomes.requires_grad:
            differentiable: Tensor = _Pass.apply(self.genomes, hidden, mask, self)  # type: ignore[no-untyped-call]
            return differentiable
        with torch.no_grad():
            return self.forward(hidden, mask, cache, None)[0]

    def forward(
        self, hidden: Tensor, mask: Tensor | None, cache: Cache | None, kept: list[_Kept] | None
    ) -> tuple[Tensor, _Normed]:
        """The last hidden states, and what the gradient of their normalisation needs; that of each layer is added to
        `kept`, if there is one."""
        for index, layer in enumerate(self.layers):
            normed, first_norm = _normalise(layer.first_norm, hidden)
            states, *of_states = _multiply(layer.states, normed)
            with torch.set_grad_enabled(kept is not None):
                states.requires_grad_(kept is not None)
                mixed = self._attend(layer.attention, states, mask, cache, index)
            attended, *of_attended = _multiply(layer.attended, mixed.detach().contiguous())
            hidden = attended.add_(hidden)
            normed, second_norm = _normalise(layer.second_norm, hidden)
            wide, *of_widened = _multiply(layer.widened, normed)
            narrow, *of_narrowed = _multiply(layer.narrowed, gelu(wide))
            if kept is not None:
                before = *first_norm, *of_states, states, mixed, *of_attended
                kept.append(_Kept._make([*before, *second_norm, *of_widened, wide, *of_narrowed]))
            hidden = narrow.add_(hidden)
        return _normalise(self.last_norm, hidden)

    def _attend(
        self, attention: nn.Module, states: Tensor, mask: Tensor | None, cache: Cache | None, index: int
    ) -> Tensor:
        rows, length, _ = states.shape
        query, key, value = states.view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        if cache is not None:
            key, value = cache.update(key, value, index)
        mixed, _ = self.attend(attention, query, key, value, mask, scaling=attention.scaling)
        return mixed.reshape(rows, length, -1)

    def backward(self, of_last: Tensor, last_norm: _Normed, kept: Sequence[_Kept]) -> Tensor:
        """The gradient of the genomes from that of the last hidden states."""
        assert self.genomes is not None
        result = torch.zeros_like(self.genomes)
        of_hidden = _norm_gradient(self.last_norm, last_norm, of_last)
        for index in reversed(range(len(self.layers))):
            layer, own = self.layers[index], kept[index]
            of_wide = self._to_input(layer.narrowed, own.narrowed_input, own.narrowed_low, of_hidden, result)
            of_wide = gelu_gradient(own.wide, of_wide)
            of_normed = self._to_input(layer.widened, own.widened_input, own.widened_low, of_wide, result)
            second_norm = _Normed(own.second_hidden, own.second_mean, own.second_factor)
            of_hidden.add_(_norm_gradient(layer.second_norm, second_norm, of_normed))
            of_mixed = self._to_input(layer.attended, own.attended_input, own.attended_low, of_hidden, result)
            # Torch lets go of that graph with all that is kept.
            (of_states,) = torch.autograd.grad(own.mixed, own.states, of_mixed, retain_graph=True)
            of_states = of_states.contiguous()
            wanted = index > 0  # what is before the first layer is frozen
            of_normed = self._to_input(layer.states, own.states_input, own.states_low, of_states, result, wanted)
            if wanted:
                first_norm = _Normed(own.first_hidden, own.first_mean, own.first_factor)
                of_hidden.add_(_norm_gradient(layer.first_norm, first_norm, of_normed))
        return result

    def _to_input(
        self,
        product: _Product,
        x: Tensor | None,
        low: Tensor | None,
        gradient: Tensor,
        of_genomes: Tensor,
        wanted: bool = True,
    ) -> Tensor:
        """The gradient of a product's input, if it is `wanted`; those of its adapters' factors are written to
        `of_genomes`."""
        module = product.module
        of_x: Tensor
        if not wanted:
            of_x = gradient.new_zeros(*gradient.shape[:-1], len(module.weight))
        elif isinstance(module.forward, FrozenProduct) and module.forward.fits(gradient):
            of_x = module.forward.to_input(gradient)
        else:
            of_x = F.linear(gradient, module.weight)
        adapter = product.adapter
        if adapter is not None and x is not None and low is not None:
            own = _factors(adapter, adapter.genomes), len(of_genomes), adapter.rank, adapter.scaling, product.dropped
            add_gradients(*own, x, low, gradient, of_x, _factors(adapter, of_genomes))
        return of_x


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, genomes: Tensor, hidden: Tensor, mask: Tensor | None, packs: Gpt2Packs) -> Tensor:
        kept: list[_Kept] = []
        last, last_norm = packs.forward(hidden, mask, None, kept)
        ctx.packs = packs
        ctx.save_for_backward(genomes, *last_norm, *itertools.chain(*kept))
        return last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        _, hidden, mean, factor, *saved = ctx.saved_tensors
        size = len(_Kept._fields)
        kept = [_Kept(*saved[start : start + size]) for start in range(0, len(saved), size)]
        return ctx.packs.backward(gradient.contiguous(), _Normed(hidden, mean, factor), kept), None, None, None


def _product(module: Any, rows: int) -> _Product | None:
    """One of a layer's products, for a batch of so many rows; None where it is not known how to do it."""
    if type(module) is not Conv1D or not in_float32(module.weight) or module.weight.requires_grad:
        return None
    active = active_adapter(module)
    if not active:
        return None if active is None else _Product(module, None, NOT_DROPPED)
    adapter = active[0].groups(rows)
    return None if adapter is None else _Product(module, adapter, Dropped.drawn(adapter.dropout, adapter.generator))


def _multiply(product: _Product, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """x [rows, length, in] by a layer, with what its adapters add; and what their gradient needs."""
    result: Tensor = product.module.forward(x)
    adapter = product.adapter
    if adapter is None:
        return result, None, None
    factors, n = _factors(adapter, adapter.genomes), len(adapter.genomes)
    return result, *add_groups(factors, n, adapter.rank, adapter.scaling, product.dropped, x, result)


def _factors(adapter: GroupAdapter, genomes: Tensor) -> Factors:
    """Those of an adapter within `genomes`, or within their gradient."""
    array = genomes.detach().numpy()
    return Factors(array, adapter.a_offset, array, adapter.b_offset)


def _normalise(norm: _Norm, hidden: Tensor) -> tuple[Tensor, _Normed]:
    normed, mean, factor = torch.native_layer_norm(hidden, hidden.shape[-1:], norm.weight, norm.bias, norm.epsilon)
    return normed, _Normed(hidden, mean, factor)


def _norm_gradient(norm: _Norm, normed: _Normed, gradient: Tensor) -> Tensor:
    hidden, mean, factor = normed
    of_hidden: Tensor = torch.ops.aten.native_layer_norm_backward(
        gradient, hidden, hidden.shape[-1:], mean, factor, norm.weight, norm.bias, [True, False, False]
    )[0]
    return of_hidden

"""GPT-2's pass over whole texts on a CPU, and the way back to the genomes: of each layer its products, attention, and
the compiled functions between them.

By the model's modules and hooks the same is some hundred calls and nodes of a graph, much of it in Python, for whose
lock the parts of a batch wait.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from evolora.engine.cpu.activation_store import Taken
from evolora.engine.cpu.attention.train import Paths, attend_along, attention_gradient
from evolora.engine.cpu.dropout import NOT_DROPPED, Dropped
from evolora.engine.cpu.gelu import gelu, gelu_gradient
from evolora.engine.cpu.gpt2.decode import plain_norms
from evolora.engine.cpu.jit import in_float32
from evolora.engine.cpu.kv_cache import KernelCache
from evolora.engine.cpu.lora import GroupAdapter, active_adapter
from evolora.engine.cpu.lora_gradient import Factors, Segments, add_gradients, add_groups, low_of, worth_it
from evolora.engine.cpu.matmul.frozen_linear import FrozenProduct


class _Norm(NamedTuple):
    weight: Tensor
    bias: Tensor
    epsilon: float


class Normed(NamedTuple):
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
    scaling: float
    attended: _Product
    second_norm: _Norm
    widened: _Product
    narrowed: _Product


class KeptLayer(NamedTuple):
    """What the gradient of a layer needs, in the order in which it came. Of each adapter: its input, of which something
    may have been dropped, and scaling x A.T."""

    first_hidden: Tensor
    first_mean: Tensor
    first_factor: Tensor
    states_input: Tensor | None
    states_low: Tensor | None
    states: Tensor
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
    ) -> None:
        self.layers = layers
        self.last_norm = last_norm
        self.genomes = genomes
        self.heads = heads

    @classmethod
    def of(cls, model: Any, rows: int) -> Self | None:
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
            layers.append(_Layer(first, states, block.attn, block.attn.scaling, attended, second, wide, narrow))
            adapters += [product.adapter for product in products if product.adapter is not None]
        genomes = adapters[0].genomes if adapters else None
        if any(adapter.genomes is not genomes for adapter in adapters):
            return None
        if genomes is not None and not worth_it(len(genomes)):
            return None
        last = _Norm(norms[-1].weight, norms[-1].bias, norms[-1].eps)
        return cls(layers, last, genomes, heads=model.config.n_head)

    @property
    def drops(self) -> bool:
        """Whether of any adapter's input something is dropped."""
        products = ((layer.states, layer.attended, layer.widened, layer.narrowed) for layer in self.layers)
        return any(len(product.dropped.starts) for own in products for product in own)

    def run(self, hidden: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor | None:
        """The last hidden states from the embeddings `hidden`, both [rows, length, width]; differentiable in the
        genomes, without a cache, or else written on the cache's tape. None where there is to be a gradient and `mask`
        is not that of texts."""
        if torch.is_grad_enabled() and self.genomes is not None and self.genomes.requires_grad:
            paths = Paths.seen(mask, *hidden.shape[:2])
            if paths is None:
                return None
            differentiable: Tensor = _Pass.apply(self.genomes, hidden, paths, self)  # type: ignore[no-untyped-call]
            return differentiable
        tape = cache.trace if isinstance(cache, KernelCache) else None
        taken = None if tape is None else tape.take(hidden.numel() // hidden.shape[2])
        with torch.no_grad():
            last, own = self.forward(hidden, functools.partial(self._attend, mask, cache), None, taken)
            if taken is not None:
                taken.last_hidden[:] = own.hidden.flatten(0, 1).numpy()
        return last

    def forward(
        self,
        hidden: Tensor,
        attend: Callable[[int, Tensor], Tensor],
        kept: list[KeptLayer] | None,
        taken: Taken | None = None,
    ) -> tuple[Tensor, Normed]:
        """The last hidden states, and what the gradient of their normalisation needs; that of each layer is added to
        `kept`, if there is one. `attend` gives what attention makes of a layer's queries, keys and values. What a
        tape has of each layer is written to what is `taken` of one."""
        for index, layer in enumerate(self.layers):
            normed, first_norm = _normalise(layer.first_norm, hidden)
            states, *of_states = _multiply(layer.states, normed)
            mixed = attend(index, states)
            attended, *of_attended = _multiply(layer.attended, mixed)
            before_attention, hidden = hidden, attended.add_(hidden)
            normed, second_norm = _normalise(layer.second_norm, hidden)
            wide, *of_widened = _multiply(layer.widened, normed)
            activated = gelu(wide)
            narrow, *of_narrowed = _multiply(layer.narrowed, activated)
            if kept is not None:
                before = *first_norm, *of_states, states, *of_attended
                kept.append(KeptLayer._make([*before, *second_norm, *of_widened, wide, *of_narrowed]))
            if taken is not None:
                taken.write(index, before_attention, states, mixed, hidden, wide, activated)
            hidden = narrow.add_(hidden)
        return self.normalise_last(hidden)

    def normalise_last(self, hidden: Tensor) -> tuple[Tensor, Normed]:
        """The last hidden states, from what the last layer gives; and what the gradient of that needs."""
        return _normalise(self.last_norm, hidden)

    def _attend(self, mask: Tensor | None, cache: Cache | None, index: int, states: Tensor) -> Tensor:
        rows, length, _ = states.shape
        layer = self.layers[index]
        query, key, value = states.view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        if cache is not None:
            key, value = cache.update(key, value, index)
        attend = ALL_ATTENTION_FUNCTIONS["evolora"]
        mixed, _ = attend(layer.attention, query, key, value, mask, scaling=layer.scaling)
        in_order: Tensor = mixed.reshape(rows, length, -1).contiguous()
        return in_order

    def kept(
        self,
        index: int,
        segments: Segments,
        first_hidden: Tensor,
        states: Tensor,
        mixed: Tensor,
        second_hidden: Tensor,
        wide: Tensor,
        activated: Tensor,
    ) -> KeptLayer:
        """What the gradient of a layer needs, from what it computed in a pass without one."""
        layer = self.layers[index]

        def of(product: _Product, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
            adapter = product.adapter
            if adapter is None:
                return None, None
            factors = _factors(adapter, adapter.genomes)
            return x, low_of(factors, adapter.rank, adapter.scaling, segments, x)

        normed, first_norm = _normalise(layer.first_norm, first_hidden)
        of_states, of_attended = of(layer.states, normed), of(layer.attended, mixed)
        normed, second_norm = _normalise(layer.second_norm, second_hidden)
        of_widened, of_narrowed = of(layer.widened, normed), of(layer.narrowed, activated)
        before = *first_norm, *of_states, states, *of_attended
        return KeptLayer._make([*before, *second_norm, *of_widened, wide, *of_narrowed])

    def backward(
        self,
        of_last: Tensor,
        last_norm: Normed,
        kept: Callable[[int], KeptLayer],
        segments: Segments,
        paths: Paths,
    ) -> Tensor:
        """The gradient of the genomes from that of the last hidden states, `of_last`, [tokens, width] as all here is:
        of tokens that are each individual's `segments`, and on `paths`. `kept` gives what a layer's gradient needs."""
        assert self.genomes is not None
        result = torch.zeros_like(self.genomes)
        back = functools.partial(self._to_input, result, segments)
        of_hidden = _norm_gradient(self.last_norm, last_norm, of_last)
        for index in reversed(range(len(self.layers))):
            layer, own = self.layers[index], kept(index)
            of_wide = back(layer.narrowed, own.narrowed_input, own.narrowed_low, of_hidden)
            of_wide = gelu_gradient(own.wide, of_wide)
            of_normed = back(layer.widened, own.widened_input, own.widened_low, of_wide)
            second_norm = Normed(own.second_hidden, own.second_mean, own.second_factor)
            of_hidden.add_(_norm_gradient(layer.second_norm, second_norm, of_normed))
            of_mixed = back(layer.attended, own.attended_input, own.attended_low, of_hidden)
            of_states = attention_gradient(own.states, of_mixed, paths, self.heads, layer.scaling)
            wanted = index > 0  # what is before the first layer is frozen
            of_normed = back(layer.states, own.states_input, own.states_low, of_states, wanted)
            if wanted:
                first_norm = Normed(own.first_hidden, own.first_mean, own.first_factor)
                of_hidden.add_(_norm_gradient(layer.first_norm, first_norm, of_normed))
        return result

    def _to_input(
        self,
        of_genomes: Tensor,
        segments: Segments,
        product: _Product,
        x: Tensor | None,
        low: Tensor | None,
        gradient: Tensor,
        wanted: bool = True,
    ) -> Tensor:
        """The gradient of a product's input, if it is `wanted`; those of its adapters' factors are written to
        `of_genomes`."""
        module = product.module
        of_x = input_gradient(module, gradient) if wanted else gradient.new_zeros(len(gradient), len(module.weight))
        adapter = product.adapter
        if adapter is not None and x is not None and low is not None:
            own = _factors(adapter, adapter.genomes), segments, adapter.rank, adapter.scaling, product.dropped
            add_gradients(*own, x, low, gradient, of_x, _factors(adapter, of_genomes))
        return of_x


class _Pass(torch.autograd.Function):
    """The pass; on the way back all is [tokens, ...], one row's after another's."""

    @staticmethod
    def forward(ctx: Any, genomes: Tensor, hidden: Tensor, paths: Paths, packs: Gpt2Packs) -> Tensor:
        def attend(index: int, states: Tensor) -> Tensor:
            mixed = attend_along(states.flatten(0, 1), paths, packs.heads, packs.layers[index].scaling)
            return mixed.view_as(hidden)

        kept: list[KeptLayer] = []
        last, last_norm = packs.forward(hidden, attend, kept)
        ctx.packs, ctx.paths = packs, paths
        ctx.save_for_backward(genomes, *last_norm, *itertools.chain(*kept))
        return last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        genomes, *saved = ctx.saved_tensors
        hidden, mean, factor, *saved = (x if x is None or x.ndim < 3 else x.flatten(0, 1) for x in saved)
        size = len(KeptLayer._fields)
        kept = [KeptLayer(*saved[start : start + size]) for start in range(0, len(saved), size)]
        of_last, last_norm = gradient.contiguous().view_as(hidden), Normed(hidden, mean, factor)
        segments = Segments.equal(len(hidden), len(genomes))
        return ctx.packs.backward(of_last, last_norm, kept.__getitem__, segments, ctx.paths), None, None, None


def input_gradient(module: Any, gradient: Tensor) -> Tensor:
    """That of the input of a Linear or Conv1D layer, from that of its results."""
    if isinstance(module.forward, FrozenProduct) and module.forward.fits(gradient):
        return module.forward.to_input(gradient)
    of_x: Tensor = F.linear(gradient, module.weight if isinstance(module, Conv1D) else module.weight.T)
    return of_x


def _product(module: Any, rows: int) -> _Product | None:
    """One of a layer's products, for a batch of so many rows; None where it is not known how to do it."""
    if type(module) is not Conv1D or not in_float32(module.weight) or module.weight.requires_grad:
        return None
    active = active_adapter(module)
    if not active:
        return None if active is None else _Product(module, None, NOT_DROPPED)
    adapter = active[0].groups(rows)
    return None if adapter is None else _Product(module, adapter, adapter.dropped)


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


def _normalise(norm: _Norm, hidden: Tensor) -> tuple[Tensor, Normed]:
    normed, mean, factor = torch.native_layer_norm(hidden, hidden.shape[-1:], norm.weight, norm.bias, norm.epsilon)
    return normed, Normed(hidden, mean, factor)


def _norm_gradient(norm: _Norm, normed: Normed, gradient: Tensor) -> Tensor:
    hidden, mean, factor = normed
    of_hidden: Tensor = torch.ops.aten.native_layer_norm_backward(
        gradient, hidden, hidden.shape[-1:], mean, factor, norm.weight, norm.bias, [True, False, False]
    )[0]
    return of_hidden

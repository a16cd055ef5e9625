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

from evolora.engine.cpu.activation_store import TapedLayer
from evolora.engine.cpu.attention.decode import attend_arrays
from evolora.engine.cpu.gpt2.decode_kernels import embed_rows, finish_rows, steps_rows
from evolora.engine.cpu.jit import in_float32, run_rows
from evolora.engine.cpu.kv_cache import KernelCache, KernelLayer
from evolora.engine.cpu.levers import Levers
from evolora.engine.cpu.lora import NO_ADAPTER, Adapter, active_adapter, add_low_rank
from evolora.engine.cpu.matmul.frozen_linear import FrozenProduct
from evolora.engine.eager.kernels import Choice, Steps
from evolora.engine.eager.lora_layers import BatchShape

Product = Callable[[Tensor], Tensor]

# Multiplications of an adapter, for less of which another thread is not worth its call.
_LEAST_A_THREAD = 1_500_000
# Rows that a thread has at least where each takes some through a whole layer; with fewer, threads share each product.
_LEAST_ROWS = 8
_FAR, _ZERO = np.finfo(np.float32).min, np.float32(0)
_NO_TAPE, _NO_DRAWS = np.empty((0, 0, 0), np.float32), np.empty((0, 0), np.float64)
_NO_FLAGS, _NO_TOKENS, _NO_NUMBERS = np.empty(0, np.bool_), np.empty((0, 0), np.int64), np.empty(0, np.int64)
# As `steps_rows` takes what is chosen: nothing.
_NO_CHOICE = (
    *(
        _NO_TOKENS,
        np.empty((0, 0), np.float32),
        np.empty((0, 0), np.bool_),
        _NO_FLAGS,
        _NO_NUMBERS,
        _NO_TAPE,
        _NO_NUMBERS,
    ),
    *(_NO_DRAWS, _ZERO, _NO_NUMBERS, 0),
)


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

    def __init__(
        self, model: Any, rows: int, first_norm: _Norm, layers: list[Layer], cache: KernelCache, levers: Levers
    ) -> None:
        self.rows = rows
        self.heads = model.config.n_head
        self.first_norm = first_norm
        self.layers = layers
        self.cache = cache
        self.levers = levers
        self.embeddings = [module.weight.detach().numpy() for module in (model.transformer.wte, model.transformer.wpe)]
        self.output = model.lm_head
        self.hidden, self.normed = (torch.empty(rows, 1, model.config.n_embd, dtype=torch.float32) for _ in range(2))
        self._whole: list[tuple[Any, ...]] | None = None  # for each layer, what its compiled function takes first
        self._head: tuple[Any, ...] = ()
        self._product = np.empty((rows, model.config.n_embd), np.float32)
        self._rooms: tuple[Any, ...] = ()

    @classmethod
    def of(cls, model: Any, rows: int, cache: Cache | None, levers: Levers) -> Self | None:
        """For `model` with the adapters that it has now and the rows' cache; None where more than GPT-2's own layers,
        in float32 on a CPU, and one adapter of each has a part in its pass."""
        if type(model) is not GPT2LMHeadModel or not isinstance(cache, KernelCache) or model.training:
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
        return None if layers is None else cls(model, rows, _norm(body.h[0].ln_1), layers, cache, levers)

    @torch.no_grad()
    def run(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The logits after one more token of each row, `tokens` [rows] at `positions` [rows], [rows, 1, vocabulary],
        and the hidden states that they come from, [rows, 1, width], which the next step writes over.

        `mask` [rows, length] is 0 at the positions that are not to be seen; the cache grows by one.
        """
        self._check(positions)
        threads = torch.get_num_threads()
        if (threads == 1 or self.rows >= threads * _LEAST_ROWS) and (whole := self._of_whole()) is not None:
            return self._several(whole, tokens, positions, mask, 1, _NO_CHOICE)[:, 0, None], self.normed
        hidden, normed = _rows(self.hidden), _rows(self.normed)
        state = tokens.numpy(), positions.numpy(), *self.embeddings, *self.first_norm, hidden, normed
        embed_rows(*state, 0, self.rows)
        far = _added(mask)
        taken = None if self.cache.trace is None else self.cache.trace.take(self.rows)
        for index, (layer, cached) in enumerate(zip(self.layers, self.cache.layers, strict=True)):
            taped = None if taken is None else taken.layers[index]
            self._by_product(layer, cached, hidden, normed, far, taped)
        if taken is not None:
            taken.last_hidden[:] = hidden
        logits: Tensor = self.output.forward(self.normed)
        return logits, self.normed

    @property
    def multi_step(self) -> bool:
        """Whether steps can be made without a stop in between: by one thread, through whole layers."""
        return self.levers.multi_step and torch.get_num_threads() == 1 and self._of_whole() is not None

    @torch.no_grad()
    def run_steps(self, tokens: Tensor, positions: Tensor, mask: Tensor, choice: Choice) -> Steps:
        """Steps without a stop in between: read `tokens` [rows] at `positions` [rows], choose the next ones, read
        those, until so few rows are left that the others should leave the batch, or none can have more.

        `mask` [rows, length and more] is 0 at the positions that are not to be seen, of those that are in the cache,
        which grows by a position for each step.
        """
        whole = self._of_whole()
        assert whole is not None
        self._check(positions)
        most = min(int(choice.left[choice.alive].max()), len(self.embeddings[1]) - int(positions[choice.alive].max()))
        place = self.cache.layers[0].length
        seen = mask.clone()
        seen[:, place : place + most] = 1
        alive, draws = choice.alive.clone(), choice.draws
        chosen, good = np.empty((most, self.rows), np.int64), np.empty((most, self.rows), np.bool_)
        log_probs = np.empty((most if draws is not None else 0, self.rows), np.float32)
        features = np.empty((most if choice.keep_features else 0, *self._product.shape), np.float32)
        given = _NO_DRAWS if draws is None else draws.T[:most].contiguous().numpy()
        done = np.zeros(1, np.int64)
        made = chosen, log_probs, good, alive.numpy(), choice.left.clone().numpy(), features, done
        how = given, np.float32(1 / choice.temperature), choice.ends.numpy(), choice.enough
        logits = self._several(whole, tokens.clone(), positions.clone(), seen, most, (*made, *how))
        n = int(done[0])

        def by_row(array: Any) -> Tensor:
            return torch.from_numpy(array[:n]).transpose(0, 1)

        return Steps(
            by_row(chosen),
            by_row(good),
            None if draws is None else by_row(log_probs),
            by_row(features) if choice.keep_features else None,
            alive,
            None if self.cache.trace is None else logits[:, :n],
        )

    def _check(self, positions: Tensor) -> None:
        if int(positions.max()) >= len(self.embeddings[1]):
            raise IndexError(f"position {int(positions.max())} in a model with {len(self.embeddings[1])} positions")

    def _several(
        self,
        whole: list[tuple[Any, ...]],
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        steps: int,
        choice: tuple[Any, ...],
    ) -> Tensor:
        """Up to so many steps; the logits of all of them with a tape, else of the last, [rows, steps, vocabulary]."""
        tape, width = self.cache.trace, self._product.shape[1]
        if tape is None:
            layers = [(*layer, self._rooms, _NO_TAPE, _NO_TAPE) for layer in whole]
            last_hidden = _NO_TAPE
        else:
            taken = tape.take(self.rows * steps)
            last_hidden, layers = taken.last_hidden.reshape(steps, self.rows, width), []
            for layer, taped in zip(whole, taken.layers, strict=True):
                first, states, mixed, second, wide, activated = (array.reshape(steps, self.rows, -1) for array in taped)
                layers.append((*layer, self._rooms_of(states, mixed, wide, activated), first, second))
        logits = torch.empty(1 if tape is None else steps, self.rows, len(self.output.weight), dtype=torch.float32)
        state = tokens.numpy(), positions.numpy(), _added(mask), _rows(self.hidden), _rows(self.normed)
        ends = *self.embeddings, tuple(self.first_norm), self._head, last_hidden, logits.numpy()
        place = self.cache.layers[0].length
        threads = torch.get_num_threads()
        run_rows(steps_rows, (tuple(layers), ends, state, choice, place, steps), self.rows, threads)
        done = int(choice[6][0]) if len(choice[0]) else steps
        for cached in self.cache.layers:
            cached.grow(done)
        if tape is not None:
            tape.give_back(self.rows * (steps - done))
        return logits.transpose(0, 1)

    def _of_whole(self) -> list[tuple[Any, ...]] | None:
        """What a whole layer's function takes first, of each layer; None while a product has no panels."""
        if self._whole is not None or not self.levers.whole_layers:
            return self._whole
        head = self.output.forward
        panels = head.panels(self.rows) if isinstance(head, FrozenProduct) else None
        layers = [layer.whole(self.rows) for layer in self.layers]
        if panels is None or any(layer is None for layer in layers):
            return None
        bias = np.zeros(len(self.output.weight), np.float32)
        self._head = panels, bias
        width, inner = self._product.shape[1], self.layers[0].biases[2].size
        self._rooms = self._rooms_of(
            *(np.empty((1, self.rows, each), np.float32) for each in (3 * width, width, inner, inner))
        )
        self._whole = [
            (*(own or ()), cached.keys.numpy(), cached.values.numpy(), layer.scaling)
            for own, layer, cached in zip(layers, self.layers, self.cache.layers, strict=True)
        ]
        return self._whole

    def _rooms_of(self, states: Any, mixed: Any, wide: Any, activated: Any) -> tuple[Any, ...]:
        """A layer's states, [steps, rows, ...], in all the shapes that are needed: within a compiled function another
        shape takes seconds to compile."""
        steps, rows = states.shape[:2]
        by_head = states.reshape(steps, rows, 1, 3, self.heads, -1), mixed.reshape(steps, rows, 1, self.heads, -1)
        flat = [each.reshape(steps, -1) for each in (wide, activated)]
        return states, mixed, *by_head, self._product, wide, flat[0], activated, flat[1]

    def _by_product(
        self, layer: Layer, cached: KernelLayer, in_hidden: Any, in_normed: Any, mask: Any, taped: TapedLayer | None
    ) -> None:
        """The hidden states after a layer, with each product for itself."""
        place, keys, values = cached.grow(), cached.keys.numpy(), cached.values.numpy()
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
    """Whether anything has a part in what is before a GPT-2's layers or after them; to look at a batch is none."""
    body = model.transformer
    ends = model, body, body.drop, body.wte, body.wpe, model.lm_head
    hooks = [hook for own in ends for hook in (*own._forward_hooks.values(), *own._forward_pre_hooks.values())]
    return not all(isinstance(hook, BatchShape) for hook in hooks)


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
    """Whether a GPT-2's attention is that of `attention.torch_attention`, to the row's own text."""
    return body.config._attn_implementation == "evolora" and not body.config.add_cross_attention


def _added(mask: Tensor) -> Any:
    """A mask [rows, length] as it is added to scores, [rows, 1, length]."""
    return np.where(mask.numpy() == 0, _FAR, _ZERO)[:, None]


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
    run_rows(finish_rows, (*adapter, x, product, hidden, *norm, normed), len(hidden), threads)


def _threads(adapter: Adapter, x: Any, product: Any) -> int:
    worth = int(adapter.rank * (x.size + product.size)) // _LEAST_A_THREAD
    return min(torch.get_num_threads(), worth)

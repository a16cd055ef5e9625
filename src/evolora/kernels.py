"""Faster equivalents of a base model's own layers on a CPU: products with frozen weights, attention, GELU.

Each computes what the layer itself computes, in float32, rounded a little differently.
"""

import functools
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Model
from transformers.pytorch_utils import Conv1D

from evolora.blocked_weight import BlockedWeight
from evolora.cached_attention import attend
from evolora.calibration import free_memory, is_small
from evolora.compiled import in_float32, takes
from evolora.gelu import gelu
from evolora.gpt2_pass import gpt2_pass

Products = Literal["torch", "onednn"]

_ATTENTION = "evolora"
# Blocked weights are a second copy of them: for models that leave at least three times as much free.
_SHARE_OF_MEMORY = 4
# Up to so many scores a head, plain products beat torch's fused attention on a CPU.
_PLAIN_ATTENTION_SCORES = 1024


def fastest_products() -> Products:
    """Which library multiplies float32 matrices faster here: torch's own choice (MKL, on most builds) or oneDNN.

    Both are IEEE float32. MKL leaves AVX-512 unused on x86 processors that are not Intel's, where oneDNN is over twice
    as fast; on Intel's MKL is a little faster. The processor's maker decides and no measurement: beside other work a
    measurement may say one thing now and the other later, and two runs of one seed would round differently.
    """
    foreign = torch.backends.mkl.is_available() and _processor_maker() not in ("GenuineIntel", "")
    return "onednn" if foreign and onednn_works() else "torch"


def _processor_maker() -> str:
    """As an x86 processor itself says it: GenuineIntel, AuthenticAMD, HygonGenuine. Empty where it is not told."""
    try:
        found = re.search(r"^vendor_id\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux: Windows ends the processor's name with it, macOS has x86 processors of Intel's alone
        found = re.search(r"(GenuineIntel|AuthenticAMD|HygonGenuine)", platform.processor())
    return found[1] if found else ""


@functools.cache
def onednn_works() -> bool:
    """Whether this torch has oneDNN's product of plain tensors, and it is right: the operator is not a public one."""
    try:
        x, weight, bias = torch.arange(24.0).view(3, 8), torch.arange(40.0).view(5, 8), torch.arange(5.0)
        expected = F.linear(x, weight, bias)
        both = weight, weight.t().contiguous().t()
        blocked = [torch.ops.mkldnn._reorder_linear_weight(w, len(x)) for w in both]
        return all(torch.equal(_onednn(x, w, bias), expected) for w in (*both, *blocked))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def use_kernels(model: PreTrainedModel, products: Products) -> None:
    """Let the layers of `model` compute by the kernels below, from now on; a later call changes `products`.

    Frozen float32 Linear and Conv1D layers on a CPU multiply by `products`, forwards and backwards; attention over few
    positions is made of plain products; GELU's tanh form is one pass over memory instead of eight. Of a large model's
    weights oneDNN has a second copy while few rows are decoded (`evolora.blocked_weight`). All other layers, and these
    where they do not fit, stay as they are.
    """
    blocked = _blocked_weights(model) if products == "onednn" else {}
    for module in model.modules():
        vars(module).pop("forward", None)
        kernel: Callable[..., Any] | None = None
        if type(module) in (nn.Linear, Conv1D) and products == "onednn":
            kernel = functools.partial(_linear, blocked=blocked.get(module))
        elif type(module) is NewGELUActivation:
            kernel = _gelu
        elif type(module) is GPT2MLP and products == "onednn":
            kernel = functools.partial(_mlp, blocked=blocked.get(module.c_fc))
        elif type(module) is GPT2Model:
            widened = [_widening(block.mlp, products, blocked) for block in module.h]
            multiply = _plain_product if products == "onednn" else F.linear
            kernel = functools.partial(gpt2_pass, widened=widened, multiply=multiply)
        if kernel is not None:
            # Hides the class's own. A partial, not a closure: a deep copy of the model then calls its own layers.
            module.forward = functools.partial(kernel, module)
    if model.config._attn_implementation == "sdpa" and model.device.type == "cpu":
        model.config._attn_implementation = _ATTENTION


def _widening(mlp: Any, products: Products, blocked: dict[nn.Module, BlockedWeight]) -> Callable[[Tensor], Tensor]:
    if products == "onednn":
        return functools.partial(_widened, mlp, blocked=blocked.get(mlp.c_fc))
    return functools.partial(_widened_apart, mlp)


def _blocked_weights(model: PreTrainedModel) -> dict[nn.Module, BlockedWeight]:
    """Of the layers with a float32 weight on a CPU, if there is memory to spare for a second copy of all. A small
    model's steps are no faster by it (docs/performance.md)."""
    if is_small(model):
        return {}
    layers = [module for module in model.modules() if type(module) in (nn.Linear, Conv1D)]
    layers = [layer for layer in layers if in_float32(layer.weight) and not layer.weight.is_inference()]
    if sum(layer.weight.nbytes for layer in layers) > free_memory(torch.device("cpu")) // _SHARE_OF_MEMORY:
        return {}
    # Conv1D keeps its weight transposed.
    return {layer: BlockedWeight(layer.weight, transposed=type(layer) is Conv1D) for layer in layers}


def _linear(module: Any, x: Tensor, *, blocked: BlockedWeight | None = None) -> Tensor:
    weight = module.weight
    if not _fits(weight, x) or (weight.requires_grad and torch.is_grad_enabled()):
        result: Tensor = type(module).forward(module, x)
        return result
    plain = weight.t() if isinstance(module, Conv1D) else weight
    fastest = plain if blocked is None else blocked.of(weight, rows=len(x))
    if torch.is_grad_enabled() and x.requires_grad:
        differentiable: Tensor = _FrozenProduct.apply(x, fastest, plain, module.bias)  # type: ignore[no-untyped-call]
        return differentiable
    return _onednn(x, fastest, module.bias)


def _fits(weight: Tensor, x: Tensor) -> bool:
    return in_float32(x) and in_float32(weight) and not torch.is_autocast_enabled("cpu")


class _FrozenProduct(torch.autograd.Function):
    """x @ weight.T + bias, differentiable in x alone; the weight in the layout that is fastest, and plain."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fastest: Tensor, plain: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = plain
        return _onednn(x, fastest, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _onednn(gradient, ctx.weight.t(), None), None, None, None


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    after, form = ("gelu", "tanh") if gelu else ("none", "")
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], form)
    return result


def _plain_product(x: Tensor, weight: Tensor) -> Tensor:
    return _onednn(x, weight, None)


def _mlp(module: Any, x: Tensor, *, blocked: BlockedWeight | None = None) -> Tensor:
    result: Tensor = module.dropout(module.c_proj(_widened(module, x, blocked=blocked)))
    return result


def _widened(module: Any, x: Tensor, *, blocked: BlockedWeight | None = None) -> Tensor:
    """What is between GPT-2's two layers, GELU on the first one's results while the processor still has them. Not in
    training, where they are needed as they were, nor where that layer is adapted."""
    first, activation = module.c_fc, module.act
    # PEFT's layer has the weight of the one that it wraps, and something to add to its product.
    own = type(first) is Conv1D and type(activation) is NewGELUActivation
    watched = first._forward_hooks or first._forward_pre_hooks
    if not own or watched or torch.is_grad_enabled() or not _fits(first.weight, x):
        return _widened_apart(module, x)
    weight = first.weight.t() if blocked is None else blocked.of(first.weight, rows=len(x))
    return _onednn(x, weight, first.bias, gelu=True)


def _widened_apart(module: Any, x: Tensor) -> Tensor:
    result: Tensor = module.act(module.c_fc(x))
    return result


def _gelu(_: nn.Module, x: Tensor) -> Tensor:
    return gelu(x)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of `query` [rows, heads, asked, size] over `key` and `value` [rows, key heads, positions, size]:
    [rows, asked, heads, size]. The same as transformers' sdpa attention, which does all that is not small."""
    rows, heads, asked, size = query.shape
    positions = key.shape[2]
    scaling = size**-0.5 if scaling is None else scaling
    # Without a mask sdpa makes a causal one, but for a single query.
    unmasked = attention_mask is None and asked > 1
    special = any(options.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    few = asked * positions <= _PLAIN_ATTENTION_SCORES
    if not (dropout or unmasked or special) and (few or asked == 1):
        cached = _cached_attention(query, key, value, attention_mask, scaling)
        if cached is not None:
            return cached, None
    if not few or dropout or unmasked or special:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return result
    # Several query heads may share one key head: they are so many more queries of it.
    shared = heads != key.shape[1]
    if shared:
        query = query.reshape(rows, key.shape[1], -1, size)
    scores = torch.matmul(query, key.transpose(2, 3))
    if shared:
        scores = scores.view(rows, heads, asked, positions)
    if attention_mask is None:
        scores = scores * scaling
    else:
        mask = attention_mask if attention_mask.shape[-1] == positions else attention_mask[..., :positions]
        scores = torch.add(mask, scores, alpha=scaling)
    weights = scores.softmax(-1)
    if shared:
        weights = weights.view(*query.shape[:3], positions)
    mixed = torch.matmul(weights, value)
    if shared:
        mixed = mixed.view(rows, heads, asked, value.shape[-1])
    return mixed.transpose(1, 2), None


def _cached_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor | None:
    """`evolora.cached_attention` of [rows, heads, positions, size], where keys and values lie as it needs them."""
    if not takes(query, key, value) or query.shape[-1] != value.shape[-1]:
        return None
    keys, values = _in_memory(key), _in_memory(value)
    if keys is None or values is None:
        return None
    asked, positions = query.shape[2], key.shape[2]
    if mask is None:
        mask = query.new_zeros(1, 1, asked, positions)
    if mask.dtype != torch.float32 or mask.shape[1] != 1 or mask.shape[2] != asked:
        return None
    mask = mask[:, 0, :, :positions].contiguous()
    return attend(query.transpose(1, 2).contiguous(), keys, values, mask, scaling)


def _in_memory(states: Tensor) -> Tensor | None:
    """The [rows, capacity, heads, size] whose first positions `states` [rows, heads, positions, size] is a view of."""
    rows, heads, positions, size = states.shape
    row, *within = states.stride()
    capacity = row // (heads * size)
    whole = (rows, capacity, heads, size)
    held = states.untyped_storage().nbytes() // states.element_size() - states.storage_offset()
    if within != [size, heads * size, 1] or row != capacity * heads * size or capacity < positions or held < rows * row:
        return None
    return states.as_strided(whole, (row, heads * size, size, 1))


def _attention_mask(*arguments: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Tensor | None:
    """sdpa's mask, made additive once for all layers where it will be added. Finite, so that padding, which
    may look nowhere, computes nonsense and not NaN."""
    mask: Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*arguments, dtype=dtype, **options)
    if mask is None or mask.dtype != torch.bool:
        return mask
    if mask.shape[-2] > 1 and mask.shape[-1] * mask.shape[-2] > _PLAIN_ATTENTION_SCORES:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(_ATTENTION, _attention_mask)

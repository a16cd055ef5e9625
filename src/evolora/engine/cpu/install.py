"""Faster equivalents of a base model's own layers on a CPU: products with frozen weights, attention, GELU.

Each computes what the layer itself computes, in float32, rounded a little differently.
"""

import functools
import platform
import re
from pathlib import Path
from typing import Any, Literal

import llvmlite.binding as llvm
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt2.modeling_gpt2 import GPT2Model
from transformers.pytorch_utils import Conv1D

from evolora.engine.calibration import free_memory, is_small
from evolora.engine.cpu.attention.decode import attend
from evolora.engine.cpu.gelu import gelu
from evolora.engine.cpu.gpt2.forward import gpt2_pass
from evolora.engine.cpu.jit import takes
from evolora.engine.cpu.matmul.frozen_linear import FrozenProduct, Kept

Products = Literal["torch", "compiled"]

_ATTENTION = "evolora"
# Panels are a second copy of a large model's weights: for models that leave at least three times as much free.
_SHARE_OF_MEMORY = 4
# Up to so many scores a head, plain products beat torch's fused attention on a CPU.
_PLAIN_ATTENTION_SCORES = 1024


def fastest_products() -> Products:
    """What multiplies float32 matrices faster here: torch's own library (MKL, on most builds) or `matmul.panels`.

    On x86 processors that are not Intel's MKL leaves AVX-512 unused, and no library keeps a frozen weight arranged. The
    processor's maker decides and no measurement: beside other work a measurement may say one thing now and the other
    later, and two runs of one seed would round differently.
    """
    foreign = _processor_maker() not in ("GenuineIntel", "")
    return "compiled" if foreign and llvm.get_host_cpu_features().get("fma", False) else "torch"


def _processor_maker() -> str:
    """As an x86 processor itself says it: GenuineIntel, AuthenticAMD, HygonGenuine. Empty where it is not told."""
    try:
        found = re.search(r"^vendor_id\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux: Windows ends the processor's name with it, macOS has x86 processors of Intel's alone
        found = re.search(r"(GenuineIntel|AuthenticAMD|HygonGenuine)", platform.processor())
    return found[1] if found else ""


def use_kernels(model: PreTrainedModel, products: Products) -> None:
    """Let the layers of `model` compute by the kernels below, from now on; a later call changes `products`.

    Frozen float32 Linear and Conv1D layers on a CPU multiply by `products`, forwards and backwards; attention over few
    positions is made of plain products; GELU's tanh form is one pass over memory instead of eight. Of the weights there
    are further copies, of a large model one while few rows are decoded (`matmul.frozen_linear`). All other layers,
    and these where they do not fit, stay as they are.
    """
    kept = _kept(model)
    for module in model.modules():
        vars(module).pop("forward", None)
        # Hides the class's own. What has the module as a part, no closure: a copy of the model calls its own layers.
        if type(module) in (nn.Linear, Conv1D) and products == "compiled":
            module.forward = FrozenProduct(module, kept=kept)
        elif type(module) is NewGELUActivation:
            module.forward = functools.partial(_gelu, module)
        elif type(module) is GPT2Model:
            module.forward = functools.partial(gpt2_pass, module)
    if model.config._attn_implementation == "sdpa" and model.device.type == "cpu":
        model.config._attn_implementation = _ATTENTION


def _kept(model: PreTrainedModel) -> Kept:
    """How long the weights' panels are kept: of a large model while few rows are decoded, if there is memory to spare
    for a second copy of all."""
    if is_small(model):
        return "always"
    weights = [module.weight for module in model.modules() if type(module) in (nn.Linear, Conv1D)]
    fit = sum(weight.nbytes for weight in weights) <= free_memory(torch.device("cpu")) // _SHARE_OF_MEMORY
    return "for few rows" if fit else "never"


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
    """`attention.decode` of [rows, heads, positions, size], where keys and values lie as it needs them."""
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

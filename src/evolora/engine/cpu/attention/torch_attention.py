"""The attention of an engine's modules on a CPU, as transformers asks for it: over few positions by plain products,
over the cache by compiled functions, else sdpa."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from evolora.engine.cpu.attention.decode import attend
from evolora.engine.cpu.jit import takes

ATTENTION = "evolora"
# Up to so many scores a head, plain products beat torch's fused attention on a CPU.
PLAIN_ATTENTION_SCORES = 1024


def attention(
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
    few = asked * positions <= PLAIN_ATTENTION_SCORES
    if not (dropout or unmasked or special) and (few or asked == 1):
        cached = cached_attention(query, key, value, attention_mask, scaling)
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
    return mixed.transpose(1, 2).contiguous(), None  # as sdpa's is: some architectures view it


def cached_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor | None:
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


def attention_mask(*arguments: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Tensor | None:
    """sdpa's mask, made additive once for all layers where it will be added. Finite, so that padding, which
    may look nowhere, computes nonsense and not NaN."""
    mask: Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*arguments, dtype=dtype, **options)
    if mask is None or mask.dtype != torch.bool:
        return mask
    if mask.shape[-2] > 1 and mask.shape[-1] * mask.shape[-2] > PLAIN_ATTENTION_SCORES:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


# By the library's own way for new kinds, under a name of ours: nothing that is there changes.
ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, attention_mask)

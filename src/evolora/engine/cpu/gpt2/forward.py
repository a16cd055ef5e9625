"""GPT-2's pass with less Python: in decoding, transformers' own takes as long as a small model's arithmetic, and unlike
that it cannot be shared by threads."""

from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt2.modeling_gpt2 import GPT2Model

from evolora.engine.cpu.gpt2.prefill import read_packs
from evolora.engine.cpu.gpt2.train import Gpt2Packs
from evolora.engine.cpu.kv_cache import KernelLayer
from evolora.engine.cpu.levers import Levers


def gpt2_pass(
    model: Any,
    levers: Levers,
    input_ids: Tensor | None = None,
    past_key_values: Cache | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    use_cache: bool | None = None,
    **others: Any,
) -> BaseModelOutputWithPastAndCrossAttentions:
    """What `GPT2Model.forward` computes, by the model's own modules in the same order. A pass in training, with other
    attention than `cpu.install`'s, or with anything but token ids, positions, a mask and a cache is left to it."""
    config: GPT2Config = model.config
    if (
        input_ids is None
        or position_ids is None
        or attention_mask is None
        or bool(use_cache) != (past_key_values is not None)
        or any(value is not None and value is not False for value in others.values())
        or model.training
        or "forward" in vars(model.h[0])  # as where its layers are checkpointed
        or config.add_cross_attention
        or config._attn_implementation != "evolora"
    ):
        left: BaseModelOutputWithPastAndCrossAttentions = GPT2Model.forward(
            model,
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **others,
        )
        return left
    hidden = model.wte(input_ids) + model.wpe(position_ids)
    rows, asked, width = hidden.shape
    layers: list[Any] = [] if past_key_values is None else past_key_values.layers
    if one_more := asked == 1 and _grows(layers) and attention_mask.ndim == 2:
        # One more token, which sees all before it that are no padding.
        mask = hidden.new_zeros(attention_mask.shape)
        mask = mask.masked_fill_(attention_mask == 0, torch.finfo(hidden.dtype).min)[:, None, None]
    else:
        mask = create_causal_mask(
            config, hidden, attention_mask, past_key_values=past_key_values, position_ids=position_ids
        )
    attend = ALL_ATTENTION_FUNCTIONS["evolora"]
    kept = torch.is_grad_enabled() and past_key_values is not None
    if not (one_more or kept or hidden.requires_grad or torch.is_autocast_enabled("cpu")):
        if (
            levers.prefill
            and levers.whole_layers
            and not torch.is_grad_enabled()
            and mask is not None
            and mask.dtype == hidden.dtype
        ):
            last = read_packs(model, hidden, mask, past_key_values)
            if last is not None:
                return BaseModelOutputWithPastAndCrossAttentions(
                    last_hidden_state=last, past_key_values=past_key_values
                )
        packs = Gpt2Packs.of(model, rows) if levers.train else None
        last = None if packs is None else packs.run(hidden, mask, past_key_values)
        if last is not None:
            return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=last, past_key_values=past_key_values)
    for index, block in enumerate(model.h):
        attention, mlp = block.attn, block.mlp
        states = attention.c_attn(block.ln_1(hidden)).view(rows, asked, 3, -1, attention.head_dim)
        layer = layers[index] if one_more else None
        if isinstance(layer, KernelLayer) and layer.extends(states):
            mixed = layer.extend(states, mask[:, 0], attention.scaling)
        else:
            query, key, value = states.permute(2, 0, 3, 1, 4).unbind()
            if past_key_values is not None:
                key, value = past_key_values.update(key, value, index)
            mixed, _ = attend(attention, query, key, value, mask, scaling=attention.scaling)
        hidden = attention.c_proj(mixed.reshape(rows, asked, width)) + hidden
        hidden = hidden + mlp(block.ln_2(hidden))
    return BaseModelOutputWithPastAndCrossAttentions(
        last_hidden_state=model.ln_f(hidden), past_key_values=past_key_values
    )


def _grows(layers: list[Any]) -> bool:
    """Whether a cache of these gives back as many positions as there were tokens."""
    return bool(layers) and isinstance(layers[0], DynamicLayer)

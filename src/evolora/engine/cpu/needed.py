"""Which kernels a run needs, and for which argument types: what is compiled ahead of it."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel

from evolora.engine.calibration import is_small
from evolora.engine.cpu import dropout, gelu, jit, log_probs, lora, lora_gradient, sampling
from evolora.engine.cpu.attention import decode, prefill, train
from evolora.engine.cpu.compile import Version
from evolora.engine.cpu.gpt2 import decode_kernels, prefill_kernels
from evolora.engine.cpu.matmul import panels
from evolora.engine.cpu.matmul.choice import Products

# Each kernel behind those that are its parts: processes share the work so (`compile`). The longest first, else.
_COMMON = jit.exponentials, jit.highest, lora.down, lora.up, lora.transpose, gelu.gelu_block
_PANELS = panels.panels_of, panels.whole_vectors, panels.multiply_rows, panels.arrange
_WHOLE_LAYERS = (
    *(decode_kernels.multiply, lora.add_low_rank, decode_kernels.normalise, decode_kernels.copy_rows),
    *(decode.attend_rows, decode_kernels.finish_rows, decode_kernels.layer_rows, sampling.sample_rows),
    *(sampling.likeliest_rows, decode_kernels.embed_rows, prefill.attend_within, prefill_kernels.multiply_pack),
)
_BY_PRODUCT = decode.attend_rows, decode_kernels.embed_rows, decode_kernels.finish_rows, lora.add_low_rank
_LEARNING = (
    *(dropout.drop_rows, dropout.add_dropped_rows, lora_gradient.gradient_groups, lora_gradient.add_rows_of_groups),
    *(panels.multiply_tiles, train.gradient_heads, train.attend_heads, train.follow, train.measure, train.trace),
    *(gelu.gradient_block, log_probs.forward_rows, log_probs.backward_rows),
)


def needed(model: PreTrainedModel, products: Products, *, learns: bool, dropout: float) -> Sequence[Version]:
    """Those of a run of `model`: with a refiner, if it `learns`, that drops so much of the adapters' input.

    What a run turns out to need beside these is compiled when it comes up.
    """
    if model.dtype != torch.float32:
        return []
    # The last two for the self-check and the canary.
    kernels = [*_COMMON, decode.gather_rows, lora_gradient.add_rows_of_groups, log_probs.forward_rows]
    versions = []
    is_gpt2, is_compiled = type(model) is GPT2LMHeadModel, products == "compiled"
    if is_compiled:
        kernels += _PANELS
        if not is_small(model):
            kernels.append(panels.multiply_plain)
    if is_gpt2 and is_compiled:
        kernels += _WHOLE_LAYERS
        layers = decode_kernels.steps_types(model.config.n_layer)
        versions = [Version(decode_kernels.steps_rows, layers), Version.declared(prefill_kernels.read_layer)]
    if not (is_gpt2 and is_compiled and is_small(model)):
        kernels += [*_BY_PRODUCT, sampling.sample_rows]
    if learns:
        kernels += _LEARNING
        if not dropout:
            kernels.append(lora_gradient.low_groups)
    return [*versions, *map(Version.declared, dict.fromkeys(kernels))]

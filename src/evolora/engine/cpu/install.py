"""An engine's module tree on a CPU gets faster equivalents of its layers: products with frozen weights, attention,
GELU.

Each computes what the layer itself computes, in float32, rounded a little differently.
"""

import functools

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2Model
from transformers.pytorch_utils import Conv1D

from evolora.engine.calibration import free_memory, is_small
from evolora.engine.cpu.attention.torch_attention import ATTENTION
from evolora.engine.cpu.gelu import gelu
from evolora.engine.cpu.gpt2.forward import gpt2_pass
from evolora.engine.cpu.levers import Levers
from evolora.engine.cpu.matmul.choice import Products
from evolora.engine.cpu.matmul.frozen_linear import FrozenProduct, Kept

# Panels are a second copy of a large model's weights: for models that leave at least three times as much free.
_SHARE_OF_MEMORY = 4


def install(model: PreTrainedModel, products: Products, levers: Levers) -> None:
    """Let the layers of `model`, an engine's own tree, compute by kernels from now on.

    Frozen float32 Linear and Conv1D layers on a CPU multiply by `products`, forwards and backwards; attention over few
    positions is made of plain products; GELU's tanh form is one pass over memory instead of eight. Of the weights there
    are further copies, of a large model one while few rows are decoded (`matmul.frozen_linear`). All other layers,
    and these where they do not fit, stay as they are.
    """
    kept = _kept(model) if levers.arranged_weights else "never"
    for module in model.modules():
        # Hides the class's own. What has the module as a part, no closure: a copy of the model calls its own layers.
        if type(module) in (nn.Linear, Conv1D) and products == "compiled":
            module.forward = FrozenProduct(module, kept=kept)
        elif type(module) is NewGELUActivation and levers.gelu:
            module.forward = functools.partial(_gelu, module)
        elif type(module) is GPT2Model and levers.forward:
            module.forward = functools.partial(gpt2_pass, module, levers)
    if model.config._attn_implementation == "sdpa" and levers.attention:
        model.config._attn_implementation = ATTENTION


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

"""Logits in float32 from an output embedding in half precision: of bfloat16's few digits the highest two are often the
same, and the likeliest token would be a matter of chance."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

HALVES = (torch.bfloat16, torch.float16)
# Products of half precision that are not rounded to it: from torch 2.8 on, and not on every device. Without them the
# weights are widened first, each time.
_WIDE_PRODUCTS = "dtype" in torch.ops.aten.mm.overloads()


def widen_logits(model: PreTrainedModel) -> None:
    """Let the output embedding of `model`, an engine's own tree in half precision, give logits in float32: its products
    are summed there and not rounded. One that is no plain layer stays as it is."""
    head: Any = model.get_output_embeddings()
    plain = type(head) is nn.Linear
    if plain and model.dtype in HALVES:
        head.forward = _Wide(head)


class _Wide:
    """The forward of a layer, which hides the class's own. It has the layer as a part, so that a copy has its own."""

    def __init__(self, module: nn.Linear) -> None:
        self.module = module

    def __call__(self, hidden: Tensor) -> Tensor:
        logits: Tensor = _Product.apply(hidden, self.module.weight)  # type: ignore[no-untyped-call]
        return logits if self.module.bias is None else logits + self.module.bias


class _Product(torch.autograd.Function):
    """hidden @ weight.T in float32; the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        rows = hidden.reshape(-1, hidden.shape[-1])
        if hidden.device.type in ("cpu", "mps") or not _WIDE_PRODUCTS:
            return (rows.float() @ weight.float().T).view(*hidden.shape[:-1], -1)
        return torch.mm(rows, weight.T, out_dtype=torch.float32).view(*hidden.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return gradient.to(weight.dtype) @ weight, None

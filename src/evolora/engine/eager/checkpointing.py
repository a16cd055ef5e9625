"""Gradient checkpointing (Chen et al., 2016, arXiv 1604.06174): what the gradient needs of a decoder layer is computed
again on the way back, by the same operations, so that it is the same to the bit.

`on` keeps a layer's input alone. `selective` (after Korthikanti et al., 2022, arXiv 2205.05198) keeps the results of
the products with frozen weights and of attention too, and computes again what costs little beside them; every fourth
layer it computes again as a whole.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import Cache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from evolora.engine.calibration import WHOLE_OF
from evolora.engine.eager.lora_layers import LoraLayers
from evolora.engine.options import RecomputedName

# What engines bring is theirs by this namespace (torch.library).
NAMESPACE = "evolora"

_aten = torch.ops.aten
_KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}


def decoder_layers(model: PreTrainedModel) -> list[Any]:
    """Those that transformers itself can checkpoint."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def checkpointed(layers: LoraLayers, how: RecomputedName) -> Iterator[None]:
    """Within `layers.adapted`: let a differentiable pass keep what `how` says. It may go backwards outside."""
    blocks = [] if how == "off" else decoder_layers(layers.model)
    own = [vars(block).get("forward") for block in blocks]
    for index, block in enumerate(blocks):
        selective = how == "selective" and index % WHOLE_OF > 0
        block.forward = functools.partial(_run, layers, block.forward, selective)
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def _run(layers: LoraLayers, forward: Callable[..., Any], selective: bool, *given: Any, **named: Any) -> Any:
    if any(isinstance(value, Cache) for value in (*given, *named.values())):
        return forward(*given, **named)  # which would find there what it wrote itself
    contexts = functools.partial(_contexts, layers, selective)
    return checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=False, context_fn=contexts, **named)


def _contexts(layers: LoraLayers, selective: bool) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Around the layer's pass, and around that in which it is computed again: with the same genomes and dropout."""
    then = dict(vars(layers))
    if not selective:
        return nullcontext(), _as_then(layers, then)
    first, second = create_selective_checkpoint_contexts(_policy)
    return first, _as_then(layers, then, second)


@contextmanager
def _as_then(layers: LoraLayers, then: dict[str, Any], *others: AbstractContextManager[Any]) -> Iterator[None]:
    now = dict(vars(layers))
    vars(layers).update(then)
    try:
        with ExitStack() as stack:
            for each in others:
                stack.enter_context(each)
            yield
    finally:
        vars(layers).update(now)


def _policy(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    kept = operation in _KEPT or operation.namespace == NAMESPACE
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

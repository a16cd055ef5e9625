"""A frozen base in four or eight bits, by bitsandbytes: what QLoRA has under its adapters, which stay in float32. It is
quantised as it is loaded, or was when it was saved."""

import logging
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from evolora.errors import InputError

BITSANDBYTES = "bitsandbytes"
_LAYERS = ("Linear4bit", "Linear8bitLt")
# LLM.int8() rounds a layer's inputs to so many steps, too.
_STEPS_OF_INT8 = 127


def quantised_by(config: Any) -> str | None:
    """What the files of a model with this configuration say that its weights are quantised by, if they are."""
    own = getattr(config, "quantization_config", None)
    if own is None:
        return None
    if not isinstance(own, dict):
        own = own.to_dict()
    few_bits = own.get("load_in_4bit") or own.get("load_in_8bit")  # all that older files say
    method = own.get("quant_method") or (BITSANDBYTES if few_bits else "a method that they do not name")
    return str(getattr(method, "value", method))


def need_bitsandbytes(subject: str) -> None:
    """Raise InputError where what quantises is not installed; the `subject` asks for it."""
    if missing := [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]:
        raise InputError(
            f"{subject}: found no {' and no '.join(missing)}, expected what pip install 'evolora[quantization]' brings"
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of every product's rounding


def settings(kind: str, dtype: str) -> dict[str, Any]:
    """Of a BitsAndBytesConfig: four bits as QLoRA has them, or LLM.int8()."""
    if kind == "int8":
        return {"load_in_8bit": True}
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    return {"load_in_4bit": True, **nf4}


def loading_options(kind: str | None, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """What `from_pretrained` is told, so that it quantises the linear layers but the head as they are read; without a
    `kind` of what is quantised already."""
    if kind is None:
        return {"device_map": {"": device}}
    config = BitsAndBytesConfig(**settings(kind, str(dtype).removeprefix("torch.")))
    return {"quantization_config": config, "device_map": {"": device}}


def is_quantised(model: nn.Module) -> bool:
    """Whether some of a model's layers are."""
    return any(True for _ in quantised_layers(model))


def quantised_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Those that bitsandbytes computes."""
    return (module for module in model.modules() if type(module).__name__ in _LAYERS)


def keep_weights_as_they_are(model: nn.Module) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes would lay a layer's weights out anew at its first pass without gradients,
    in place, and have no gradients from then on: let it not."""
    for layer in quantised_layers(model):
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def shared_state(model: nn.Module) -> dict[int, Any]:
    """What a copy of the model's modules shares beside parameters and buffers, for `copy.deepcopy`."""
    shared: dict[int, Any] = {}
    for layer in quantised_layers(model):
        state = getattr(layer, "state", None)  # of eight bits: also what a pass leaves there, which is a copy's own
        for part in (getattr(layer, "quant_state", None), getattr(state, "CB", None), getattr(state, "SCB", None)):
            if part is not None:
                shared[id(part)] = part
    return shared


def entries(weight: Tensor) -> int:
    """How many weights a parameter holds: in four bits two a byte."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else math.prod(state.shape)


def rounding(model: PreTrainedModel) -> float:
    """By what share a layer rounds: its numbers' precision, in four bits that in which it computes, in eight that of
    its inputs, too."""
    layers = list(quantised_layers(model))
    computed = {model.dtype, *(getattr(layer, "compute_dtype", None) or model.dtype for layer in layers)}
    own = max(float(torch.finfo(dtype).eps) for dtype in computed)
    eight = any(type(layer).__name__ == "Linear8bitLt" for layer in layers)
    return max(own, 1 / _STEPS_OF_INT8) if eight else own


def refuse_infinite_files(files: list[Path]) -> None:
    """Raise ValueError, naming one, for tensors that are not finite: quantised, they would be made up."""
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point() and tensor.numel() and not bool(tensor.isfinite().all()):
                    raise ValueError(f"its tensor {name} has values that are not finite")

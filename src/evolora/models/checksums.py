"""Which weights a model has."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evolora.models.quantization import is_quantised


def weights_sha256(model: PreTrainedModel) -> str:
    """The checksum of a model's parameters and buffers, with their names, shapes and types."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if is_quantised(model):  # a layer's scales are neither
        known = {name for name, _ in tensors}
        tensors += [(name, value) for name, value in model.state_dict().items() if name not in known]
    with ThreadPoolExecutor() as pool:  # of billions of weights this takes a while
        sums = list(pool.map(lambda named: _tensor_sha256(named[1]), tensors))
    described = [
        [name, list(tensor.shape), str(tensor.dtype), sha256]
        for (name, tensor), sha256 in zip(tensors, sums, strict=True)
    ]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _tensor_sha256(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return hashlib.sha256(data).hexdigest()

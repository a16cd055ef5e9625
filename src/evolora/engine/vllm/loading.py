"""vLLM's engine in this process, with the weights of a model that is in memory."""

import contextlib
import gc
import logging
import os
import random
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from evolora.engine.vllm import BLOCK
from evolora.errors import InputError

# Read when vLLM is imported. Its engine in a process of its own could be given genomes only by way of files.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import vllm
from vllm import LLM, SamplingParams
from vllm.config import VllmConfig
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.request import LoRARequest
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.models import ModelRegistry, supports_lora
from vllm.outputs import CompletionOutput

VERSION = str(vllm.__version__)

# What its LoRA layers have room for.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Rows that are decoded at once. More of them wait for their turn.
_ROWS = 256
# On a CPU the factors of each token's genome are gathered, so that few tokens at a time take little memory.
_TOKENS_ON_CPU = 512

__all__ = ["LLM", "VERSION", "BaseLinearLayerWithLoRA", "CompletionOutput", "LoRARequest", "SamplingParams"]


def refuses_architecture(model: PreTrainedModel) -> str | None:
    """Why vLLM cannot run adapters on a model of this kind, in words; None where it can."""
    name = type(model).__name__
    if name not in ModelRegistry.get_supported_archs():
        return f"vLLM {VERSION} has no {name}"
    if not supports_lora(ModelRegistry.models[name].load_model_cls()):
        return f"vLLM {VERSION} runs no LoRA adapters on {name}"
    size = _head_size(model)
    if model.device.type == "cpu":
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        sizes = CPUAttentionBackend.get_supported_head_sizes()
        if size not in sizes:
            return f"vLLM {VERSION} has attention on a CPU for heads of {', '.join(map(str, sizes))}, none for {size}"
    return None


def load(
    model: PreTrainedModel, *, slots: int, rank: int, targets: list[str], length: int, memory: int, sleeps: bool = False
) -> LLM:
    """vLLM for texts of up to `length` tokens, with as many `slots` for genomes of that `rank` on layers of the names
    `targets`, and keys and values in at most so much `memory`, which can be put to sleep if it `sleeps`.

    Raises InputError where the model cannot be loaded.
    """
    config = model.config.get_text_config(decoder=True)
    key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    a_token = 2 * config.num_hidden_layers * key_heads * _head_size(model) * model.dtype.itemsize
    a_row = a_token * (-(-length // BLOCK)) * BLOCK
    on_cpu = model.device.type == "cpu"
    options: dict[str, Any] = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "max_model_len": length,
        "max_num_seqs": _ROWS,
        "kv_cache_memory_bytes": max(2 * a_row, min(_ROWS * a_row, memory)),
        "enable_lora": True,
        "max_loras": slots,
        "max_lora_rank": next(size for size in _RANKS if size >= rank),
        "lora_target_modules": targets,
        "enable_prefix_caching": True,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # its own defaults, none of the model's folder
        "logprobs_mode": "processed_logprobs",  # of the tempered distribution
        "disable_log_stats": True,
        "enforce_eager": on_cpu,  # with LoRA it compiles nothing on a CPU
        "seed": 0,
    }
    if on_cpu:
        options["max_num_batched_tokens"] = max(_TOKENS_ON_CPU, length)
        # A prompt that is read in two steps has drawn in the first; vLLM takes that back on CUDA and fails on a CPU.
        options["enable_chunked_prefill"] = False
    else:
        options["enable_sleep_mode"] = sleeps
        free, total = torch.cuda.mem_get_info(model.device)
        options["gpu_memory_utilization"] = free / total / 2  # the other half trains
    with tempfile.TemporaryDirectory(prefix="evolora-vllm-") as folder, _undisturbed():
        own = type(model.config).from_dict(model.config.to_dict())
        own.architectures = [type(model).__name__]
        own.save_pretrained(folder)
        try:
            return LLM(model=folder, load_format=_register(model), **options)
        except InputError:
            raise
        except Exception as error:  # whatever vLLM cannot do with a model
            what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise InputError(f"--engine vllm: cannot be had: {what}, expected --engine auto") from error


@contextlib.contextmanager
def undisturbed_draws() -> Iterator[None]:
    """vLLM seeds and draws from generators that are everybody's: they are put back."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """What vLLM does to the process while it is made: it draws, takes `torch.set_num_threads` away, and would have
    every program that is started from here load its libraries."""
    threads, preloaded = torch.set_num_threads, os.environ.get("LD_PRELOAD")
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    try:
        with undisturbed_draws():
            yield
    finally:
        torch.set_num_threads = threads
        if preloaded is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = preloaded
        gc.collect()


def _head_size(model: PreTrainedModel) -> int:
    config = model.config.get_text_config(decoder=True)
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _register(source: PreTrainedModel) -> str:
    """A way of loading, by its name for vLLM, that takes the weights that `source` has in memory: nothing is written or
    read, and they are the same."""

    class FromMemory(BaseModelLoader):  # type: ignore[misc]
        def download_model(self, model_config: object) -> None:
            del model_config

        def load_weights(self, model: Any, model_config: VllmConfig) -> None:
            del model_config
            loaded: set[str] = model.load_weights(iter(source.state_dict().items()))
            if missing := sorted({name for name, _ in model.named_parameters()} - loaded):
                raise InputError(
                    f"--engine vllm: cannot be had: vLLM {VERSION} found no {missing[0]} in {type(source).__name__}, "
                    "expected --engine auto"
                )

    name = "evolora"
    logging.getLogger("vllm.model_executor.model_loader").setLevel(logging.ERROR)  # it is registered anew
    register_model_loader(name)(FromMemory)
    return name

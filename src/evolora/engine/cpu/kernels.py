"""What a CPU engine's passes are made of."""

from typing import Any, Self

from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from evolora.engine.cpu.gpt2.activations import Gpt2Tape
from evolora.engine.cpu.gpt2.decode import Gpt2Step
from evolora.engine.cpu.kv_cache import KernelCache, KernelLayer
from evolora.engine.cpu.levers import Levers
from evolora.engine.cpu.log_probs import token_log_probs
from evolora.engine.cpu.lora_layer import KernelLoraLayer, PlainLoraLayer
from evolora.engine.cpu.sampling import likeliest, sample
from evolora.engine.eager.kernels import DecodingTrace, Kernels, Step
from evolora.engine.eager.kv_cache import RoomyCache, make_cache
from evolora.engine.eager.lora_layers import LoraLayers


class CpuKernels(Kernels):
    """Compiled functions, where `levers` leave them on."""

    masked_attention = (*Kernels.masked_attention, "evolora")

    def __init__(self, levers: Levers) -> None:
        self.levers = levers
        self.layer = KernelLoraLayer if levers.adapters else PlainLoraLayer
        self.packs = levers.packs
        if not levers.leave:
            self.least_finished_share = 2.0
        # Where the room of a trace that was used waits for the next.
        self._shelf: list[Any] = []

    def replica(self) -> Self:
        return type(self)(self.levers)

    def make_cache(self, model: PreTrainedModel, capacity: int, *, longest: int | None = None) -> Cache:
        return make_cache(model, capacity, longest=longest, kind=KernelCache, layer=KernelLayer)

    def likeliest(self, logits: Tensor) -> Tensor:
        return likeliest(logits)

    def sample(self, logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        return (sample if self.levers.sampling else super().sample)(logits, uniform, temperature)

    def token_log_probs(self, logits: Tensor, tokens: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
        return (token_log_probs if self.levers.log_probs else super().token_log_probs)(logits, tokens, **how)

    def step(self, model: PreTrainedModel, rows: int, cache: Cache | None, /) -> Step | None:
        return Gpt2Step.of(model, rows, cache, self.levers) if self.levers.step else None

    def trace(
        self, layers: LoraLayers, cache: RoomyCache, rows: int, prompt_tokens: int, steps: int, /
    ) -> DecodingTrace | None:
        if not (self.levers.trace and isinstance(cache, KernelCache)):
            return None
        cache.trace = tape = Gpt2Tape.of(layers, rows, prompt_tokens, steps=steps, shelf=self._shelf)
        return tape

"""An adapter that vLLM does not truly apply is found within a generation."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

pytest.importorskip("vllm", reason="vLLM wants an environment of its own, which make test-vllm makes")

from evolora.engine.canary import Canary
from evolora.engine.choose import kept_prefix
from evolora.engine.combined import CombinedEngine
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.text import Text
from evolora.engine.vllm.engine import VllmWriter
from evolora.errors import EngineError
from evolora.models.lora import lora_config, lora_layout

PLACES = 6
LENGTH = 200


@dataclass
class Watched:
    model: PreTrainedModel
    founder: Tensor
    text: Text
    writer: VllmWriter
    engine: CombinedEngine

    def canary(self, *, long: bool = False) -> Canary:
        prefix = kept_prefix("vllm", LENGTH if long else 100)
        return Canary(self.engine, self.model, self.founder, self.text, prefix=prefix)

    @property
    def alike(self) -> Tensor:
        """A first generation: all are as the base."""
        return self.founder.repeat(PLACES, 1)


@pytest.fixture(scope="module")
def watched(tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[Watched]:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=len(tiny_tokenizer), max_position_embeddings=256, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    layout, founder = lora_layout(model, lora_config(model, r=4, alpha=12), seed=0)
    writer = VllmWriter(model, layout, length=LENGTH, slots=PLACES)
    engine = CombinedEngine(writer, EagerEngine(model, layout))
    yield Watched(model, founder, Text.of(model, tiny_tokenizer), writer, engine)
    engine.close()


def test_vllm_as_it_should_be_passes_in_every_generation(watched: Watched) -> None:
    for long in (False, True):
        canary = watched.canary(long=long)
        for generation in (1, 2, 3):
            assert 0 < canary.check(watched.alike, generation=generation) < 0.5


class Fault:
    """Something that goes wrong in vLLM's slots after genomes were copied into them."""

    def __init__(self, writer: VllmWriter) -> None:
        self.slots: Any = writer._adapters
        self.put = self.slots.put

    def __call__(self, genomes: Tensor) -> Any:
        before = [(place.a.clone(), place.b.clone()) for place in self.slots._places]
        asked = self.put(genomes)
        for place, (a, b) in zip(self.slots._places, before, strict=True):
            self.spoil(place, a, b)
        return asked

    def spoil(self, place: Any, a: Tensor, b: Tensor) -> None: ...


class Stale(Fault):
    def spoil(self, place: Any, a: Tensor, b: Tensor) -> None:
        place.a[2], place.b[2] = a[2], b[2]


class StaleInOneLayer(Fault):
    def spoil(self, place: Any, a: Tensor, b: Tensor) -> None:
        if place is self.slots._places[-1]:
            place.a[2], place.b[2] = a[2], b[2]


class ScaledTwice(Fault):
    def spoil(self, place: Any, a: Tensor, b: Tensor) -> None:
        place.b.mul_(place.module.scaling)


class Swapped(Fault):
    def spoil(self, place: Any, a: Tensor, b: Tensor) -> None:
        for factor in (place.a, place.b):
            factor[[1, 2]] = factor[[2, 1]]


class ABitLarger(Fault):
    """The smallest that is found for sure: one genome's factors in one slot are a hundredth too large."""

    def spoil(self, place: Any, a: Tensor, b: Tensor) -> None:
        place.b[3].mul_(1.01)


@pytest.mark.parametrize("fault", [Stale, StaleInOneLayer, ScaledTwice, Swapped, ABitLarger])
def test_a_slot_with_another_genome_is_found(
    watched: Watched, fault: type[Fault], monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = watched.canary()
    canary.check(watched.alike, generation=1)
    monkeypatch.setattr(watched.writer._adapters, "put", fault(watched.writer))
    with pytest.raises(EngineError, match=r"does not say of the sentinel in place \d what the model says"):
        canary.check(watched.alike, generation=2)


def test_the_base_in_a_genomes_place_is_found(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    run = watched.writer._run
    monkeypatch.setattr(watched.writer, "_run", lambda prompts, params, whose: run(prompts, params, None))
    with pytest.raises(EngineError, match="it is what the base says"):
        watched.canary().check(watched.alike, generation=1)


def test_a_prefix_cache_that_is_kept_is_found(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where texts are long enough for one: a shorter one leaves nothing that could be found again."""
    canary = watched.canary(long=True)
    canary.check(watched.alike, generation=1)
    monkeypatch.setattr(watched.writer._llm, "reset_prefix_cache", lambda: True)
    with pytest.raises(EngineError, match="does not say of the sentinel in place"):
        canary.check(watched.alike, generation=2)

"""Gradient checkpointing: the same gradient to the bit, and less that is kept for it."""

from typing import Any

import numpy as np
import pytest
import torch
from architectures import random_model
from live_bytes import LiveBytes
from torch import Tensor
from transformers import DynamicCache, LlamaModel

from evolora.engine import calibration
from evolora.engine.base import Completions, Scoring
from evolora.engine.calibration import choose_checkpointing
from evolora.engine.choose import choose_engine, resolved_checkpointing
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.eager.engine import EagerEngine
from evolora.errors import InputError
from evolora.models.lora import lora_config, lora_layout

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9], [10, 11]]


def _gradient(
    engine: Any, genomes: Tensor, *, rows: int = 4, length: int = 6, dropout: float = 0.3
) -> tuple[Tensor, Tensor, int]:
    """Log-probabilities, the gradient, and the bytes kept in between."""
    generator = torch.Generator().manual_seed(0)
    prompts = [PROMPTS[row % 4] for row in range(rows)]
    ids = torch.randint(1, 90, (rows * len(genomes), length), generator=generator)
    mask = torch.arange(length) < torch.randint(1, length + 1, (len(ids), 1), generator=generator)
    weights = torch.randn(ids.shape, generator=generator) * mask
    seeds = np.arange(len(genomes), dtype=np.uint64)
    how = Scoring(gradient=True, entropy_gradient=True, dropout=dropout, dropout_seeds=seeds)
    with LiveBytes() as living:
        scored = engine.score(genomes, prompts, Completions(ids, mask), how)
        kept = living.now
    engine.score(genomes, prompts, Completions(ids, mask), Scoring())  # what is done in between changes nothing
    return scored.log_probs.detach(), scored.backward(weights, weights.cos() * mask), kept


@pytest.mark.parametrize("kind", [EagerEngine, CpuEngine])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2", "opt", "mixtral", "mamba", "phi"])
def test_the_gradient_is_the_same(architecture: str, kind: Any) -> None:
    """GPT-2's on a CPU is another way's, that of the model's layers, and the same up to rounding."""
    model = random_model(architecture)
    layout, founder = lora_layout(model, lora_config(model), seed=0)
    genomes = founder + 0.05 * torch.randn(3, layout.genome_length, generator=torch.Generator().manual_seed(1))
    engine = kind(model, layout)
    other = architecture == "gpt2" and kind is CpuEngine
    how = {"dropout": 0.0 if other else 0.3}
    *found, whole = _gradient(engine, genomes, **how)
    for engine.checkpointing in ("selective", "on"):
        *again, kept = _gradient(engine.replica(), genomes, **how)
        for own, expected in zip(again, found, strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-4 * other, atol=1e-5 * other)
        assert kept < whole or other
        whole = kept


def test_a_layer_that_is_given_a_cache_is_passed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passed again it would find there what it wrote itself."""
    model = random_model("llama")
    layout, founder = lora_layout(model, lora_config(model), seed=0)
    engine = EagerEngine(model, layout)
    expected = _gradient(engine, founder.repeat(2, 1))[1]
    whole = LlamaModel.forward

    def with_cache(self: LlamaModel, **given: Any) -> Any:
        return whole(self, **{**given, "use_cache": True, "past_key_values": DynamicCache(config=self.config)})

    monkeypatch.setattr(LlamaModel, "forward", with_cache)
    for engine.checkpointing in ("selective", "on"):
        torch.testing.assert_close(_gradient(engine, founder.repeat(2, 1))[1], expected)


def test_what_auto_comes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("llama")
    assert choose_checkpointing(model, 20, 100) == "off", "a small model"
    monkeypatch.setattr(calibration, "SMALL_MODEL", 0)
    assert resolved_checkpointing(model, "cpu", "auto", length=20, tokens=100) == "on"
    assert resolved_checkpointing(model, "cpu", "off", length=20, tokens=100) == "off"
    gpt2 = random_model("gpt2")
    assert resolved_checkpointing(gpt2, "cpu", "auto", length=20, tokens=100) == "off", "it has passes of its own"
    assert resolved_checkpointing(gpt2, "eager", "auto", length=20, tokens=100) == "on"
    monkeypatch.setattr(type(model), "device", torch.device("meta"))
    kept = {"off": 100, "selective": 50, "on": 1}
    monkeypatch.setattr(calibration, "bytes_a_token_kept", lambda _, __, way: kept[way])
    for room, chosen in ((20_000, "off"), (10_000, "selective"), (9_999, "on")):
        monkeypatch.setattr(calibration, "free_memory", lambda _, room=room: room)
        assert choose_checkpointing(model, 20, 100) == chosen


def test_what_transformers_cannot_checkpoint_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evolora.engine.choose.decoder_layers", lambda _: [])
    model = random_model("llama")
    assert resolved_checkpointing(model, "eager", "auto", length=20, tokens=100) == "off"
    with pytest.raises(
        InputError, match="--gradient-checkpointing on: transformers can checkpoint no layers of a llama"
    ):
        resolved_checkpointing(model, "eager", "on", length=20, tokens=100)


def test_an_engine_that_is_chosen_computes_again() -> None:
    model = random_model("llama")
    layout, founder = lora_layout(model, lora_config(model), seed=0)
    genomes = founder[None].repeat(8, 1)
    whole = _gradient(choose_engine(model, layout, threads=2).engine, genomes)
    again = _gradient(choose_engine(model, layout, threads=2, checkpointing="on").engine, genomes)
    assert torch.equal(again[0], whole[0]) and torch.equal(again[1], whole[1])

"""Log-probabilities at the output embedding, in chunks: those of the whole, and no logits that outlive their chunk."""

from typing import Any

import pytest
import torch
from architectures import random_model
from torch import Tensor
from transformers import LlamaForCausalLM

from evolora.engine.base import Completions, Scoring
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.eager import head as chunks
from evolora.engine.eager.engine import EagerEngine
from evolora.models.lora import lora_config, lora_layout

# Plain, divided, multiplied, capped, multiplied by another name, with a bias.
ARCHITECTURES = ["llama", "granite", "cohere", "gemma2", "gptj", "gpt2"]


def _scored(engine: Any, genomes: Tensor, *, entropy_gradient: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    ids = torch.randint(1, 1000, (4, 30), generator=generator)
    mask = torch.arange(30) < torch.tensor([[30], [11], [25], [1]])
    how = Scoring(temperature=0.7, gradient=True, entropy_gradient=entropy_gradient, features=True)
    found = engine.score(genomes, prompts, Completions(ids, mask), how)
    weights = torch.randn(ids.shape, generator=generator)
    gradient = found.backward(weights * mask, weights.cos() * mask if entropy_gradient else None)
    return found.log_probs.detach(), found.entropy.detach(), found.features, gradient


@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("kind", [EagerEngine, CpuEngine])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_chunks_are_the_whole(
    architecture: str, kind: Any, entropy_gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(architecture)
    layout, founder = lora_layout(model, lora_config(model), seed=0)
    noise = 0.05 * torch.randn(2, layout.genome_length, generator=torch.Generator().manual_seed(1))
    engine = kind(model, layout)
    whole = _scored(engine, founder + noise, entropy_gradient=entropy_gradient)
    monkeypatch.setattr(chunks, "_CHUNK", 20 * 1024)
    assert engine._head is not None and engine._head.tokens == 20
    # Of granite alone one entry of 3,584 was 1.8e-5 off, by the compiled engine on a Zen 3.
    atol = 5e-5 if architecture == "granite" and kind is CpuEngine else 1e-5
    for found, expected in zip(_scored(engine, founder + noise, entropy_gradient=entropy_gradient), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)


def test_chunks_are_nearer_to_float64_than_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "_CHUNK", 20 * 1024)
    model = random_model("llama")
    layout, founder = lora_layout(model, lora_config(model), seed=0)
    genomes = founder[None].repeat(2, 1)
    found = _scored(EagerEngine(model, layout), genomes, entropy_gradient=True)
    exact = _scored(EagerEngine(model.double(), layout), genomes.double(), entropy_gradient=True)
    for own, right in zip(found, exact, strict=True):
        assert (own - right).norm() <= 1e-5 * right.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_factor_that_is_not_known_is_seen_in_any_precision(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model("llama").to(dtype)
    layout, _ = lora_layout(model, lora_config(model), seed=0)
    assert EagerEngine(model, layout)._head is not None
    whole = LlamaForCausalLM.forward

    def scaled(self: LlamaForCausalLM, **given: Any) -> Any:
        found = whole(self, **given)
        found.logits = found.logits * 1.03
        return found

    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)
    assert EagerEngine(model, layout)._head is None


def test_an_adapted_or_unknown_head_is_left_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("llama")
    layout, _ = lora_layout(model, lora_config(model, target_modules=["q_proj", "lm_head"]), seed=0)
    assert EagerEngine(model, layout)._head is None
    model = random_model("granite")
    layout, _ = lora_layout(model, lora_config(model), seed=0)
    assert EagerEngine(model, layout)._head is not None
    monkeypatch.setattr(chunks, "_finish", lambda _: lambda logits: logits * 1.01)
    assert EagerEngine(model, layout)._head is None


@pytest.mark.parametrize("vocabulary", [1_000, 262_000])
def test_what_is_kept_for_the_gradient_has_no_vocabulary(vocabulary: int) -> None:
    """Bytes that torch's graph saves, a token: of the hidden size, whatever the vocabulary."""
    hidden, tokens = 8, 4 * max(16, 2**24 // vocabulary)
    module = torch.nn.Linear(hidden, vocabulary, bias=False).requires_grad_(False)
    head = chunks.FrozenHead(module, lambda logits: logits, vocabulary)
    states = torch.randn(tokens, hidden, requires_grad=True)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    ids = torch.randint(0, vocabulary, (tokens,))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        log_probs, _ = head.token_log_probs(chunks.Kernels(), states, ids, temperature=1.0, entropy_gradient=False)
    assert max(saved) <= max(tokens, head.tokens * vocabulary) * hidden
    kept = sum(tensor.numel() for tensor in log_probs.grad_fn.saved_tensors)  # type: ignore[union-attr]
    assert kept == tokens * hidden

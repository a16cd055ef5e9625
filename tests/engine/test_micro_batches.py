"""Micro-batches: the gradient of the whole, with no more of it kept at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from architectures import random_model
from torch import Tensor

from evolora.engine import calibration, micro_batches
from evolora.engine.base import Completions, Decoding, Scored, Scoring
from evolora.engine.calibration import bytes_a_token_kept, choose_update_tokens, give_memory_back
from evolora.engine.choose import choose_engine
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.micro_batches import MicroBatchEngine
from evolora.models.lora import lora_config, lora_layout

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9], [10, 11]]


@pytest.fixture(scope="module")
def made() -> tuple[EagerEngine, Tensor]:
    model = random_model("gpt2").double()
    layout, founder = lora_layout(model, lora_config(model), seed=0)
    noise = 0.05 * torch.randn(3, layout.genome_length, generator=torch.Generator().manual_seed(1))
    return EagerEngine(model, layout), (founder + noise).double()


def _completions(rows: int) -> Completions:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 7, (rows, 1), generator=generator)
    return Completions(torch.randint(1, 1000, (rows, 6), generator=generator), torch.arange(6) < lengths)


def _found(engine: Any, genomes: Tensor, owners: Sequence[int] | None, how: Scoring) -> tuple[Any, ...]:
    completions = _completions(len(PROMPTS) * (1 if owners is not None else len(genomes)))
    found: Scored = engine.score(genomes, PROMPTS, completions, how, owners=owners)
    weights = torch.randn(completions.ids.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights = weights * completions.mask
    gradient = found.backward(weights, weights.cos() * completions.mask if how.entropy_gradient else None)
    return found.log_probs.detach(), found.entropy.detach(), found.features, gradient


@pytest.mark.parametrize("owners", [None, [0, 0, 2, 2]])
@pytest.mark.parametrize("most_tokens", [1, 25, 50, 80, 1000])
@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_the_whole_up_to_rounding(
    entropy_gradient: bool, most_tokens: int, owners: Sequence[int] | None, made: tuple[EagerEngine, Tensor]
) -> None:
    engine, genomes = made
    how = Scoring(gradient=True, entropy_gradient=entropy_gradient, features=True, temperature=0.8)
    whole = _found(engine, genomes, owners, how)
    parts = _found(MicroBatchEngine(engine, most_tokens), genomes, owners, how)
    for own, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-12)


def test_no_more_rows_go_with_a_gradient_than_may(
    made: tuple[EagerEngine, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, genomes = made
    seen: list[tuple[bool, int]] = []
    score = EagerEngine._score

    def watched(self: EagerEngine, genomes: Any, prompts: Any, completions: Completions, how: Any, times: int) -> Any:
        seen.append((how.gradient, len(completions.ids)))
        return score(self, genomes, prompts, completions, how, times)

    monkeypatch.setattr(EagerEngine, "_score", watched)
    _found(MicroBatchEngine(engine, 50), genomes, None, Scoring(gradient=True))
    # Eleven tokens at most in a text, so four rows at a time: of one prompt by all three genomes.
    assert seen == [(False, 3)] * 4 + [(True, 3)] * 4


def test_dropout_is_the_same_when_activations_are_made_again(made: tuple[EagerEngine, Tensor]) -> None:
    """The gradient is that of the log-probabilities that were told: by finite differences."""
    engine, genomes = made
    parts = MicroBatchEngine(engine, 50)
    how = Scoring(gradient=True, dropout=0.3, dropout_seeds=np.arange(5, 8, dtype=np.uint64))
    completions = _completions(12)
    weights = torch.randn(12, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * completions.mask

    def loss(genomes: Tensor) -> float:
        return float((parts.score(genomes, PROMPTS, completions, how).log_probs.detach() * weights).sum())

    gradient = parts.score(genomes, PROMPTS, completions, how).backward(weights)
    direction = torch.randn(genomes.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    step = 1e-6
    slope = (loss(genomes + step * direction) - loss(genomes - step * direction)) / (2 * step)
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_engine_that_is_chosen_keeps_to_it(threads: int) -> None:
    model = random_model("llama")
    layout, founder = lora_layout(model, lora_config(model), seed=0)
    genomes = founder + 0.05 * torch.randn(3, layout.genome_length, generator=torch.Generator().manual_seed(1))
    whole = _found(choose_engine(model, layout).engine, genomes, None, Scoring(gradient=True))
    chosen = choose_engine(model, layout, threads=threads, update_tokens=30).engine
    for own, expected in zip(_found(chosen, genomes, None, Scoring(gradient=True)), whole, strict=True):
        if own is not None:
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


def test_tokens_are_those_of_half_the_memory_and_of_one_text_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("llama")
    monkeypatch.setattr(calibration, "free_memory", lambda _: 2**30)
    assert choose_update_tokens(model, 20, 2) == 2**28 // bytes_a_token_kept(model, 20)
    assert choose_update_tokens(model, 10**7, 1) == 10**7


def test_memory_is_given_back_around_updates(made: tuple[EagerEngine, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, genomes = made
    said: list[str] = []
    monkeypatch.setattr(micro_batches, "give_memory_back", lambda: said.append("given back"))
    parts = MicroBatchEngine(engine, 1000, gives_back=True)
    for name, turn in (("writes", 2), ("learns", 2), ("writes", 1)):
        for _ in range(turn):
            if name == "writes":
                parts.generate(genomes, PROMPTS, Decoding(max_new_tokens=1, ends=[], pad=0))
            else:
                _found(parts, genomes, None, Scoring(gradient=True))
            said.append(name)
    assert said == ["writes", "writes", "given back", "learns", "given back", "learns", "given back", "writes"]
    give_memory_back()

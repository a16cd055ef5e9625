"""Decoding and scoring on a device: the CPU's tokens, while the device is hardly waited for."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pretended
import pytest
import torch
from torch import Tensor

from evolora.engine.base import Completions, Decoding, Scoring
from evolora.engine.choose import choose_engine
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.eager.sampling import sample
from evolora.models.base import BaseModel
from evolora.models.lora import lora_config, lora_layout

Placed = Callable[..., BaseModel]

PROMPTS = [[5, 17, 30, 22, 41], [60, 8], [5, 17, 30], [60, 8]]
GENOMES = 3
SEEDS = np.arange(len(PROMPTS) * GENOMES, dtype=np.uint64)
NOBODY_ENDS = Decoding(max_new_tokens=20, ends=[99999], pad=0)
SOME_END = Decoding(max_new_tokens=20, ends=list(range(9)), pad=0)


def engine_of(base: BaseModel) -> tuple[EagerEngine, Tensor]:
    layout, founder = lora_layout(base.model, lora_config(base.model), seed=0)
    noise = torch.randn(GENOMES, len(founder), generator=torch.Generator().manual_seed(1))
    return EagerEngine(base.model, layout), founder + 0.05 * noise


@pytest.fixture(params=["gpt2", "llama"])
def engines(request: pytest.FixtureRequest, placed: Placed) -> tuple[EagerEngine, EagerEngine, Tensor]:
    """The CPU's and the device's, and genomes."""
    (cpu, genomes), (device, _) = (engine_of(placed(request.param, on_device=where)) for where in (False, True))
    return cpu, device, genomes


def written(
    engine: EagerEngine, genomes: Tensor, how: Decoding, prompts: list[list[int]] = PROMPTS
) -> tuple[Completions, pretended.Counts]:
    with pretended.counted() as counts:
        return engine.generate(genomes, prompts, how), counts


@pytest.mark.parametrize("how", [NOBODY_ENDS, SOME_END, replace(SOME_END, seeds=SEEDS, features=True)])
def test_the_tokens_are_the_cpus(engines: tuple[EagerEngine, EagerEngine, Tensor], how: Decoding) -> None:
    cpu, device, genomes = engines
    even = [prompt[:2] for prompt in PROMPTS]
    assert written(device, genomes, how, even)[0].rows() == cpu.generate(genomes, even, how).rows()
    expected, (found, _) = cpu.generate(genomes, PROMPTS, how), written(device, genomes, how)
    assert found.rows() == expected.rows()
    for own, right in ((found.log_probs, expected.log_probs), (found.features, expected.features)):
        assert (own is None) == (right is None)
        assert own is None or right is None or torch.allclose(own.cpu(), right, atol=1e-4)
    for scoring in (Scoring(), Scoring(gradient=True, entropy_gradient=True)):
        mine, right_ones = (
            engine.score(genomes, PROMPTS, completions, scoring)
            for engine, completions in ((device, found), (cpu, expected))
        )
        assert torch.allclose(mine.log_probs.cpu(), right_ones.log_probs, atol=1e-4)
    ones = torch.ones_like(right_ones.log_probs)
    assert torch.allclose(mine.backward(ones.to(device.device)).cpu(), right_ones.backward(ones), rtol=1e-3, atol=1e-2)


def test_drafts_change_nothing(engines: tuple[EagerEngine, EagerEngine, Tensor]) -> None:
    cpu, device, genomes = engines
    expected = cpu.generate(genomes, PROMPTS, SOME_END)
    drafts = [row[: 3 + number] for number, row in enumerate(expected.rows())]
    found, _ = written(device, genomes, replace(SOME_END, drafts=[*drafts[1:], drafts[0]]))
    assert found.rows() == expected.rows()


@pytest.mark.parametrize("how", [NOBODY_ENDS, replace(SOME_END, seeds=SEEDS)])
def test_eight_steps_wait_once(engines: tuple[EagerEngine, EagerEngine, Tensor], how: Decoding) -> None:
    _, device, genomes = engines
    waits: dict[int, list[int]] = {}
    for steps in (8, 24):
        for prompts in (PROMPTS, [prompt[:2] for prompt in PROMPTS]):
            _, counts = written(device, genomes, replace(how, max_new_tokens=steps), prompts)
            waits.setdefault(steps, []).append(counts.waits.total())
    assert all(more - few <= (24 - 8) / 8 for few, more in zip(waits[8], waits[24], strict=True))


def test_only_sums_of_blocks_are_in_float64(device: torch.device) -> None:
    vocabulary, rows = 10_000, 4
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0))
    uniform = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    given = logits.to(device), uniform.to(device)
    with pretended.counted() as counts:
        tokens, log_probs = sample(*given, 1.0)
    expected = sample(logits, uniform, 1.0)
    assert tokens.tolist() == expected[0].tolist() and torch.allclose(log_probs.cpu(), expected[1])
    assert max(counts.float64.values()) <= rows * 101, "blocks of 101 tokens"
    assert not counts.waits and not counts.copies and counts.kernels.total() <= 22


def test_bfloat16_has_logits_in_float32_and_adapters_cast_once(placed: Placed) -> None:
    base = placed("llama", on_device=True, dtype=torch.bfloat16)
    engine, genomes = engine_of(base)
    tree = engine.layers.model
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = tree.get_output_embeddings().weight.cpu()
    logits = tree.get_output_embeddings()(hidden.to(engine.device)).cpu()
    assert logits.dtype == torch.float32 and torch.equal(logits, hidden.float() @ weight.float().T)
    with engine.layers.adapted(genomes.to(engine.device)):
        factors = [factor for pair in engine.layers.factors.values() for factor in pair]
        assert {factor.dtype for factor in factors} == {torch.bfloat16}
        assert len({factor.untyped_storage().data_ptr() for factor in factors}) == 1, "one cast of all"
    completions = engine.generate(genomes, PROMPTS, replace(NOBODY_ENDS, max_new_tokens=2))
    scored = engine.score(genomes, PROMPTS, completions, Scoring(gradient=True))
    gradient = scored.backward(torch.ones_like(scored.log_probs))
    assert gradient.dtype == torch.float32 and bool(gradient.isfinite().all()) and bool((gradient != 0).any())
    base_logits = base.model(input_ids=torch.tensor([PROMPTS[0]], device=engine.device)).logits
    assert base_logits.dtype == torch.bfloat16, "the caller's model stays as it is"


def test_the_precision_is_said(placed: Placed, monkeypatch: pytest.MonkeyPatch) -> None:
    base = placed("gpt2", on_device=True)
    layout, _ = lora_layout(base.model, lora_config(base.model), seed=0)
    assert choose_engine(base.model, layout).words == "eager engine in float32"
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert "TF32" in choose_engine(base.model, layout).words

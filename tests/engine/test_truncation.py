"""Truncated sampling against transformers' own warpers; what was kept is scored again, whatever the weights are now."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from evolora.engine.base import Completions, Engine, Scoring, Truncation
from evolora.engine.choose import choose_engine
from evolora.engine.eager.truncation import as_bits, kept_by, restricted
from evolora.engine.text import Text
from evolora.models.base import BaseModel, load_base
from evolora.models.genome import GenomeLayout
from evolora.models.lora import lora_config, lora_layout

PROMPTS = ["Translate 'chat' to English:", "The sum of 4 and 3 is", "The English word for 'nuit' is '"]
NUCLEUS = Truncation(top_p=0.8)


def warped(truncation: Truncation, logits: Tensor, temperature: float) -> Tensor:
    """What transformers' generate leaves, bool."""
    scores, none = logits / temperature, torch.zeros(len(logits), 1, dtype=torch.long)
    if truncation.top_k:
        scores = TopKLogitsWarper(truncation.top_k)(none, scores)
    if truncation.top_p < 1:
        scores = TopPLogitsWarper(truncation.top_p)(none, scores)
    if truncation.min_p:
        scores = MinPLogitsWarper(truncation.min_p)(none, scores)
    return scores > -torch.inf


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**31),
    st.sampled_from([7, 300, 2000]),
    st.sampled_from([0, 1, 5, 150, 10_000]),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.floats(0.3, 2),
    st.floats(0.1, 8),
)
def test_keeps_what_transformers_keeps(
    seed: int, vocabulary: int, top_k: int, top_p: float, min_p: float, temperature: float, spread: float
) -> None:
    logits = torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread
    truncation = Truncation(top_k=top_k, top_p=top_p, min_p=min_p)
    found, right = kept_by(truncation, logits, temperature), warped(truncation, logits, temperature)
    # They sum from the other end: where the share is met up to rounding, one token may be on either side.
    assert ((found != right).sum(1) <= 1).all()
    assert (found == right).all(1).float().mean() >= 0.8
    assert found.any(1).all()


def test_ties_are_kept_together() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 3.0, 0.0]])
    assert kept_by(Truncation(top_k=1), logits, 1.0).tolist() == [[False, True, False, True, False]]
    assert kept_by(Truncation(top_p=0.99), logits, 1.0).tolist() == [[True, True, True, True, True]]


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 70), st.integers(0, 2**31))
def test_what_is_not_kept_has_no_share_and_no_gradient(vocabulary: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, vocabulary, generator=generator, dtype=torch.float64).requires_grad_()
    kept = torch.rand(4, vocabulary, generator=generator) < 0.5
    kept[:, 0] = True
    log_probs = restricted(logits, as_bits(kept), 0.7).div(0.7).log_softmax(-1)
    assert (log_probs.exp()[~kept] == 0).all()
    right = (logits / 0.7).masked_fill(~kept, -torch.inf).log_softmax(-1)
    torch.testing.assert_close(log_probs[kept], right[kept])
    log_probs[:, 0].sum().backward()
    assert logits.grad is not None and (logits.grad[~kept] == 0).all()


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base("tiny-gpt2")


@pytest.fixture(scope="module", params=["cpu", "eager"])
def engine(request: pytest.FixtureRequest, base: BaseModel) -> Engine:
    layout, _ = lora_layout(base.model, lora_config(base.model), seed=0)
    return choose_engine(base.model, layout, threads=1, kind=request.param, products="torch").engine


def noise(layout: GenomeLayout, n: int, seed: int) -> Tensor:
    return 0.05 * torch.randn(n, layout.genome_length, generator=torch.Generator().manual_seed(seed))


def sampled(engine: Engine, base: BaseModel, genomes: Tensor, truncation: Truncation | None) -> Completions:
    text, rows = Text.of(base.model, base.tokenizer), len(genomes) * len(PROMPTS)
    how = text.decoding(8, seeds=np.arange(rows, dtype=np.uint64), truncation=truncation, temperature=1.3, trace=True)
    return engine.generate(genomes, text.encode(PROMPTS), how)


def test_only_kept_tokens_are_sampled_by_their_own_share(engine: Engine, base: BaseModel) -> None:
    genomes = noise(engine.layout, 4, 1)
    found = sampled(engine, base, genomes, NUCLEUS)
    assert found.kept is not None and found.log_probs is not None and found.trace is None
    prompts = Text.of(base.model, base.tokenizer).encode(PROMPTS)
    how = Scoring(temperature=1.3)
    own = engine.score(genomes, prompts, found, how)
    torch.testing.assert_close(own.log_probs, found.log_probs, atol=1e-4, rtol=0)
    whole = engine.score(genomes, prompts, replace(found, kept=None), how)
    # What is left has at least the share: so the log-probability rises by no more than its logarithm.
    rise = (own.log_probs - whole.log_probs)[found.mask]
    assert (rise > -1e-4).all() and (rise < -np.log(NUCLEUS.top_p) + 1e-3).all() and rise.max() > 0.01
    assert (own.entropy < whole.entropy + 1e-4)[found.mask].all()


def test_a_truncation_that_keeps_all_changes_nothing(engine: Engine, base: BaseModel) -> None:
    genomes = noise(engine.layout, 2, 2)
    one, other = (sampled(engine, base, genomes, how) for how in (None, Truncation(top_k=10**6)))
    assert torch.equal(one.ids, other.ids)
    assert one.log_probs is not None and other.log_probs is not None
    torch.testing.assert_close(one.log_probs, other.log_probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [None, 1])
def test_the_kept_set_stays_when_the_weights_change(
    engine: Engine, base: BaseModel, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a plain pass in float64, also with the head in chunks."""
    if chunk is not None:
        monkeypatch.setattr("evolora.engine.eager.head._CHUNK", chunk)
    genomes, now = noise(engine.layout, 2, 3), noise(engine.layout, 2, 4)
    found = sampled(engine, base, genomes, NUCLEUS)
    prompts = Text.of(base.model, base.tokenizer).encode(PROMPTS)
    layout = engine.layout
    exact = choose_engine(
        load_base("tiny-gpt2").model.double(), layout, threads=1, kind="eager", products="torch"
    ).engine
    how = Scoring(temperature=1.3, gradient=True, entropy_gradient=True)
    ours, right = engine.score(now, prompts, found, how), exact.score(now.double(), prompts, found, how)
    torch.testing.assert_close(ours.log_probs.double(), right.log_probs, atol=1e-4, rtol=0)
    weights = torch.randn(found.mask.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    gradient, exactly = ours.backward(weights.float(), weights.float()), right.backward(weights, weights)
    assert (gradient.double() - exactly).norm() < 1e-4 * exactly.norm()


def test_parts_and_companions_change_nothing(engine: Engine, base: BaseModel) -> None:
    genomes = noise(engine.layout, 3, 6)
    found = sampled(engine, base, genomes, NUCLEUS)
    text = Text.of(base.model, base.tokenizer)
    alone = text.decoding(8, seeds=np.arange(3, 6, dtype=np.uint64), truncation=NUCLEUS, temperature=1.3)
    one = engine.generate(genomes[1:2], text.encode(PROMPTS), alone)
    width = one.ids.shape[1]
    assert torch.equal(found.ids[3:6, :width], one.ids) and torch.equal(found.mask[3:6, :width], one.mask)
    assert found.kept is not None and one.kept is not None
    rows = torch.tensor([5, 3])
    picked = Completions.joined([found.select(rows[:1]), one.select(torch.tensor([0]))], 0)
    assert picked.kept is not None and torch.equal(picked.kept, found.kept[rows][:, : picked.ids.shape[1]])

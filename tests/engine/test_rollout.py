"""Completions: greedy as transformers', samples exact, log-probabilities, masks and features those of the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evolora.engine.base import Completions, Decoding, Prompts, Scoring
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.eager.generate import PromptBatch, generate
from evolora.engine.eager.score import completion_log_probs
from evolora.engine.text import Text
from evolora.models.base import BaseModel, load_base
from evolora.models.genome import GenomeLayout
from evolora.rng import keyed_seed

PROMPTS = ["the cat", "a dog ran to", "4 + 3 =", "one two three four", "red", "on the mat"]


@pytest.fixture
def base(architecture: str, model_folder: Callable[[str], Path]) -> BaseModel:
    return load_base(str(model_folder(architecture)))


@pytest.fixture
def gpt2(model_folder: Callable[[str], Path]) -> BaseModel:
    return load_base(str(model_folder("gpt2")))


@pytest.fixture(params=[EagerEngine, CpuEngine])
def kind(request: pytest.FixtureRequest) -> type[EagerEngine]:
    found: type[EagerEngine] = request.param
    return found


def without_adapters(kind: type[EagerEngine], base: BaseModel) -> EagerEngine:
    return kind(base.model, GenomeLayout(()))


def encode(base: BaseModel, prompts: list[str]) -> list[list[int]]:
    return Text.of(base.model, base.tokenizer).encode(prompts)


def prompt_batch(prompts: Prompts) -> PromptBatch:
    return PromptBatch.of(prompts, pad=0, times=1, device=torch.device("cpu"))


def seeds_for(rows: int, purpose: str = "sampling") -> np.ndarray:
    return np.array([keyed_seed(0, purpose, row) for row in range(rows)], dtype=np.uint64)


def decoding(end: int, length: int = 12, **options: Any) -> Decoding:
    return Decoding(max_new_tokens=length, ends=[end], pad=0, **options)


def complete(engine: EagerEngine, prompts: Prompts, end: int, length: int = 12, **options: Any) -> Completions:
    return engine.generate(None, prompts, decoding(end, length, **options))


def score(
    engine: EagerEngine, prompts: Prompts, completions: Completions, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    found = engine.score(None, prompts, completions, Scoring(temperature=temperature))
    return found.log_probs, found.entropy


def an_end_that_occurs(rows: Tensor) -> int:
    """A token that ends some rows early, but not all."""
    counts = {int(t): int((rows[:, 1:-2] == t).any(1).sum()) for t in rows[:, 1:-2].unique() if t}
    return max((t for t, count in counts.items() if count < len(rows)), key=lambda t: counts[t])


def expected_mask(ids: Tensor, end: int) -> Tensor:
    rows = []
    for row in ids.tolist():
        stop = row.index(end) + 1 if end in row else len(row)
        rows.append([place < stop for place in range(len(row))])
    return torch.tensor(rows)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_tokens_equal_transformers(base: BaseModel, kind: type[EagerEngine], use_cache: bool) -> None:
    engine, prompts = without_adapters(kind, base), prompt_batch(encode(base, PROMPTS))
    assert not prompts.mask.all()
    end = an_end_that_occurs(complete(engine, prompts.texts, end=-1).ids)
    found = generate(engine.layers, engine.kernels, prompts, decoding(end), use_cache=use_cache)
    ids = base.model.generate(
        input_ids=prompts.ids,
        attention_mask=prompts.mask,
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=end,
        pad_token_id=0,
    )[:, prompts.ids.shape[1] :]
    assert torch.equal(found.ids, ids)
    assert torch.equal(found.mask, expected_mask(ids, end))
    assert (found.ids[~found.mask] == 0).all() and not found.mask.all()
    assert found.tokens == int(expected_mask(ids, end).sum())


def test_generation_stops_when_every_row_has_ended(gpt2: BaseModel, kind: type[EagerEngine]) -> None:
    engine, prompts = without_adapters(kind, gpt2), encode(gpt2, PROMPTS[:1])
    ids = complete(engine, prompts, end=-1).ids[0].tolist()
    place = next(place for place in range(2, 12) if ids[place] not in ids[:place])
    ended = complete(engine, prompts, end=ids[place])
    assert ended.ids[0].tolist() == ids[: place + 1] and ended.mask.all()
    either = Decoding(max_new_tokens=12, ends=[ids[place], ids[1]], pad=0)
    two = engine.generate(None, prompts, either)  # any of several tokens ends a row
    assert two.ids[0].tolist() == ids[: ids.index(ids[1]) + 1]


def test_padding_on_the_left_changes_nothing(base: BaseModel, kind: type[EagerEngine]) -> None:
    engine, together = without_adapters(kind, base), encode(base, PROMPTS)
    completions = complete(engine, together, end=-1, seeds=seeds_for(len(PROMPTS)))
    log_probs, entropy = score(engine, together, completions)
    for row, prompt in enumerate(PROMPTS):
        alone = encode(base, [prompt])
        assert prompt_batch(alone).mask.all()
        one = complete(engine, alone, end=-1, seeds=seeds_for(len(PROMPTS))[row : row + 1])
        assert torch.equal(one.ids[0], completions.ids[row])
        single, spread = score(engine, alone, one)
        torch.testing.assert_close(log_probs[row], single[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(entropy[row], spread[0], atol=1e-5, rtol=0)


def test_without_positions_padding_would_change_gpt2(gpt2: BaseModel, kind: type[EagerEngine]) -> None:
    engine, prompts = without_adapters(kind, gpt2), prompt_batch(encode(gpt2, PROMPTS))
    completions = complete(engine, prompts.texts, end=-1)
    found, _ = score(engine, prompts.texts, completions)
    ids = torch.cat([prompts.ids, completions.ids[:, :-1]], 1)
    mask = torch.cat([prompts.mask, torch.ones_like(completions.ids[:, :-1])], 1)
    naive = gpt2.model(input_ids=ids, attention_mask=mask).logits[:, -12:].log_softmax(-1)
    naive = naive.gather(-1, completions.ids[..., None])[..., 0]
    padded = ~prompts.mask.bool().all(1)
    assert (naive - found)[padded].abs().max() > 0.1
    torch.testing.assert_close(naive[~padded], found[~padded], atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_log_probabilities_entropy_and_features(base: BaseModel, kind: type[EagerEngine], temperature: float) -> None:
    engine, prompts = without_adapters(kind, base), encode(base, PROMPTS)
    seeds = seeds_for(len(PROMPTS))
    end = an_end_that_occurs(complete(engine, prompts, end=-1, seeds=seeds, temperature=temperature).ids)
    sampled = complete(engine, prompts, end, seeds=seeds, temperature=temperature, features=True)
    keep, length = sampled.mask, sampled.ids.shape[1]
    assert torch.equal(keep, expected_mask(sampled.ids, end)) and not keep.all()
    scored = engine.score(None, prompts, sampled, Scoring(temperature=temperature, features=True))
    found, entropy = scored.log_probs, scored.entropy
    assert sampled.log_probs is not None and sampled.features is not None and scored.features is not None
    torch.testing.assert_close(sampled.log_probs[keep], found[keep], atol=1e-5, rtol=0)
    for row in range(len(PROMPTS)):  # row by row, without padding and without a cache
        ids = torch.cat([torch.tensor(prompts[row]), sampled.ids[row][keep[row]]])[None]
        n = int(keep[row].sum())
        with torch.no_grad():
            output = base.model(input_ids=ids, output_hidden_states=True)
        chosen_from = torch.distributions.Categorical(logits=output.logits[0, -n - 1 : -1] / temperature)
        torch.testing.assert_close(found[row, :n], chosen_from.log_prob(ids[0, -n:]), atol=1e-5, rtol=0)
        torch.testing.assert_close(entropy[row, :n], chosen_from.entropy(), atol=1e-5, rtol=0)
        hidden = output.hidden_states[-1][0, -n - 1 : -1]
        for features in (sampled.features, scored.features):
            torch.testing.assert_close(features[row, :n], hidden, atol=1e-5, rtol=1e-5)
    assert sampled.features.shape == scored.features.shape == (len(PROMPTS), length, 32)


def test_greedy_keeps_no_log_probabilities_and_rows_can_be_selected(gpt2: BaseModel, kind: type[EagerEngine]) -> None:
    engine, prompts = without_adapters(kind, gpt2), encode(gpt2, PROMPTS)
    greedy = complete(engine, prompts, end=-1).select(torch.tensor([2]))
    assert greedy.log_probs is None and greedy.features is None
    sampled = complete(engine, prompts, end=-1, seeds=seeds_for(6), features=True)
    some = sampled.select(torch.tensor([4, 0]))
    for name in ("ids", "mask", "log_probs", "features"):
        assert torch.equal(getattr(some, name), getattr(sampled, name)[[4, 0]])


def chi_square(counts: Tensor, probabilities: Tensor) -> tuple[float, float]:
    """The statistic over cells that expect 5 or more (the rest pooled), and what is passed once in 10,000 times."""
    expected = probabilities.double() * counts.sum()
    large = expected >= 5
    observed = torch.cat([counts[large].double(), counts[~large].double().sum()[None]])
    wanted = torch.cat([expected[large], expected[~large].sum()[None]]).clamp(min=1e-9)
    freedom = len(wanted) - 1
    # Wilson and Hilferty's approximation of the quantile.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.719 * (2 / (9 * freedom)) ** 0.5) ** 3
    return float(((observed - wanted) ** 2 / wanted).sum()), limit


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_samples_follow_the_tempered_distribution(gpt2: BaseModel, kind: type[EagerEngine], temperature: float) -> None:
    engine, (one,) = without_adapters(kind, gpt2), encode(gpt2, PROMPTS[1:2])
    rows = 12_000
    ids = complete(engine, [one] * rows, -1, 2, seeds=seeds_for(rows), temperature=temperature).ids
    with torch.no_grad():
        logits = gpt2.model(input_ids=torch.tensor([one])).logits[0, -1]
    counts = torch.bincount(ids[:, 0], minlength=len(logits))
    statistic, limit = chi_square(counts, (logits / temperature).softmax(-1))
    assert statistic < limit
    statistic, limit = chi_square(counts, (logits / (temperature * 1.5)).softmax(-1))
    assert statistic > limit  # the test can tell another temperature
    common = int(ids[:, 0].mode().values)  # the second token, given the first
    then = ids[ids[:, 0] == common, 1]
    with torch.no_grad():
        logits = gpt2.model(input_ids=torch.tensor([[*one, common]])).logits[0, -1]
    statistic, limit = chi_square(torch.bincount(then, minlength=len(logits)), (logits / temperature).softmax(-1))
    assert statistic < limit


def test_text_is_what_stands_before_the_end(gpt2: BaseModel) -> None:
    written = gpt2.tokenizer(["the cat", "red"])["input_ids"]
    length = max(map(len, written)) + 2
    ids = torch.tensor([[*row, 0, *[5] * (length - len(row) - 1)] for row in written])
    mask = torch.tensor([[place <= len(row) for place in range(length)] for row in written])
    assert Text.of(gpt2.model, gpt2.tokenizer).decode(Completions(ids, mask)) == ["the cat", "red"]


def test_end_tokens_are_the_generation_configs_else_the_tokenizers(gpt2: BaseModel) -> None:
    for given, expected in (([7, 9], [7, 9]), (5, [5]), (None, [gpt2.tokenizer.eos_token_id])):
        gpt2.model.generation_config.eos_token_id = given
        assert list(Text.of(gpt2.model, gpt2.tokenizer).ends) == expected


def test_log_probabilities_are_differentiable(gpt2: BaseModel, kind: type[EagerEngine]) -> None:
    engine, prompts = without_adapters(kind, gpt2), prompt_batch(encode(gpt2, PROMPTS))
    engine.layers.model.requires_grad_(True)
    completions = complete(engine, prompts.texts, end=-1, seeds=np.arange(6, dtype=np.uint64))
    how = Scoring(entropy_gradient=True)
    log_probs, entropy, _ = completion_log_probs(engine.layers, engine.kernels, prompts, completions, how)
    (log_probs.mean() + entropy.mean()).backward()
    assert engine.layers.model.transformer.wte.weight.grad.abs().max() > 0

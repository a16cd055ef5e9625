"""What every engine promises: the caller's model stays as it is, engines do not meet, all find the same, and rows
belong to their owners."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from evolora.engine import split as split_engine
from evolora.engine.base import Completions, Decoding, Engine, Scoring, differentiable_scores
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.split import SplitEngine
from evolora.engine.text import Text
from evolora.models.base import BaseModel, load_base
from evolora.models.genome import GenomeLayout
from evolora.models.lora import lora_config, lora_layout
from evolora.population.evaluation import LocalEvaluator
from evolora.refiners import PPOConfig, PPORefiner
from evolora.rewards import RewardScorer
from evolora.rng import keyed_generator
from evolora.tasks.task import Example

Folder = Callable[[str], Path]
Make = Callable[[PreTrainedModel, GenomeLayout], Engine]

NEW_TOKENS = 9
ENDS = list(range(20))  # some of these end most completions early, at different steps
PROMPTS = [[5, 17, 30, 22, 41], [60, 8], [5, 17, 30], [60, 8], [77, 3, 12, 9, 55, 31]]


def eager(model: PreTrainedModel, layout: GenomeLayout) -> EagerEngine:
    return EagerEngine(model, layout)


def cpu(model: PreTrainedModel, layout: GenomeLayout) -> CpuEngine:
    return CpuEngine(model, layout, products="compiled")


def cpu_by_torch(model: PreTrainedModel, layout: GenomeLayout) -> CpuEngine:
    return CpuEngine(model, layout, products="torch")


def in_parts(model: PreTrainedModel, layout: GenomeLayout) -> SplitEngine:
    engine = cpu(model, layout)
    return SplitEngine(engine, engine.replica, threads=2)


every_engine = pytest.mark.parametrize("make", [eager, cpu, cpu_by_torch, in_parts])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of few rows, so that a small batch has several."""
    monkeypatch.setattr(split_engine, "LEAST_ROWS_DECODED", 2)
    monkeypatch.setattr(split_engine, "LEAST_ROWS_SCORED", 2)


@pytest.fixture(params=["uneven gpt2", "llama"])
def base(request: pytest.FixtureRequest, model_folder: Folder) -> BaseModel:
    """A GPT-2, and a Llama whose query heads share key heads."""
    return load_base(str(model_folder(request.param)))


@pytest.fixture
def layout(base: BaseModel) -> GenomeLayout:
    return lora_layout(base.model, lora_config(base.model), seed=0)[0]


def genomes_for(layout: GenomeLayout, n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, layout.genome_length, generator=keyed_generator(seed, "genomes")) * 0.15


def decoding(rows: int | None = None, **options: Any) -> Decoding:
    """Greedy, or sampled with a seed for each of so many rows."""
    seeds = None if rows is None else np.arange(100, 100 + rows, dtype=np.uint64)
    return Decoding(**{"max_new_tokens": NEW_TOKENS, "ends": ENDS, "pad": 0, "seeds": seeds, **options})


def score_weights(like: Tensor) -> Tensor:
    return torch.linspace(-1, 2, like.numel(), dtype=like.dtype).view_as(like)


def scores_and_gradient(
    engine: Engine,
    genomes: Tensor,
    prompts: Sequence[Sequence[int]],
    completions: Completions,
    *,
    owners: Sequence[int] | None = None,
    **how: Any,
) -> list[Tensor]:
    """Log-probabilities, entropies, features if they are asked for, and the gradient of the genomes from the first
    two."""
    asked = Scoring(**{"temperature": 0.8, "gradient": True, "entropy_gradient": True, **how})
    scored = engine.score(genomes, prompts, completions, asked, owners=owners)
    found = [scored.log_probs.detach(), scored.entropy.detach()]
    if how.get("features"):
        assert scored.features is not None
        found.append(scored.features)
    weights = score_weights(scored.log_probs)
    return [*found, scored.backward(weights, -0.3 * weights.flip(0))]


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        scale = float(other.detach().abs().max())
        assert scale > 1e-3
        torch.testing.assert_close(one, other, atol=1e-4 * max(1.0, scale), rtol=1e-4)


def assert_gradients_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape and expected.norm() > 0
    assert (found - expected).norm() <= 1e-4 * expected.norm()


# The caller's model.


def everything_of(model: PreTrainedModel) -> dict[str, Any]:
    """What anybody could change of a model, as values that compare equal while nobody does."""
    found: dict[str, Any] = {
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
        "generation": model.generation_config.to_dict() if model.generation_config is not None else None,
        "sdpa": (ALL_ATTENTION_FUNCTIONS["sdpa"], ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]),
        "eager": ALL_ATTENTION_FUNCTIONS.get("eager"),
    }
    for name, module in model.named_modules():
        own = vars(module)
        found[f"{name}: names"] = sorted(own)
        found[f"{name}: values"] = {key: id(value) for key, value in own.items()}
        found[f"{name}: within"] = {
            key: [(inner, id(value)) for inner, value in own[key].items()] for key in own if isinstance(own[key], dict)
        }
        found[f"{name}: class"] = (type(module), vars(type(module)).get("forward"), type(module).__call__)
        assert module.forward.__func__ is type(module).forward
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        state = tensor.requires_grad, tensor.grad is None, tensor._version, tensor.data_ptr()
        found[f"{name}: tensor"] = state, tensor.detach().clone().flatten().tolist()
    return found


@every_engine
def test_the_callers_model_stays_as_it_is(base: BaseModel, layout: GenomeLayout, make: Make) -> None:
    model = base.model
    seen: list[dict[str, Any]] = []
    before = everything_of(model)
    engine = make(model, layout)
    assert everything_of(model) == before
    genomes = genomes_for(layout, 3)
    prompts = PROMPTS
    engine.generate(genomes, prompts, decoding())  # which makes the replicas
    engines: list[EagerEngine] = engine.engines if isinstance(engine, SplitEngine) else [engine]  # type: ignore[list-item]

    def look(*_: Any) -> None:
        seen.append(everything_of(model))

    for each in engines:
        for module in (each.layers.model, each.layers.model.get_output_embeddings()):
            module.register_forward_pre_hook(look)
    completions = engine.generate(genomes, prompts, decoding(15, features=True, trace=True))
    generated = len(seen)
    assert generated, "somebody looked while it was written"
    scores_and_gradient(engine, genomes, prompts, completions)
    dropout = {"dropout": 0.3, "dropout_seeds": np.arange(3, dtype=np.uint64)}
    scores_and_gradient(engine, genomes, prompts, replace(completions, trace=None), **dropout)
    engine.generate(None, prompts, decoding())
    assert len(seen) > generated
    assert all(one == before for one in seen)
    assert everything_of(model) == before
    engine.close()
    assert everything_of(model) == before


@every_engine
def test_a_reward_may_use_the_model_meanwhile(base: BaseModel, layout: GenomeLayout, make: Make) -> None:
    model, before = base.model, everything_of(base.model)
    ids = torch.tensor([[5, 17, 30, 22]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    called: list[bool] = []

    def reward(completions: list[str], **_: object) -> list[float]:
        assert everything_of(model) == before
        with torch.no_grad():
            assert torch.equal(model(input_ids=ids).logits, expected)
        called.append(True)
        return [sum(map(ord, text)) % 7 / 7 for text in completions]

    engine, text = make(model, layout), Text.of(model, base.tokenizer)
    examples = [Example(prompt, {}) for prompt in ("the cat", "a dog ran", "one two", "4 +")]
    genomes = genomes_for(layout, 2)
    LocalEvaluator(engine, text, RewardScorer(reward), max_new_tokens=5).evaluate(genomes, examples)
    evaluated = len(called)
    config = PPOConfig(max_new_tokens=5, rl_steps=1, target_kl=None)
    refined = PPORefiner(engine, text, RewardScorer(reward), config, seed=0, dropout=0.1).refine(genomes, examples)
    assert evaluated and len(called) > evaluated
    assert not torch.equal(refined.genomes, genomes)
    assert everything_of(model) == before


# Two engines on one model.


def work(engine: Engine, genomes: Tensor, rows: int) -> list[Tensor]:
    completions = engine.generate(genomes, PROMPTS, decoding(rows, trace=True))
    assert completions.log_probs is not None
    return [completions.ids, completions.log_probs, *scores_and_gradient(engine, genomes, PROMPTS, completions)]


def assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("one", [eager, cpu, in_parts])
@pytest.mark.parametrize("other", [eager, cpu])
@pytest.mark.parametrize("same_layout", [True, False])
def test_two_engines_on_one_model_do_not_meet(
    base: BaseModel, layout: GenomeLayout, one: Make, other: Make, same_layout: bool
) -> None:
    second = layout
    if not same_layout:
        targets = ["c_fc"] if base.model.config.model_type == "gpt2" else ["up_proj", "q_proj"]
        second, _ = lora_layout(base.model, lora_config(base.model, r=3, target_modules=targets), seed=0)
    jobs = [(one, layout, genomes_for(layout, 3)), (other, second, genomes_for(second, 2, seed=1))]
    expected = [work(make(base.model, own), genomes, 5 * len(genomes)) for make, own, genomes in jobs]
    engines = [make(base.model, own) for make, own, _ in jobs]
    for _ in range(2):  # in turn
        for engine, (_, _, genomes), wanted in zip(engines, jobs, expected, strict=True):
            assert_equal(work(engine, genomes, 5 * len(genomes)), wanted)
    meeting = threading.Barrier(2, timeout=60)

    def repeatedly(index: int) -> list[list[Tensor]]:
        torch.set_num_threads(1)
        genomes = jobs[index][2]
        meeting.wait()
        return [work(engines[index], genomes, 5 * len(genomes)) for _ in range(4)]

    with ThreadPoolExecutor(2) as pool:  # and at once
        for found, wanted in zip(pool.map(repeatedly, range(2)), expected, strict=True):
            for each in found:
                assert_equal(each, wanted)
    engines[0].close()
    assert_equal(work(engines[1], jobs[1][2], 5 * len(jobs[1][2])), expected[1])


# All find the same.


@pytest.mark.parametrize("other", [cpu, cpu_by_torch, in_parts])
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("individuals", [0, 1, 3])
def test_engines_agree(
    base: BaseModel, layout: GenomeLayout, other: Make, sampled: bool, features: bool, individuals: int
) -> None:
    engines = eager(base.model, layout), other(base.model, layout)
    genomes = genomes_for(layout, individuals) if individuals else None
    rows = len(PROMPTS) * max(1, individuals)
    how = decoding(rows if sampled else None, temperature=1.2, features=features)
    expected, found = (engine.generate(genomes, PROMPTS, how) for engine in engines)
    assert individuals == 0 or len(expected.mask.sum(1).unique()) > 1, "rows end at different places"
    assert torch.equal(found.ids, expected.ids) and torch.equal(found.mask, expected.mask)
    for name, there in (("log_probs", sampled), ("features", features)):
        own, wanted = getattr(found, name), getattr(expected, name)
        assert (own is not None) == (wanted is not None) == there
        if there:
            torch.testing.assert_close(own[found.mask], wanted[found.mask], atol=1e-4, rtol=1e-4)
    if genomes is None:
        scored = [engine.score(None, PROMPTS, expected, Scoring(features=features)) for engine in engines]
        assert (scored[1].features is not None) == features
        for name in ("log_probs", "entropy") + (("features",) if features else ()):
            torch.testing.assert_close(getattr(scored[1], name), getattr(scored[0], name), atol=1e-4, rtol=1e-4)
        return
    *values, gradient = scores_and_gradient(engines[0], genomes, PROMPTS, expected, features=features)
    *own_values, own_gradient = scores_and_gradient(engines[1], genomes, PROMPTS, expected, features=features)
    assert_close(own_values, values)
    assert_gradients_close(own_gradient, gradient)


@every_engine
def test_scores_are_those_that_were_sampled_with(base: BaseModel, layout: GenomeLayout, make: Make) -> None:
    engine, genomes = make(base.model, layout), genomes_for(layout, 3)
    completions = engine.generate(genomes, PROMPTS, decoding(15, temperature=0.8, features=True))
    scored = engine.score(genomes, PROMPTS, completions, Scoring(temperature=0.8, features=True))
    assert completions.log_probs is not None and completions.features is not None and scored.features is not None
    mask = completions.mask
    torch.testing.assert_close(scored.log_probs[mask], completions.log_probs[mask], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scored.features[mask], completions.features[mask], atol=1e-4, rtol=1e-4)
    for values in (scored.log_probs, scored.entropy, scored.features):
        assert (values[~mask] == 0).all()


@every_engine
def test_what_was_scored_without_a_gradient_has_none(base: BaseModel, layout: GenomeLayout, make: Make) -> None:
    engine, genomes = make(base.model, layout), genomes_for(layout, 2)
    completions = engine.generate(genomes, PROMPTS, decoding())
    scored = engine.score(genomes, PROMPTS, completions, Scoring())
    assert not scored.log_probs.requires_grad
    with pytest.raises(RuntimeError, match="without a gradient"):
        scored.backward(torch.ones_like(scored.log_probs))


@every_engine
def test_scores_are_once_differentiable_tensors_of_torchs_graph(
    base: BaseModel, layout: GenomeLayout, make: Make
) -> None:
    engine, genomes = make(base.model, layout), genomes_for(layout, 2)
    completions = engine.generate(genomes, PROMPTS, decoding())
    *_, expected = scores_and_gradient(engine, genomes, PROMPTS, completions)
    leaf = genomes.clone().requires_grad_()
    how = Scoring(temperature=0.8, entropy_gradient=True)
    log_probs, entropy = differentiable_scores(engine, 1 * leaf, PROMPTS, completions, how)
    weights = score_weights(log_probs.detach())
    ((log_probs * weights).sum() - 0.3 * (entropy * weights.flip(0)).sum()).backward()
    assert leaf.grad is not None
    assert_gradients_close(leaf.grad, expected)


# Rows and their owners.

OWNERS = [0, 0, 0, 2, 3, 3, 3, 3]  # of four genomes one has no rows
OWNED = [*PROMPTS, *PROMPTS[:3]]


def of_each(values: Sequence[Any], owner: int) -> list[Any]:
    return [value for value, own in zip(values, OWNERS, strict=True) if own == owner]


def rows_of(owner: int) -> Tensor:
    return torch.tensor(OWNERS).eq(owner).nonzero()[:, 0]


@every_engine
@pytest.mark.parametrize("kind", ["greedy", "sampled", "drafted"])
def test_owners_write_what_each_writes_alone(base: BaseModel, layout: GenomeLayout, make: Make, kind: str) -> None:
    engine, genomes = make(base.model, layout), genomes_for(layout, 4)
    how = decoding(len(OWNERS) if kind == "sampled" else None, features=True)
    alone = {
        owner: engine.generate(genomes[owner : owner + 1], of_each(OWNED, owner), how.of_rows(rows_of(owner)))
        for owner in sorted(set(OWNERS))
    }
    if kind == "drafted":
        drafts = [row[: 2 * (index % 3)] for own in alone.values() for index, row in enumerate(own.rows())]
        how = replace(how, drafts=drafts)
    found = engine.generate(genomes, OWNED, how, owners=OWNERS)
    assert found.trace is None
    for owner, expected in alone.items():
        own = found.select(rows_of(owner))
        assert own.rows() == expected.rows()
        width = expected.ids.shape[1]
        for name in ("log_probs", "features"):
            one, other = getattr(own, name), getattr(expected, name)
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one[:, :width][expected.mask], other[expected.mask], atol=1e-4, rtol=1e-4)


@every_engine
def test_owners_are_scored_as_each_alone(base: BaseModel, layout: GenomeLayout, make: Make) -> None:
    engine, genomes = make(base.model, layout), genomes_for(layout, 4)
    completions = engine.generate(genomes, OWNED, decoding(), owners=OWNERS)
    how = Scoring(temperature=0.8, gradient=True, entropy_gradient=True, features=True)
    scored = engine.score(genomes, OWNED, completions, how, owners=OWNERS)
    weights = score_weights(scored.log_probs.detach())
    gradient = scored.backward(weights, -0.3 * weights.flip(0))
    assert gradient.shape == genomes.shape and (gradient[1] == 0).all()
    for owner in sorted(set(OWNERS)):
        rows = rows_of(owner)
        own = engine.score(genomes[owner : owner + 1], of_each(OWNED, owner), completions.select(rows), how)
        assert scored.features is not None and own.features is not None
        found = [scored.log_probs[rows], scored.entropy[rows], scored.features[rows]]
        assert_close(found, [own.log_probs, own.entropy, own.features])
        (expected,) = own.backward(weights[rows], -0.3 * weights.flip(0)[rows])
        assert_gradients_close(gradient[owner], expected)


@every_engine
def test_owners_with_equal_groups_are_the_shorthand(base: BaseModel, layout: GenomeLayout, make: Make) -> None:
    """With the trace that the shorthand's completions have: it is of no use, and in nobody's way."""
    engine, genomes = make(base.model, layout), genomes_for(layout, 3)
    completions = engine.generate(genomes, PROMPTS, decoding(15, trace=True))
    owners = [own for own in range(3) for _ in PROMPTS]
    again = engine.generate(genomes, PROMPTS * 3, decoding(15), owners=owners)
    assert torch.equal(again.ids, completions.ids)
    for how in ({}, {"features": True}):
        *values, gradient = scores_and_gradient(engine, genomes, PROMPTS, replace(completions, trace=None), **how)
        *found, own = scores_and_gradient(engine, genomes, PROMPTS * 3, completions, owners=owners, **how)
        assert_close(found, values)
        assert_gradients_close(own, gradient)


@pytest.mark.parametrize("make", [cpu, in_parts])
def test_other_owners_than_those_that_wrote_are_scored_afresh(
    base: BaseModel, layout: GenomeLayout, make: Make
) -> None:
    engine, genomes = make(base.model, layout), genomes_for(layout, 3)
    completions = engine.generate(genomes, PROMPTS, decoding(15, trace=True))
    owners = [0] * 2 + [1] * 9 + [2] * 4
    *values, gradient = scores_and_gradient(
        eager(base.model, layout), genomes, PROMPTS * 3, replace(completions, trace=None), owners=owners
    )
    *found, own = scores_and_gradient(engine, genomes, PROMPTS * 3, completions, owners=owners)
    assert_close(found, values)
    assert_gradients_close(own, gradient)


@every_engine
def test_descending_owners_are_refused(base: BaseModel, layout: GenomeLayout, make: Make) -> None:
    engine, genomes = make(base.model, layout), genomes_for(layout, 2)
    completions = engine.generate(genomes, PROMPTS[:3], decoding(), owners=[0, 0, 1])
    with pytest.raises(ValueError, match="expected ascending"):
        engine.generate(genomes, PROMPTS[:3], decoding(), owners=[0, 1, 0])
    with pytest.raises(ValueError, match="expected ascending"):
        engine.score(genomes, PROMPTS[:3], completions, Scoring(), owners=[1, 0, 0])


# A trace that does not fit.


@pytest.mark.parametrize("make", [cpu, cpu_by_torch, in_parts])
@pytest.mark.parametrize(
    "case", ["changed genomes", "in another order", "fewer genomes", "more genomes", "genomes of its own"]
)
def test_a_trace_of_other_genomes_is_not_used(model_folder: Folder, make: Make, case: str) -> None:
    base = load_base(str(model_folder("uneven gpt2")))
    layout, _ = lora_layout(base.model, lora_config(base.model), seed=0)
    engine, genomes = make(base.model, layout), genomes_for(layout, 4)
    completions = engine.generate(genomes, PROMPTS, decoding(20, trace=True))
    assert completions.trace is not None
    others = {
        "changed genomes": genomes + 1e-3,
        "in another order": genomes.flip(0),
        "fewer genomes": genomes[:2],
        "more genomes": torch.cat([genomes, genomes]),
        "genomes of its own": genomes_for(layout, 4, seed=5),
    }[case]
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        scores_and_gradient(engine, others, PROMPTS, completions)


@every_engine
def test_without_its_trace_the_same_is_found(base: BaseModel, layout: GenomeLayout, make: Make) -> None:
    engine, genomes = make(base.model, layout), genomes_for(layout, 3)
    completions = engine.generate(genomes, PROMPTS, decoding(15, trace=True))
    *values, gradient = scores_and_gradient(engine, genomes, PROMPTS, replace(completions, trace=None))
    *found, own = scores_and_gradient(engine, genomes, PROMPTS, completions)
    assert_close(found, values)
    assert_gradients_close(own, gradient)


@pytest.mark.parametrize("writer", [eager, cpu, in_parts])
@pytest.mark.parametrize("reader", [eager, cpu, in_parts])
def test_another_engines_trace_is_in_nobodys_way(
    base: BaseModel, layout: GenomeLayout, writer: Make, reader: Make
) -> None:
    genomes = genomes_for(layout, 3)
    completions = writer(base.model, layout).generate(genomes, PROMPTS, decoding(15, trace=True))
    *values, gradient = scores_and_gradient(
        eager(base.model, layout), genomes, PROMPTS, replace(completions, trace=None)
    )
    *found, own = scores_and_gradient(reader(base.model, layout), genomes, PROMPTS, completions)
    assert_close(found, values)
    assert_gradients_close(own, gradient)


@every_engine
@pytest.mark.parametrize(
    "how", [{"features": True}, {"dropout": 0.0, "dropout_seeds": np.arange(3)}, {"gradient": False}]
)
def test_what_a_trace_cannot_give_is_computed(
    base: BaseModel, layout: GenomeLayout, make: Make, how: dict[str, Any]
) -> None:
    engine, genomes = make(base.model, layout), genomes_for(layout, 3)
    completions = engine.generate(genomes, PROMPTS, decoding(15, trace=True))
    expected = engine.score(genomes, PROMPTS, replace(completions, trace=None), Scoring(**how))
    found = engine.score(genomes, PROMPTS, completions, Scoring(**how))
    assert_close([found.log_probs, found.entropy], [expected.log_probs, expected.entropy])
    assert (found.features is not None) == (expected.features is not None) == bool(how.get("features"))


@every_engine
def test_the_base_is_not_scored_by_a_genomes_trace(base: BaseModel, layout: GenomeLayout, make: Make) -> None:
    engine, genomes = make(base.model, layout), genomes_for(layout, 1)
    completions = engine.generate(genomes, PROMPTS, decoding(5, trace=True))
    expected = engine.score(None, PROMPTS, replace(completions, trace=None), Scoring()).log_probs
    found = engine.score(None, PROMPTS, completions, Scoring(gradient=True)).log_probs
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

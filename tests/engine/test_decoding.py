"""Every fast path of decoding gives the tokens of PEFT, one adapter at a time and without a cache: rows that leave the
batch, prompts that are shared, drafts, and all at once."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from architectures import random_model as tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from evolora.engine.base import Completions, Decoding, Scoring
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.eager.decoder import DecodingBatch
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.eager.generate import PromptBatch, generate
from evolora.engine.eager.kernels import Choice, Kernels, Steps
from evolora.engine.eager.kv_cache import RoomyLayer, keeps_all, make_cache
from evolora.engine.eager.lora_layers import LoraLayers, Routing
from evolora.engine.text import Text
from evolora.models.base import BaseModel, load_base
from evolora.models.genome import GenomeLayout
from evolora.models.lora import as_peft_model, lora_config, lora_layout
from evolora.population.evaluation import LocalEvaluator
from evolora.rewards import RewardScorer
from evolora.rng import keyed_seed
from evolora.tasks.task import Example

Folder = Callable[[str], Path]

LENGTH = 14
SHARED = "the cat sat on the mat and "
PROMPTS = {
    "mixed": ["the cat", "a dog ran to", "4 + 3 =", "one two three four", "red", "on the mat"],
    "shared": [SHARED + end for end in ("the dog", "red", "one two three", "4 + 3 =", "a cat ran", "on")] * 8,
    "repeated": ["the cat", "the cat", "red", "4 + 3 =", "red", "the cat"],
    "one": ["the cat"] * 6,
}
kinds = pytest.mark.parametrize("kind", [EagerEngine, CpuEngine])


def genomes_for(layout: GenomeLayout, n: int) -> Tensor:
    return torch.randn(n, layout.genome_length, generator=torch.Generator().manual_seed(1)) * 0.3


def seeds_for(rows: int) -> np.ndarray:
    return np.array([keyed_seed(0, "sampling", row) for row in range(rows)], dtype=np.uint64)


def how(ends: list[int], seeds: np.ndarray | None = None, drafts: list[list[int]] | None = None) -> Decoding:
    return Decoding(max_new_tokens=LENGTH, ends=ends, pad=0, seeds=seeds, drafts=drafts, features=True)


def prompts_of(base: BaseModel, kind: str) -> list[list[int]]:
    return Text.of(base.model, base.tokenizer).encode(PROMPTS[kind])


def plainly(
    model: PreTrainedModel, prompts: list[list[int]], ends: list[int], seeds: np.ndarray | None = None
) -> Completions:
    """By the model as it is, whatever wraps its modules: every pass reads the whole text again."""
    batch = PromptBatch.of(prompts, pad=0, times=1, device=model.device)
    bare = LoraLayers(model, GenomeLayout(()))
    return generate(bare, Kernels(), batch, how(ends, seeds), use_cache=False)


def assert_same(found: Completions, expected: Completions) -> None:
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.mask, expected.mask)
    for one, other in ((found.log_probs, expected.log_probs), (found.features, expected.features)):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one[found.mask], other[found.mask], atol=1e-4, rtol=1e-4)


def ends_of(ids: Tensor) -> list[int]:
    """Tokens that end rows at many different places."""
    return [int(token) for token in ids.unique() if token][::5]


def drafts_for(kind: str, expected: Completions, other: Completions) -> list[list[int]] | None:
    rows = expected.rows()
    return {
        "none": lambda: None,
        "right": lambda: rows,
        "half right": lambda: [row[: len(row) // 2] + [1] * (LENGTH - len(row) // 2) for row in rows],
        "wrong": lambda: [[token // 2 + 1 for token in row] for row in rows],
        "another's": lambda: other.rows(),
        "some": lambda: [row if place % 3 else [] for place, row in enumerate(rows)],
        "past the end": lambda: [row + [1] * LENGTH for row in rows],
    }[kind]()


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("population", [False, True])
@kinds
def test_every_fast_path_gives_the_plain_tokens(
    architecture: str, kind: type[EagerEngine], population: bool, prompts: str, sampled: bool, model_folder: Folder
) -> None:
    base = load_base(str(model_folder(architecture)))
    layout, _ = lora_layout(base.model, lora_config(base.model), seed=0)
    genomes = genomes_for(layout, 3)
    single = prompts_of(base, prompts)
    rows = len(single) * (3 if population else 1)
    seeds = seeds_for(rows) if sampled else None
    engine = kind(base.model, layout)

    def run(ends: list[int], other: bool = False, drafts: list[list[int]] | None = None) -> Completions:
        if not population:
            return engine.generate(
                None, single, how(ends, seeds[::-1].copy() if other and seeds is not None else seeds, drafts)
            )
        return engine.generate(genomes * (0.9 if other else 1.0), single, how(ends, seeds, drafts))

    def by_peft(ends: list[int]) -> Completions:
        parts = []
        for place, genome in enumerate(genomes):
            state = layout.to_state_dict(genome)
            own = None if seeds is None else seeds[place * len(single) : (place + 1) * len(single)]
            wrapped = as_peft_model(base.model, lora_config(base.model), state=state)
            parts.append(plainly(wrapped.get_base_model(), single, ends, own))
        return Completions.joined(parts, 0)

    ends = ends_of(run([-1]).ids)
    plain = by_peft(ends) if population else plainly(base.model, single, ends, seeds)
    if population or sampled:
        assert len(plain.mask.sum(1).unique()) > 1
    others = run(ends, other=True)
    for drafts in ("none", "right", "half right", "wrong", "another's", "some", "past the end"):
        assert_same(run(ends, drafts=drafts_for(drafts, plain, others)), plain)
    assert engine.layers.routing is None


def test_finished_rows_cost_nothing(model_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(str(model_folder("gpt2")))
    engine, prompts = CpuEngine(base.model, GenomeLayout(())), prompts_of(base, "shared")
    ends = ends_of(engine.generate(None, prompts, how([-1], seeds_for(48))).ids)
    widths: list[int] = []
    step, run_steps = DecodingBatch.step, DecodingBatch.run_steps

    def counted(self: DecodingBatch, tokens: Tensor, alive: Tensor) -> Tensor:
        widths.append(len(tokens))
        return step(self, tokens, alive)

    def all_counted(self: DecodingBatch, tokens: Tensor, choice: Choice) -> Steps:
        found = run_steps(self, tokens, choice)
        widths.extend([len(tokens)] * found.tokens.shape[1])
        return found

    monkeypatch.setattr(DecodingBatch, "step", counted)
    monkeypatch.setattr(DecodingBatch, "run_steps", all_counted)
    found = engine.generate(None, prompts, how(ends, seeds_for(48)))
    needed = [int((found.mask.sum(1) > place).sum()) for place in range(1, LENGTH)]
    assert needed[-1] < 24  # most are done before the last step
    assert all(width * 7 / 8 <= max(need, 1) <= width for width, need in zip(widths, needed, strict=False))


@kinds
def test_a_shared_beginning_and_repeated_prompts_are_computed_once(
    kind: type[EagerEngine], model_folder: Folder
) -> None:
    base = load_base(str(model_folder("gpt2")))
    layout, _ = lora_layout(base.model, lora_config(base.model), seed=0)
    engine = kind(base.model, layout)
    passes: list[tuple[int, int]] = []
    engine.layers.model.register_forward_pre_hook(
        lambda _, __, options: passes.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    engine.generate(genomes_for(layout, 8), prompts_of(base, "shared"), how([-1]))
    shared = len(base.tokenizer(SHARED.strip())["input_ids"])
    rests = sum(len(base.tokenizer(prompt)["input_ids"]) - shared for prompt in PROMPTS["shared"][:6])
    assert passes[0][0] % 8 == 0 and 8 * (shared + rests) <= passes[0][0] * passes[0][1] < 8 * 2 * (shared + rests)
    assert set(passes[1:]) == {(8 * 48, 1)}


def test_drafts_that_are_right_take_one_pass(model_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(str(model_folder("gpt2")))
    engine, prompts = CpuEngine(base.model, GenomeLayout(())), prompts_of(base, "mixed")
    plain = engine.generate(None, prompts, how([-1]))
    for name in ("step", "run_steps"):
        monkeypatch.setattr(DecodingBatch, name, lambda *_: pytest.fail("a second pass"))
    assert_same(engine.generate(None, prompts, how([-1], drafts=plain.rows())), plain)
    with pytest.raises(ValueError, match="6 prompts with 1 drafts"):
        engine.generate(None, prompts, how([-1], drafts=[[1]]))
    batch = PromptBatch.of(prompts, pad=0, times=1, device=base.model.device)
    with pytest.raises(ValueError, match="drafts need"):
        generate(engine.layers, engine.kernels, batch, how([-1], drafts=plain.rows()), use_cache=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any))
def test_routing_puts_each_row_into_its_own_group(counts: list[int]) -> None:
    owners = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    routing = Routing.of(owners)
    assert routing.individuals.tolist() == [i for i, count in enumerate(counts) if count]
    assert routing.group == max(counts)
    assert torch.equal(routing.individuals[routing.slots // routing.group], owners)
    assert len(routing.slots.unique()) == len(owners)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    picks=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=3),
)
def test_the_cache_holds_what_transformers_own_holds(lengths: list[int], picks: list[list[int]]) -> None:
    ours, theirs = RoomyLayer(sum(lengths)), DynamicCache().layer_class_to_replicate()
    rows = 3
    for step, length in enumerate(lengths):
        keys, values = (torch.randn(rows, 2, length, 4) for _ in range(2))
        found, expected = ours.update(keys, values), theirs.update(keys, values)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert ours.get_seq_length() == theirs.get_seq_length() and ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)
        if step < len(picks):
            index = torch.tensor([pick % rows for pick in picks[step]])
            ours.reorder_cache(index)
            theirs.batch_select_indices(index)
            rows = len(index)


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gemma3"])
@kinds
def test_a_window_that_no_row_outgrows_is_none(
    kind: type[EagerEngine], architecture: str, fits: bool, model_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(load_base(str(model_folder("gpt2"))), "mixed")
    longest = max(map(len, prompts)) + LENGTH
    name, sizes = ARCHITECTURES[architecture]
    window = longest + LENGTH if fits else longest - 2  # drafts take room, too
    monkeypatch.setitem(ARCHITECTURES, architecture, (name, {**sizes, "sliding_window": window}))
    model = tiny_model(architecture)
    layout, _ = lora_layout(model, lora_config(model), seed=0)
    engine, genomes = kind(model, layout), genomes_for(layout, 2)
    caches = []
    make = engine.kernels.make_cache
    monkeypatch.setattr(engine.kernels, "make_cache", lambda *a, **k: caches.append(make(*a, **k)) or caches[-1])

    def by_peft(ends: list[int]) -> Completions:
        wrapped = [as_peft_model(model, lora_config(model), state=layout.to_state_dict(genome)) for genome in genomes]
        return Completions.joined([plainly(each.get_base_model(), prompts, ends) for each in wrapped], 0)

    ends = ends_of(engine.generate(genomes, prompts, how([-1])).ids)
    plain = by_peft(ends)
    assert len(plain.mask.sum(1).unique()) > 1
    for drafts in ("none", "right", "half right", "past the end"):
        assert_same(engine.generate(genomes, prompts, how(ends, drafts=drafts_for(drafts, plain, plain))), plain)
    found = engine.score(genomes, prompts, plain, Scoring()).log_probs
    wrapped = as_peft_model(model, lora_config(model), state=layout.to_state_dict(genomes[1]))
    for row in range(len(prompts)):
        text = plain.rows()[len(prompts) + row]
        logits = wrapped(input_ids=torch.tensor([[*prompts[row], *text]])).logits[0, len(prompts[row]) - 1 : -1]
        right = logits.log_softmax(-1).gather(1, torch.tensor(text)[:, None])[:, 0]
        torch.testing.assert_close(found[len(prompts) + row, : len(text)], right, atol=1e-4, rtol=1e-4)
    assert all(keeps_all(cache) for cache in caches) is fits


@kinds
def test_sliding_windows_keep_transformers_own_cache(kind: type[EagerEngine], model_folder: Folder) -> None:
    base = load_base(str(model_folder("qwen2")))
    assert keeps_all(make_cache(base.model, 8))
    config = copy.deepcopy(base.model.config)
    config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    config.use_sliding_window, config.sliding_window = True, 4
    torch.manual_seed(0)
    base = replace(base, model=type(base.model)(config).eval().requires_grad_(False))
    cache = make_cache(base.model, 8)
    assert not keeps_all(cache) and isinstance(cache, DynamicCache)
    # Such a model is neither packed nor given drafts, and its finished rows leave all the same.
    layout, _ = lora_layout(base.model, lora_config(base.model), seed=0)
    scorer = RewardScorer(lambda completions: [float(len(text)) for text in completions])
    text = Text.of(base.model, base.tokenizer)
    evaluator = LocalEvaluator(kind(base.model, layout), text, scorer, max_new_tokens=LENGTH)
    examples, genomes = [Example(prompt, {}) for prompt in PROMPTS["mixed"][:3]], genomes_for(layout, 2)
    together = evaluator.evaluate(genomes, examples, drafts=[[[1, 2]] * 3] * 2)
    for index in range(2):
        alone = evaluator.evaluate(genomes[index : index + 1], examples)
        assert alone.completions[0] == together.completions[index]

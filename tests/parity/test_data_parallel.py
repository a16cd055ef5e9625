"""A batch in parts against the same batch as one: nothing but the time it takes may differ."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from evolora.engine import split as data_parallel
from evolora.engine.eager.generate import Completions, PromptBatch, generate
from evolora.engine.eager.lora_layers import PopulationModel
from evolora.engine.split import population_generate, population_log_probs, split
from evolora.models.base import load_base
from evolora.models.genome import GenomeLayout
from evolora.models.lora import lora_config, lora_layout
from evolora.refiners import GRPOConfig, GRPORefiner, PPOConfig, PPORefiner
from evolora.rewards import RewardScorer
from evolora.rng import keyed_generator
from evolora.tasks.task import Example

Folder = Callable[[str], Path]
NEW_TOKENS = 10
NEVER = 100  # just outside the vocabulary


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 8), st.randoms())
def test_every_row_is_in_one_part(individuals: int, each: int, count: int, draw: object) -> None:
    order = list(range(each))
    draw.shuffle(order)  # type: ignore[attr-defined]
    parts = split(individuals, order, count)
    assert sorted(torch.cat([part.rows for part in parts]).tolist()) == list(range(individuals * each))
    assert 1 <= len(parts) <= count
    sizes = [len(part.rows) for part in parts]
    assert max(sizes) == min(math.ceil(individuals / count) * each, individuals * math.ceil(each / count))
    assert min(sizes) > 0
    for part in parts:
        owners = part.rows // each
        assert owners.tolist() == sorted(owners.tolist())
        assert set(owners.tolist()) <= set(range(individuals)[part.individuals])
        counts = owners.bincount()[part.individuals]
        assert counts.min() == counts.max() > 0, "equally many of each"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of few rows, so that a small batch has several."""
    monkeypatch.setattr(data_parallel, "LEAST_ROWS_DECODED", 2)
    monkeypatch.setattr(data_parallel, "LEAST_ROWS_SCORED", 2)


@pytest.fixture(params=["gpt2", "llama", "gpt_neox"])
def loaded(request: pytest.FixtureRequest, model_folder: Folder) -> Iterator[tuple[PopulationModel, GenomeLayout]]:
    base = load_base(str(model_folder(request.param)))
    layout, _ = lora_layout(base.model, lora_config(base.model, target_modules=None), seed=0)
    population_model = PopulationModel(base.model, layout, dropout=0.2)
    yield population_model, layout
    population_model.detach()


def genomes_for(layout: GenomeLayout, n: int) -> Tensor:
    return torch.randn(n, layout.genome_length, generator=keyed_generator(0, "genomes")) * 0.25


def prompts_for(individuals: int, each: int) -> PromptBatch:
    """Prompts of 2 to 7 tokens, some of them alike, left-padded."""
    generator = keyed_generator(0, "prompts")
    ids, mask = torch.zeros(each, 7, dtype=torch.long), torch.zeros(each, 7, dtype=torch.long)
    for row in range(each):
        length = 2 + row // 3 % 6 + row % 3 // 2
        ids[row, -length:] = torch.randint(1, 100, (length,), generator=generator)
        if row % 3 == 1:
            ids[row] = ids[row - 1]
        mask[row, -length:] = 1
    return PromptBatch(ids, mask).repeat(individuals)


def complete(
    population_model: PopulationModel,
    threads: int,
    genomes: Tensor | None,
    prompts: PromptBatch,
    ends: Sequence[int] = (NEVER,),
    **options: object,
) -> Completions:
    population_model.threads = threads
    return population_generate(
        population_model,
        genomes,
        prompts,
        max_new_tokens=NEW_TOKENS,
        eos_token_ids=ends,
        pad_token_id=0,
        **options,  # type: ignore[arg-type]
    )


def log_probs(
    population_model: PopulationModel,
    threads: int,
    genomes: Tensor | None,
    prompts: PromptBatch,
    completions: Completions,
    **options: object,
) -> tuple[Tensor, Tensor]:
    population_model.threads = threads
    return population_log_probs(population_model, genomes, prompts, completions, temperature=0.8, **options)  # type: ignore[arg-type]


shapes = pytest.mark.parametrize(("individuals", "each"), [(1, 7), (2, 4), (3, 5), (8, 1), (13, 2)])


@shapes
@pytest.mark.parametrize("kind", ["greedy", "sampled", "drafted", "base"])
@pytest.mark.usefixtures("small_parts")
def test_parts_write_what_the_batch_writes(
    loaded: tuple[PopulationModel, GenomeLayout], kind: str, individuals: int, each: int
) -> None:
    population_model, layout = loaded
    genomes = None if kind == "base" else genomes_for(layout, individuals)
    prompts = prompts_for(individuals, each)
    options: dict[str, object] = {"keep_features": True}
    if kind == "sampled":
        options |= {"seeds": np.arange(individuals * each, dtype=np.uint64), "temperature": 1.3}
    in_full = complete(population_model, 1, genomes, prompts, **options).ids.tolist()
    ends = sorted({ids[3 + row % 5] for row, ids in enumerate(in_full)} - {ids[0] for ids in in_full})
    expected = complete(population_model, 1, genomes, prompts, ends, **options)
    if kind == "drafted":
        options["drafts"] = [ids[: row % 4] for row, ids in enumerate(expected.rows())]
    found = complete(population_model, 3, genomes, prompts, ends, **options)
    assert len(population_model._replicas) > 1, "it was made in parts"
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.mask, expected.mask)
    different = len(set(map(tuple, in_full))) > 1
    assert len(set(expected.mask.sum(1).tolist())) > different, "rows end at different places"
    for got, wanted in ((found.log_probs, expected.log_probs), (found.features, expected.features)):
        if wanted is not None:
            assert got is not None
            torch.testing.assert_close(got[expected.mask], wanted[expected.mask], atol=2e-4, rtol=2e-4)


@pytest.mark.usefixtures("small_parts")
def test_a_large_models_rows_come_in_more_parts_than_threads(
    loaded: tuple[PopulationModel, GenomeLayout], monkeypatch: pytest.MonkeyPatch
) -> None:
    population_model, layout = loaded
    genomes, prompts = genomes_for(layout, 4), prompts_for(4, 5)
    expected = complete(population_model, 1, genomes, prompts)
    monkeypatch.setattr(data_parallel, "is_small", lambda _: False)
    monkeypatch.setattr(data_parallel, "MOST_ROWS_DECODED", 3)
    parts: list[tuple[int, int]] = []

    def noted(model: object, rows: PromptBatch, **options: object) -> Completions:
        parts.append((threading.get_ident(), len(rows.ids)))
        return generate(model, rows, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(data_parallel, "generate", noted)
    found = complete(population_model, 2, genomes, prompts)
    assert torch.equal(found.ids, expected.ids)
    assert len(parts) == 5 and max(rows for _, rows in parts) == 4, "a row of each individual"
    assert len({thread for thread, _ in parts}) <= 2


@shapes
@pytest.mark.parametrize("entropy_gradient", [True, False])
@pytest.mark.usefixtures("small_parts")
def test_parts_have_the_batchs_log_probabilities_and_gradients(
    loaded: tuple[PopulationModel, GenomeLayout], entropy_gradient: bool, individuals: int, each: int
) -> None:
    population_model, layout = loaded
    genomes, prompts = genomes_for(layout, individuals), prompts_for(individuals, each)
    completions = complete(population_model, 1, genomes, prompts)
    weights = torch.randn(completions.ids.shape, generator=keyed_generator(0, "weights"))
    found = []
    for threads in (1, 3):
        rows = genomes.clone().requires_grad_()
        values, entropy = log_probs(
            population_model, threads, rows, prompts, completions, entropy_gradient=entropy_gradient
        )
        assert entropy.requires_grad == entropy_gradient
        (((values + 0.3 * entropy) * weights).sum() if entropy_gradient else (values * weights).sum()).backward()
        found.append((values.detach(), entropy.detach(), rows.grad))
    for got, wanted in zip(found[1], found[0], strict=True):
        assert wanted is not None
        assert wanted.abs().max() > 0.1
        torch.testing.assert_close(got, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-3)


@pytest.mark.usefixtures("small_parts")
def test_the_base_is_scored_in_parts_too(loaded: tuple[PopulationModel, GenomeLayout]) -> None:
    population_model, _ = loaded
    prompts = prompts_for(1, 9)
    completions = complete(population_model, 1, None, prompts)
    with torch.no_grad():
        alone, parted = (log_probs(population_model, n, None, prompts, completions)[0] for n in (1, 3))
    assert not parted.requires_grad
    torch.testing.assert_close(parted, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("small_parts")
def test_dropout_is_its_seeds_and_independent_in_each_part(loaded: tuple[PopulationModel, GenomeLayout]) -> None:
    population_model, layout = loaded
    # Two individuals alike: with the same mask both would have the same log-probabilities.
    genomes, prompts = genomes_for(layout, 1).repeat(2, 1), prompts_for(2, 4)
    completions = complete(population_model, 1, genomes, prompts)

    def dropped(seed: int) -> Tensor:
        return log_probs(population_model, 2, genomes, prompts, completions, dropout_seed=seed)[0]

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = dropped(1)
    assert torch.equal(first, dropped(1))
    assert not torch.equal(first, dropped(2))
    assert not torch.equal(first[:4], first[4:])
    assert torch.equal(torch.get_rng_state(), state), "nobody's random numbers but its own"


@pytest.mark.usefixtures("small_parts")
def test_the_same_parts_compute_the_same_bits(loaded: tuple[PopulationModel, GenomeLayout]) -> None:
    """Whichever thread is first: a resumed run depends on it."""
    population_model, layout = loaded
    genomes, prompts = genomes_for(layout, 3), prompts_for(3, 5)
    seeds = np.arange(15, dtype=np.uint64)

    def once() -> list[Tensor | None]:
        completions = complete(population_model, 3, genomes, prompts, seeds=seeds)
        rows = genomes.clone().requires_grad_()
        values, entropy = log_probs(population_model, 3, rows, prompts, completions, dropout_seed=4)
        (values.sum() + entropy.sum()).backward()
        return [completions.ids, completions.log_probs, values, entropy, rows.grad]

    first = once()
    for again in (once() for _ in range(3)):
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))  # type: ignore[arg-type]


def test_replicas_share_the_weights_and_nothing_else(loaded: tuple[PopulationModel, GenomeLayout]) -> None:
    population_model, layout = loaded
    population_model.threads = 3
    models = population_model.side_by_side(lambda _, replica: replica.model, 3)
    assert models[0] is population_model.model
    for model in models[1:]:
        assert [id(p) for p in model.parameters()] == [id(p) for p in models[0].parameters()]
        assert not {id(m) for m in model.modules()} & {id(m) for m in models[0].modules()}
        for module in layout.modules:
            assert len(model.get_submodule(module.name)._forward_hooks) == 1, "its own layer, not the original's too"
    population_model.detach()
    for model in models:
        assert not any(module._forward_hooks for module in model.modules())


def test_parts_run_at_the_same_time_and_share_the_threads(loaded: tuple[PopulationModel, GenomeLayout]) -> None:
    population_model, _ = loaded
    population_model.threads = 4
    meeting = threading.Barrier(2, timeout=60)

    def part(index: int, replica: PopulationModel) -> tuple[int, int]:
        meeting.wait()  # passes only if both are there
        return index, torch.get_num_threads()

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert population_model.side_by_side(part, 2) == [(0, 2), (1, 2)]
        assert torch.get_num_threads() == 4
        torch.set_num_threads(1)
        assert population_model.side_by_side(part, 2) == [(0, 1), (1, 1)]
    finally:
        torch.set_num_threads(before)


def test_an_error_in_one_part_waits_for_the_others(loaded: tuple[PopulationModel, GenomeLayout]) -> None:
    population_model, _ = loaded
    population_model.threads = 2
    failed, finished = threading.Event(), []

    def part(index: int, replica: PopulationModel) -> int:
        if index == 0:
            failed.set()
            raise RuntimeError("part 0")
        assert failed.wait(60)
        finished.append(index)
        return index

    with pytest.raises(RuntimeError, match="part 0"):
        population_model.side_by_side(part, 2)
    assert finished == [1]
    assert population_model.side_by_side(lambda index, _: index, 2) == [0, 1], "and the next batch finds all well"


@pytest.mark.parametrize("kind", [PPORefiner, GRPORefiner])
def test_a_refinement_in_parts_is_the_same_refinement(kind: type, model_folder: Folder) -> None:
    base = load_base(str(model_folder("gpt2")))
    layout, founder = lora_layout(base.model, lora_config(base.model), seed=0)
    examples = [Example("the cat", {}), Example("a dog ran", {}), Example("one two", {}), Example("4 +", {})]
    options = {"max_new_tokens": 6, "rl_steps": 2, "rollout_samples": 4, "kl_weight": 0.05, "lr": 0.01}
    config = (PPOConfig if kind is PPORefiner else GRPOConfig)(**options)  # type: ignore[arg-type]

    def short(completions: list[str], **_: object) -> list[float]:
        return [1 / (1 + len(text)) for text in completions]

    refined = []
    for threads in (1, 2):
        population_model = PopulationModel(base.model, layout, threads=threads)
        refiner = kind(population_model, base.tokenizer, RewardScorer(short), config, seed=0)
        refined.append(refiner.refine(founder[None], examples, key=[(0, 0)]))
        population_model.detach()
        assert len(population_model._replicas) == threads
    moved = (refined[0].genomes - founder).norm()
    assert moved > 0
    assert (refined[1].genomes - refined[0].genomes).norm() < 0.02 * moved
    assert refined[1].stats[0]["reward"] == pytest.approx(refined[0].stats[0]["reward"], rel=1e-5)

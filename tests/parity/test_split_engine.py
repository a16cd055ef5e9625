"""A batch in parts against the same batch as one: nothing but the time it takes may differ."""

import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evolora.engine import split as split_engine
from evolora.engine.base import Completions, Decoding, Engine, Scoring, differentiable_scores
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.split import SplitEngine, split
from evolora.engine.text import Text
from evolora.engine.threads import Threads
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


@settings(deadline=None)
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
    monkeypatch.setattr(split_engine, "LEAST_ROWS_DECODED", 2)
    monkeypatch.setattr(split_engine, "LEAST_ROWS_SCORED", 2)


@pytest.fixture(params=["gpt2", "llama", "gpt_neox"])
def engine(request: pytest.FixtureRequest, model_folder: Folder) -> CpuEngine:
    base = load_base(str(model_folder(request.param)))
    layout, _ = lora_layout(base.model, lora_config(base.model, target_modules=None), seed=0)
    return CpuEngine(base.model, layout)


def in_parts(engine: CpuEngine, threads: int, most_rows: int | None = None) -> SplitEngine:
    return SplitEngine(engine, engine.replica, threads=threads, most_rows=most_rows)


def genomes_for(layout: GenomeLayout, n: int) -> Tensor:
    return torch.randn(n, layout.genome_length, generator=keyed_generator(0, "genomes")) * 0.25


def prompts_for(each: int) -> list[list[int]]:
    """Prompts of 2 to 7 tokens, some of them alike."""
    generator = keyed_generator(0, "prompts")
    prompts: list[list[int]] = []
    for row in range(each):
        own = torch.randint(1, 100, (2 + row // 3 % 6 + row % 3 // 2,), generator=generator).tolist()
        prompts.append(list(prompts[-1]) if row % 3 == 1 else own)
    return prompts


def complete(
    engine: Engine,
    genomes: Tensor | None,
    prompts: list[list[int]],
    ends: Sequence[int] = (NEVER,),
    **options: Any,
) -> Completions:
    return engine.generate(genomes, prompts, Decoding(max_new_tokens=NEW_TOKENS, ends=ends, pad=0, **options))


def log_probs(
    engine: Engine, genomes: Tensor, prompts: list[list[int]], completions: Completions, **options: Any
) -> tuple[Tensor, Tensor]:
    return differentiable_scores(engine, genomes, prompts, completions, Scoring(temperature=0.8, **options))


shapes = pytest.mark.parametrize(("individuals", "each"), [(1, 7), (2, 4), (3, 5), (8, 1), (13, 2)])


@shapes
@pytest.mark.parametrize("kind", ["greedy", "sampled", "drafted", "base"])
@pytest.mark.usefixtures("small_parts")
def test_parts_write_what_the_batch_writes(engine: CpuEngine, kind: str, individuals: int, each: int) -> None:
    parts = in_parts(engine, 3)
    genomes, prompts = genomes_for(engine.layout, individuals), prompts_for(each)
    if kind == "base":
        genomes, prompts = None, prompts * individuals
    options: dict[str, Any] = {"features": True}
    if kind == "sampled":
        options |= {"seeds": np.arange(individuals * each, dtype=np.uint64), "temperature": 1.3}
    in_full = complete(engine, genomes, prompts, **options).ids.tolist()
    ends = sorted({ids[3 + row % 5] for row, ids in enumerate(in_full)} - {ids[0] for ids in in_full})
    expected = complete(engine, genomes, prompts, ends, **options)
    if kind == "drafted":
        options["drafts"] = [ids[: row % 4] for row, ids in enumerate(expected.rows())]
    found = complete(parts, genomes, prompts, ends, **options)
    assert len(parts.engines) > 1, "it was made in parts"
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
    engine: CpuEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    genomes, prompts = genomes_for(engine.layout, 4), prompts_for(5)
    expected = complete(engine, genomes, prompts)
    parts: list[tuple[int, int]] = []
    own = CpuEngine.generate

    def noted(self: CpuEngine, genomes: Tensor, prompts: Sequence[Sequence[int]], *others: Any, **more: Any) -> Any:
        parts.append((threading.get_ident(), len(genomes) * len(prompts)))
        return own(self, genomes, prompts, *others, **more)

    monkeypatch.setattr(CpuEngine, "generate", noted)
    found = complete(in_parts(engine, 2, most_rows=3), genomes, prompts)
    assert torch.equal(found.ids, expected.ids)
    assert len(parts) == 5 and max(rows for _, rows in parts) == 4, "a row of each individual"
    assert len({thread for thread, _ in parts}) <= 2


@shapes
@pytest.mark.parametrize("entropy_gradient", [True, False])
@pytest.mark.usefixtures("small_parts")
def test_parts_have_the_batchs_log_probabilities_and_gradients(
    engine: CpuEngine, entropy_gradient: bool, individuals: int, each: int
) -> None:
    genomes, prompts = genomes_for(engine.layout, individuals), prompts_for(each)
    completions = complete(engine, genomes, prompts)
    weights = torch.randn(completions.ids.shape, generator=keyed_generator(0, "weights"))
    found = []
    for one in (engine, in_parts(engine, 3)):
        rows = genomes.clone().requires_grad_()
        values, entropy = log_probs(one, rows, prompts, completions, entropy_gradient=entropy_gradient)
        assert entropy.requires_grad == entropy_gradient
        (((values + 0.3 * entropy) * weights).sum() if entropy_gradient else (values * weights).sum()).backward()
        found.append((values.detach(), entropy.detach(), rows.grad))
    for got, wanted in zip(found[1], found[0], strict=True):
        assert wanted is not None
        assert wanted.abs().max() > 0.1
        torch.testing.assert_close(got, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-3)


@pytest.mark.usefixtures("small_parts")
def test_the_base_is_scored_in_parts_too(engine: CpuEngine) -> None:
    prompts = prompts_for(9)
    completions = complete(engine, None, prompts)
    parts = in_parts(engine, 3)
    alone, parted = (
        one.score(None, prompts, completions, Scoring(temperature=0.8)).log_probs for one in (engine, parts)
    )
    assert len(parts.engines) == 3
    assert not parted.requires_grad
    torch.testing.assert_close(parted, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("small_parts")
def test_features_come_in_the_batchs_order(engine: CpuEngine) -> None:
    genomes, prompts = genomes_for(engine.layout, 3), prompts_for(5)
    completions = complete(engine, genomes, prompts)
    alone, parted = (
        one.score(genomes, prompts, completions, Scoring(features=True)).features
        for one in (engine, in_parts(engine, 3))
    )
    assert alone is not None and parted is not None and alone.abs().max() > 0.1
    torch.testing.assert_close(parted, alone, atol=2e-4, rtol=2e-4)


@pytest.mark.usefixtures("small_parts")
def test_dropout_is_its_seeds_in_whichever_parts(engine: CpuEngine) -> None:
    # Two individuals alike: with the same mask both would have the same log-probabilities.
    genomes, prompts = genomes_for(engine.layout, 1).repeat(2, 1), prompts_for(4)
    completions = complete(engine, genomes, prompts)
    parts = in_parts(engine, 2)

    def dropped(seed: int, by: Engine = parts) -> Tensor:
        seeds = np.arange(seed, seed + 2, dtype=np.uint64)
        return log_probs(by, genomes, prompts, completions, dropout=0.2, dropout_seeds=seeds)[0]

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = dropped(1)
    assert torch.equal(first, dropped(1))
    assert not torch.equal(first, dropped(2))
    assert not torch.equal(first[:4], first[4:])
    for by in (engine, in_parts(engine, 3)):
        torch.testing.assert_close(dropped(1, by), first, atol=1e-4, rtol=1e-4)
    assert torch.equal(torch.get_rng_state(), state), "nobody's random numbers but its own"


@pytest.mark.usefixtures("small_parts")
def test_the_same_parts_compute_the_same_bits(engine: CpuEngine) -> None:
    """Whichever thread is first: a resumed run depends on it."""
    genomes, prompts = genomes_for(engine.layout, 3), prompts_for(5)
    seeds = np.arange(15, dtype=np.uint64)
    parts = in_parts(engine, 3)

    def once() -> list[Tensor | None]:
        completions = complete(parts, genomes, prompts, seeds=seeds)
        rows = genomes.clone().requires_grad_()
        how = {"dropout": 0.2, "dropout_seeds": np.arange(4, 7, dtype=np.uint64), "entropy_gradient": True}
        values, entropy = log_probs(parts, rows, prompts, completions, **how)
        (values.sum() + entropy.sum()).backward()
        return [completions.ids, completions.log_probs, values, entropy, rows.grad]

    first = once()
    for again in (once() for _ in range(3)):
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))  # type: ignore[arg-type]


def test_replicas_share_the_weights_and_nothing_else(engine: CpuEngine) -> None:
    parts = in_parts(engine, 3)
    parts.engines += [engine.replica(), engine.replica()]
    models = [each.layers.model for each in parts.engines]
    assert models[0] is engine.layers.model
    for model in models[1:]:
        assert [id(p) for p in model.parameters()] == [id(p) for p in models[0].parameters()]
        assert not {id(m) for m in model.modules()} & {id(m) for m in models[0].modules()}
        for module in engine.layout.modules:
            assert len(model.get_submodule(module.name)._forward_hooks) == 1, "its own layer, not the original's too"
    parts.close()
    for model in models:
        assert not any(module._forward_hooks for module in model.modules())


def test_parts_run_at_the_same_time_and_share_the_threads() -> None:
    threads = Threads(4)
    meeting = threading.Barrier(2, timeout=60)

    def part(index: int) -> tuple[int, int]:
        meeting.wait()  # passes only if both are there
        return index, torch.get_num_threads()

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert threads.side_by_side(part, 2) == [(0, 2), (1, 2)]
        assert torch.get_num_threads() == 4
        torch.set_num_threads(1)
        assert threads.side_by_side(part, 2) == [(0, 1), (1, 1)]
    finally:
        torch.set_num_threads(before)
        threads.close()


def test_an_error_in_one_part_waits_for_the_others() -> None:
    threads = Threads(2)
    failed, finished = threading.Event(), []

    def part(index: int) -> int:
        if index == 0:
            failed.set()
            raise RuntimeError("part 0")
        assert failed.wait(60)
        finished.append(index)
        return index

    with pytest.raises(RuntimeError, match="part 0"):
        threads.side_by_side(part, 2)
    assert finished == [1]
    assert threads.side_by_side(lambda index: index, 2) == [0, 1], "and the next batch finds all well"
    threads.close()


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
        parts = in_parts(CpuEngine(base.model, layout), threads)
        refiner = kind(parts, Text.of(base.model, base.tokenizer), RewardScorer(short), config, seed=0)
        refined.append(refiner.refine(founder[None], examples, key=[(0, 0)]))
        assert len(parts.engines) == threads
        parts.close()
    moved = (refined[0].genomes - founder).norm()
    assert moved > 0
    assert (refined[1].genomes - refined[0].genomes).norm() < 0.02 * moved
    assert refined[1].stats[0]["reward"] == pytest.approx(refined[0].stats[0]["reward"], rel=1e-5)

"""The check in every generation: right engines pass, and an adapter that is not truly applied is found at once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import random_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evolora.engine import split as split_engine
from evolora.engine.base import Completions, Engine, Scored
from evolora.engine.canary import Canary, Row, applied_twice
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.eager.decoder import DecodingBatch
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.oracle import Oracle
from evolora.engine.split import SplitEngine
from evolora.engine.text import Text
from evolora.errors import EngineError
from evolora.models.base import load_base
from evolora.models.genome import GenomeLayout
from evolora.models.lora import lora_config, lora_layout
from evolora.rng import keyed_generator

Change = Callable[[GenomeLayout, Tensor], Tensor]

PLACES = 6


class Changed:
    """An engine that runs other genomes than it is given."""

    def __init__(self, engine: Engine, change: Change) -> None:
        self.engine, self.change = engine, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, genomes: Tensor | None, *more: Any, **how: Any) -> Completions:
        return self.engine.generate(self.changed(genomes), *more, **how)

    def score(self, genomes: Tensor | None, *more: Any, **how: Any) -> Scored:
        return self.engine.score(self.changed(genomes), *more, **how)

    def changed(self, genomes: Tensor | None) -> Tensor | None:
        return None if genomes is None else self.change(self.engine.layout, genomes)


def served_by_the_base(layout: GenomeLayout, genomes: Tensor) -> Tensor:
    return torch.zeros_like(genomes)


def one_served_by_the_base(layout: GenomeLayout, genomes: Tensor) -> Tensor:
    return genomes.index_fill(0, torch.tensor([len(genomes) - 1]), 0.0)


def scaled_twice(layout: GenomeLayout, genomes: Tensor) -> Tensor:
    return torch.stack([applied_twice(layout, genome) for genome in genomes])


def two_swapped(layout: GenomeLayout, genomes: Tensor) -> Tensor:
    return genomes if len(genomes) < 4 else genomes[[0, 2, 1, *range(3, len(genomes))]]


def a_factor_transposed(layout: GenomeLayout, genomes: Tensor) -> Tensor:
    """One layer's A is read as if it lay the other way round."""
    found = genomes.clone()
    module, a, _ = next(iter(layout.factors(found)))
    a.copy_(a.reshape(len(a), module.in_features, module.rank).transpose(1, 2).clone())
    return found


class Stale:
    """One place keeps the genome that it had in the call before."""

    def __init__(self) -> None:
        self.before: Tensor | None = None

    def __call__(self, layout: GenomeLayout, genomes: Tensor) -> Tensor:
        before, self.before = self.before, genomes
        if before is None or len(before) != len(genomes):
            return genomes
        return torch.cat([genomes[:2], before[2:3], genomes[3:]])


FAULTS: dict[str, Callable[[], Change]] = {
    "base served": lambda: served_by_the_base,
    "base served in one place": lambda: one_served_by_the_base,
    "scale applied twice": lambda: scaled_twice,
    "two places swapped": lambda: two_swapped,
    "factor transposed": lambda: a_factor_transposed,
    "stale place": Stale,
}


def eager(model: PreTrainedModel, layout: GenomeLayout) -> Engine:
    return EagerEngine(model, layout)


def cpu(model: PreTrainedModel, layout: GenomeLayout) -> Engine:
    return CpuEngine(model, layout, products="compiled")


def in_parts(model: PreTrainedModel, layout: GenomeLayout) -> Engine:
    engine = EagerEngine(model, layout)
    return SplitEngine(engine, engine.replica, threads=2)


every_engine = pytest.mark.parametrize("make", [eager, cpu, in_parts])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of few rows, so that a small batch has several."""
    monkeypatch.setattr(split_engine, "LEAST_ROWS_DECODED", 2)
    monkeypatch.setattr(split_engine, "LEAST_ROWS_SCORED", 2)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_base("tiny-gpt2").tokenizer


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_base("tiny-gpt2").model


Watched = Callable[..., Canary]


@pytest.fixture(scope="module")
def watched(tokenizer: PreTrainedTokenizerBase) -> Watched:
    """The canary of an engine that `make` makes, behind a `fault`."""

    def made(model: PreTrainedModel, make: Any = eager, fault: Change | None = None, **lora: Any) -> Canary:
        layout, founder = lora_layout(model, lora_config(model, **lora), seed=0)
        engine = make(model, layout)
        watched = engine if fault is None else Changed(engine, fault)
        return Canary(watched, model, founder, Text.of(model, tokenizer))

    return made


def alike(canary: Canary) -> Tensor:
    """A first generation: all are as the base."""
    return canary.founder.repeat(PLACES, 1)


def noisy(canary: Canary, size: float = 0.02) -> Tensor:
    noise = torch.randn(PLACES, len(canary.founder), generator=keyed_generator(0, "individuals"))
    return canary.founder + size * noise


def row_of(canary: Canary, genomes: Tensor, owner: int = 1) -> Row:
    """What an individual writes by the engine behind the fault."""
    prompt = canary.text.encode(["The sum of 4 and 3 is"])[0]
    ids = canary.engine.generate(genomes, [prompt], canary.text.decoding(6)).rows()[owner]
    return Row(owner, "individual 7", prompt, ids)


@every_engine
def test_right_engines_pass_in_every_generation(make: Any, model: PreTrainedModel, watched: Watched) -> None:
    canary = watched(model, make)
    for generation in range(1, 4):
        genomes = noisy(canary, 0.02 * generation)
        found = canary.check(genomes, row_of(canary, genomes, generation), generation=generation)
        assert 0 < found < 0.5


@every_engine
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_within_a_generation_while_all_are_alike(
    fault: str, make: Any, model: PreTrainedModel, watched: Watched
) -> None:
    canary = watched(model, make, FAULTS[fault]())
    canary.engine.generate(alike(canary), canary.text.encode(["4 + 3 ="]), canary.text.decoding(2))
    with pytest.raises(EngineError, match=r"the engine does not say of the sentinel in place \d what the model says"):
        canary.check(alike(canary), generation=1)


@every_engine
def test_a_cache_that_is_kept_by_its_text_alone_is_found(
    make: Any, model: PreTrainedModel, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary, start, kept = watched(model, make), DecodingBatch.start, dict[str, Any]()

    def start_from_kept(batch: DecodingBatch, drafts: Tensor | None) -> Tensor:
        layers = batch._layers
        now = layers.genomes, layers.factors
        layers.genomes, layers.factors = kept.setdefault(str(batch._texts), now)
        try:
            return start(batch, drafts)
        finally:
            layers.genomes, layers.factors = now

    monkeypatch.setattr(DecodingBatch, "start", start_from_kept)
    with pytest.raises(EngineError, match="does not say of the sentinel in place"):
        for generation in (1, 2):  # the first finds nothing kept
            canary.check(alike(canary), generation=generation)


def test_one_that_rows_are_dealt_to_is_found(
    model: PreTrainedModel, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the check's own rows are too few to be dealt."""
    monkeypatch.setattr(split_engine, "LEAST_ROWS_DECODED", 8)
    monkeypatch.setattr(split_engine, "LEAST_ROWS_SCORED", 8)

    def with_a_wrong_one(model: PreTrainedModel, layout: GenomeLayout) -> Engine:
        engine = EagerEngine(model, layout)
        return SplitEngine(engine, lambda: Changed(engine.replica(), scaled_twice), threads=2)

    canary = watched(model, with_a_wrong_one)
    assert canary.check(alike(canary), generation=1) < 1  # nothing was dealt yet
    canary.engine.generate(alike(canary), canary.text.encode(["4 + 3 ="] * 4), canary.text.decoding(2))
    with pytest.raises(EngineError, match=r"the engine 1 of 1 .*: it is what that adapter applied twice says") as found:
        canary.check(alike(canary), generation=2)
    assert not found.value.mended


class OwnRowsAlone:
    """The fault leaves sentinels as they are."""

    def __init__(self, fault: Change) -> None:
        self.fault, self.own = fault, torch.empty(0)

    def __call__(self, layout: GenomeLayout, genomes: Tensor) -> Tensor:
        return self.fault(layout, genomes) if torch.equal(genomes, self.own) else genomes


def test_what_an_individual_has_written_is_checked(model: PreTrainedModel, watched: Watched) -> None:
    """Whatever the sentinels say."""
    for fault, words in (
        (served_by_the_base, "individual 7 .*: it is what the base says"),
        (lambda _, genomes: genomes.roll(1, 0), "individual 7 .*: it is what the individual in place 0 says"),
    ):
        own = OwnRowsAlone(fault)
        canary = watched(model, eager, own)
        own.own = noisy(canary, 0.1)
        row = row_of(canary, own.own)
        with pytest.raises(EngineError, match=r"(of|that) individual 7 .*log-probabilities differ by"):
            canary.check(own.own, row)
        right = row_of(watched(model), own.own)
        with pytest.raises(EngineError, match=words):  # when it is scored, too
            canary.check(own.own, right)
        canary.engine = EagerEngine(model, canary.engine.layout)
        with pytest.raises(EngineError, match="of the tokens that individual 7 has written"):
            canary.check(own.own, row)
        assert canary.check(own.own, right) < 1


def test_a_genome_that_overflows_is_no_fault(model: PreTrainedModel, watched: Watched) -> None:
    canary = watched(model)
    genomes = noisy(canary)
    genomes[1] = 1e30
    assert canary.check(genomes, Row(1, "individual 7", [5, 6], [7, 8])) < 1


def test_what_it_draws_is_its_own(model: PreTrainedModel, watched: Watched) -> None:
    before = torch.get_rng_state()
    both = watched(model), watched(model)
    found = [both[0].check(noisy(both[0]), generation=generation) for generation in (1, 2)]
    assert both[1].check(noisy(both[1]), generation=2) == found[1]  # as in a run that was resumed
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3", "opt", "mpt", "mamba", "mixtral", "afmoe", "lfm2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_architectures_pass_and_faults_of_theirs_are_found(
    architecture: str, dtype: torch.dtype, watched: Watched
) -> None:
    model = random_model(architecture).to(dtype)
    canary = watched(model)
    for generation in range(1, 4):
        genomes = noisy(canary, 0.02 * generation)
        row = row_of(canary, genomes, generation)
        assert canary.check(genomes, row, generation=generation) <= 1
    for name, fault in FAULTS.items():
        canary.engine = Changed(EagerEngine(model, canary.engine.layout), fault())
        with pytest.raises(EngineError):
            for generation in range(2):  # what is stale needs something before it
                canary.check(alike(canary), generation=generation)
            pytest.fail(name)


def test_experts_that_a_last_bit_routes_elsewhere_are_no_fault(watched: Watched) -> None:
    """Of such a text the model itself says something else when its layers round otherwise."""
    model = random_model("mixtral").to(torch.bfloat16)
    layout, founder = lora_layout(model, lora_config(model), seed=0)
    oracle, generator = Oracle(model, layout), keyed_generator(0, "texts")
    wider, narrow = 0, 0
    for _ in range(12):
        prompt, ids = torch.randint(5, 90, (2, 6), generator=generator).tolist()
        answer = oracle.answer(founder, prompt, ids)
        tolerance = oracle.wider(founder, prompt, ids, answer)
        wider, narrow = wider + (tolerance > 1.5 * answer.tolerance), narrow + (tolerance == answer.tolerance)
    assert wider and narrow


def test_of_many_places_each_has_another_sentinel_in_the_next_generation(
    model: PreTrainedModel, watched: Watched
) -> None:
    canary = watched(model)
    kinds = torch.tensor([canary._kinds(20, generation) for generation in range(40)])
    assert ((kinds[1:] != kinds[:-1]).float().mean(0) > 0.9).all()
    together = (kinds[:, :, None] == kinds[:, None]).float().mean(0)
    assert (together.fill_diagonal_(0) < 1).all()  # no two places are always alike
    few = torch.tensor([canary._kinds(PLACES, generation) for generation in range(9)])
    assert (few[1:] != few[:-1]).all() and all(len(set(row)) == PLACES for row in few.tolist())

"""The check in every generation: right engines pass, and an adapter that is not truly applied is found at once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evolora.engine import split as split_engine
from evolora.engine.base import Completions, Engine, Scored
from evolora.engine.canary import Canary, Row, applied_twice
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.eager.engine import EagerEngine
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

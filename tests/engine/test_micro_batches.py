"""Micro-batches: the gradient of the whole, with no more of it kept at a time."""

import weakref
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import random_model
from torch import Tensor

from evolora.engine import calibration, micro_batches, split
from evolora.engine.base import Completions, Decoding, Scored, Scoring
from evolora.engine.budget import Budget
from evolora.engine.calibration import bytes_a_token_kept, choose_update_tokens, give_memory_back
from evolora.engine.choose import choose_engine
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.cpu.gpt2.activations import Gpt2Tape
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.micro_batches import MicroBatchEngine
from evolora.engine.split import SplitEngine
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
    parts = _found(MicroBatchEngine(engine, Budget(most_tokens)), genomes, owners, how)
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
    _found(MicroBatchEngine(engine, Budget(50)), genomes, None, Scoring(gradient=True))
    # Eleven tokens at most in a text, so four rows at a time: of one prompt by all three genomes.
    assert seen == [(False, 3)] * 4 + [(True, 3)] * 4


def test_dropout_is_the_same_when_activations_are_made_again(made: tuple[EagerEngine, Tensor]) -> None:
    """The gradient is that of the log-probabilities that were told: by finite differences."""
    engine, genomes = made
    parts = MicroBatchEngine(engine, Budget(50))
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
    chosen = choose_engine(model, layout, threads=threads, budget=Budget(30)).engine
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
    parts = MicroBatchEngine(engine, Budget(1000), gives_back=True)
    for name, turn in (("writes", 2), ("learns", 2), ("writes", 1)):
        for _ in range(turn):
            if name == "writes":
                parts.generate(genomes, PROMPTS, Decoding(max_new_tokens=1, ends=[], pad=0))
            else:
                _found(parts, genomes, None, Scoring(gradient=True))
            said.append(name)
    assert said == ["writes", "writes", "given back", "learns", "given back", "learns", "given back", "writes"]
    give_memory_back()


NO_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."
)


class Narrow:
    """An engine with memory for so many rows at a time, forwards with a gradient or without one, and backwards."""

    def __init__(self, engine: Any, *, kept: int = 10**6, free: int = 10**6, back: int = 10**6) -> None:
        self.engine, self.kept, self.free, self.back, self.failed = engine, kept, free, back, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def need(self, rows: int, room: int) -> None:
        if rows > room:
            self.failed.append(rows)
            raise RuntimeError(NO_MEMORY) if len(self.failed) % 2 else MemoryError

    def score(self, genomes: Any, prompts: Any, completions: Completions, how: Scoring, *, owners: Any = None) -> Any:
        rows = len(completions.ids)
        self.need(rows, self.kept if how.gradient else self.free)
        scored = self.engine.score(genomes, prompts, completions, how, owners=owners)
        backward = scored.backward

        def limited(*given: Any) -> Tensor:
            self.need(rows, self.back)
            return backward(*given)

        values = {name: getattr(scored, name) for name in ("log_probs", "entropy", "features", "release")}
        return SimpleNamespace(**values, backward=limited)

    def replica(self) -> "Narrow":
        return Narrow(self.engine.replica(), kept=self.kept, free=self.free, back=self.back)


def close(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for own, right in zip(found, expected, strict=True):
        torch.testing.assert_close(own, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("owners", [None, [0, 0, 2, 2]])
@pytest.mark.parametrize("room", [{"kept": 3}, {"back": 3}, {"kept": 1}, {"kept": 5, "back": 2, "free": 4}])
def test_what_runs_out_of_memory_is_done_again_in_halves(
    room: dict[str, int], owners: Sequence[int] | None, made: tuple[EagerEngine, Tensor]
) -> None:
    """Eleven tokens at most in a text, and twelve rows, or four with owners."""
    engine, genomes = made
    how = Scoring(
        gradient=True, entropy_gradient=True, features=True, dropout=0.3, dropout_seeds=np.arange(3, dtype=np.uint64)
    )
    narrow, budget = Narrow(engine, **room), Budget(1000)
    parts = MicroBatchEngine(narrow, budget)
    whole = _found(engine, genomes, owners, how)
    close(_found(parts, genomes, owners, how), whole)
    least = min(room.values())
    halves = [rows for rows in (12, 6, 3, 1) if rows > least] if owners is None else [4, 2][: 1 if least > 1 else 2]
    assert narrow.failed == halves, "as often as needed, and no more"
    assert budget.tokens == halves[-1] * 11 // 2
    news = f"out of memory: updates keep {budget.tokens} tokens at a time from now on"
    assert (budget.news(), budget.news()) == (news, None)
    close(_found(parts, genomes, owners, how), whole)
    assert len(narrow.failed) == len(halves) and budget.news() is None


def test_a_budget_is_halved_from_what_was_tried_with_it(made: tuple[EagerEngine, Tensor]) -> None:
    engine, genomes = made
    narrow, budget = Narrow(engine, kept=2), Budget(50)
    _found(MicroBatchEngine(narrow, budget), genomes, None, Scoring(gradient=True))
    assert (narrow.failed, budget.tokens) == ([3], 16), "four rows at most were three, one for each genome"


def test_one_text_for_which_there_is_no_memory_raises(made: tuple[EagerEngine, Tensor]) -> None:
    engine, genomes = made
    narrow, budget = Narrow(engine, back=0), Budget(1000)
    with pytest.raises((MemoryError, RuntimeError)):
        _found(MicroBatchEngine(narrow, budget), genomes, None, Scoring(gradient=True))
    assert narrow.failed == [12, 6, 3, 1]


def test_other_errors_are_not_tried_again(made: tuple[EagerEngine, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, genomes = made
    tried: list[int] = []

    def wrong(*_: Any) -> None:
        tried.append(1)
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(EagerEngine, "_score", wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        _found(MicroBatchEngine(engine, Budget(1000)), genomes, None, Scoring(gradient=True))
    assert tried == [1]


@pytest.mark.parametrize("whose", [None, "genomes"])
def test_what_has_no_gradient_goes_whole_until_it_runs_out(whose: str | None, made: tuple[EagerEngine, Tensor]) -> None:
    engine, genomes = made
    own = genomes if whose else None
    completions = _completions(12 if whose else 4)
    narrow, budget = Narrow(engine, free=3), Budget(25)
    parts = MicroBatchEngine(narrow, budget)
    expected = engine.score(own, PROMPTS, completions, Scoring()).log_probs
    for _ in range(2):
        found = parts.score(own, PROMPTS, completions, Scoring()).log_probs
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert narrow.failed == [len(completions.ids)], "once, though it is more than the budget"
    assert budget.news() == "out of memory: all texts are scored 25 tokens at a time from now on"


def test_what_is_held_is_let_go_before_it_is_tried_again(made: tuple[EagerEngine, Tensor]) -> None:
    """The graph of the whole batch, by a reference that counts for nothing."""
    engine, genomes = made
    graphs: list[Any] = []

    class Watched(Narrow):
        def score(self, *given: Any, **named: Any) -> Any:
            assert all(graph() is None for graph in graphs)
            scored = super().score(*given, **named)
            if given[3].gradient:
                graphs.append(weakref.ref(scored.log_probs))
            return scored

    _found(MicroBatchEngine(Watched(engine, back=3), Budget(1000)), genomes, None, Scoring(gradient=True))
    assert len(graphs) == 1 + 1 + 4


def test_parts_side_by_side_have_one_budget(made: tuple[EagerEngine, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, genomes = made
    monkeypatch.setattr(split, "LEAST_ROWS_SCORED", 1)
    narrow, budget = list[Narrow](), Budget(1000)

    def frugal(engine: Any) -> MicroBatchEngine:
        narrow.append(Narrow(engine, kept=2))
        return MicroBatchEngine(narrow[-1], budget)

    several = SplitEngine(frugal(engine), lambda: frugal(engine.replica()), threads=2)
    how = Scoring(gradient=True, entropy_gradient=True)
    whole = _found(engine, genomes, None, how)
    close(_found(several, genomes, None, how), whole)
    failed = [rows for one in narrow for rows in one.failed]
    assert len(narrow) == 2 and 2 <= len(failed) <= 4, "each with six rows, then perhaps with three"
    close(_found(several, genomes, None, how), whole)
    assert [rows for one in narrow for rows in one.failed] == failed, "both know of it"
    several.close()


def test_what_a_trace_has_no_memory_for_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("gpt2")
    layout, founder = lora_layout(model, lora_config(model), seed=0)
    genomes = founder + 0.05 * torch.randn(3, layout.genome_length, generator=torch.Generator().manual_seed(1))
    budget = Budget(1000)
    parts = MicroBatchEngine(CpuEngine(model, layout), budget)
    seeds = np.arange(12, dtype=np.uint64)
    written = parts.generate(genomes, PROMPTS, Decoding(max_new_tokens=6, ends=[], pad=0, seeds=seeds, trace=True))
    assert isinstance(written.trace, Gpt2Tape)
    weights = torch.randn(written.ids.shape, generator=torch.Generator().manual_seed(2))
    how = Scoring(gradient=True)
    whole = parts.score(genomes, PROMPTS, replace(written, trace=None), how).backward(weights)

    def lacking(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Gpt2Tape, "gradient", lacking)
    found = parts.score(genomes, PROMPTS, written, how).backward(weights)
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-5)
    assert budget.tokens == 12 * 11 // 2
    with pytest.raises(RuntimeError, match="once"):
        written.trace.logits()  # they are let go

"""Slices: how a batch is cut, and who does them, in one process."""

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from dealt import SLICE_ROWS, Subject, different

from evolora.distributed.crew import LocalCrew, Waiting
from evolora.distributed.engine import DealtEngine, DealtTrace
from evolora.distributed.jobs import AnyJob, Backward, Generate, Score, Worker
from evolora.distributed.wire import packed, unpacked
from evolora.engine.base import Decoding, Scoring
from evolora.engine.budget import Budget


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject.make()


def local(subject: Subject, workers: int, *, rows: int = SLICE_ROWS, budget: Budget | None = None) -> DealtEngine:
    makers = [lambda: Worker(subject.engine.replica())] * workers  # type: ignore[attr-defined]
    return DealtEngine(subject.engine, LocalCrew(makers), slice_rows=rows, budget=budget)


def test_any_number_of_workers_finds_the_same_bits(subject: Subject) -> None:
    one = subject.answers(local(subject, 1))
    assert not different(one, subject.answers(local(subject, 3)))
    whole = subject.answers(subject.engine)
    assert torch.equal(one["ids"], whole["ids"]) and torch.equal(one["greedy"], whole["greedy"])
    for name, found in one.items():
        torch.testing.assert_close(found, whole[name], rtol=1e-3, atol=1e-4)


def test_slices_depend_on_the_batch_and_are_small(subject: Subject) -> None:
    asked: list[AnyJob] = []

    class Noting(LocalCrew):
        def run(self, jobs: Any) -> list[Any]:
            asked.extend(jobs)
            return super().run(jobs)

    engine = DealtEngine(subject.engine, Noting([lambda: Worker(subject.engine)]), slice_rows=SLICE_ROWS)
    subject.answers(engine)

    def rows_of(job: Generate | Score) -> int:
        each = 1 if job.genomes is None or job.owners is not None else len(job.genomes)
        return len(job.prompts) * each

    rows = [rows_of(job) for job in asked if isinstance(job, Generate | Score)]
    assert max(rows) <= SLICE_ROWS < sum(rows)
    assert len({job.key for job in asked if not isinstance(job, Backward)}) == len(rows)


def test_what_the_budget_has_no_room_for_is_scored_again(subject: Subject) -> None:
    kept, again = subject.answers(local(subject, 2)), subject.answers(local(subject, 2, budget=Budget(400)))
    # A slice has room: so the slices are the same, and what is scored without a gradient first rounds otherwise.
    assert set(different(kept, again)) <= {"dropped"}
    torch.testing.assert_close(kept["dropped"], again["dropped"], rtol=1e-4, atol=1e-5)
    assert not different(again, subject.answers(local(subject, 1, budget=Budget(400))))


def test_out_of_memory_halves_the_budget_and_cuts_again(subject: Subject) -> None:
    budget = Budget(10_000)

    class Small(Worker):
        def do(self, job: AnyJob) -> Any:
            if isinstance(job, Score) and len(job.completions.ids) > 2:
                raise MemoryError("no more")
            return super().do(job)

    engine = DealtEngine(subject.engine, LocalCrew([lambda: Small(subject.engine)]), slice_rows=5, budget=budget)
    prompts = subject.text.encode(["2 + 2 ="] * 6)
    completions = subject.engine.generate(subject.genomes[:1], prompts, subject.text.decoding(4))
    scored = engine.score(subject.genomes[:1], prompts, completions, Scoring(gradient=True))
    right = subject.engine.score(subject.genomes[:1], prompts, completions, Scoring(gradient=True))
    torch.testing.assert_close(scored.log_probs, right.log_probs.detach(), rtol=1e-3, atol=1e-4)
    assert budget.tokens < 3 * (len(prompts[0]) + 4) and budget.news() is not None


def test_what_workers_keep_is_forgotten(subject: Subject) -> None:
    worker = Worker(subject.engine)
    engine = DealtEngine(subject.engine, LocalCrew([lambda: worker]), slice_rows=SLICE_ROWS)
    prompts = subject.text.encode(["2 + 2 =", "The sum of 4 and 3 is"])
    how = subject.text.decoding(4, seeds=torch.arange(6).numpy().astype("uint64"), trace=True)
    written = engine.generate(subject.genomes, prompts, how)
    assert isinstance(written.trace, DealtTrace) and worker._traces
    written.release()
    scored = engine.score(subject.genomes, prompts, written.select(torch.arange(6)), Scoring(gradient=True))
    assert worker._scored and not worker._traces
    del scored  # nobody went backwards
    engine.generate(None, prompts, how.of_rows(torch.arange(2)))
    assert not worker._scored


def test_a_failing_worker_ends_the_batch(subject: Subject) -> None:
    class Fails(Worker):
        def do(self, job: AnyJob) -> Any:
            raise ZeroDivisionError("at the third layer")

    engine = DealtEngine(subject.engine, LocalCrew([lambda: Fails(subject.engine)] * 2), slice_rows=1)
    with pytest.raises(ZeroDivisionError, match="third layer"):
        engine.generate(subject.genomes, subject.text.encode(["2 + 2 ="] * 3), subject.text.decoding(4))


def test_waiting_jobs_go_to_those_who_keep_something_for_them() -> None:
    how = Decoding(max_new_tokens=1, ends=(0,), pad=0)
    jobs = [Generate(key=key, genomes=None, prompts=[[1]], owners=None, how=how) for key in range(2)]
    of = torch.zeros(1, 1)
    back: list[AnyJob] = [Backward(key=key, of=None, of_log_probs=of, of_entropy=None) for key in (10, 11, 12)]

    def taken(waiting: Waiting, by: Iterable[int]) -> list[int | None]:
        return [waiting.take(worker) for worker in by]

    assert taken(Waiting(jobs, {}), (7, 8, 7)) == [0, 1, None]
    assert taken(Waiting(back, {10: 7, 11: 8, 12: 8}), (7, 7, 8, 8, 8)) == [0, None, 1, 2, None]
    waiting = Waiting(back, {10: 7, 11: 8, 12: 8})
    waiting.lost(8)
    assert taken(waiting, (7, 7, 7)) == [0, 1, 2]


def test_tensors_cross_the_wire_by_bits() -> None:
    odd = torch.tensor([math.nan, -0.0, math.inf])
    sent = {"a": odd, "b": torch.arange(12).view(3, 4)[:, 1:3].t(), "c": torch.tensor(3.5), "d": torch.empty(0, 4),
            "e": torch.tensor([True, False]), "f": torch.ones(2, dtype=torch.bfloat16)}  # fmt: skip
    got = unpacked(packed(sent))
    for name, tensor in sent.items():
        assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape
        assert got[name].numpy(force=True).tobytes() == tensor.contiguous().numpy().tobytes() if name != "f" else True
    part = torch.zeros(1000, 10)[:1]
    assert len(packed(part)) < 400  # and not what it is a part of


def test_genomes_cross_it_by_name() -> None:
    genomes = torch.randn(2, 5)
    data = packed({"x": genomes, "y": torch.ones(1)}, lambda tensor: ["a", "b"] if tensor is genomes else None)
    got = unpacked(data, lambda names: torch.tensor([[ord(name)] for name in names]))
    assert got["x"].tolist() == [[97], [98]] and got["y"].tolist() == [1]

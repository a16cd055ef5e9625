"""An engine that has its batches done in slices, by a crew."""

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from evolora.distributed.crew import Crew
from evolora.distributed.jobs import Backward, Generate, Score, Values, Written
from evolora.distributed.slices import cut, cut_owned
from evolora.engine.base import Completions, Decoding, Engine, Prompts, Scored, Scoring
from evolora.engine.budget import Budget
from evolora.engine.parts import Part, as_one_batch, genomes_of, order_of
from evolora.errors import out_of_memory

Result = TypeVar("Result")


class DealtEngine:
    """An engine like another one, whose batches a crew computes in slices of at most `slice_rows` rows.

    How a batch is cut depends on it, on that number and on the `budget` alone, and gradients are summed in the slices'
    order: whoever computes them, and however often, the bits are the same. Of a batch of more tokens than the budget
    has nobody keeps what the gradient takes: its slices are scored once more when it goes backwards. Where a worker
    runs out of memory the budget is halved, and the batch is cut again.
    """

    def __init__(
        self,
        like: Engine,
        crew: Crew,
        *,
        slice_rows: int,
        budget: Budget | None = None,
        keys: Iterator[int] | None = None,
    ) -> None:
        self.layout, self.size, self.hidden = like.layout, like.size, like.hidden
        self.device, self.dtype, self.trains = like.device, like.dtype, like.trains
        self.crew, self.slice_rows, self.budget = crew, slice_rows, budget
        self._keys = keys or itertools.count()

    def generate(
        self, genomes: Tensor | None, prompts: Prompts, how: Decoding, *, owners: Sequence[int] | None = None
    ) -> Completions:
        """See `Engine.generate`."""
        batch = _Batch(genomes, prompts, owners)
        parts = batch.cut(range(len(prompts)), self.slice_rows)
        jobs = [Generate(key=next(self._keys), how=how.of_rows(part.rows), **batch.slice(part)) for part in parts]
        answers: list[Written] = self.crew.run(jobs)
        found = Completions.joined([answer.completions for answer in answers], how.pad).select(order_of(parts))
        traced = all(answer.traced for answer in answers)
        trace = DealtTrace(batch.shape, parts, jobs, self.crew) if traced else None
        return replace(found.to(self.device), trace=trace)

    def score(
        self,
        genomes: Tensor | None,
        prompts: Prompts,
        completions: Completions,
        how: Scoring,
        *,
        owners: Sequence[int] | None = None,
    ) -> Scored:
        """See `Engine.score`. Completions with a trace are scored in the slices that wrote them."""
        batch = _Batch(genomes, prompts, owners)
        if len(completions.ids) != batch.rows:
            raise ValueError(f"{batch.rows} prompts with {len(completions.ids)} completions")
        return DealtScored(self, batch, completions, how)

    def start(self) -> None:
        """Get workers to work, before they are needed. Raises InputError where there can be none."""
        self.crew.start()

    def words(self) -> str:
        """Who computes, for the log."""
        return f"slices of {self.slice_rows} rows, by {self.crew.words()}"

    def dealt_to(self) -> Sequence[Engine]:
        """The workers that there are now, each as an engine that can be asked by itself, side by side."""
        return self.crew.engines(self)

    def dismiss(self, one: Engine) -> bool:
        """Let one of them go, which computes something wrong, and all that was kept of it. Whether others can do what
        it did."""
        return self.crew.dismiss(one)

    def metrics(self) -> dict[str, float]:
        """What a generation's metrics say of who computed it."""
        return self.crew.metrics()

    def close(self) -> None:
        """See `Engine.close`."""
        self.crew.close()


@dataclass(frozen=True)
class _Batch:
    """What is asked for: prompts of all genomes, or of their `owners`."""

    genomes: Tensor | None
    prompts: Prompts
    owners: Sequence[int] | None

    def __post_init__(self) -> None:
        if self.genomes is None:
            object.__setattr__(self, "owners", None)

    @property
    def individuals(self) -> int:
        return 1 if self.genomes is None else len(self.genomes)

    @property
    def rows(self) -> int:
        return len(self.prompts) * (1 if self.owners is not None else self.individuals)

    @property
    def shape(self) -> tuple[int, int, bool]:
        return self.individuals, len(self.prompts), self.owners is not None

    def cut(self, order: Sequence[int], most: int) -> list[Part]:
        """Parts of at most so many rows, each individual's dealt in this order."""
        if self.owners is None:
            return cut(self.individuals, order, most)
        return cut_owned(self.owners, order, most)

    def slice(self, part: Part) -> dict[str, Any]:
        """What a job has of it."""
        own, first = part.own.tolist(), part.individuals.start
        return {
            "genomes": genomes_of(self.genomes, part),
            "prompts": [self.prompts[row] for row in own],
            "owners": None if self.owners is None else [self.owners[row] - first for row in own],
        }


class DealtTrace:
    """What the slices' workers have kept, of a batch of this `shape`."""

    def __init__(self, shape: tuple[int, int, bool], parts: list[Part], jobs: list[Generate], crew: Crew) -> None:
        self.shape, self.parts, self.jobs = shape, parts, jobs
        self._end = weakref.finalize(self, crew.forget, [job.key for job in jobs])

    def release(self) -> None:
        self._end()


class DealtScored:
    """What the slices came to, as one batch."""

    def __init__(self, engine: DealtEngine, batch: _Batch, completions: Completions, how: Scoring) -> None:
        self._engine, self._batch, self._completions, self._how = engine, batch, completions, how
        self._end: Callable[[], object] = lambda: None
        self._kept: tuple[list[Part], list[Score]] | None = None
        longest = max(map(len, batch.prompts), default=0) + completions.ids.shape[1]
        self._longest = longest
        # The completions of one prompt stay together: what they share is computed once.
        self._alike = sorted(range(len(batch.prompts)), key=lambda row: list(batch.prompts[row]))
        self.log_probs, self.entropy, self.features = self._fitted(self._values)

    def _values(self) -> tuple[Tensor, Tensor, Tensor | None]:
        engine, how = self._engine, self._how
        trace = self._completions.trace
        if isinstance(trace, DealtTrace) and trace.shape != self._batch.shape:
            trace.release()
            trace = None
        parts = trace.parts if isinstance(trace, DealtTrace) else self._parts()
        wants = how.gradient and self._batch.genomes is not None
        kept = wants and (isinstance(trace, DealtTrace) or self._fits())
        jobs = self._jobs(parts, how if kept else replace(how, gradient=False), kept=kept, trace=trace)
        if kept:
            self._kept = parts, jobs
            self._end = weakref.finalize(self, engine.crew.forget, [job.key for job in jobs])
        values: list[Values] = engine.crew.run(jobs)
        log_probs, entropy, features = as_one_batch(values, parts)
        device = engine.device
        return log_probs.to(device), entropy.to(device), None if features is None else features.to(device)

    def backward(self, of_log_probs: Tensor, of_entropy: Tensor | None = None) -> Tensor:
        if not self._how.gradient or self._batch.genomes is None:
            raise RuntimeError("scored without a gradient")
        gradients = of_log_probs.cpu(), None if of_entropy is None else of_entropy.cpu()
        return self._fitted(lambda: self._gradient(*gradients))

    def _gradient(self, of_log_probs: Tensor, of_entropy: Tensor | None) -> Tensor:
        if self._kept is not None:
            parts, scored = self._kept
        else:
            parts = self._parts()
            scored = self._jobs(parts, replace(self._how, features=False), kept=False, trace=None)
        jobs = [
            Backward(
                key=job.key,
                of=job,
                of_log_probs=of_log_probs[part.rows],
                of_entropy=None if of_entropy is None else of_entropy[part.rows],
            )
            for part, job in zip(parts, scored, strict=True)
        ]
        found: list[Tensor] = self._engine.crew.run(jobs)
        gradient = found[0].new_zeros(self._batch.individuals, found[0].shape[1])
        for part, own in zip(parts, found, strict=True):  # in the slices' order: a sum rounds by it
            gradient[part.individuals] += own
        return gradient.to(self._engine.device)

    def _jobs(self, parts: list[Part], how: Scoring, *, kept: bool, trace: Any) -> list[Score]:
        completions = self._completions.to("cpu")
        traces = trace.jobs if isinstance(trace, DealtTrace) else [None] * len(parts)
        return [
            Score(
                key=next(self._engine._keys),
                completions=completions.select(part.rows),
                how=how.of_genomes(part.individuals),
                trace=traces[index],
                kept=kept,
                **self._batch.slice(part),
            )
            for index, part in enumerate(parts)
        ]

    def _parts(self) -> list[Part]:
        budget, most = self._engine.budget, self._engine.slice_rows
        if budget is not None and (budget.of_all or self._how.gradient):
            most = min(most, max(1, budget.tokens // self._longest))
        return self._batch.cut(self._alike, most)

    def _fits(self) -> bool:
        """Whether one worker alone could keep what the whole batch's gradient takes."""
        budget = self._engine.budget
        return budget is None or self._batch.rows * self._longest <= budget.tokens

    def _fitted(self, compute: Callable[[], Result]) -> Result:
        """What `compute` finds, in smaller slices as often as a worker's memory runs out."""
        while True:
            try:
                return compute()
            except Exception as error:
                most = max(len(part.rows) for part in (self._kept[0] if self._kept is not None else self._parts()))
                if self._engine.budget is None or most == 1 or not out_of_memory(error):
                    raise
            self.release()
            self._completions = replace(self._completions, trace=None)
            gc.collect()
            self._engine.budget.ran_out(most * self._longest, gradient=self._how.gradient)

    def release(self) -> None:
        """See `Scored.release`."""
        self._end()
        self._kept = None
        self._completions.release()

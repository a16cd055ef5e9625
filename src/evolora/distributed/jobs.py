"""What is done with one slice of a batch, by whoever is free: each job says all that it takes, so that another worker
can do it again, to the same bits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from evolora.engine.base import Completions, Decoding, Engine, Prompts, Scored, Scoring, Trace
from evolora.engine.calibration import give_memory_back


@dataclass(frozen=True, kw_only=True)
class Job:
    """One slice: what it is called in a run, its genomes [n, genome_length] and its texts."""

    key: int
    genomes: Tensor | None
    prompts: Prompts
    owners: Sequence[int] | None

    @property
    def needs(self) -> int | None:
        """The job whose worker has kept something for this one."""
        return None


@dataclass(frozen=True, kw_only=True)
class Generate(Job):
    """Answered by `Written`. With a row to be `scored`, what was written there is scored, too."""

    how: Decoding
    scored: int | None = None


@dataclass(frozen=True, kw_only=True)
class Score(Job):
    """Answered by `Values`. What the gradient takes stays with the worker if it is `kept`. With a `trace`, by what that
    job has left, or leaves when it is done again."""

    completions: Completions
    how: Scoring
    trace: Generate | None = None
    kept: bool = False

    @property
    def needs(self) -> int | None:
        return None if self.trace is None else self.trace.key


@dataclass(frozen=True, kw_only=True)
class Backward:
    """Answered by the gradient of the slice's genomes: from what the job `of` has left, or leaves when it is done
    again. The worker that has it needs only the `key` of that job."""

    key: int
    of: Score | None
    of_log_probs: Tensor
    of_entropy: Tensor | None

    @property
    def needs(self) -> int:
        return self.key


AnyJob = Generate | Score | Backward


@dataclass(frozen=True)
class Written:
    """Completions without their trace, which stays with the worker; whether there is one; and log-probabilities of the
    row that was to be scored."""

    completions: Completions
    traced: bool
    scored: Tensor | None = None


@dataclass(frozen=True)
class Values:
    """What was scored, without its graph."""

    log_probs: Tensor
    entropy: Tensor
    features: Tensor | None


class Worker:
    """Does jobs on an engine of its own. With `gives_back` what is free in the process's heap is given back to the
    system before updates and after them."""

    def __init__(self, engine: Engine, *, gives_back: bool = False) -> None:
        self.engine, self.gives_back = engine, gives_back
        self._learned = False
        self._traces: dict[int, Trace] = {}
        self._scored: dict[int, Scored] = {}

    @torch.no_grad()
    def do(self, job: AnyJob) -> Any:
        """The job's answer, on the CPU."""
        learns = isinstance(job, Backward) or (isinstance(job, Score) and job.how.gradient)
        if self.gives_back and learns != self._learned:
            give_memory_back()
        self._learned = learns
        if isinstance(job, Generate):
            return self._generate(job)
        if isinstance(job, Score):
            scored = self._score(job)
            if job.kept:
                self._scored[job.key] = scored
            values = Values(_on_cpu(scored.log_probs), _on_cpu(scored.entropy), _on_cpu(scored.features))
            if not job.kept:
                scored.release()
            return values
        scored = self._scored.pop(job.key) if job.key in self._scored else self._score_again(job.of)
        device = scored.log_probs.device
        of_entropy = None if job.of_entropy is None else job.of_entropy.to(device)
        return _on_cpu(scored.backward(job.of_log_probs.to(device), of_entropy))

    def _generate(self, job: Generate) -> Written:
        found = self.engine.generate(_own(job.genomes), job.prompts, job.how, owners=job.owners)
        if found.trace is not None:
            self._traces[job.key] = found.trace
        completions = replace(found.to("cpu"), trace=None)
        scored = None if job.scored is None else score_row(self.engine, job, job.scored, completions, Scoring())
        return Written(completions, found.trace is not None, scored)

    def _score(self, job: Score) -> Scored:
        completions = job.completions.to(self.engine.device)
        if job.trace is not None:
            if job.trace.key not in self._traces:
                self._generate(job.trace)
            completions = replace(completions, trace=self._traces.pop(job.trace.key))
        return self.engine.score(_own(job.genomes), job.prompts, completions, job.how, owners=job.owners)

    def _score_again(self, job: Score | None) -> Scored:
        assert job is not None
        return self._score(replace(job, how=replace(job.how, gradient=True, features=False)))

    def forget(self, keys: Iterable[int]) -> None:
        """Nobody will ask for what these jobs have left."""
        for key in keys:
            if (trace := self._traces.pop(key, None)) is not None:
                trace.release()
            if (scored := self._scored.pop(key, None)) is not None:
                scored.release()


def _own(genomes: Tensor | None) -> Tensor | None:
    """In memory of their own, which begins where any tensor's does: libraries round by that, too."""
    return None if genomes is None else genomes.detach().clone(memory_format=torch.contiguous_format)


def _on_cpu(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach().cpu()


def score_row(engine: Engine, job: Generate | Score, row: int, completions: Completions, how: Scoring) -> Tensor:
    """Log-probabilities [length] of one row of a slice's completions, by itself."""
    genome, owner, prompt = of_row(job, row)
    of_genome = how if genome is None else how.of_genomes(slice(owner, owner + 1))
    one = replace(completions.select(torch.tensor([row])), features=None).to(engine.device)
    return engine.score(genome, [prompt], one, of_genome).log_probs[0].cpu()


def of_row(job: Generate | Score, row: int) -> tuple[Tensor | None, int, Sequence[int]]:
    """The genome [1, genome_length] of a row, its place in the slice, and the prompt."""
    owner, prompt = 0, row
    if job.owners is not None:
        owner = job.owners[row]
    elif job.genomes is not None:
        owner, prompt = divmod(row, len(job.prompts))
    return (None if job.genomes is None else job.genomes[owner : owner + 1]), owner, job.prompts[prompt]


def rows_of(job: Generate | Score) -> int:
    """How many rows a slice has."""
    return len(job.prompts) * (1 if job.genomes is None or job.owners is not None else len(job.genomes))

"""A batch in parts, dealt to several engines on the same model, which run them side by side."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import torch
from torch import Tensor

from evolora.engine.base import Completions, Decoding, Engine, Prompts, Scored, Scoring, Trace
from evolora.engine.parts import Part, as_one_batch, genomes_of, order_of
from evolora.engine.threads import Result, Threads

# Rows that a part has at least (docs/performance.md). With fewer to decode, each step's Python, which threads cannot
# share, outweighs what is gained, and each part reads the weights for itself.
LEAST_ROWS_DECODED = 32
LEAST_ROWS_SCORED = 8


def split(individuals: int, rows: Sequence[int], count: int) -> list[Part]:
    """A batch of `individuals`, each with as many rows, as up to `count` parts of nearly equal size. An individual's
    `rows` are dealt out in the order given: neighbours stay together.

    Whole individuals are dealt out, or some rows of all of them, whichever makes the largest part smaller.

    >>> [(part.individuals, part.rows.tolist()) for part in split(2, range(3), 2)]
    [(slice(0, 1, None), [0, 1, 2]), (slice(1, 2, None), [3, 4, 5])]
    >>> [(part.individuals, part.rows.tolist()) for part in split(1, [2, 0, 1], 2)]
    [(slice(0, 1, None), [2, 0]), (slice(0, 1, None), [1])]
    """
    everybody, own, each = torch.arange(individuals), torch.tensor(list(rows)), len(rows)
    if math.ceil(individuals / count) * each <= individuals * math.ceil(each / count):
        dealt = [(some, own) for some in everybody.tensor_split(count) if len(some)]
    else:
        dealt = [(everybody, some) for some in own.tensor_split(count) if len(some)]
    return [
        Part(slice(int(some[0]), int(some[-1]) + 1), (some[:, None] * each + part).flatten(), part)
        for some, part in dealt
    ]


def split_owned(owners: Sequence[int], rows: Sequence[int], count: int) -> list[Part]:
    """The same of rows that have `owners`, ascending, and may not be equally many for each individual.

    >>> [(part.individuals, part.rows.tolist()) for part in split_owned([0, 0, 1], [1, 0, 2], 2)]
    [(slice(0, 1, None), [1, 0]), (slice(1, 2, None), [2])]
    """
    groups = [torch.tensor(list(own)) for _, own in groupby(sorted(rows, key=owners.__getitem__), owners.__getitem__)]
    most = max(map(len, groups))
    if math.ceil(len(groups) / count) * most <= len(groups) * math.ceil(most / count):
        edges = [len(groups) * i // count for i in range(count + 1)]
        dealt = [groups[first:last] for first, last in pairwise(edges) if last > first]
    else:
        dealt = [list(some) for some in zip(*(own.tensor_split(count) for own in groups), strict=True)]
    found = [some for some in map(torch.cat, dealt) if len(some)]
    return [Part(slice(owners[int(some[0])], owners[int(some[-1])] + 1), some, some) for some in found]


@dataclass(frozen=True)
class SplitTrace:
    """The parts' own traces, of so many `individuals`."""

    individuals: int
    parts: list[Part]
    traces: list[Trace]

    def release(self) -> None:
        for trace in self.traces:
            trace.release()


class SplitEngine:
    """Engines on one model, the first of them given; the others are made by `replica` when they are needed.

    In up to `threads` parts at once; with `most_rows`, which a large model needs, in more parts of so many rows that
    wait for their turn.
    """

    def __init__(
        self, engine: Engine, replica: Callable[[], Engine], *, threads: int, most_rows: int | None = None
    ) -> None:
        self.layout, self.size, self.hidden = engine.layout, engine.size, engine.hidden
        self.device, self.dtype, self.trains = engine.device, engine.dtype, engine.trains
        self.engines = [engine]
        self.threads = threads
        self.most_rows = most_rows
        self._replica = replica
        self._runner = Threads(threads)

    def generate(
        self, genomes: Tensor | None, prompts: Prompts, how: Decoding, *, owners: Sequence[int] | None = None
    ) -> Completions:
        """See `Engine.generate`."""
        individuals = 1 if genomes is None else len(genomes)
        rows = len(prompts) * (1 if owners is not None else individuals)
        count = max(1, min(self.threads, rows // LEAST_ROWS_DECODED))
        if count > 1 and self.most_rows is not None:
            count *= math.ceil(rows / (count * self.most_rows))
        if count == 1 or owners is not None:
            return self.engines[0].generate(genomes, prompts, how, owners=owners)
        parts = split(individuals, range(len(prompts)), count)

        def complete(index: int) -> Completions:
            part = parts[index]
            own = [prompts[row] for row in part.own.tolist()]
            return self.engines[index].generate(genomes_of(genomes, part), own, how.of_rows(part.rows))

        found = self._side_by_side(complete, len(parts))
        completions = Completions.joined(found, how.pad).select(order_of(parts).to(self.device))
        traces = [one.trace for one in found]
        if any(trace is None for trace in traces):
            return completions
        return replace(completions, trace=SplitTrace(individuals, parts, traces))

    def score(
        self,
        genomes: Tensor | None,
        prompts: Prompts,
        completions: Completions,
        how: Scoring,
        *,
        owners: Sequence[int] | None = None,
    ) -> Scored:
        """See `Engine.score`. Completions with a trace are scored in the parts that wrote them."""
        owners, individuals = (None, 1) if genomes is None else (owners, len(genomes))
        rows = len(prompts) * (1 if owners is not None else individuals)
        if len(completions.ids) != rows:
            raise ValueError(f"{rows} prompts with {len(completions.ids)} completions")
        trace = completions.trace if isinstance(completions.trace, SplitTrace) else None
        if trace is not None and (owners is not None or trace.individuals != individuals):
            # Its parts are not those of this batch.
            trace.release()
            trace, completions = None, replace(completions, trace=None)
        count = max(1, min(self.threads, rows // LEAST_ROWS_SCORED))
        if trace is None and count == 1:
            return self.engines[0].score(genomes, prompts, completions, how, owners=owners)
        if trace is not None:
            parts, traces = trace.parts, list[Trace | None](trace.traces)
        else:
            # The completions of one prompt stay together: what they share is computed once.
            alike = sorted(range(len(prompts)), key=lambda row: list(prompts[row]))
            parts = split(individuals, alike, count) if owners is None else split_owned(owners, alike, count)
            traces = [None] * len(parts)

        def score(index: int) -> Scored:
            part = parts[index]
            own = [prompts[row] for row in part.own.tolist()]
            whose = None if owners is None else [owners[row] - part.individuals.start for row in part.own.tolist()]
            some = replace(completions.select(part.rows.to(self.device)), trace=traces[index])
            of_part = how.of_genomes(part.individuals)
            return self.engines[index].score(genomes_of(genomes, part), own, some, of_part, owners=whose)

        return Joined(self._side_by_side(score, len(parts)), parts, individuals, self._runner)

    def dealt_to(self) -> Sequence[Engine]:
        """See `Deals.dealt_to`. Small batches go to the first one."""
        return self.engines[1:]

    def dismiss(self, one: Engine) -> bool:
        """See `Deals.dismiss`. What is wrong with one of them is wrong with this process."""
        del one
        return False

    def _side_by_side(self, run: Callable[[int], Result], parts: int) -> list[Result]:
        while len(self.engines) < parts:
            self.engines.append(self._replica())
        return self._runner.side_by_side(run, parts)

    def close(self) -> None:
        """Close all engines, and end the threads."""
        self._runner.close()
        for engine in self.engines:
            engine.close()


class Joined:
    """What the parts found, as one batch. Each part has its own graph: so they go backwards side by side, too."""

    def __init__(self, scored: list[Scored], parts: list[Part], individuals: int, runner: Threads) -> None:
        self._scored, self._parts, self._individuals, self._runner = scored, parts, individuals, runner
        self.log_probs, self.entropy, self.features = as_one_batch(scored, parts)

    def backward(self, of_log_probs: Tensor, of_entropy: Tensor | None = None) -> Tensor:
        def go_back(index: int) -> Tensor:
            rows = self._parts[index].rows.to(of_log_probs.device)
            return self._scored[index].backward(of_log_probs[rows], None if of_entropy is None else of_entropy[rows])

        found = self._runner.side_by_side(go_back, len(self._parts))
        gradient = found[0].new_zeros(self._individuals, found[0].shape[1])
        for part, own in zip(self._parts, found, strict=True):  # in the parts' order: a sum rounds by it
            gradient[part.individuals] += own
        return gradient

    def release(self) -> None:
        for one in self._scored:
            one.release()

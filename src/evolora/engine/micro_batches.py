"""Gradients of large batches in the memory of small ones: micro-batches whose activations are made again when they are
needed."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from evolora.engine.base import Completions, Decoding, Engine, Prompts, Scored, Scoring
from evolora.engine.calibration import give_memory_back
from evolora.engine.parts import Part, as_one_batch, genomes_of
from evolora.models.cost import ModelSize
from evolora.models.genome import GenomeLayout


class MicroBatchEngine:
    """An engine that keeps what the gradient needs of at most about `most_tokens` tokens at a time.

    A batch of more is scored in micro-batches without a gradient. When it goes backwards each of them is scored once
    more, with one, and their gradients are summed in order: a third more operations, and the same result up to
    rounding. How a batch is cut depends on it and on `most_tokens` alone.

    With `gives_back` what is free in the process's heap is given back to the system before each update and after the
    last: tensors of one size do not fit into the holes of another, nor of another thread's.
    """

    def __init__(self, engine: Engine, most_tokens: int, *, gives_back: bool = False) -> None:
        self.engine, self.most_tokens, self.gives_back = engine, most_tokens, gives_back
        self._learned = False
        self.layout: GenomeLayout = engine.layout
        self.size: ModelSize = engine.size
        self.hidden, self.device, self.dtype, self.trains = engine.hidden, engine.device, engine.dtype, engine.trains

    def generate(
        self, genomes: Tensor | None, prompts: Prompts, how: Decoding, *, owners: Sequence[int] | None = None
    ) -> Completions:
        """See `Engine.generate`."""
        self._turn(learns=False)
        return self.engine.generate(genomes, prompts, how, owners=owners)

    def score(
        self,
        genomes: Tensor | None,
        prompts: Prompts,
        completions: Completions,
        how: Scoring,
        *,
        owners: Sequence[int] | None = None,
    ) -> Scored:
        """See `Engine.score`. What has a trace needs no activations made again."""
        self._turn(learns=how.gradient)
        lengths = [len(prompt) for prompt in prompts]
        if genomes is None or not how.gradient or completions.trace is not None:
            return self.engine.score(genomes, prompts, completions, how, owners=owners)
        longest = max(lengths) + completions.ids.shape[1]
        parts = list(self._parts(len(genomes), len(prompts), longest, owners))
        if len(parts) == 1:
            return self.engine.score(genomes, prompts, completions, how, owners=owners)
        return _Recomputed(self.engine, genomes, prompts, completions, how, owners, parts)

    def _turn(self, *, learns: bool) -> None:
        if self.gives_back and (learns or self._learned):
            give_memory_back()
        self._learned = learns

    def _parts(self, genomes: int, prompts: int, longest: int, owners: Sequence[int] | None) -> Iterator[Part]:
        most_rows = max(1, self.most_tokens // longest)
        everybody = list(range(prompts))
        if owners is not None:
            for own in _batched(everybody, most_rows):
                yield Part(slice(genomes), torch.tensor(own), torch.tensor(own))
            return
        together = min(genomes, most_rows)
        for first, own in itertools.product(
            range(0, genomes, together), _batched(everybody, max(1, most_rows // together))
        ):
            some = range(first, min(first + together, genomes))
            rows = torch.tensor([genome * prompts + row for genome in some for row in own])
            yield Part(slice(some.start, some.stop), rows, torch.tensor(own))

    def close(self) -> None:
        """See `Engine.close`."""
        self.engine.close()


def _batched(rows: list[int], size: int) -> list[list[int]]:
    return [rows[first : first + size] for first in range(0, len(rows), size)]


class _Recomputed:
    """Micro-batches that have been scored without a gradient, and are again, with one, when it is asked for."""

    def __init__(
        self,
        engine: Engine,
        genomes: Tensor,
        prompts: Prompts,
        completions: Completions,
        how: Scoring,
        owners: Sequence[int] | None,
        parts: list[Part],
    ) -> None:
        self._engine, self._genomes, self._prompts = engine, genomes, prompts
        self._completions, self._how, self._owners, self._parts = completions, how, owners, parts
        found = [self._score(index, replace(how, gradient=False)) for index in range(len(parts))]
        self.log_probs, self.entropy, self.features = as_one_batch(found, parts)

    def _score(self, index: int, how: Scoring) -> Scored:
        part = self._parts[index]
        return self._engine.score(
            genomes_of(self._genomes, part),
            [self._prompts[row] for row in part.own.tolist()],
            self._completions.select(part.rows.to(self._completions.ids.device)),
            how.of_genomes(part.individuals),
            owners=None if self._owners is None else [self._owners[row] for row in part.own.tolist()],
        )

    def backward(self, of_log_probs: Tensor, of_entropy: Tensor | None = None) -> Tensor:
        gradient = torch.zeros_like(self._genomes)
        for index, part in enumerate(self._parts):
            rows = part.rows.to(of_log_probs.device)
            scored = self._score(index, replace(self._how, features=False))
            own = scored.backward(of_log_probs[rows], None if of_entropy is None else of_entropy[rows])
            gradient[part.individuals] += own.to(gradient)
        return gradient

    def release(self) -> None:
        """Nothing is kept."""

"""Gradients of large batches in the memory of small ones: micro-batches whose activations are made again when they are
needed, and smaller ones where memory runs out."""

import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from evolora.engine.base import Completions, Deals, Decoding, Engine, Prompts, Scored, Scoring
from evolora.engine.budget import Budget
from evolora.engine.calibration import give_memory_back
from evolora.engine.parts import Part, as_one_batch, genomes_of
from evolora.errors import out_of_memory
from evolora.models.cost import ModelSize
from evolora.models.genome import GenomeLayout

Result = TypeVar("Result")


class MicroBatchEngine:
    """An engine that keeps what the gradient needs of at most about as many tokens at a time as its `budget` has.

    A batch of more is scored in micro-batches without a gradient. When it goes backwards each of them is scored once
    more, with one, and their gradients are summed in order: a third more operations, and the same result up to
    rounding. How a batch is cut depends on it and on the budget alone. Where memory runs out, what is held is let go,
    the budget is halved, and the batch is cut again; only a single text that does not fit raises.

    With `gives_back` what is free in the process's heap is given back to the system before each update and after the
    last: tensors of one size do not fit into the holes of another, nor of another thread's.
    """

    def __init__(self, engine: Engine, budget: Budget, *, gives_back: bool = False) -> None:
        self.engine, self.budget, self.gives_back = engine, budget, gives_back
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
        return _Fitted(self.engine, self.budget, genomes, prompts, completions, how, owners)

    def _turn(self, *, learns: bool) -> None:
        if self.gives_back and (learns or self._learned):
            give_memory_back()
        self._learned = learns

    def dealt_to(self) -> Sequence[Engine]:
        """See `Deals.dealt_to`."""
        return self.engine.dealt_to() if isinstance(self.engine, Deals) else []

    def dismiss(self, one: Engine) -> bool:
        """See `Deals.dismiss`."""
        return isinstance(self.engine, Deals) and self.engine.dismiss(one)

    def close(self) -> None:
        """See `Engine.close`."""
        self.engine.close()


class _Fitted:
    """A batch scored in the memory that there is: whole, or in micro-batches without a gradient, which are scored
    again, with one, when it is asked for."""

    def __init__(
        self,
        engine: Engine,
        budget: Budget,
        genomes: Tensor | None,
        prompts: Prompts,
        completions: Completions,
        how: Scoring,
        owners: Sequence[int] | None,
    ) -> None:
        self._engine, self._budget, self._genomes, self._prompts = engine, budget, genomes, prompts
        self._completions, self._how = completions, how
        self._owners = None if genomes is None else owners
        self._longest = max(map(len, prompts)) + completions.ids.shape[1]
        self._whole: Scored | None = None
        self.log_probs, self.entropy, self.features = self._fitted(self._values)

    def _values(self, parts: list[Part]) -> tuple[Tensor, Tensor, Tensor | None]:
        if len(parts) > 1:
            how = replace(self._how, gradient=False)
            return as_one_batch([self._score(part, how) for part in parts], parts)
        self._whole = whole = self._engine.score(
            self._genomes, self._prompts, self._completions, self._how, owners=self._owners
        )
        return whole.log_probs.detach(), whole.entropy.detach(), whole.features

    def backward(self, of_log_probs: Tensor, of_entropy: Tensor | None = None) -> Tensor:
        return self._fitted(lambda parts: self._gradient(parts, of_log_probs, of_entropy))

    def _gradient(self, parts: list[Part], of_log_probs: Tensor, of_entropy: Tensor | None) -> Tensor:
        if self._whole is not None:
            return self._whole.backward(of_log_probs, of_entropy)
        assert self._genomes is not None
        gradient = torch.zeros_like(self._genomes)
        how = replace(self._how, features=False)
        for part in parts:
            rows = part.rows.to(of_log_probs.device)
            of_part = of_log_probs[rows], None if of_entropy is None else of_entropy[rows]
            own = self._score(part, how).backward(*of_part)  # has no name: the next part's would live beside it
            gradient[part.individuals] += own.to(gradient)
        return gradient

    def _score(self, part: Part, how: Scoring) -> Scored:
        return self._engine.score(
            genomes_of(self._genomes, part),
            [self._prompts[row] for row in part.own.tolist()],
            self._completions.select(part.rows.to(self._completions.ids.device)),
            how.of_genomes(part.individuals),
            owners=None if self._owners is None else [self._owners[row] for row in part.own.tolist()],
        )

    def _fitted(self, compute: Callable[[list[Part]], Result]) -> Result:
        """What `compute` makes of the batch in parts, which are smaller as often as memory runs out."""
        while True:
            parts = list(self._parts())
            most = max(len(part.rows) for part in parts)
            try:
                return compute(parts)
            except Exception as error:
                if most == 1 or not out_of_memory(error):
                    raise
            # Not before: the exception has the frames that it came through, and whatever they held.
            self.release()
            self._completions = replace(self._completions, trace=None)
            gc.collect()
            if self._completions.ids.device.type == "cuda":
                torch.cuda.empty_cache()
            give_memory_back()
            self._budget.ran_out(most * self._longest, gradient=self._how.gradient)

    def _parts(self) -> Iterator[Part]:
        everybody = list(range(len(self._prompts)))
        genomes = 1 if self._genomes is None else len(self._genomes)
        rows = len(everybody) * (1 if self._owners is not None else genomes)
        kept = self._whole is not None or self._completions.trace is not None
        free = self._genomes is None or not self._how.gradient
        most = rows if kept or (free and not self._budget.of_all) else max(1, self._budget.tokens // self._longest)
        if self._owners is not None:
            for own in _batched(everybody, most):
                yield Part(slice(genomes), torch.tensor(own), torch.tensor(own))
            return
        together = min(genomes, most)
        for first, own in itertools.product(range(0, genomes, together), _batched(everybody, max(1, most // together))):
            some = range(first, min(first + together, genomes))
            of_batch = torch.tensor([genome * len(everybody) + row for genome in some for row in own])
            yield Part(slice(some.start, some.stop), of_batch, torch.tensor(own))

    def release(self) -> None:
        """See `Scored.release`. What was scored in micro-batches keeps nothing."""
        if self._whole is not None:
            self._whole.release()
        self._whole = None
        self._completions.release()


def _batched(rows: list[int], size: int) -> list[list[int]]:
    return [rows[first : first + size] for first in range(0, len(rows), size)]

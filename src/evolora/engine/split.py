"""Data parallelism on a CPU: a population's batch in parts, each in a thread of its own on a replica of the model.

Threads that share one operation wait for each other at its end: a small model's operations are too short for that, and
many times slower as soon as anything else runs. Parts wait for each other once a batch.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from evolora.engine.calibration import is_small
from evolora.engine.cpu.gpt2.activations import Gpt2Tape
from evolora.engine.eager.generate import Completions, PromptBatch, completion_log_probs, generate, select_rows
from evolora.engine.eager.lora_layers import PopulationModel
from evolora.rng import keyed_seed

# Rows that a part has at least (docs/performance.md). With fewer to decode, each step's Python, which threads cannot
# share, outweighs what is gained, and each part reads the weights for itself.
LEAST_ROWS_DECODED = 32
LEAST_ROWS_SCORED = 8
# Rows of a large model that a part has at most: more are no faster, and the keys and values of those that are decoded
# later need no memory yet.
MOST_ROWS_DECODED = 48


@dataclass(frozen=True)
class Part:
    """Rows of a batch, equally many of each of some individuals; `rows` [rows] says where in the batch they are."""

    individuals: slice
    rows: Tensor


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
        Part(slice(int(some[0]), int(some[-1]) + 1), (some[:, None] * each + part).flatten()) for some, part in dealt
    ]


def population_generate(
    population_model: PopulationModel,
    genomes: Tensor | None,
    prompts: PromptBatch,
    *,
    pad_token_id: int,
    seeds: npt.NDArray[np.uint64] | None = None,
    drafts: Sequence[Sequence[int]] | None = None,
    **options: Any,
) -> Completions:
    """`generate` for `genomes` [n, genome_length] on n * m prompts, one individual's after another's, or without
    genomes for the base model; in up to `population_model.threads` parts at once, of a large model's rows in more parts
    that wait for their turn."""
    individuals = 1 if genomes is None else len(genomes)
    count = _parts(population_model, len(prompts.ids), LEAST_ROWS_DECODED)
    if count > 1 and not is_small(population_model.model):
        count *= math.ceil(len(prompts.ids) / (count * MOST_ROWS_DECODED))
    if count == 1:
        with _adapted(population_model, genomes):
            return generate(
                population_model.model, prompts, pad_token_id=pad_token_id, seeds=seeds, drafts=drafts, **options
            )
    parts = split(individuals, range(len(prompts.ids) // individuals), count)

    def complete(index: int, replica: PopulationModel) -> Completions:
        part = parts[index]
        with _adapted(replica, None if genomes is None else genomes[part.individuals]):
            return generate(
                replica.model,
                _some(prompts, part.rows),
                pad_token_id=pad_token_id,
                seeds=None if seeds is None else seeds[part.rows.numpy()],
                drafts=None if drafts is None else [drafts[row] for row in part.rows.tolist()],
                **options,
            )

    found = population_model.side_by_side(complete, len(parts))
    longest = max(one.ids.shape[1] for one in found)
    completions = select_rows(_stacked([_widened(one, longest, pad_token_id) for one in found]), _order(parts))
    tapes = [
        tape.of_part(part.individuals, part.rows) for part, one in zip(parts, found, strict=True) for tape in one.tapes
    ]
    return replace(completions, tapes=tuple(tapes) if len(tapes) == len(parts) else ())


def population_log_probs(
    population_model: PopulationModel,
    genomes: Tensor | None,
    prompts: PromptBatch,
    completions: Completions,
    *,
    temperature: float,
    entropy_gradient: bool = True,
    dropout_seed: int | None = None,
    tapes: Sequence[Gpt2Tape] = (),
) -> tuple[Tensor, Tensor]:
    """`completion_log_probs` for `genomes` [n, genome_length] on n * m rows, one individual's after another's, or
    without genomes for the base model. Differentiable in `genomes`; with the adapters' dropout where that has a seed.
    The pass, and that backwards, is made in up to `population_model.threads` parts at once; or by the `tapes` of the
    completions, if these genomes decoded them, without a pass forwards: each can be used once."""
    individuals = 1 if genomes is None else len(genomes)
    count = _parts(population_model, len(prompts.ids), LEAST_ROWS_SCORED)
    if count == 1 and not tapes:
        with _adapted(population_model, genomes, dropout_seed):
            return completion_log_probs(
                population_model.model,
                prompts,
                completions,
                temperature=temperature,
                entropy_gradient=entropy_gradient,
            )
    if tapes:
        parts = [Part(tape.individuals, tape.rows) for tape in tapes]
    else:
        own = prompts.rows()[: len(prompts.ids) // individuals]
        # The completions of one prompt stay together: what they share is computed once.
        parts = split(individuals, sorted(range(len(own)), key=own.__getitem__), count)
    differentiable = torch.is_grad_enabled() and genomes is not None and genomes.requires_grad

    def score(index: int, replica: PopulationModel) -> _Scored:
        part = parts[index]
        leaf = None if genomes is None else genomes.detach()[part.individuals].requires_grad_(differentiable)
        if tapes:
            assert leaf is not None
            with torch.set_grad_enabled(differentiable):
                taped = tapes[index].log_probs(
                    leaf,
                    completions.ids[part.rows],
                    completions.mask[part.rows],
                    temperature=temperature,
                    entropy_gradient=entropy_gradient,
                )
            return _Scored(part, leaf, *taped)
        seed = None if dropout_seed is None else keyed_seed(dropout_seed, "part", index)
        with torch.set_grad_enabled(differentiable), _adapted(replica, leaf, seed):
            log_probs, entropy = completion_log_probs(
                replica.model,
                _some(prompts, part.rows),
                select_rows(completions, part.rows),
                temperature=temperature,
                entropy_gradient=entropy_gradient,
            )
        return _Scored(part, leaf, log_probs, entropy)

    found: tuple[Tensor, Tensor] = _Joined.apply(  # type: ignore[no-untyped-call]
        genomes, population_model, population_model.side_by_side(score, len(parts))
    )
    return found


@dataclass(frozen=True)
class _Scored:
    """A part's log-probabilities and entropies [rows, length], with a graph of their own from `genomes`."""

    part: Part
    genomes: Tensor | None
    log_probs: Tensor
    entropy: Tensor

    def backward(self, of_log_probs: Tensor, of_entropy: Tensor) -> Tensor:
        """The gradient of the part's genomes, from those of all rows of the batch."""
        assert self.genomes is not None
        outputs, gradients = [self.log_probs], [of_log_probs[self.part.rows]]
        if self.entropy.requires_grad:
            outputs, gradients = [*outputs, self.entropy], [*gradients, of_entropy[self.part.rows]]
        (gradient,) = torch.autograd.grad(outputs, self.genomes, gradients)
        return gradient


class _Joined(torch.autograd.Function):
    """What the parts found, as one batch. Each part has its own graph: so they go backwards side by side, too."""

    @staticmethod
    def forward(
        ctx: Any, genomes: Tensor | None, population_model: PopulationModel, scored: list[_Scored]
    ) -> tuple[Tensor, Tensor]:
        ctx.population_model, ctx.scored = population_model, scored
        ctx.shape = None if genomes is None else genomes.shape
        order = _order([one.part for one in scored])
        log_probs = torch.cat([one.log_probs.detach() for one in scored])[order]
        entropy = torch.cat([one.entropy.detach() for one in scored])[order]
        if not scored[0].entropy.requires_grad:
            ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_log_probs: Tensor, of_entropy: Tensor) -> tuple[Tensor, None, None]:
        scored: list[_Scored] = ctx.scored
        found = ctx.population_model.side_by_side(
            lambda index, _: scored[index].backward(of_log_probs, of_entropy), len(scored)
        )
        gradient = of_log_probs.new_zeros(ctx.shape, dtype=found[0].dtype)
        for one, own in zip(scored, found, strict=True):
            gradient[one.part.individuals] += own
        return gradient, None, None


def _adapted(
    population_model: PopulationModel, genomes: Tensor | None, dropout_seed: int | None = None
) -> AbstractContextManager[None]:
    return nullcontext() if genomes is None else population_model.adapted(genomes, dropout_seed=dropout_seed)


def _parts(population_model: PopulationModel, rows: int, least: int) -> int:
    return max(1, min(population_model.threads, rows // least))


def _some(prompts: PromptBatch, rows: Tensor) -> PromptBatch:
    """Some prompts, no wider than the longest of them."""
    ids, mask = prompts.ids[rows], prompts.mask[rows]
    width = int(mask.sum(1).max())
    return PromptBatch(ids[:, -width:], mask[:, -width:])


def _order(parts: Sequence[Part]) -> Tensor:
    """Where among the parts' rows, one part after another, each row of the batch is."""
    return torch.cat([part.rows for part in parts]).argsort()


def _widened(completions: Completions, length: int, pad_token_id: int) -> Completions:
    more = length - completions.ids.shape[1]
    log_probs, features = completions.log_probs, completions.features
    return Completions(
        F.pad(completions.ids, (0, more), value=pad_token_id),
        F.pad(completions.mask, (0, more)),
        None if log_probs is None else F.pad(log_probs, (0, more)),
        None if features is None else F.pad(features, (0, 0, 0, more)),
    )


def _stacked(parts: Sequence[Completions]) -> Completions:
    def stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
        return None if tensors[0] is None else torch.cat([tensor for tensor in tensors if tensor is not None])

    return Completions(
        torch.cat([part.ids for part in parts]),
        torch.cat([part.mask for part in parts]),
        stacked([part.log_probs for part in parts]),
        stacked([part.features for part in parts]),
    )

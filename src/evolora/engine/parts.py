"""Parts of a batch: which rows of which genomes, and what they found as one batch again."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evolora.engine.base import ScoredValues


@dataclass(frozen=True)
class Part:
    """Rows of a batch, of some of its genomes; `rows` [rows] says where in the batch they are, `own` which of a
    genome's prompts, or of all where each row has an owner."""

    individuals: slice
    rows: Tensor
    own: Tensor


def genomes_of(genomes: Tensor | None, part: Part) -> Tensor | None:
    """A part's own among those of the batch."""
    return None if genomes is None else genomes[part.individuals]


def order_of(parts: Sequence[Part]) -> Tensor:
    """Where among the parts' rows, one part after another, each row of the batch is."""
    return torch.cat([part.rows for part in parts]).argsort()


def as_one_batch(scored: Sequence[ScoredValues], parts: Sequence[Part]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probabilities, entropies and, where there are any, features, in the order of the batch, without gradient."""
    order = order_of(parts).to(scored[0].log_probs.device)
    features = [one.features for one in scored if one.features is not None]
    return (
        torch.cat([one.log_probs.detach() for one in scored])[order],
        torch.cat([one.entropy.detach() for one in scored])[order],
        torch.cat(features)[order] if features else None,
    )

"""How far an adapter is from another one: the exact KL divergence of its next-token distributions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evolora.engine.base import Completions, Engine, Prompts, Scoring
from evolora.engine.eager.head import FrozenHead
from evolora.engine.eager.log_probs import in_float32_at_least
from evolora.models.genome import GenomeLayout


@dataclass(frozen=True)
class Divergence:
    """Compares two genomes [genome_length] on given texts, over the whole vocabulary. Every genome is asked by itself,
    so that equal ones give equal bits, and the divergence of a genome from itself is 0."""

    engine: Engine
    head: FrozenHead

    @classmethod
    def of(cls, engine: Engine, model: PreTrainedModel, layout: GenomeLayout) -> "Divergence | None":
        """None where the output embedding is adapted, or does what is not known to the logits."""
        head = FrozenHead.of(model, layout)
        return None if head is None else cls(engine, head)

    @torch.no_grad()
    def states(self, genome: Tensor, prompts: Prompts, written: Sequence[Sequence[int]]) -> Tensor | None:
        """The hidden states that each token of what was `written` after the prompts is chosen from, [tokens, hidden],
        row by row; None from an engine that does not give them."""
        completions = Completions.of_ids(written, pad=0).to(self.engine.device)
        scored = self.engine.score(genome[None], prompts, completions, Scoring(features=True))
        features = scored.features
        scored.release()
        return None if features is None else features[completions.mask]

    @torch.no_grad()
    def between(self, first: Tensor, second: Tensor) -> Tensor:
        """KL(first || second) for each token [tokens], from two genomes' states of the same texts."""
        weight = self.head.module.weight
        found = []
        for both in zip(first.split(self.head.tokens), second.split(self.head.tokens), strict=True):
            p, q = (
                torch.log_softmax(in_float32_at_least(self.head.logits(states.to(weight.device, weight.dtype))), -1)
                for states in both
            )
            found.append((p.exp() * (p - q)).sum(-1, dtype=torch.float64).clamp(min=0).cpu())
        return torch.cat(found)

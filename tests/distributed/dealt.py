"""What the tests of this room share: a batch whose every answer is compared, by bits."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evolora.engine.base import Engine, Scoring
from evolora.engine.choose import choose_engine
from evolora.engine.text import Text
from evolora.models.base import BaseModel, load_base
from evolora.models.genome import GenomeLayout
from evolora.models.lora import lora_config, lora_layout

PROMPTS = ["The sum of 4 and 3 is", "The English word for 'chat' is '", "2 + 2 =", "Write one line about the sea"] * 3
SLICE_ROWS = 5


@dataclass(frozen=True)
class Subject:
    """A model, an engine of it and three genomes."""

    base: BaseModel
    layout: GenomeLayout
    genomes: Tensor
    engine: Engine
    text: Text

    @classmethod
    def make(cls, *, rank: int = 8) -> "Subject":
        base = load_base("tiny-gpt2")
        layout, founder = lora_layout(base.model, lora_config(base.model, r=rank), seed=0)
        noise = torch.randn(3, layout.genome_length, generator=torch.Generator().manual_seed(0))
        text = Text.of(base.model, base.tokenizer)
        return cls(base, layout, founder + 0.05 * noise, choose_engine(base.model, layout).one, text)

    def answers(self, engine: Engine, between: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        """All that an engine is asked for: greedy, sampled with a trace, scored by it and by dropout, differentiated;
        rows with owners, and the base."""
        genomes, text = self.genomes, self.text
        prompts = text.encode(PROMPTS)
        rows = len(genomes) * len(prompts)
        found: dict[str, Any] = {}
        between("greedy")
        greedy = engine.generate(genomes, prompts, text.decoding(6))
        found["greedy"] = greedy.ids
        between("generate")
        seeds = np.arange(rows, dtype=np.uint64)
        sampled = engine.generate(genomes, prompts, text.decoding(6, seeds=seeds, trace=True, features=True))
        found |= {"ids": sampled.ids, "log_probs": sampled.log_probs, "features": sampled.features}
        between("score")
        of = sampled.mask * torch.linspace(-1, 1, rows)[:, None]
        scored = engine.score(genomes, prompts, sampled, Scoring(gradient=True, entropy_gradient=True))
        found |= {"scored": scored.log_probs, "entropy": scored.entropy}
        between("backward")
        found["gradient"] = scored.backward(of, 0.1 * of)
        between("dropout")
        how = Scoring(gradient=True, dropout=0.1, dropout_seeds=np.arange(len(genomes), dtype=np.uint64))
        dropped = engine.score(genomes, prompts, replace(sampled, trace=None, features=None), how)
        found |= {"dropped": dropped.log_probs, "gradient with dropout": dropped.backward(of)}
        between("owners")
        some = torch.tensor([0, 1, 2, 12, 13, 30])
        own = [prompts[row % len(prompts)] for row in some.tolist()]
        owners = [0, 0, 0, 1, 1, 2]
        owned = engine.score(genomes, own, sampled.select(some), Scoring(gradient=True), owners=owners)
        found |= {"owned": owned.log_probs, "gradient of owned": owned.backward(of[some])}
        found["base"] = engine.generate(None, prompts, text.decoding(6)).ids
        return found


def different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What is not the same, by bits."""
    return [name for name in one if not torch.equal(one[name], other[name])]

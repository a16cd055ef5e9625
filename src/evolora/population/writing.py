"""Prompts to completions to rewards: the one way, for fitness, rollouts, validation and test."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evolora.engine.base import Completions, Engine, lengths_read
from evolora.engine.progress import NOBODY, Reporter
from evolora.engine.text import Text
from evolora.models.cost import Cost
from evolora.rewards.scorer import Scores
from evolora.rewards.scoring import Scorer
from evolora.tasks.task import Example, columns_of, messages_of


@dataclass(frozen=True)
class Written:
    """What n genomes wrote, a row for each example, one genome's after another's: the `prompts` that the examples came
    to, the same for all; texts, token ids; the engine's own form of them, where they went through it at once; and what
    they cost to generate, whose seconds are for whoever waits to measure."""

    examples: Sequence[Example]
    prompts: list[list[int]]
    texts: list[str]
    ids: list[list[int]]
    cost: Cost
    completions: Completions | None = None

    @property
    def count(self) -> int:
        """How many genomes."""
        return len(self.texts) // max(len(self.examples), 1)


@dataclass(frozen=True)
class Writer:
    """An engine with the tokenizer's side of it."""

    engine: Engine
    text: Text

    def write(self, genomes: Tensor | None, examples: Sequence[Example], max_new_tokens: int, **how: Any) -> Written:
        """One completion of each example's prompt by each of `genomes` [n, genome_length], or by the base; `how` are
        further options of `Decoding`."""
        prompts = self.text.encode([example.prompt for example in examples])
        return self._written(genomes, examples, prompts, self.text.decoding(max_new_tokens, **how))

    def write_in_slices(
        self,
        genomes: Tensor,
        examples: Sequence[Example],
        max_new_tokens: int,
        *,
        rows: int,
        reporter: Reporter = NOBODY,
        **how: Any,
    ) -> Written:
        """The same, at most `rows` of the batch at a time. The slices depend on that, the number of genomes and that of
        examples only, so that the same batch rounds the same way whenever it is made again. The `reporter` hears of
        every slice how many genomes are done, or completions, where a slice has no whole genome."""
        n, each = len(genomes), len(examples)
        whole = self.text.decoding(max_new_tokens, **how)
        prompts = self.text.encode([example.prompt for example in examples])
        texts: list[list[str]] = [[] for _ in range(n)]
        ids: list[list[list[int]]] = [[] for _ in range(n)]
        cost = Cost()
        unit = each if n > 1 and each <= rows else 1
        reporter.at(0, n * each // unit)
        for first in range(0, each, rows):
            part = slice(first, min(first + rows, each))
            width = part.stop - first
            size = max(1, rows // width)
            for start in range(0, n, size):
                own = range(start, min(start + size, n))
                at = torch.cat([row * each + torch.arange(first, part.stop) for row in own])
                found = self._written(genomes[own.start : own.stop], examples[part], prompts[part], whole.of_rows(at))
                cost += found.cost
                reporter.at((n * first + own.stop * width) // unit, n * each // unit)
                for index, row in enumerate(own):
                    texts[row] += found.texts[index * width : (index + 1) * width]
                    ids[row] += found.ids[index * width : (index + 1) * width]
        return Written(
            examples, prompts, [text for own in texts for text in own], [row for own in ids for row in own], cost
        )

    def _written(
        self, genomes: Tensor | None, examples: Sequence[Example], prompts: list[list[int]], how: Any
    ) -> Written:
        whole, size = self.engine.generate(genomes, prompts, how), self.engine.size
        cost = Cost(whole.tokens, size.forward(lengths_read(prompts, whole), adapted=genomes is not None))
        completions = self.text.stopped(whole)
        return Written(examples, prompts, self.text.decode(completions), completions.rows(), cost, completions)


def rewarded(scorer: Scorer, written: Written) -> Scores:
    """What was written earns.

    Raises RewardError when the reward fails.
    """
    n, examples = written.count, list(written.examples)
    return scorer.score(
        prompts=[example.prompt for example in examples] * n,
        completions=written.texts,
        columns=columns_of(examples * n),
        completion_ids=written.ids,
        groups=[row for row in range(n) for _ in examples],
        messages=messages_of(examples * n),
    )

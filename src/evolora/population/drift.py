"""Drift: how far individuals have gone from the base where nobody asked them to, on neutral sentences."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from evolora.engine.base import Engine, Prompts
from evolora.engine.divergence import Divergence
from evolora.engine.text import Text
from evolora.models.cost import Cost
from evolora.models.genome import GenomeLayout
from evolora.population.population import genome_sha256

SENTENCES: tuple[str, ...] = tuple(
    (Path(__file__).parents[1] / "assets" / "neutral_sentences.txt").read_text(encoding="utf-8").splitlines()
)


class Drift:
    """The mean over the tokens of neutral sentences of KL(base || individual), exact, over the whole vocabulary. The
    base is the genome `base` [genome_length]; its drift is 0. What was measured is remembered by the genome."""

    def __init__(self, divergence: Divergence, text: Text, base: Tensor, sentences: Sequence[str] = SENTENCES) -> None:
        self._divergence = divergence
        self._base = base
        texts = [ids for ids in text.encode(sentences) if len(ids) > 1]
        self._prompts, self._rest = [ids[:1] for ids in texts], [ids[1:] for ids in texts]
        self._states: Tensor | None = None
        self.memory: dict[str, float] = {}

    @classmethod
    def made(
        cls, engine: Engine, model: PreTrainedModel, layout: GenomeLayout, text: Text, base: Tensor, sentences: int
    ) -> "Drift | None":
        """On the first so many sentences. None where it cannot be measured: with an adapted output embedding, or by an
        engine that gives no hidden states."""
        divergence = Divergence.of(engine, model, layout)
        if divergence is None:
            return None
        made = cls(divergence, text, base, SENTENCES[:sentences])
        made._states = divergence.states(base, made._prompts, made._rest)
        return None if made._states is None else made

    @property
    def sentences(self) -> int:
        """How many there are."""
        return len(self._rest)

    @property
    def cost(self) -> Cost:
        """What reading them once costs."""
        return Cost(flops=self._divergence.engine.size.forward([len(ids) for ids in self._rest]))

    def of(self, genomes: Tensor) -> tuple[list[float], Cost]:
        """Each one's of `genomes` [n, genome_length], and the cost of those that were not known."""
        names, cost = [genome_sha256(genome) for genome in genomes], Cost()
        for name, genome in zip(names, genomes, strict=True):
            if name not in self.memory:
                self.memory[name] = self._measured(genome)
                cost += self.cost
        return [self.memory[name] for name in names], cost

    def along(self, genome: Tensor, prompts: Prompts, written: Prompts) -> tuple[float, Cost]:
        """The mean over the tokens that a genome has written after prompts of KL(genome || base), and the cost."""
        own, base = (self._read(each, prompts, written) for each in (genome, self._base))
        lengths = [len(prompt) + len(ids) - 1 for prompt, ids in zip(prompts, written, strict=True)]
        flops = 2 * self._divergence.engine.size.forward(lengths)
        return float(self._divergence.between(own, base).mean()), Cost(flops=flops)

    def keep(self, genomes: Tensor) -> None:
        """Forget all but these."""
        names = {genome_sha256(genome) for genome in genomes}
        self.memory = {name: value for name, value in self.memory.items() if name in names}

    def _measured(self, genome: Tensor) -> float:
        if self._states is None:
            self._states = self._read(self._base, self._prompts, self._rest)
        return float(self._divergence.between(self._states, self._read(genome, self._prompts, self._rest)).mean())

    def _read(self, genome: Tensor, prompts: Prompts, written: Prompts) -> Tensor:
        states = self._divergence.states(genome, prompts, written)
        assert states is not None  # or it would not have been made
        return states

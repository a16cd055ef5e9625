"""All that a run is made of, once it is loaded and checked."""

from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from peft import LoraConfig
from torch import Tensor

from evolora.engine.base import Engine
from evolora.engine.budget import Budget
from evolora.engine.progress import Reporter
from evolora.engine.text import Text
from evolora.errors import InputError
from evolora.fitness.base import Fitness
from evolora.fitness.judging import WithDrift
from evolora.human.feedback import VotedScorer
from evolora.models.base import BaseModel
from evolora.models.cost import Cost
from evolora.models.genome import GenomeLayout
from evolora.population.drift import Drift
from evolora.population.evaluation import Evaluator, LocalEvaluator
from evolora.population.judging import JudgingEvaluator
from evolora.rewards import CombinedScorer, Scorer
from evolora.runs.options import RunOptions
from evolora.runs.tracking.view import View
from evolora.tasks.task import Task


@dataclass(frozen=True)
class Parts:
    """All that a run is made of. `initial` are the genomes [adapters, genome_length] that it starts from, the founder
    first; None where it starts from the base. `fitness` judges individuals, where the mean of what their greedy
    completions earn does not."""

    config: RunOptions
    base: BaseModel
    lora: LoraConfig
    layout: GenomeLayout
    founder: Tensor
    task: Task
    scorer: Scorer
    engine: Engine
    budget: Budget
    text: Text
    evaluator: LocalEvaluator
    max_new_tokens: int
    copies: tuple[int, int]
    """Bytes of further copies of the weights: of those that there are now, and at most."""
    view: View
    reporter: Reporter
    initial: Tensor | None = None
    fitness: Fitness | None = None
    kept_prefix: int = 0
    """Tokens that texts have in common where the engine finds again what it computed of them."""
    before: Cost = field(default_factory=Cost)
    """What was spent on the run before its first generation."""

    @property
    def summands(self) -> tuple[str, ...]:
        """What the reward is a sum of, by name."""
        return self.scorer.expression.summands if isinstance(self.scorer, CombinedScorer) else ()

    @property
    def scorers(self) -> list[Scorer]:
        """That of the reward, and that of the fitness, where it is another."""
        if self.fitness is None or self.fitness.scorer is self.scorer:
            return [self.scorer]
        return [self.scorer, self.fitness.scorer]

    @property
    def voted(self) -> VotedScorer | None:
        """What scores by people's votes, where they are asked."""
        return next((scorer for scorer in self.scorers if isinstance(scorer, VotedScorer)), None)

    def at(self, generation: int) -> None:
        """So many generations are over."""
        for scorer in self.scorers:
            scorer.at(generation)

    def close(self) -> None:
        """Release what reward and fitness hold."""
        with ExitStack() as stack:  # both, whichever of them fails
            for scorer in self.scorers:
                stack.callback(scorer.close)

    def judging(self, evaluator: Evaluator) -> Evaluator:
        """An evaluator that judges by the run's fitness, if that is not the mean of what completions earn."""
        if self.fitness is None:
            return evaluator
        weight = self.fitness.drift.weight if isinstance(self.fitness, WithDrift) else 0.0
        samples = self.config.evolution.fitness_samples
        return JudgingEvaluator(evaluator, self.fitness, samples=samples, drift=self.drift(), weight=weight)

    def drift(self, sentences: int | None = None) -> Drift | None:
        """What measures the drift from where the run began, on so many sentences, or on as many as the fitness says;
        None where that says none. Raises InputError where the fitness has one that cannot be measured."""
        of_fitness = self.fitness.drift.sentences if isinstance(self.fitness, WithDrift) else None
        count = of_fitness if sentences is None else sentences
        if count is None:
            return None
        base = torch.zeros_like(self.founder) if self.initial is None else self.initial[0]
        made = Drift.made(self.engine, self.base.model, self.layout, self.text, base, count)
        if made is None and sentences is None:
            raise InputError(
                f"--fitness {self.config.evolution.fitness}: drift cannot be measured here, expected another engine "
                "or an output embedding that is not adapted"
            )
        return made

"""Fitness beside the reward: an evaluator whose individuals are judged by all that they wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from evolora.fitness.base import Fitness
from evolora.fitness.judging import shifted
from evolora.population.drift import Drift
from evolora.population.evaluation import Drafts, Evaluation, Evaluator
from evolora.tasks.task import Example


class JudgingEvaluator(Evaluator):
    """Lets another evaluator write and reward, `samples` completions of each prompt (one is the greedy one), and has
    the individuals judged by `fitness`, to which their `drift`, if it is measured, adds `weight` times. What is
    remembered is what was written and earned: it is judged each time, as a fitness may depend on all of it."""

    def __init__(
        self, evaluator: Evaluator, fitness: Fitness, *, samples: int, drift: Drift | None = None, weight: float = 0.0
    ) -> None:
        self.evaluator = evaluator
        self.fitness = fitness
        self.samples = samples
        self.drift = drift
        self.weight = weight

    def evaluate(self, genomes: Tensor, examples: Sequence[Example], *, drafts: Drafts | None = None) -> Evaluation:
        return self.judged(self._written(genomes, examples, drafts), examples)

    def written(self, genomes: Tensor, examples: Sequence[Example]) -> Evaluation:
        return self._written(genomes, examples, None)

    def judged(self, evaluation: Evaluation, examples: Sequence[Example]) -> Evaluation:
        """Raises RewardError when the fitness fails."""
        asked = evaluation.examples or examples
        judged = self.fitness.judged(asked, evaluation.completions, evaluation.completion_ids)
        if evaluation.beside:
            judged = [shifted(own, by) for own, by in zip(judged, evaluation.beside, strict=True)]
        fitness = np.array([own.fitness for own in judged])
        failed = evaluation.failed + sum(own.failed for own in judged)
        return replace(evaluation, fitness=fitness, judged=judged, failed=failed)

    def _written(self, genomes: Tensor, examples: Sequence[Example], drafts: Drafts | None) -> Evaluation:
        if self.samples == 1:
            written = self.evaluator.evaluate(genomes, examples, drafts=drafts)
        else:
            draws = [replace(example, draw=number) for example in examples for number in range(self.samples)]
            written = replace(self.evaluator.evaluate(genomes, draws), examples=draws)
        if self.drift is None:
            return written
        drifts, cost = self.drift.of(genomes)
        return replace(written, cost=written.cost + cost, beside=[self.weight * drift for drift in drifts])

    def cut(self, ids: Sequence[int]) -> bool:
        return self.evaluator.cut(ids)

    def keep(self, genomes: Tensor) -> None:
        self.evaluator.keep(genomes)
        if self.drift is not None:
            self.drift.keep(genomes)

    def state_dict(self) -> dict[str, Any]:
        known = {} if self.drift is None else {"drift": self.drift.memory}
        return {**self.evaluator.state_dict(), **known}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.evaluator.load_state_dict(state)
        if self.drift is not None:
            self.drift.memory = dict(state["drift"])

"""A population while hardly anything is paid: it samples for the first hits, and among equals those are chosen whose
hits are likeliest."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from evolora.engine.progress import Reporter
from evolora.evolution.acceptance import standing
from evolora.evolution.allowance import Allowance
from evolora.evolution.hits import Hits, KnownHit
from evolora.evolution.options import LoopConfig
from evolora.evolution.search import TIMES, searched
from evolora.evolution.small_probabilities import SHARE, HitChances, halved, least_told, most_often, samples_a_round
from evolora.models.cost import Cost
from evolora.population.evaluation import Evaluation, best_first
from evolora.population.population import Population
from evolora.tasks.task import Example

Sample = Callable[[Population, Sequence[Example], str], Evaluation]
"""Has a population write for training prompts at a stage, and takes note of what it wrote, earned and cost."""
Draw = Callable[[str, int], list[Example]]
"""At most so many training prompts, drawn for a purpose."""


@dataclass
class RareHits:
    """What is done in a generation of a run that starts from nothing; in others nothing is. `chances` says how probable
    known hits are; without it equals are not told apart."""

    hits: Hits
    chances: HitChances | None
    config: LoopConfig
    # This generation's, by which it has told equals apart.
    known: tuple[KnownHit, ...] = ()

    @property
    def _to_be_sought(self) -> bool:
        """Whether hits are rare, and nobody samples anyway."""
        return self.hits.floor is not None and self.config.fitness_samples == 1

    def search(
        self, population: Population, allowance: Allowance, reporter: Reporter, *, sample: Sample, draw: Draw
    ) -> dict[str, Any]:
        """Before anything is learned: samples of everybody, which may be hits. Returns metrics. One that is alone
        samples as it learns."""
        most = self.config.first_samples
        if not self._to_be_sought or not most or len(population) == 1:
            return {}
        reporter.part("searching for hits")
        tokens = 0

        def ask(row: int, block: Sequence[Example]) -> Cost:
            nonlocal tokens
            cost = sample(population.select([row]), block, "search").cost
            tokens += cost.tokens
            return cost

        examples = draw("search", most)
        count = searched(len(population), examples, most, allowance.times(TIMES), ask=ask, known=lambda: len(self.hits))
        return {"search_samples": count, "search_samples.tokens": tokens}

    def told_apart(
        self,
        population: Population,
        evaluation: Evaluation,
        reporter: Reporter,
        *,
        generation: int,
        refines: bool,
        sample: Sample,
        draw: Draw,
    ) -> tuple[Evaluation, Cost, dict[str, Any]]:
        """With the chances of a hit, by which equals are told apart: by hits that are known, or else by samples. What
        it cost beyond these, and metrics."""
        self.known = ()
        if self.chances is None or self.hits.floor is None or len(population) == 1:
            return evaluation, Cost(), {}
        if len(self.hits) == 0:
            if not self._to_be_sought:
                return evaluation, Cost(), {}
            budget = self._affordable(len(population), refines=refines)
            evaluation, metrics = self._by_samples(population, evaluation, reporter, generation, budget, sample, draw)
            return evaluation, Cost(), metrics
        if np.isclose(evaluation.fitness, self.hits.floor).sum() < 2:
            return evaluation, Cost(), {}
        self.known = tuple(self.hits)
        evaluation, cost = self.with_chances(population, evaluation)
        assert evaluation.hit_chances is not None
        figures = {"best": evaluation.hit_chances.max(), "mean": evaluation.hit_chances.mean()}
        return evaluation, cost, {f"hit_chance.{name}": float(value) for name, value in figures.items()}

    def with_chances(self, population: Population, evaluation: Evaluation) -> tuple[Evaluation, Cost]:
        """With what each individual earns by the hits that were `known` when it was this generation's turn; and the
        cost."""
        assert self.chances is not None
        expected, cost = self.chances.expected(population.genomes, self.known)
        return replace(evaluation, hit_chances=expected), cost

    def _affordable(self, individuals: int, *, refines: bool) -> int:
        """How many samples a generation may spend on this."""
        config = self.config
        rollouts = config.refine * config.rl_steps * config.rollout_prompts * config.rollout_samples if refines else 0
        return int(SHARE * (individuals * config.eval_prompts + rollouts))

    def _by_samples(
        self,
        population: Population,
        evaluation: Evaluation,
        reporter: Reporter,
        generation: int,
        budget: int,
        sample: Sample,
        draw: Draw,
    ) -> tuple[Evaluation, dict[str, Any]]:
        """By samples, unless they can hardly tell anybody apart."""
        each = samples_a_round(len(population), budget)
        least = least_told(sum(each))
        if most_often(self.hits.in_vain) <= least or not each:
            self.hits.too_rare = self.hits.too_rare or (generation, self.hits.in_vain, least)
            return evaluation, {}
        reporter.part("sampling for hits")
        asked = [
            replace(example, draw=generation * 2**20 + number)
            for number, example in zip(range(sum(each)), itertools.cycle(draw("rare hits", sum(each))), strict=False)
        ]
        order = best_first(standing(evaluation))
        sampled = tokens = 0

        def ask(rows: list[int], start: int, stop: int) -> npt.NDArray[np.float64]:
            nonlocal sampled, tokens
            own = population.select([order[row] for row in rows])
            part = sample(own, asked[start:stop], "samples")
            sampled, tokens = sampled + len(own) * (stop - start), tokens + part.cost.tokens
            return np.stack([part.paid(row) for row in range(len(own))])

        means = halved(len(population), budget, ask)
        chances = np.empty_like(means)
        chances[order] = means
        return replace(evaluation, hit_chances=chances), {"hit_samples": sampled, "hit_samples.tokens": tokens}

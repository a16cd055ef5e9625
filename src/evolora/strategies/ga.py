"""The genetic algorithm: elitism, selection, crossover and mutation of LoRA genomes.

Generational, with elitism (De Jong, 1975), and mutation scales that adapt by themselves (Schwefel, 1981) or by success
(Rechenberg, 1973). Each operator names its own source in `strategies.operators`, fitness sharing in
`operators.diversity`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evolora.models.genome import GenomeLayout
from evolora.population.population import AVERAGE, INITIAL, Hyperparameters, Individual, Population, newest
from evolora.rng import keyed_generator
from evolora.strategies.base import Strategy
from evolora.strategies.operators import (
    CROSSOVERS,
    FITTER_FIRST,
    MUTATIONS,
    SELECTIONS,
    elites,
    one_fifth,
    self_adapt,
)
from evolora.strategies.operators.crossover import dare
from evolora.strategies.operators.diversity import shared_fitness
from evolora.strategies.operators.genes import Genes
from evolora.strategies.options import GAConfig

# How far self-adaptation may carry a mutation scale from its start: far enough to switch mutation off in practice or to
# leave a plateau, not so far that a lucky drift of the scale alone destroys every child.
_SCALE_RANGE = (1 / 50, 2.0)


class Ids:
    """The ids of a run: each once. 0 is the base's."""

    def __init__(self) -> None:
        self.next = 1

    def new(self) -> int:
        self.next += 1
        return self.next - 1


class GeneticAlgorithm(Strategy):
    """Keeps some individuals and replaces all others by children of selected parents.

    Generational, the `elites` are kept; steady-state (Syswerda, 1991), all but the worst `children`. With `max_age`
    nobody is kept who was proposed first more than that many generations ago, however fit (aging evolution: Real et
    al., 2019, arXiv 1802.01548).

    With `average` the newest refined individual is kept too, of several the fittest, however fit, and beside it the
    running average of its lineage, average * newest + (1 - average) * the average before (Polyak and Juditsky, 1992;
    between policies: WARP, Rame et al., 2024, arXiv 2406.16768), which starts anew when another individual is refined
    instead.

    A child has two parents with probability `crossover_rate`; it is mutated with probability `mutation_rate`, and
    always when it has one parent. Individual 0 is the untouched base, the first generation its mutants; with `others`
    [n, genome_length] these too, and the mutants of all, in turn.

    With `genes` individuals have hyperparameters of their own, which are bred with their weights; the reward is a sum
    of so many `summands`.

    With `mutation_success` everybody's mutation scale follows the share of a generation's mutants that are fitter than
    all their parents on the same prompts, among those that are not as fit as the best of them; where there are none, it
    stays.

    Islands share `ids` and have but one base among them.

    >>> from evolora.models.genome import AdaptedModule
    >>> module = AdaptedModule("layer", "a", "b", 3, 4, 2, 2.0, 0, 6)
    >>> ga = GeneticAlgorithm(torch.zeros(14), GenomeLayout((module,)), GAConfig(pop=4), seed=0)
    >>> population = ga.ask()
    >>> ga.tell(population, np.array([0.1, 0.4, 0.3, 0.2]))
    >>> [individual.id for individual in ga.ask().individuals]
    [1, 2, 4, 5]
    """

    def __init__(
        self,
        founder: Tensor,
        layout: GenomeLayout,
        config: GAConfig,
        *,
        seed: int,
        ids: Ids | None = None,
        with_base: bool = True,
        others: Tensor | None = None,
        summands: int = 0,
    ) -> None:
        self.founder = founder
        self.layout = layout
        self.config = config
        self.seed = seed
        self.ids = ids or Ids()
        if config.mutation_scale == "auto":
            raise ValueError("mutation_scale='auto': expected a number, which runs find before the first generation")
        self.scale = config.mutation_scale
        self.generation = 1  # the one that is proposed, or next to be
        self.head: int | None = None  # the id of the one that was refined last
        self.genes = genes_of(config, summands, seed=seed)
        base = Individual(
            id=0,
            parents=(),
            operator="base",
            born=0,
            mutation_scale=self.scale,
            hyperparameters=None if self.genes is None else self.genes.start,
        )
        founding = Population(founder[None].clone(), (base,))
        if others is not None and len(others):
            more = Population(others, tuple(initial(self.new_id(), base) for _ in others))
            founding = founding.join(more) if with_base else more
        there = founding if with_base or founding.individuals[0].id else founding.select([])
        children = [self._child(founding, [number % len(founding)]) for number in range(config.pop - len(there))]
        self.population = _join([there, *children] if len(there) else children)

    def ask(self) -> Population:
        return self.population

    def new_id(self) -> int:
        return self.ids.new()

    def tell(self, population: Population, fitness: npt.NDArray[np.float64]) -> None:
        """Propose the next population. Raises ValueError when every individual has failed."""
        self.breed(population, fitness, keep=True)

    def favourites(self) -> Sequence[int]:
        average = newest(self.population, AVERAGE)
        return () if average is None else (average,)

    def breed(self, population: Population, fitness: npt.NDArray[np.float64], *, keep: bool) -> None:
        """Propose a population bred from this one, with its survivors if `keep`."""
        if self.config.mutation_success:
            population = self._scaled(population)
        self.generation += 1
        scores = torch.from_numpy(fitness)
        survivors = population.select(self._survivors(population, scores) if keep else [])
        if self.config.average and keep:
            survivors = self._with_average(population, fitness, survivors)
        chances = scores
        if self.config.diversity == "sharing":
            chances = shared_fitness(scores, population.genomes, radius=self.config.niche_radius)
        children = []
        for _ in range(self.config.pop - len(survivors)):
            generator = keyed_generator(self.seed, "selection", self.generation, self.ids.next)
            crossed = bool(torch.rand((), generator=generator, dtype=torch.float32) < self.config.crossover_rate)
            parents = SELECTIONS[self.config.selection](chances, 2 if crossed else 1, generator).tolist()
            parents = sorted(set(parents), key=parents.index)
            if self.config.crossover in FITTER_FIRST:
                parents.sort(key=lambda row: -float(scores[row]))
            children.append(self._child(population, parents))
        self.population = _join([survivors, *children])

    def replace_last(self, genome: Tensor, individual: Individual) -> None:
        """Let an individual from elsewhere take the place of the last child that is proposed."""
        one = Population(genome[None], (individual,))
        self.population = self.population.select(range(len(self.population) - 1)).join(one)

    @property
    def _bounds(self) -> tuple[float, float]:
        """Of the mutation scale."""
        return self.scale * _SCALE_RANGE[0], self.scale * _SCALE_RANGE[1]

    def _scaled(self, population: Population) -> Population:
        """The same with mutation scales that follow the success of the mutants that have just been measured."""
        measured = {one.id: one.history[-1] for one in population.individuals if one.history}
        proposed = {one.id for one in self.population.individuals}
        for one in population.individuals:
            if one.id not in proposed and len(one.history) > 1:  # refined: its parent was measured just before it
                measured[one.parents[0]] = one.history[-2]
        won = lost = 0
        for child in self.population.individuals:
            mutated = self.config.mutation in child.operator.split("+") and child.born == self.generation
            if not mutated or child.id not in measured or not set(child.parents) <= measured.keys():
                continue
            at, fitness = measured[child.id]
            rivals = [measured[parent] for parent in child.parents]
            if all(when == at for when, _ in rivals):
                best = max(value for _, value in rivals)
                won, lost = won + (fitness > best), lost + (fitness < best)
        if won + lost == 0:
            return population
        factor, (lower, upper) = one_fifth(won / (won + lost)), self._bounds
        individuals = tuple(
            replace(one, mutation_scale=min(max(one.mutation_scale * factor, lower), upper))
            for one in population.individuals
        )
        return Population(population.genomes, individuals)

    def _survivors(self, population: Population, scores: Tensor) -> list[int]:
        rows: list[int] = elites(scores, len(scores)).tolist()
        oldest = self.generation - (self.config.max_age or self.generation)
        return [row for row in rows if population.individuals[row].born >= oldest][: self.config.survivors]

    def _child(self, population: Population, parents: Sequence[int]) -> Population:
        """A child of one or two rows of `population`, as a population of one."""
        config, key = self.config, (self.generation, self.ids.next)
        used: list[str] = []
        individuals = [population.individuals[row] for row in parents]
        genome = population.genomes[parents[0]]
        if len(parents) == 2:
            generator = keyed_generator(self.seed, "crossover", *key)
            cross = partial(dare, ancestor=self.founder) if config.crossover == "dare" else CROSSOVERS[config.crossover]
            genome = cross(genome, population.genomes[parents[1]], self.layout, generator)
            used.append(config.crossover)
        mutation = keyed_generator(self.seed, "mutation", *key)
        scale = float(np.exp(np.mean([np.log(individual.mutation_scale) for individual in individuals])))
        if len(parents) == 1 or bool(torch.rand((), generator=mutation, dtype=torch.float32) < config.mutation_rate):
            scales = torch.tensor([scale], dtype=torch.float64)
            if config.mutation_adapt:
                lower, upper = self._bounds
                scales = self_adapt(scales, [mutation], lower=lower, upper=upper, learning_rate=config.mutation_adapt)
            genome = MUTATIONS[config.mutation](genome[None], self.layout, scales, [mutation])[0]
            scale = float(scales[0])
            used.append(config.mutation)
        own = [one.hyperparameters for one in individuals if one.hyperparameters is not None]
        # Who has none was made before there were any, and so were its parents.
        genes = self.genes.child(own, key, first=self.generation == 1) if self.genes is not None and own else None
        child = Individual(
            id=self.new_id(),
            parents=tuple(individual.id for individual in individuals),
            operator="+".join(used),
            born=self.generation,
            mutation_scale=scale,
            hyperparameters=genes,
        )
        return Population(genome[None], (child,))

    def _with_average(
        self, population: Population, fitness: npt.NDArray[np.float64], survivors: Population
    ) -> Population:
        """The survivors, and before them the newest refined individual, of several the fittest, and the running
        average of its lineage."""
        proposed = {individual.id for individual in self.population.individuals}
        refined = [row for row, one in enumerate(population.individuals) if one.id not in proposed]
        before = newest(population, AVERAGE)
        if refined:
            row = max(refined, key=lambda row: (fitness[row], population.individuals[row].id))
            head, genome, parents = population.individuals[row], population.genomes[row], []
            if before is not None and head.parents == (self.head,):
                genome = torch.lerp(population.genomes[before], genome, self.config.average)
                parents = [population.individuals[before].id]
            average = replace(
                head, id=self.new_id(), parents=(*parents, head.id), operator=AVERAGE, born=self.generation, history=()
            )
            lead = population.select([row]).join(Population(genome[None], (average,)))
            self.head = head.id
        else:
            lead = population.select([row for row, one in enumerate(population.individuals) if one.id == self.head])
            lead = lead if before is None else lead.join(population.select([before]))
        known = {individual.id for individual in lead.individuals}
        others = [row for row, one in enumerate(survivors.individuals) if one.id not in known]
        return lead.join(survivors.select(others)).select(range(min(self.config.pop, len(lead) + len(others))))

    def state_dict(self) -> dict[str, Any]:
        return {
            "generation": self.generation,
            "next_id": self.ids.next,
            "head": self.head,
            **self.population.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generation, self.ids.next = state["generation"], state["next_id"]
        self.head = state["head"]
        self.population = Population.from_state_dict(state)


def genes_of(config: GAConfig, summands: int, *, seed: int) -> Genes | None:
    """The genes that evolve by these options, resolved ones, if any does."""
    evolving = [gene for gene in config.genes or () if gene != "auto"]
    if not evolving:
        return None
    weights = (1.0,) * summands if "reward-weights" in evolving else ()
    start = Hyperparameters(config.lr, config.kl_weight, config.entropy_weight, config.temperature, weights)
    return Genes(start, evolving, seed)


def initial(id: int, base: Individual) -> Individual:
    """One of several individuals that a run begins with, beside the first."""
    return replace(base, id=id, operator=INITIAL)


def _join(parts: Sequence[Population]) -> Population:
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.join(part)
    return joined

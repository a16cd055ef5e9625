"""The genetic algorithm: elitism, selection, crossover and mutation of LoRA genomes.

Generational, with elitism (De Jong, 1975) and self-adaptive mutation scales (Schwefel, 1981). Each operator names its
own source in `evolora.operators`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evolora.genome import GenomeLayout
from evolora.operators import CROSSOVERS, MUTATIONS, SELECTIONS, elites, self_adapt
from evolora.population import Individual, Population
from evolora.rng import keyed_generator


@dataclass(frozen=True, kw_only=True)
class GAConfig:
    """Options of the genetic algorithm; names and defaults are those of `RunConfig`, where each is described."""

    pop: int = 8
    elites: int = 2
    mutation: str = "gaussian"
    mutation_scale: float = 0.02
    mutation_adapt: float = 0.2
    mutation_rate: float = 1.0
    crossover: str = "uniform"
    crossover_rate: float = 0.5
    selection: str = "tournament"


# How far self-adaptation may carry a mutation scale from its start: far enough to switch mutation off in practice or to
# leave a plateau, not so far that a lucky drift of the scale alone destroys every child.
_SCALE_RANGE = (1 / 50, 2.0)


class GeneticAlgorithm:
    """Keeps `elites` individuals and replaces all others by children of selected parents.

    A child has two parents with probability `crossover_rate`; it is mutated with probability `mutation_rate`, and
    always when it has one parent. Individual 0 is the untouched base, the first generation its mutants.

    >>> from evolora.genome import AdaptedModule
    >>> module = AdaptedModule("layer", "a", "b", 3, 4, 2, 2.0, 0, 6)
    >>> ga = GeneticAlgorithm(torch.zeros(14), GenomeLayout((module,)), GAConfig(pop=4), seed=0)
    >>> population = ga.ask()
    >>> ga.tell(population, np.array([0.1, 0.4, 0.3, 0.2]))
    >>> [individual.id for individual in ga.ask().individuals]
    [1, 2, 4, 5]
    """

    def __init__(self, founder: Tensor, layout: GenomeLayout, config: GAConfig, *, seed: int) -> None:
        self.layout = layout
        self.config = config
        self.seed = seed
        self.generation = 1  # the one that is proposed, or next to be
        self.next_id = 1
        base = Individual(id=0, parents=(), operator="base", born=0, mutation_scale=config.mutation_scale)
        self.population = Population(founder[None].clone(), (base,))
        children = [self._child(self.population, [0]) for _ in range(config.pop - 1)]
        self.population = _join(self.population, children)

    def ask(self) -> Population:
        return self.population

    def new_id(self) -> int:
        self.next_id += 1
        return self.next_id - 1

    def tell(self, population: Population, fitness: npt.NDArray[np.float64]) -> None:
        """Propose the next population. Raises ValueError when every individual has failed."""
        self.generation += 1
        scores = torch.from_numpy(fitness)
        survivors = population.select(elites(scores, self.config.elites).tolist())
        children = []
        for _ in range(self.config.pop - len(survivors)):
            generator = keyed_generator(self.seed, "selection", self.generation, self.next_id)
            crossed = bool(torch.rand((), generator=generator) < self.config.crossover_rate)
            parents = SELECTIONS[self.config.selection](scores, 2 if crossed else 1, generator).tolist()
            children.append(self._child(population, sorted(set(parents), key=parents.index)))
        self.population = _join(survivors, children)

    def _child(self, population: Population, parents: Sequence[int]) -> Population:
        """A child of one or two rows of `population`, as a population of one."""
        config, individuals = self.config, [population.individuals[row] for row in parents]
        key = (self.generation, self.next_id)
        genome, operators = population.genomes[parents[0]], []
        if len(parents) == 2:
            crossover = CROSSOVERS[config.crossover]
            genome = crossover(
                genome, population.genomes[parents[1]], self.layout, keyed_generator(self.seed, "crossover", *key)
            )
            operators.append(config.crossover)
        mutation = keyed_generator(self.seed, "mutation", *key)
        scale = float(np.exp(np.mean([np.log(individual.mutation_scale) for individual in individuals])))
        if len(parents) == 1 or bool(torch.rand((), generator=mutation) < config.mutation_rate):
            scales = torch.tensor([scale], dtype=torch.float64)
            if config.mutation_adapt:
                lower, upper = (config.mutation_scale * factor for factor in _SCALE_RANGE)
                scales = self_adapt(scales, [mutation], lower=lower, upper=upper, learning_rate=config.mutation_adapt)
            genome = MUTATIONS[config.mutation](genome[None], self.layout, scales, [mutation])[0]
            scale = float(scales[0])
            operators.append(config.mutation)
        child = Individual(
            id=self.new_id(),
            parents=tuple(individual.id for individual in individuals),
            operator="+".join(operators),
            born=self.generation,
            mutation_scale=scale,
        )
        return Population(genome[None], (child,))

    def state_dict(self) -> dict[str, Any]:
        return {"generation": self.generation, "next_id": self.next_id, **self.population.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generation, self.next_id = state["generation"], state["next_id"]
        self.population = Population.from_state_dict(state)


def _join(first: Population, others: Sequence[Population]) -> Population:
    for other in others:
        first = first.join(other)
    return first

"""Random perturbations of the base, and selection: the baseline that a clever method must beat (Gan and Isola, 2026,
"Neural thickets: diverse task experts are dense around pretrained weights", arXiv 2603.12228)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evolora.population.population import Individual, Population
from evolora.rng import keyed_generator
from evolora.strategies.base import Strategy
from evolora.strategies.ga import Ids, initial
from evolora.strategies.operators import elites
from evolora.strategies.options import PerturbationConfig


class RandomPerturbation(Strategy):
    """Each generation base + s z, z standard normal and s `mutation_scale`, for all but the best `elites` so far.

    The best are those whose mean fitness over all generations that they have met is highest: a single measurement was
    luck in part. Nobody descends from anybody but the base, unless a refiner makes them. Who fails once is not kept.

    >>> search = RandomPerturbation(torch.zeros(14), PerturbationConfig(pop=4, elites=1), seed=0)
    >>> search.tell(search.ask(), np.array([0.1, 0.4, 0.3, 0.2]))
    >>> [(each.id, each.parents, each.operator) for each in search.ask().individuals][:2]
    [(1, (0,), 'random'), (4, (0,), 'random')]
    """

    def __init__(self, founder: Tensor, config: PerturbationConfig, *, seed: int, others: Tensor | None = None) -> None:
        if config.elites >= config.pop:
            raise ValueError(f"elites must be fewer than pop, found {config.elites} of {config.pop}")
        self.founder = founder
        self.config = config
        self.seed = seed
        self.ids = Ids()
        self.generation = 1  # the one that is proposed
        # By individual that is kept: the sum of its fitness, and how often it was measured.
        self.measured: dict[int, tuple[float, int]] = {}
        base = Individual(id=0, parents=(), operator="base", born=0, mutation_scale=config.mutation_scale)
        first = Population(founder[None].clone(), (base,))
        if others is not None:  # who are drawn are around the founder
            first = first.join(Population(others, tuple(initial(self.new_id(), base) for _ in others)))
        self.population = self._filled(first)

    def ask(self) -> Population:
        return self.population

    def new_id(self) -> int:
        return self.ids.new()

    def tell(self, population: Population, fitness: npt.NDArray[np.float64]) -> None:
        """Keep the best and draw the others anew. Raises ValueError when every individual has failed."""
        before = [self.measured.get(individual.id, (0.0, 0)) for individual in population.individuals]
        totals = [(total + float(now), times + 1) for (total, times), now in zip(before, fitness, strict=True)]
        means = torch.tensor([total / times for total, times in totals], dtype=torch.float64)
        best = elites(means, self.config.elites).tolist()
        self.generation += 1
        self.measured = {population.individuals[row].id: totals[row] for row in best}
        self.population = self._filled(population.select(best))

    def _filled(self, kept: Population) -> Population:
        genomes, individuals = [*kept.genomes], [*kept.individuals]
        while len(individuals) < self.config.pop:
            child = Individual(
                id=self.new_id(),
                parents=(0,),
                operator="random",
                born=self.generation,
                mutation_scale=self.config.mutation_scale,
            )
            generator = keyed_generator(self.seed, "perturbation", self.generation, child.id)
            noise = torch.randn(self.founder.shape, generator=generator, dtype=self.founder.dtype)
            genomes.append(self.founder + self.config.mutation_scale * noise)
            individuals.append(child)
        return Population(torch.stack(genomes), tuple(individuals))

    def state_dict(self) -> dict[str, Any]:
        return {
            "generation": self.generation,
            "next_id": self.ids.next,
            "measured": [[id, total, times] for id, (total, times) in self.measured.items()],
            **self.population.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generation, self.ids.next = state["generation"], state["next_id"]
        self.measured = {int(id): (float(total), int(times)) for id, total, times in state["measured"]}
        self.population = Population.from_state_dict(state)

"""OpenAI's evolution strategy (Salimans et al., 2017, "Evolution strategies as a scalable alternative to reinforcement
learning", arXiv 1703.03864): gradient ascent on the mean of a Gaussian, by the fitness of samples around it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evolora.population.population import Individual, Population
from evolora.rng import keyed_generator
from evolora.strategies.base import Strategy
from evolora.strategies.ga import Ids
from evolora.strategies.operators import elites
from evolora.strategies.options import NoiseConfig

_MOMENTUM = 0.9


class EvolutionStrategy(Strategy):
    """The population is the mean, in row 0, and pairs mean + s e, mean - s e of standard normal noise e, s `scale`:
    antithetic sampling (Brockhoff et al., 2010; Salimans et al.). An even `pop` has one individual less.

    The mean moves by gradient ascent with momentum, v <- 0.9 v + g, mean <- mean + `lr` v, along

        g = sum over pairs of (u+ - u-) e / (2 s pairs),

    u the centred ranks of the pairs' fitness. A pair of which one has failed is left out, and the mean has no part in
    it. Noise is drawn again from its key, never stored.

    A refined individual has a genome that no pair explains: it counts in g by the fitness that it had before. The
    fittest refined becomes the mean before the step, if it is at least as fit as the mean on the same prompts.

    >>> from evolora.strategies.options import ESConfig
    >>> es = EvolutionStrategy(torch.zeros(14), ESConfig(pop=5), seed=0)
    >>> population = es.ask()
    >>> bool(population.genomes.sum(dim=0).abs().max() < 1e-7)  # pairs around a mean of zero
    True
    >>> es.tell(population, np.array([0.1, 0.4, 0.3, 0.2, 0.0]))
    >>> [(each.id, each.parents, each.operator) for each in es.ask().individuals][:2]
    [(5, (0,), 'es'), (6, (5,), 'noise')]
    """

    def __init__(self, founder: Tensor, config: NoiseConfig, *, seed: int) -> None:
        if config.pop < 3:
            raise ValueError(f"pop must be at least 3, the mean and a pair, found {config.pop}")
        self.config = config
        self.seed = seed
        self.ids = Ids()
        self.generation = 1  # the one that is proposed
        self.pairs = (config.pop - 1) // 2
        self.velocity = torch.zeros_like(founder)
        base = Individual(id=0, parents=(), operator="base", born=0, mutation_scale=config.scale)
        self.population = self._around(founder.clone(), base)

    def ask(self) -> Population:
        return self.population

    def new_id(self) -> int:
        return self.ids.new()

    def favourites(self) -> Sequence[int]:
        return (0,)

    def noise(self, pair: int) -> Tensor:
        """The noise e of this generation's pair, standard normal, [genome_length]."""
        generator = keyed_generator(self.seed, "es noise", self.generation, pair)
        return torch.randn(self.velocity.shape, generator=generator, dtype=self.velocity.dtype)

    def tell(self, population: Population, fitness: npt.NDArray[np.float64]) -> None:
        """Move the mean. Raises ValueError when every individual has failed."""
        elites(torch.from_numpy(fitness), 1)
        mean, individual = self._accepted(population, fitness)
        gradient = self._gradient(centred_ranks(self._before_refinement(population, fitness)[1:].reshape(-1, 2)))
        self.generation += 1
        self.velocity = _MOMENTUM * self.velocity + gradient
        if self.velocity.any():
            mean = mean + self.config.lr * self.velocity
            individual = self._individual((individual.id,), "es")
        self.population = self._around(mean, individual)

    def _accepted(self, population: Population, fitness: npt.NDArray[np.float64]) -> tuple[Tensor, Individual]:
        """The mean, or the refined individual that takes its place."""
        refined = [
            row for row in range(len(population)) if self._is_refined(population, row) and not np.isnan(fitness[row])
        ]
        best = max(refined, key=lambda row: float(fitness[row]), default=0)
        row = 0 if fitness[best] < fitness[0] else best  # a mean that has failed, NaN, wins against nobody
        return population.genomes[row], population.individuals[row]

    def _is_refined(self, population: Population, row: int) -> bool:
        return population.individuals[row].id != self.population.individuals[row].id

    def _before_refinement(self, population: Population, fitness: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Each row's fitness of the genome that was proposed. The history of a refined individual begins with it."""
        return np.array(
            [
                next((then for when, then in each.history if when == each.history[-1][0]), fitness[row])
                if self._is_refined(population, row)
                else fitness[row]
                for row, each in enumerate(population.individuals)
            ]
        )

    def _gradient(self, ranks: npt.NDArray[np.float64]) -> Tensor:
        total = torch.zeros_like(self.velocity)
        for pair in range(self.pairs):
            weight = float(ranks[pair, 0] - ranks[pair, 1])
            if weight:
                total += weight * self.noise(pair)
        return total / (2 * self.pairs * self.config.scale)

    def _individual(self, parents: tuple[int, ...], operator: str) -> Individual:
        return Individual(
            id=self.new_id(),
            parents=parents,
            operator=operator,
            born=self.generation,
            mutation_scale=self.config.scale,
        )

    def _around(self, mean: Tensor, individual: Individual, others: Sequence[Individual] = ()) -> Population:
        """The mean and its pairs, whose individuals are new unless they are given."""
        noise = [self.config.scale * self.noise(pair) for pair in range(self.pairs)]
        genomes = [mean, *(genome for each in noise for genome in (mean + each, mean - each))]
        others = others or [self._individual((individual.id,), "noise") for _ in genomes[1:]]
        return Population(torch.stack(genomes), (individual, *others))

    def state_dict(self) -> dict[str, Any]:
        return {
            "generation": self.generation,
            "next_id": self.ids.next,
            "mean": self.population.genomes[0].clone(),
            "velocity": self.velocity,
            "individuals": [asdict(individual) for individual in self.population.individuals],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generation, self.ids.next = state["generation"], state["next_id"]
        self.velocity = state["velocity"]
        first, *others = (Individual.from_dict(values) for values in state["individuals"])
        self.population = self._around(state["mean"], first, others)


def centred_ranks(fitness: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks of the pairs' fitness [pairs, 2], brought to [-0.5, 0.5]; equals share their mean rank. A pair with a NaN
    has ranks 0, and is not ranked among the others.

    >>> centred_ranks(np.array([[0.1, 0.9], [0.5, 0.5], [np.nan, 2.0]])).tolist()
    [[-0.5, 0.5], [0.0, 0.0], [0.0, 0.0]]
    """
    whole = ~np.isnan(fitness).any(axis=1)
    values = fitness[whole].ravel()
    ranks = np.zeros_like(fitness)
    if len(values):
        below = (values[:, None] > values).sum(1) + ((values[:, None] == values).sum(1) - 1) / 2
        ranks[whole] = (below / (len(values) - 1) - 0.5).reshape(-1, 2)
    return ranks

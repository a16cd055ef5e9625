"""Population-based training: Jaderberg et al., 2017, arXiv 1711.09846.

Every individual is refined in every generation, each by hyperparameters of its own: lr, kl_weight and entropy_weight.
Exploit: the worst become copies of the best (truncation selection). Explore: a copy's hyperparameters are perturbed.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evolora.population.population import INITIAL, Hyperparameters, Individual, Population
from evolora.rng import keyed_generator
from evolora.strategies.base import Strategy
from evolora.strategies.operators import elites
from evolora.strategies.options import PBTConfig

# What a hyperparameter is multiplied by, one or the other: the paper's.
FACTORS = (0.8, 1.2)


class PopulationBasedTraining(Strategy):
    """Keeps `pop` individuals, all copies of the base at first, which the refiner changes between `ask` and `tell`.

    `tell` replaces the worst `share` by copies of members of the best `share`, drawn uniformly; one that has
    failed is always replaced. Each hyperparameter of a copy is multiplied by 0.8 or 1.2, or, with probability
    `resample`, drawn anew as at the start: log-uniformly within the factor `spread` of the options' value. One
    that is 0 stays 0. Individual 0 begins as the untouched base with the options' own values. With `others`
    [n, genome_length] the population begins with these too, and copies of all, in turn.

    >>> pbt = PopulationBasedTraining(torch.zeros(14), PBTConfig(pop=4, resample=0.0), seed=0)
    >>> pbt.tell(pbt.ask(), np.array([0.1, 0.4, 0.3, 0.2]))
    >>> [(individual.id, individual.parents) for individual in pbt.ask().individuals]
    [(4, (1,)), (1, (0,)), (2, (0,)), (3, (0,))]
    """

    def __init__(self, founder: Tensor, config: PBTConfig, *, seed: int, others: Tensor | None = None) -> None:
        self.config = config
        # Around which those of the individuals begin.
        self.hyperparameters = Hyperparameters(config.lr, config.kl_weight, config.entropy_weight)
        self.seed = seed
        self.generation = 1  # the one that is proposed
        self.next_id = 1
        base = Individual(
            id=0, parents=(), operator="base", born=0, mutation_scale=0.0, hyperparameters=self.hyperparameters
        )
        founders = founder[None] if others is None else torch.cat([founder[None], others])
        copies = [self._copy(base, resample=1.0) for _ in range(config.pop - 1)]
        begun = [
            replace(copy, operator=INITIAL, parents=(), born=0)
            if copy.id < len(founders)
            else replace(copy, parents=(copy.id % len(founders),))
            for copy in copies
        ]
        genomes = founders[[row % len(founders) for row in range(config.pop)]]
        self.population = Population(genomes, (base, *begun))

    def ask(self) -> Population:
        return self.population

    def new_id(self) -> int:
        self.next_id += 1
        return self.next_id - 1

    def tell(self, population: Population, fitness: npt.NDArray[np.float64]) -> None:
        """Exploit and explore. Raises ValueError when every individual has failed."""
        self.generation += 1
        ranking = elites(torch.from_numpy(fitness), len(fitness)).tolist()
        failed = [row for row in range(len(fitness)) if row not in ranking]
        count = max(1, int(self.config.share * len(population)))
        best, worst = ranking[:count], {*[*ranking, *failed][-count:], *failed}
        genomes, individuals = population.genomes.clone(), list(population.individuals)
        for row in sorted(worst):
            generator = keyed_generator(self.seed, "exploit", self.generation, self.next_id)
            chosen = best[int(torch.randint(len(best), (), generator=generator))]
            genomes[row] = population.genomes[chosen]
            individuals[row] = self._copy(population.individuals[chosen], resample=self.config.resample)
        self.population = Population(genomes, tuple(individuals))

    def _copy(self, parent: Individual, *, resample: float) -> Individual:
        """An individual with the parent's genome and hyperparameters of its own: the parent's, perturbed, or with
        probability `resample` drawn anew, each for itself."""
        assert parent.hyperparameters is not None
        generator = keyed_generator(self.seed, "explore", self.generation, self.next_id)
        start = asdict(self.hyperparameters)
        own = {}
        for name in ("lr", "kl_weight", "entropy_weight"):
            value = getattr(parent.hyperparameters, name)
            anew, where, up = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
            drawn = start[name] * self.config.spread ** (2 * where - 1)
            own[name] = drawn if anew < resample else value * FACTORS[int(up < 0.5)]
        return Individual(
            id=self.new_id(),
            parents=(parent.id,),
            operator="copy",
            born=self.generation,
            mutation_scale=0.0,
            hyperparameters=Hyperparameters(**own),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"generation": self.generation, "next_id": self.next_id, **self.population.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generation, self.next_id = state["generation"], state["next_id"]
        self.population = Population.from_state_dict(state)

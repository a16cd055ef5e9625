"""Separable CMA-ES (Ros and Hansen, 2008, "A simple modification in CMA-ES achieving linear time and space
complexity"), through the package `cmaes` (Nomura and Shibata, 2024, arXiv 2402.01373), with external solutions injected
(Hansen, 2011, "Injecting external solutions into CMA-ES", arXiv 1110.4181)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evolora.errors import InputError
from evolora.population.population import Individual, Population
from evolora.rng import keyed_seed
from evolora.strategies.base import Strategy
from evolora.strategies.ga import Ids
from evolora.strategies.operators import elites
from evolora.strategies.options import SepCMAESConfig

# What the search distribution consists of, by the package's names for it.
_ARRAYS = ("_mean", "_C", "_p_sigma", "_pc")


class SepCMAES(Strategy):
    """The population is the distribution's mean, in row 0, and `pop` - 1 samples; the step size starts at
    `mutation_scale`. The mean moves by `rate` of the way to the recombined samples, c_m of Hansen, 2016 (arXiv
    1604.00772). Ranks alone count; the failed are the worst,
    and moved to the mean, so that nobody descends from them.

    A refined sample takes the sample's place, and a refined mean that of the worst sample: external solutions, whose
    steps y = (x - mean) / step size are shortened to a Mahalanobis length of at most sqrt(n) + 2 n / (n + 2), as a
    step that is longer than any sample's would blow up the step size and the covariance. The mean itself, unrefined,
    has no part in the update. The distribution stays as it is where all individuals are equally fit.

    Raises InputError without the package `cmaes`.

    >>> cma = SepCMAES(torch.zeros(14), SepCMAESConfig(pop=5), seed=0)
    >>> cma.tell(cma.ask(), np.array([0.1, 0.4, 0.3, 0.2, 0.0]))
    >>> [(each.id, each.parents, each.operator) for each in cma.ask().individuals][:2]
    [(5, (0,), 'sep-cmaes'), (6, (5,), 'sample')]
    """

    def __init__(self, founder: Tensor, config: SepCMAESConfig, *, seed: int) -> None:
        if config.pop < 3:
            raise ValueError(f"pop must be at least 3, the mean and two samples, found {config.pop}")
        self.config = config
        self.seed = seed
        self.ids = Ids()
        self.generation = 1  # the one that is proposed
        self.optimizer: Any = sep_cma()(
            mean=founder.double().numpy().copy(), sigma=config.mutation_scale, population_size=config.pop - 1
        )
        self.optimizer._cm = config.rate
        base = Individual(id=0, parents=(), operator="base", born=0, mutation_scale=config.mutation_scale)
        self.population = self._around(base)

    def ask(self) -> Population:
        return self.population

    def new_id(self) -> int:
        return self.ids.new()

    def favourites(self) -> Sequence[int]:
        return (0,)

    def tell(self, population: Population, fitness: npt.NDArray[np.float64]) -> None:
        """Update the distribution. Raises ValueError when every individual has failed."""
        elites(torch.from_numpy(fitness), 1)
        before = self.population.individuals
        refined = [new.id != old.id for new, old in zip(population.individuals, before, strict=True)]
        # The package minimises, and ranks equals by their order: the refined come first, as more has shaped them.
        losses = np.nan_to_num(-fitness, nan=math.inf)
        rows = list(range(1, len(population)))
        if refined[0]:
            rows[int(np.argmax(losses[1:]))] = 0
        rows.sort(key=lambda row: not refined[row])
        self.generation += 1
        # Where all are equal there is nothing to learn from, and the distribution must not wander.
        if len({float(losses[row]) for row in rows}) > 1:
            points = population.genomes[rows].double().numpy()
            self.optimizer.tell(
                [
                    (self._counted_at(point, refined[row], float(losses[row])), float(losses[row]))
                    for row, point in zip(rows, points, strict=True)
                ]
            )
            self.population = self._around(self._individual((before[0].id,), "sep-cmaes"))
        else:
            self.population = self._around(before[0])

    def _counted_at(self, point: npt.NDArray[np.float64], refined: bool, loss: float) -> npt.NDArray[np.float64]:
        mean: npt.NDArray[np.float64] = self.optimizer.mean
        if math.isinf(loss):  # failed: a parent without weight, where too few others are left
            return mean.copy()
        if not refined:
            return point
        n, step = len(point), point - mean
        length = float(np.linalg.norm(step / np.sqrt(self.optimizer._C))) / self.optimizer._sigma
        longest = math.sqrt(n) + 2 * n / (n + 2)
        return point if length <= longest else mean + step * (longest / length)

    def _individual(self, parents: tuple[int, ...], operator: str) -> Individual:
        return Individual(
            id=self.new_id(),
            parents=parents,
            operator=operator,
            born=self.generation,
            mutation_scale=float(self.optimizer._sigma),
        )

    def _around(self, mean: Individual, others: Sequence[Individual] = ()) -> Population:
        """The mean and its samples, whose individuals are new unless they are given."""
        # Seeded anew for each generation: the package's stream of random numbers need not be kept.
        self.optimizer.reseed_rng(keyed_seed(self.seed, "sep-cmaes samples", self.generation) % 2**32)
        genomes = [self.optimizer.mean, *(self.optimizer.ask() for _ in range(self.config.pop - 1))]
        others = others or [self._individual((mean.id,), "sample") for _ in genomes[1:]]
        return Population(torch.from_numpy(np.stack(genomes)).float(), (mean, *others))

    def metrics(self) -> dict[str, float]:
        """The step size, and the largest of the coordinates' own scales over the smallest."""
        scales = np.sqrt(self.optimizer._C)
        return {"step_size": float(self.optimizer._sigma), "condition": float(scales.max() / scales.min())}

    def state_dict(self) -> dict[str, Any]:
        return {
            "generation": self.generation,
            "next_id": self.ids.next,
            "individuals": [asdict(individual) for individual in self.population.individuals],
            "updates": self.optimizer._g,
            "step_size": float(self.optimizer._sigma),
            **{name.lstrip("_"): torch.from_numpy(getattr(self.optimizer, name).copy()) for name in _ARRAYS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generation, self.ids.next = state["generation"], state["next_id"]
        cma = self.optimizer
        cma._g, cma._sigma = state["updates"], state["step_size"]
        for name in _ARRAYS:
            setattr(cma, name, state[name.lstrip("_")].numpy().copy())
        cma._D = None  # what the package remembers of _C
        first, *others = (Individual.from_dict(values) for values in state["individuals"])
        self.population = self._around(first, others)


def sep_cma() -> Any:
    """The package's class. Raises InputError where it is not installed."""
    try:
        from cmaes import SepCMA
    except ImportError:
        raise InputError(
            "--strategy sep-cmaes: found no package cmaes, expected it installed: pip install 'evolora[cmaes]'"
        ) from None
    return SepCMA

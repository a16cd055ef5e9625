"""No evolution: one individual, changed by the refiner alone. The baseline that the hybrid must beat."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from evolora.population.population import Individual, Population
from evolora.strategies.base import Strategy


class RefinerAlone(Strategy):
    """Keeps the newest individual: the untouched base, then what the refiner made of it.

    >>> import torch
    >>> alone = RefinerAlone(torch.zeros(14))
    >>> len(alone.ask())
    1
    """

    def __init__(self, founder: Tensor) -> None:
        base = Individual(id=0, parents=(), operator="base", born=0, mutation_scale=0.0)
        self.population = Population(founder[None].clone(), (base,))
        self.next_id = 1

    def ask(self) -> Population:
        return self.population

    def new_id(self) -> int:
        self.next_id += 1
        return self.next_id - 1

    def tell(self, population: Population, fitness: npt.NDArray[np.float64]) -> None:  # noqa: ARG002 - nothing is selected
        newest = max(range(len(population)), key=lambda row: population.individuals[row].id)
        self.population = population.select([newest])

    def state_dict(self) -> dict[str, Any]:
        return {"next_id": self.next_id, **self.population.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.next_id = state["next_id"]
        self.population = Population.from_state_dict(state)

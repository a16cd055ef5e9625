"""The best on validation so far."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from evolora.population.population import Population
from evolora.strategies.operators import elites


class HallOfFame:
    """The `size` best on validation so far, and before them the untouched base, which stays: no winner may be worse.

    >>> from evolora.population.population import Individual
    >>> def one(id: int) -> Population:
    ...     return Population(torch.zeros(1, 8), (Individual(id, (), "base", 0, 0.02),))
    >>> hall = HallOfFame(1)
    >>> for id, fitness in enumerate([0.5, 0.25, 0.75]):
    ...     hall.enter(one(id), [fitness])
    >>> hall.ids, hall.fitness, hall.best().individuals[0].id
    ([0, 2], [0.5, 0.75], 2)
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._members: Population | None = None
        self.fitness: list[float] = []

    @property
    def empty(self) -> bool:
        """Whether not even the base is here yet."""
        return self._members is None

    @property
    def members(self) -> Population:
        assert self._members is not None
        return self._members

    @property
    def ids(self) -> list[int]:
        return [individual.id for individual in self.members.individuals]

    def enter(self, candidates: Population, fitness: Sequence[float]) -> None:
        """Let in those that are among the best; the first of all candidates is the base."""
        if self._members is None:
            self._members, self.fitness = candidates.select([0]), [fitness[0]]
            return
        known = set(self.ids)
        fresh = [
            row
            for row, individual in enumerate(candidates.individuals)
            if individual.id not in known and not math.isnan(fitness[row])
        ]
        if not fresh:
            return
        everybody = self._members.join(candidates.select(fresh))
        values = [*self.fitness, *(fitness[row] for row in fresh)]
        rows = [0, *(1 + row for row in elites(torch.tensor(values[1:], dtype=torch.float32), self.size).tolist())]
        self._members, self.fitness = everybody.select(rows), [values[row] for row in rows]

    def best(self) -> Population:
        """The best, as a population of one."""
        values = self._values()
        return self.members.select([values.index(max(values))])

    @property
    def highest(self) -> float:
        """The fitness of the best, -inf when all have failed."""
        return max(self._values())

    def _values(self) -> list[float]:
        # NaN means failed: it loses against everything.
        return [-math.inf if math.isnan(value) else value for value in self.fitness]

    def state_dict(self) -> dict[str, Any]:
        return {"fitness": self.fitness, **self.members.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._members, self.fitness = Population.from_state_dict(state), list(state["fitness"])

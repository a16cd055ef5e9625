"""Islands: several genetic algorithms side by side, whose best migrate along a ring."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evolora.models.genome import GenomeLayout
from evolora.population.population import Individual, Population
from evolora.strategies.base import Strategy
from evolora.strategies.ga import GeneticAlgorithm, Ids
from evolora.strategies.operators import elites
from evolora.strategies.options import GAConfig


class Islands(Strategy):
    """The population split into `islands` that breed each on its own (the island model: Tanese, 1989; Whitley et al.,
    1999); the share of `elites` and `children` is rounded up. Every `migrate_every` generations a copy of each island's
    best takes the place of a child on the next island, the last one's on the first: an individual of its own, made by
    the operator `migration`. An island where everybody has failed is settled anew by children of the best island.

    The population is the islands' one after another, so that it is still evaluated in one batch.

    >>> from evolora.models.genome import AdaptedModule
    >>> layout = GenomeLayout((AdaptedModule("layer", "a", "b", 3, 4, 2, 2.0, 0, 6),))
    >>> islands = Islands(torch.zeros(14), layout, GAConfig(pop=4, elites=2, islands=2, migrate_every=1), seed=0)
    >>> islands.tell(islands.ask(), np.array([0.1, 0.4, 0.3, 0.2]))
    >>> [(each.operator, each.parents) for each in islands.ask().individuals]
    [('gaussian', (0,)), ('migration', (2,)), ('gaussian', (0,)), ('migration', (1,))]
    """

    def __init__(
        self,
        founder: Tensor,
        layout: GenomeLayout,
        config: GAConfig,
        *,
        seed: int,
        others: Tensor | None = None,
        summands: int = 0,
    ) -> None:
        self.migrate_every = config.migrate_every
        self.ids, count = Ids(), config.islands
        self.islands = [
            GeneticAlgorithm(
                founder,
                layout,
                config.model_copy(
                    update={
                        "pop": config.pop // count + (place < config.pop % count),
                        "elites": -(-config.elites // count),
                        "children": -(-config.children // count),
                        "islands": 1,
                    }
                ),
                seed=seed,
                ids=self.ids,
                with_base=place == 0,
                # Dealt in turn, the founder first.
                others=None if others is None else others[(place - 1) % count :: count],
                summands=summands,
            )
            for place in range(count)
        ]

    @property
    def generation(self) -> int:
        return self.islands[0].generation

    def ask(self) -> Population:
        first, *others = (island.ask() for island in self.islands)
        for other in others:
            first = first.join(other)
        return first

    def favourites(self) -> Sequence[int]:
        sizes = [len(island.ask()) for island in self.islands]
        starts = [sum(sizes[:place]) for place in range(len(sizes))]
        return [start + row for start, island in zip(starts, self.islands, strict=True) for row in island.favourites()]

    def new_id(self) -> int:
        return self.ids.new()

    def tell(self, population: Population, fitness: npt.NDArray[np.float64]) -> None:
        """Propose the next population. Raises ValueError when every individual has failed."""
        best_of_all = int(elites(torch.from_numpy(fitness), 1)[0])
        parts: list[tuple[Population, npt.NDArray[np.float64]]] = []
        start, home = 0, 0
        for place, island in enumerate(self.islands):
            rows = range(start, start + island.config.pop)
            parts.append((population.select(rows), fitness[rows.start : rows.stop]))
            home, start = (place if best_of_all in rows else home), rows.stop
        migrates = self.generation % self.migrate_every == 0
        for island, (part, values) in zip(self.islands, parts, strict=True):
            if np.isnan(values).all():
                island.breed(*parts[home], keep=False)
            else:
                island.tell(part, values)
        if migrates:
            for place, (part, values) in enumerate(parts):
                if not np.isnan(values).all():
                    self._migrate(part, values, self.islands[(place + 1) % len(self.islands)])

    def _migrate(self, source: Population, fitness: npt.NDArray[np.float64], target: GeneticAlgorithm) -> None:
        best = int(elites(torch.from_numpy(fitness), 1)[0])
        original = source.individuals[best]
        copy = Individual(
            id=self.new_id(),
            parents=(original.id,),
            operator="migration",
            born=target.generation,
            mutation_scale=original.mutation_scale,
            hyperparameters=original.hyperparameters,
        )
        target.replace_last(source.genomes[best], copy)

    def state_dict(self) -> dict[str, Any]:
        return {
            f"{place}.{name}": value
            for place, island in enumerate(self.islands)
            for name, value in island.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for place, island in enumerate(self.islands):
            prefix = f"{place}."
            island.load_state_dict(
                {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            )

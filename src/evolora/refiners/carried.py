"""What individuals carry from one refinement to the next: the optimiser's state, say."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evolora.population.population import Individual

# Tensors by name; the names and shapes are the same for every individual of a run.
Carried = Mapping[str, Tensor]

_PREFIX, _OWNERS = "carried.", "carried.owners"


class CarriedStates:
    """The states of individuals by their id. Children that have none inherit their first parent's that has one.

    >>> carried = CarriedStates()
    >>> carried.give(3, {"steps": torch.tensor(7)})
    >>> child = Individual(id=9, parents=(2, 3), operator="uniform", born=2, mutation_scale=0.02)
    >>> carried.keep([child])
    >>> carried.of(9), carried.of(3)
    ({'steps': tensor(7)}, {})
    """

    def __init__(self) -> None:
        self._states: dict[int, Carried] = {}

    def of(self, individual: int) -> Carried:
        """An individual's state; empty if it has none."""
        return self._states.get(individual, {})

    def give(self, individual: int, state: Carried) -> None:
        """From now on the individual has this state. An empty one is none."""
        if state:
            self._states[individual] = {name: value.cpu() for name, value in state.items()}

    def keep(self, individuals: Sequence[Individual]) -> None:
        """Forget all but these individuals, once they have inherited."""
        self._states = {individual.id: state for individual in individuals if (state := self._inherited(individual))}

    def _inherited(self, individual: Individual) -> Carried:
        found = (self.of(each) for each in (individual.id, *individual.parents))
        return next(filter(None, found), {})

    def state_dict(self) -> dict[str, Any]:
        """Empty without states; else each distinct state once, and who has which."""
        if not self._states:
            return {}
        distinct = list({id(state): state for state in self._states.values()}.values())
        rows = {id(state): row for row, state in enumerate(distinct)}
        owners = [[individual, rows[id(state)]] for individual, state in self._states.items()]
        return {
            _OWNERS: owners,
            **{_PREFIX + name: torch.stack([state[name] for state in distinct]) for name in distinct[0]},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        names = [name for name in state if name.startswith(_PREFIX) and name != _OWNERS]
        owners = state.get(_OWNERS, [])
        distinct = {row: {name.removeprefix(_PREFIX): state[name][row].clone() for name in names} for _, row in owners}
        self._states = {individual: distinct[row] for individual, row in owners}

"""What a strategy is: how the next population is proposed."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from evolora.population.population import Population

# Tensors and what JSON can hold, by name: what a checkpoint writes.
State = dict[str, Any]


class Strategy(Protocol):
    """Proposes populations (`ask`) and learns from their fitness (`tell`)."""

    def ask(self) -> Population:
        """The population to evaluate. The same one until `tell`."""
        ...

    def tell(self, population: Population, fitness: npt.NDArray[np.float64]) -> None:
        """Take the evaluated population back, refined genomes included, with its fitness [n]: maximised, NaN for a
        failed individual."""
        ...

    def new_id(self) -> int:
        """An id that no individual of the run has had, for one that was made outside the strategy."""
        ...

    def favourites(self) -> Sequence[int]:
        """The rows of `ask` that are candidates for the winner although nobody has measured them yet."""
        return ()

    def metrics(self) -> dict[str, float]:
        """What the strategy logs of itself, after `tell`; the log names it `strategy.<name>`."""
        return {}

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

"""The genetic operators by name. Those of one kind share one signature, so that a strategy calls any of them alike."""

from collections.abc import Mapping
from typing import get_args

from evolora.strategies.operators import crossover, mutation, selection
from evolora.strategies.operators.crossover import Crossover
from evolora.strategies.operators.mutation import Mutation, one_fifth, self_adapt
from evolora.strategies.operators.selection import Selection, elites
from evolora.strategies.options import CrossoverName, MutationName, SelectionName

MUTATIONS: Mapping[str, Mutation] = {name: getattr(mutation, name) for name in get_args(MutationName)}
CROSSOVERS: Mapping[str, Crossover] = {name: getattr(crossover, name) for name in get_args(CrossoverName)}
# Crossovers whose first parent must be the fitter one.
FITTER_FIRST = frozenset({"extrapolative"})
SELECTIONS: Mapping[str, Selection] = {name: getattr(selection, name) for name in get_args(SelectionName)}

__all__ = [
    "CROSSOVERS",
    "FITTER_FIRST",
    "MUTATIONS",
    "SELECTIONS",
    "Crossover",
    "Mutation",
    "Selection",
    "elites",
    "one_fifth",
    "self_adapt",
]

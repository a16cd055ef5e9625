"""The genetic operators by name. Those of one kind share one signature, so that a strategy calls any of them alike."""

from collections.abc import Mapping
from typing import Literal

from evolora.strategies.operators import crossover, mutation, selection
from evolora.strategies.operators.crossover import Crossover
from evolora.strategies.operators.mutation import Mutation, self_adapt
from evolora.strategies.operators.selection import Selection, elites

MutationName = Literal["gaussian", "relative", "module", "masked", "svd"]
CrossoverName = Literal["uniform", "module", "rank", "blend", "layer", "svd", "dare", "extrapolative"]
# Whose scale is one of weights, such as a refinement's step can be compared with.
ABSOLUTE_MUTATIONS = ("gaussian", "module", "masked")

MUTATIONS: Mapping[str, Mutation] = {
    "gaussian": mutation.gaussian,
    "relative": mutation.relative_gaussian,
    "module": mutation.module,
    "masked": mutation.masked,
    "svd": mutation.svd,
}
CROSSOVERS: Mapping[str, Crossover] = {
    "uniform": crossover.uniform,
    "module": crossover.module,
    "rank": crossover.rank,
    "blend": crossover.blend,
    "layer": crossover.layer,
    "svd": crossover.svd,
    "dare": crossover.dare,
    "extrapolative": crossover.extrapolative,
}
# Crossovers whose first parent must be the fitter one.
FITTER_FIRST = frozenset({"extrapolative"})
SELECTIONS: Mapping[str, Selection] = {
    "truncation": selection.truncation,
    "tournament": selection.tournament,
    "rank": selection.rank,
}

__all__ = [
    "ABSOLUTE_MUTATIONS",
    "CROSSOVERS",
    "FITTER_FIRST",
    "MUTATIONS",
    "SELECTIONS",
    "Crossover",
    "CrossoverName",
    "Mutation",
    "MutationName",
    "Selection",
    "elites",
    "self_adapt",
]

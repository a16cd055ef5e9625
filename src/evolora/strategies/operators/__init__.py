"""The genetic operators by name. Those of one kind share one signature, so that a strategy calls any of them alike."""

from collections.abc import Mapping

from evolora.strategies.operators import crossover, mutation, selection
from evolora.strategies.operators.crossover import Crossover
from evolora.strategies.operators.mutation import Mutation, self_adapt
from evolora.strategies.operators.selection import Selection, elites

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
    "CROSSOVERS",
    "FITTER_FIRST",
    "MUTATIONS",
    "SELECTIONS",
    "Crossover",
    "Mutation",
    "Selection",
    "elites",
    "self_adapt",
]

"""The genetic operators by name. Those of one kind share one signature, so that a strategy calls any of them alike.

The mutation `safe` and the crossover `distill` (`evolora.distillation`) are apart: besides the rows they need the
model.
"""

from collections.abc import Mapping

from evolora.operators import crossover, mutation, selection
from evolora.operators.crossover import Crossover
from evolora.operators.mutation import Mutation, safe, self_adapt
from evolora.operators.selection import Selection, elites

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
FITTER_FIRST = frozenset({"extrapolative", "distill"})
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
    "safe",
    "self_adapt",
]

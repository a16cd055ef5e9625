"""The genetic operators by name. Those of one kind share one signature, so that a strategy calls any of them alike."""

from collections.abc import Mapping

from evolora.operators import crossover, mutation, selection
from evolora.operators.crossover import Crossover
from evolora.operators.mutation import Mutation, self_adapt
from evolora.operators.selection import Selection, elites

MUTATIONS: Mapping[str, Mutation] = {
    "gaussian": mutation.gaussian,
    "relative": mutation.relative_gaussian,
}
CROSSOVERS: Mapping[str, Crossover] = {
    "uniform": crossover.uniform,
    "module": crossover.module,
    "rank": crossover.rank,
    "blend": crossover.blend,
}
SELECTIONS: Mapping[str, Selection] = {
    "truncation": selection.truncation,
    "tournament": selection.tournament,
    "rank": selection.rank,
}

__all__ = ["CROSSOVERS", "MUTATIONS", "SELECTIONS", "Crossover", "Mutation", "Selection", "elites", "self_adapt"]

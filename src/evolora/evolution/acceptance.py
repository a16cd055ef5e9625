"""What operators and the refined add to a generation: how the refined mutate, their metrics, what becomes of them."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from evolora.population.population import AVERAGE, Population
from evolora.refiners import Refinement

Floats = npt.NDArray[np.float64]

# Operators that make nobody new: the same weights again, or an average of those that are there.
_NOT_NEW = ("base", AVERAGE, "copy", "migration")


def added_by_operators(population: Population, fitness: Floats, generation: int) -> float:
    """How much fitter the best is for those whom operators made for this generation: 0 where none of them is the best,
    NaN where nobody else is there to compare with."""
    new = np.array([one.born == generation and one.operator not in _NOT_NEW for one in population.individuals])
    others = fitness[~new & ~np.isnan(fitness)]
    made = fitness[new & ~np.isnan(fitness)]
    return max(0.0, float(made.max(initial=-math.inf) - others.max())) if len(others) else math.nan


def mutation_scales(parents: Population, refinement: Refinement, *, rule: str) -> list[float]:
    """The refined individuals' mutation scales: their parents', or, by the rule `step`, at most what refinement changed
    a weight by, in the root mean square, so that a child does not undo what RL has found."""
    scales = [parent.mutation_scale for parent in parents.individuals]
    if rule == "keep":
        return scales
    steps = (refinement.genomes - parents.genomes).square().mean(dim=1).sqrt().tolist()
    return [min(scale, step) if step > 0 else scale for scale, step in zip(scales, steps, strict=True)]


def refined_metrics(
    refiner: str, refinement: Refinement, gains: Floats, accepted: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """The refinement's metrics, as docs/metrics.md defines them."""
    names = refinement.stats[0]
    figures = {
        "gain": float(np.nanmean(gains)) if not np.isnan(gains).all() else math.nan,
        "accepted": int(accepted.sum()),
        "refined": len(accepted),
        **{name: float(np.mean([stats[name] for stats in refinement.stats])) for name in names},
    }
    return {f"{refiner}.{name}": value for name, value in figures.items()}


def survival(refiner: str, population: Population, proposal: Population, generation: int) -> dict[str, int]:
    """What has become of this generation's refined in `proposal`, the population that was bred from `population`, and
    how many of any generation live there, as ERL counts those that RL has put in (Khadka and Tumer, 2018, arXiv
    1805.07917)."""
    entered = {one.id for one in population.individuals if one.operator == refiner and one.born == generation}
    kept = entered & {one.id for one in proposal.individuals}
    parents = {parent for one in proposal.individuals if one.operator != AVERAGE for parent in one.parents}
    selected = (entered & parents) - kept
    figures = {
        "kept": len(kept),
        "selected": len(selected),
        "discarded": len(entered) - len(kept) - len(selected),
        "living": sum(one.operator == refiner for one in proposal.individuals),
    }
    return {f"{refiner}.{name}": value for name, value in figures.items()}

"""What operators and the refined add to a generation: how the refined mutate, their metrics, what becomes of them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evolora.evolution.comparison import within_noise
from evolora.population.evaluation import Evaluation
from evolora.population.population import AVERAGE, Population
from evolora.refiners import Refinement

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]

# Of two chances of a hit, how many times the other the better one is; they are exact, and differ by factors of ten.
_CLEARLY = 2.0
# Operators that make nobody new: the same weights again, or an average of those that are there.
_NOT_NEW = ("base", AVERAGE, "copy", "migration")


def added_by_operators(population: Population, fitness: Floats, generation: int) -> float:
    """How much fitter the best is for those whom operators made for this generation: 0 where none of them is the best,
    NaN where nobody else is there to compare with."""
    new = np.array([one.born == generation and one.operator not in _NOT_NEW for one in population.individuals])
    others = fitness[~new & ~np.isnan(fitness)]
    made = fitness[new & ~np.isnan(fitness)]
    return max(0.0, float(made.max(initial=-math.inf) - others.max())) if len(others) else math.nan


def standing(evaluation: Evaluation) -> Floats:
    """The fitness [n] by which individuals are chosen: among equals the chance of a hit decides, where it is known, and
    then the reward, where a fitness stands beside it. They are set apart by less than there is between others.

    >>> from evolora.fitness.base import Judged
    >>> from evolora.models.cost import Cost
    >>> one, two = Judged(0.5, 0, np.array([0.5])), Judged(0.0, 0, np.array([0.0]))
    >>> rewards = np.array([[0.1], [0.3], [0.2]])
    >>> apart = standing(Evaluation(np.array([0.0, 0.5, 0.0]), rewards, [], Cost(), 0, [], {}, [two, one, two]))
    >>> bool(apart[0] == 0.0 < apart[2] < apart[1] == 0.5)
    True
    """
    fitness, chances = evaluation.fitness, evaluation.hit_chances
    if not evaluation.judged and chances is None:
        return fitness
    rewards = np.nan_to_num(evaluation.mean_rewards, nan=-np.inf)
    first = np.zeros_like(rewards) if chances is None else np.nan_to_num(chances, nan=-np.inf)
    values = np.unique(fitness[~np.isnan(fitness)])
    least = min([1e-9 * max(1.0, float(np.abs(values).max(initial=0.0))), *(np.diff(values) / 2)])
    apart = fitness.copy()
    for value in values:
        equals = np.flatnonzero(fitness == value)
        ranks = np.unique(np.stack([first[equals], rewards[equals]], 1), axis=0, return_inverse=True)[1].ravel()
        apart[equals] += least * ranks / len(equals)
    return apart


def entering(accept: str, before: Evaluation, rows: Sequence[int], refined: Evaluation, *, seed: int) -> Booleans:
    """Which of the refined take their parents' places, who are at `rows` of what was measured before; NaN never does.

    With `always` all others do. With `better` those that are no less fit: a tie goes to the refined, which more prompts
    have shaped. A fitness beside the reward says little on a few prompts, or is 0 at first for everybody: there only
    those are refused whose fitness falls beyond the noise, and among those that it cannot tell from their parents,
    those that clearly hit less often than these, or that earn less and do not clearly hit more often."""
    if accept == "always":
        return ~np.isnan(refined.fitness)
    if not refined.judged:
        return np.greater_equal(refined.fitness, before.fitness[rows])
    earned = refined.mean_rewards - before.mean_rewards[rows]
    hits = np.zeros_like(earned)
    if before.hit_chances is not None and refined.hit_chances is not None:
        hits = clearly_more(refined.hit_chances, before.hit_chances[rows])
    return np.array(
        [
            not np.isnan(child.fitness)
            and (
                not child.fitness <= parent.fitness
                or (within_noise(child, parent, seed=seed) and not (hits[index] or earned[index]) < 0)
            )
            for index, (child, parent) in enumerate(
                (refined.of(index), before.of(row)) for index, row in enumerate(rows)
            )
        ],
        dtype=np.bool_,
    )


def clearly_more(chances: Floats, others: Floats) -> Floats:
    """Whose chances of a hit are the better by so much that a reward need not be asked: 1, -1 for the worse, else 0."""
    return (chances > _CLEARLY * others).astype(np.float64) - (others > _CLEARLY * chances).astype(np.float64)


def mutation_scales(parents: Population, refinement: Refinement, *, rule: str) -> list[float]:
    """The refined individuals' mutation scales: their parents', or, by the rule `step`, at most what refinement changed
    a weight by, in the root mean square, so that a child does not undo what RL has found."""
    scales = [parent.mutation_scale for parent in parents.individuals]
    if rule == "keep":
        return scales
    steps = (refinement.genomes - parents.genomes).square().mean(dim=1).sqrt().tolist()
    return [min(scale, step) if step > 0 else scale for scale, step in zip(scales, steps, strict=True)]


def gene_means(population: Population, summands: Sequence[str]) -> dict[str, float]:
    """The population's mean of each gene, by its name; of rates and KL weights the geometric one."""
    own = [one.hyperparameters.named(summands) for one in population.individuals if one.hyperparameters is not None]
    means = {}
    for name in own[0] if own else ():
        values = np.array([each[name] for each in own])
        geometric = name in ("lr", "kl_weight") and bool((values > 0).all())
        means[f"gene.{name}"] = float(np.exp(np.log(values).mean()) if geometric else values.mean())
    return means


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

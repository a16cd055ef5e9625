"""Who wins: the best finalist on the validation split, or the average of the best, or a lineage's own average."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from evolora.evolution.comparison import within_noise
from evolora.evolution.loop import Evolution
from evolora.evolution.soup import SOUP, soup
from evolora.population.evaluation import Evaluation
from evolora.population.population import AVERAGE, Individual, Population, newest
from evolora.rng import keyed_seed
from evolora.strategies.operators import elites
from evolora.tasks.task import Example

Floats = npt.NDArray[np.float64]


def finalists(evolution: Evolution) -> Population:
    """The candidates for the winner: the best on validation so far, the best of the last generation, and the
    strategy's favourites."""
    known = evolution.hall_of_fame.ids
    last = evolution.strategy.ask()
    fresh = [
        row
        for row, individual in enumerate(last.individuals)
        if individual.id not in known
        and (
            row in evolution.strategy.favourites()
            or (individual.history and not math.isnan(history_fitness(individual)))
        )
    ]
    return evolution.hall_of_fame.members.join(last.select(fresh)) if fresh else evolution.hall_of_fame.members


def choose_winner(evolution: Evolution) -> tuple[Population, float]:
    """The best finalist on the validation split, as a population of one, and its fitness there."""
    best, fitness, _ = best_finalists(evolution, 1)
    return best, float(fitness[0])


def best_finalists(evolution: Evolution, count: int) -> tuple[Population, Floats, int]:
    """The best `count` finalists on the validation split, or all that did not fail, best first, before them their soup
    if it wins; their fitness there; and on how many of its prompts.

    Where the reward scored nothing there, it is the one who was fittest when last measured, or the base
    where nobody ever had a fitness; the fitness there is NaN.
    """
    candidates, evaluation, examples = evolution.measure_finalists(finalists(evolution))
    if np.isnan(evaluation.fitness).all():
        trained = [row for row, each in enumerate(candidates.individuals) if each.history]
        best_row = max(trained, key=lambda row: history_fitness(candidates.individuals[row]), default=0)
        return candidates.select([best_row]), evaluation.fitness[[best_row]], len(examples)
    rows = ranked(evolution, candidates, evaluation)
    best, fitness = candidates.select(rows), evaluation.fitness[rows]
    if (made := _soup(evolution, candidates, evaluation, rows, examples)) is not None:
        best, fitness = made[0].join(best), np.append(made[1], fitness)
    return best.select(range(len(best))[:count]), fitness[:count], len(examples)


def _soup(
    evolution: Evolution,
    candidates: Population,
    evaluation: Evaluation,
    rows: Sequence[int],
    examples: Sequence[Example],
) -> tuple[Population, Floats] | None:
    """The average of the best finalists and its fitness, if it is about as good as the best of them, who is also the
    luckiest, and no worse than the base; none where nobody is better than the base. `rows` are the finalists', best
    first.

    Where rewards vary the finalists are lucky ones of any generation, which pull the average down.
    """
    base = evaluation.fitness[0]
    if evaluation.fitness[rows[0]] <= base:  # the average of those who are no better is no better
        return None
    members = [row for row in rows if row > 0 and evaluation.fitness[row] >= base][: evolution.config.soup]
    if len(members) < 2 or not evolution.config.remember:
        return None
    # Born after the last generation: a run that is resumed for more of them forgets it, and gives its id anew.
    mixed = soup(candidates, members, id=evolution.strategy.new_id(), generation=evolution.generation + 1)
    mixed, mixed_evaluation = evolution.measure(mixed, examples, SOUP)
    fitness = mixed_evaluation.fitness
    # NaN, of one that failed, is not as good as anything.
    seed = keyed_seed(evolution.config.seed, SOUP)
    good = fitness[0] >= base and within_noise(mixed_evaluation.of(0), evaluation.of(rows[0]), seed=seed)
    return (mixed, fitness) if good else None


def ranked(evolution: Evolution, candidates: Population, evaluation: Evaluation) -> list[int]:
    """The rows of the finalists that did not fail, best first.

    Where rewards vary the first of many is the luckiest, so there a lineage's average, which most prompts have
    shaped, comes first unless another clearly beats it; only one that is better than the base.
    """
    rows: list[int] = elites(torch.from_numpy(evaluation.fitness), len(candidates)).tolist()
    average = newest(candidates, AVERAGE)
    if evolution.config.remember or average not in rows or evaluation.fitness[average] <= evaluation.fitness[0]:
        return rows
    if evolution.clearly_loses(average, rows[0], evaluation, "winner"):
        return rows
    return [average, *(row for row in rows if row != average)]


def history_fitness(individual: Individual) -> float:
    """An individual's latest fitness."""
    return individual.history[-1][1]

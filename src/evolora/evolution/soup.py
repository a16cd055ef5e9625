"""The soup of a run's finalists: their average, one more candidate for the winner.

Wortsman et al. (2022, "Model soups", arXiv 2203.05482) average what fine-tunings of one model ended with; the finalists
of one lineage, which lie as close together, are averaged here, factor by factor.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from evolora.population.population import Population

Floats = npt.NDArray[np.float64]

# The operator that averages the finalists.
SOUP = "soup"


def soup(finalists: Population, rows: Sequence[int], *, id: int, generation: int) -> Population:
    """The mean genome of the finalists at `rows`, as a population of one; it mutates as the first of them.

    >>> import torch
    >>> from evolora.population.population import Individual
    >>> base = Individual(id=0, parents=(), operator="base", born=0, mutation_scale=0.02)
    >>> both = Population(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), (base, replace(base, id=1)))
    >>> made = soup(both, [0, 1], id=2, generation=5)
    >>> made.genomes.tolist(), made.individuals[0].parents
    ([[0.5, 1.0]], (0, 1))
    """
    members = finalists.select(rows)
    made = replace(
        members.individuals[0],
        id=id,
        parents=tuple(individual.id for individual in members.individuals),
        operator=SOUP,
        born=generation,
        history=(),
    )
    return Population(members.genomes.mean(dim=0, keepdim=True), (made,))


def within_a_standard_error(rewards: Floats, best: Floats) -> bool:
    """Whether rewards [prompts] are on average no further below the best's, on the same prompts, than one standard
    error of their difference: the best of several owes about as much to luck. The rule is that of Breiman et al. (1984,
    "Classification and regression trees", section 3.4.3). Prompts on which either has no score are left out; of a
    single prompt the error is 0.

    >>> within_a_standard_error(np.array([0.9, 0.5, 0.7]), np.array([0.8, 0.8, 0.8]))
    True
    >>> within_a_standard_error(np.array([0.5, 0.5, 0.5]), np.array([0.8, 0.8, 0.8]))
    False
    """
    gaps = best - rewards
    gaps = gaps[~np.isnan(gaps)]
    if len(gaps) == 0:
        return False
    error = gaps.std(ddof=1) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    # Equal rewards may differ by rounding.
    return bool(gaps.mean() <= error + 1e-12)

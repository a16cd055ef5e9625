"""Diversity: how far genomes lie from each other, and fitness shared among those that lie close."""

import math

import torch
from torch import Tensor


def distances(genomes: Tensor) -> Tensor:
    """The root mean square difference of each pair's weights: [n, n] from [n, genome_length], in float64.

    >>> distances(torch.tensor([[0.0, 0.0], [3.0, 3.0]])).round(decimals=4).tolist()
    [[0.0, 3.0], [3.0, 0.0]]
    """
    # Not by inner products, which would lose the small differences of kin.
    lengths = torch.cdist(genomes[None], genomes[None], compute_mode="donot_use_mm_for_euclid_dist")[0]
    return lengths.double() / math.sqrt(genomes.shape[1])


def spread(genomes: Tensor) -> float:
    """The root mean square difference over weights and pairs, 0 for a single genome; in one pass, for the mean of the
    pairs' squared differences is twice the variance.

    >>> round(spread(torch.tensor([[0.0, 0.0], [3.0, 3.0]])), 6)
    3.0
    """
    return math.sqrt(2 * float(genomes.var(dim=0).double().mean())) if len(genomes) > 1 else 0.0


def shared_fitness(fitness: Tensor, genomes: Tensor, *, radius: float) -> Tensor:
    """Fitness sharing (Goldberg and Richardson, 1987): what an individual has above the worst is divided by how crowded
    its niche is, f'_i = (f_i - min f) / sum over j of max(0, 1 - d_ij / (radius * mean distance)).

    An individual counts itself as 1, so that one far from all others keeps its own. The distance is that of
    `distances`; the radius is in units of the population's mean distance, which shrinks and grows as the population
    does. The failed
    (NaN) stay so, and crowd nobody. A population without any distance shares evenly.

    `fitness` is [n], `genomes` [n, genome_length], the result [n]. Raises ValueError unless radius is positive.

    >>> fitness = torch.tensor([0.0, 1.0, 1.0, 0.75])
    >>> shared_fitness(fitness, torch.tensor([[0.0], [1.0], [1.0], [9.0]]), radius=0.1)  # two are twins
    tensor([0.0000, 0.5000, 0.5000, 0.7500])
    """
    if radius <= 0:
        raise ValueError(f"radius must be positive, found {radius}")
    alive = ~fitness.isnan()
    if not bool(alive.any()):
        return fitness
    pairs = distances(genomes[alive])
    n = len(pairs)
    unit = radius * float(pairs.sum()) / max(1, n * (n - 1))
    shares = (1 - pairs / unit).clamp(min=0) if unit > 0 else torch.ones_like(pairs)
    shared = fitness.clone()
    above = fitness[alive] - fitness[alive].min()
    shared[alive] = (above.double() / shares.sum(dim=1)).to(fitness.dtype)
    return shared

"""EGGROLL (Sarkar et al., 2025, "Evolution strategies at the hyperscale", arXiv 2511.16652): an evolution strategy
whose noise on each weight matrix has a low rank."""

import torch
from torch import Tensor

from evolora.models.genome import GenomeLayout
from evolora.rng import keyed_generator
from evolora.strategies.es import EvolutionStrategy
from evolora.strategies.options import EggrollConfig


class Eggroll(EvolutionStrategy):
    """The evolution strategy with noise E = U V^T / sqrt(r) on each matrix W [m, n], U [m, r] and V [n, r] standard
    normal, r `rank`: each entry has mean 0 and variance 1, and the entries of one matrix are uncorrelated. A single
    perturbation has rank r; the update, the sum of all of them by their ranks, has up to r times the pairs.

    The matrices here are LoRA's factors A [rank, in] and B [out, rank], each with noise of its own, and not the base's
    weights. So the change of B A is not of rank r in general, and it stays within the adapter's rank as any genome
    does. What the paper gains, cheap products with noise that is never written out, has no place here: a genome is
    already small, and its noise is. What remains is a search by fewer random numbers, whose steps are structured: with
    r = 1 all rows of a factor move along one direction.

    The paper's fitness is shaped otherwise (by subtracting means and dividing by deviations); centred ranks, pairs, the
    optimiser and the mean are those of `EvolutionStrategy`.

    >>> from evolora.models.genome import AdaptedModule
    >>> layout = GenomeLayout((AdaptedModule("layer", "a", "b", 3, 4, 2, 2.0, 0, 6),))
    >>> eggroll = Eggroll(torch.zeros(14), layout, EggrollConfig(pop=5, rank=1), seed=0)
    >>> [int(torch.linalg.matrix_rank(factor[0])) for factor in next(layout.factors(eggroll.noise(0)[None]))[1:]]
    [1, 1]
    """

    def __init__(self, founder: Tensor, layout: GenomeLayout, config: EggrollConfig, *, seed: int) -> None:
        self.layout = layout
        self.rank = config.rank
        super().__init__(founder, config, seed=seed)

    def noise(self, pair: int) -> Tensor:
        generator = keyed_generator(self.seed, "eggroll noise", self.generation, pair)
        noise, rank = torch.empty(1, self.layout.genome_length, dtype=torch.float32), self.rank
        for _, a, b in self.layout.factors(noise):
            for factor in (a[0], b[0]):
                left, right = (
                    torch.randn(size, rank, generator=generator, dtype=torch.float32) for size in factor.shape
                )
                factor.copy_(left @ right.T / rank**0.5)
        return noise[0]

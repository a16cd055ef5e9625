"""Whom to select where greedy completions tell nobody apart: by how probable what is paid is, be it ever so little.

Where hits are known, the chance of each is computed, and nothing is sampled. Where none is, samples at temperature 1
are dealt by successive halving (Karnin et al., 2013, "Almost optimal exploration in multi-armed bandits"; Jamieson and
Talwalkar, 2016, "Non-stochastic best arm identification and hyperparameter optimization"), as long as there may be
enough hits among them.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evolora.engine.base import Completions, Engine, Scoring, lengths_read
from evolora.engine.text import Text
from evolora.evolution.hits import KnownHit
from evolora.models.cost import Cost

Floats = npt.NDArray[np.float64]
# What the individuals of the rows [k] are paid for samples from a first number up to another, [k, samples].
Ask = Callable[[list[int], int, int], Floats]

# Of a generation's completions, the share that may be sampled to select by.
SHARE = 0.1
# How sure it is that nothing is as frequent as is said.
CONFIDENCE = 0.95
# Standard errors that are no chance, at 95%.
_ERRORS = 1.96
# What a better individual is to be told from: one that hits so many times less often.
_FACTOR = 10.0


def samples_to_tell(better: float, worse: float) -> int:
    """How many samples of each of two individuals it takes to tell their shares of hits apart: their difference is then
    1.96 of its standard errors.

    >>> samples_to_tell(0.01, 0.001), samples_to_tell(0.1, 0.01), samples_to_tell(0.001, 0.0001)
    (517, 48, 5213)
    """
    variance = better * (1 - better) + worse * (1 - worse)
    return math.ceil(_ERRORS**2 * variance / (better - worse) ** 2)


def least_told(samples: int) -> float:
    """The least share of hits that so many samples of each tell from a tenth of it: `samples_to_tell` solved for it.

    >>> round(least_told(517), 4), round(least_told(14), 2)
    (0.01, 0.28)
    """
    errors = _ERRORS**2
    return (1 + 1 / _FACTOR) * errors / ((1 - 1 / _FACTOR) ** 2 * samples + (1 + 1 / _FACTOR**2) * errors)


def most_often(count: int) -> float:
    """How often what was not seen in so many samples may come at most, at the confidence: 1 - 0.05^(1 / count), about
    3 / count (Hanley and Lippman-Hand, 1983).

    >>> round(most_often(64), 4)
    0.0457
    """
    return float(1 - (1 - CONFIDENCE) ** (1 / count)) if count else 1.0


def samples_a_round(n: int, budget: int) -> list[int]:
    """How many samples each individual that is still there gets, round after round: a round has an equal part of the
    budget, and the better half goes on. Empty where a round has none for each.

    >>> samples_a_round(8, 51), samples_a_round(8, 20)
    ([2, 4, 8], [])
    """
    rounds = max(1, math.ceil(math.log2(n)))
    sizes = [-(-n // 2**number) for number in range(rounds)]
    each = [budget // (rounds * size) for size in sizes]
    return each if each[0] else []


def halved(n: int, budget: int, ask: Ask) -> Floats:
    """What each of n individuals is paid a sample, [n], from at most `budget` samples in all, dealt by successive
    halving: the mean of all its samples, though no more than that of anybody who stayed longer. The first of equals go
    on. NaN where nothing had a score."""
    paid: list[list[float]] = [[] for _ in range(n)]
    left, start, dropped = list(range(n)), 0, list[list[int]]()
    for samples in samples_a_round(n, budget):
        found = ask(left, start, start + samples)
        start += samples
        for row, values in zip(left, found.tolist(), strict=True):
            paid[row] += [value for value in values if not math.isnan(value)]
        best = sorted(left, key=lambda row: -_mean(paid[row]))
        left, out = best[: -(-len(best) // 2)], best[-(-len(best) // 2) :]
        dropped.append(out)
    means = np.array([_mean(own) for own in paid])
    least = min(means[left], default=math.inf)
    for out in reversed(dropped):
        means[out] = np.minimum(means[out], least)
        least = min([least, *means[out]])
    return np.where(np.isneginf(means), np.nan, means)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else -math.inf


@dataclass(frozen=True)
class HitChances:
    """An engine that says how probable known hits are, at most `rows` of them at a time."""

    engine: Engine
    text: Text
    rows: int

    def expected(self, genomes: Tensor, hits: Iterable[KnownHit]) -> tuple[Floats, Cost]:
        """What each of `genomes` [n, genome_length] earns by known hits, [n]: the sum of what each is worth, times the
        probability of that completion of its prompt; and the cost. Each is scored alone: in any company it is the
        same."""
        known = list(hits)
        prompts = self.text.encode([hit.prompt for hit in known])
        whole = Completions.of_ids([hit.completion_ids for hit in known], self.text.pad).to(self.engine.device)
        worth = np.array([hit.worth for hit in known])
        chances = np.zeros((len(genomes), len(known)))
        for row, genome in enumerate(genomes):
            for start in range(0, len(known), self.rows):
                some = slice(start, min(start + self.rows, len(known)))
                part = whole.select(torch.arange(some.start, some.stop, device=whole.mask.device))
                scored = self.engine.score(genome[None], prompts[some], part, Scoring())
                sums = scored.log_probs.where(part.mask, 0.0).sum(-1)
                chances[row, some] = sums.cpu().double().exp().numpy()
        passes = self.engine.size.forward(lengths_read(prompts, whole)) * len(genomes)
        return chances @ worth, Cost(flops=passes)

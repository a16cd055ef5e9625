"""Races: individuals that clearly lose on the first prompts do not meet the rest.

After Hoeffding races (Maron and Moore, 1994, "Hoeffding races: accelerating model selection search") and F-Race
(Birattari et al., 2002, "A racing algorithm for configuring metaheuristics"), which stop candidates that a statistical
test tells from the best; Heidrich-Meisner and Igel (2009, "Hoeffding and Bernstein races for selecting policies in
evolutionary direct policy search") race the individuals of an evolution. Here the test is Fisher's randomisation test
on paired rewards: all individuals meet the same prompts, so what makes a prompt easy or hard cancels out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from evolora.errors import InputError
from evolora.fitness.base import Judged
from evolora.models.cost import Cost
from evolora.population.evaluation import Evaluation, Evaluator, best_first, mean_fitness
from evolora.tasks.task import Example

Floats = npt.NDArray[np.float64]

_FLIPS = 2000


@dataclass(frozen=True)
class Race:
    """What a race measured, how many individuals it `dropped` before the end, and how many completions it `saved`."""

    evaluation: Evaluation
    dropped: int
    saved: int


def race(
    evaluator: Evaluator,
    genomes: Tensor,
    examples: Sequence[Example],
    *,
    keep: int,
    block: int,
    level: float,
    seed: int,
) -> Race:
    """Fitness of `genomes` [n, genome_length] on `examples`, a `block` of them after another.

    After each block an individual leaves that is worse than the `keep`-th best of those still there, by a one-sided
    randomisation test at `level` on all prompts so far. Its rewards on the rest are NaN, and its fitness its mean so
    far, but always below that of every individual that stayed: it was not lucky to meet few prompts. `seed` is that of
    the test's random sign flips.
    """
    n, beside, paid = len(genomes), False, False
    rewards = np.full((n, len(examples)), np.nan)
    scores = rewards.copy()
    texts: list[list[str]] = [[""] * len(examples) for _ in range(n)]
    ids: list[list[list[int]]] = [[[] for _ in examples] for _ in range(n)]
    terms: dict[str, Floats] = {}
    racing = list(range(n))
    cost, failed, saved = Cost(), 0, 0
    for start in range(0, len(examples), block):
        stop = min(start + block, len(examples))
        part = evaluator.evaluate(genomes[racing], examples[start:stop])
        cost, failed = cost + part.cost, failed + part.failed
        rewards[racing, start:stop], beside, paid = part.rewards, bool(part.judged), part.pays
        for place, row in enumerate(racing):
            by_prompt = part.of(place).by_prompt
            if by_prompt is None:
                raise InputError(
                    f"--racing {level} with a --fitness that judges the whole: expected none, as it says nothing of "
                    "the first prompts alone"
                )
            scores[row, start:stop] = by_prompt
        for name, values in part.terms.items():
            terms.setdefault(name, np.full_like(rewards, np.nan))[racing, start:stop] = values
        for place, row in enumerate(racing):
            texts[row][start:stop], ids[row][start:stop] = part.completions[place], part.completion_ids[place]
        if stop < len(examples):
            out = losers(scores[racing, :stop], keep=keep, level=level, seed=seed + stop)
            saved += len(out) * (len(examples) - stop)
            racing = [row for place, row in enumerate(racing) if place not in out]
    fitness = mean_fitness(scores)
    left = [row for row in range(n) if row not in racing]
    if left and not np.isnan(fitness[racing]).all():
        floor = np.nextafter(np.nanmin(fitness[racing]), -np.inf)
        fitness[left] = np.fmin(fitness[left], floor)
    judged = [
        Judged(float(own), 0, row, by_completion=row if paid else None)
        for own, row in zip(fitness, scores, strict=True)
        if beside
    ]
    return Race(Evaluation(fitness, rewards, texts, cost, failed, ids, terms, judged), len(left), saved)


def losers(rewards: Floats, *, keep: int, level: float, seed: int) -> set[int]:
    """Which rows of `rewards` [n, prompts] are significantly worse than the `keep`-th best row.

    Prompts on which either has no score are left out. A row without any score is no loser: it has failed, which its
    fitness will say.

    >>> import numpy as np
    >>> rewards = np.stack([np.ones(10), np.zeros(10), np.ones(10) * 0.9])
    >>> losers(rewards, keep=1, level=0.05, seed=0)
    {1, 2}
    >>> losers(rewards, keep=2, level=0.05, seed=0)
    {1}
    """
    means = mean_fitness(rewards)
    order = best_first(means)
    if len(order) <= keep or np.isnan(means[order[keep - 1]]):
        return set()
    reference = rewards[order[keep - 1]]
    generator = np.random.default_rng(seed)
    signs = generator.choice([-1.0, 1.0], (_FLIPS, rewards.shape[1]))
    found = set()
    for row in order[keep:]:
        gaps = reference - rewards[row]
        paired = ~np.isnan(gaps)
        gap = gaps[paired].sum()
        if gap <= 0:
            continue
        flipped = signs[:, paired] @ gaps[paired]
        # A sum of the same numbers in another order is a tie, at any scale of the rewards.
        rounding = 1e-12 * np.abs(gaps[paired]).sum()
        # The observed signs count as one of the flips (Phipson and Smyth, 2010): the level is never exceeded.
        if (1 + (flipped >= gap - rounding).sum()) / (1 + _FLIPS) < level:
            found.add(row)
    return found
